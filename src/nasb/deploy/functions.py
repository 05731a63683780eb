"""The two operators of the domain "nasb" as ONNX model-local functions, written in standard operators of opset 18.

A runtime that knows the operators runs its own kernels; any other one runs these bodies, from the same packed bits.
Meaning and layout: docs/onnx-file.md.
"""

from collections.abc import Sequence

import onnx
from onnx import FunctionProto, NodeProto, TensorProto, helper

DOMAIN = "nasb"
DOMAIN_VERSION = 1
OPSET = 18
"""The first default-domain opset with BitwiseAnd and with Pad's axes."""
BINARIZE = "Binarize"
BINARY_CONV = "BinaryConv2d"
ATTRIBUTES = ("strides", "pads", "dilations", "group", "channels", "pad_value")


def functions() -> list[FunctionProto]:
    """Return both functions."""
    return [_binarize(), _binary_conv()]


def _binarize() -> FunctionProto:
    """B = +1 where X >= threshold, else -1 (NaN compares false: -1)."""
    nodes = [
        _constant("plus", TensorProto.FLOAT, [1.0]),
        _constant("minus", TensorProto.FLOAT, [-1.0]),
        helper.make_node("GreaterOrEqual", ["X", "threshold"], ["high"]),
        helper.make_node("Where", ["high", "plus", "minus"], ["B"]),
    ]
    return _function(BINARIZE, ["X", "threshold"], ["B"], nodes, [])


def _binary_conv() -> FunctionProto:
    """Y = scale * acc + bias; acc: the convolution of B, padded with pad_value, with the unpacked signs W."""
    nodes = [
        # Unpack: [O, kH, kW, bytes, 1] >> [0..7], & 1; bits [O, kH, kW, 8 * bytes], of the group's channels; 1 - 2 bit.
        _constant("shifts", TensorProto.UINT8, range(8)),
        _constant("one", TensorProto.UINT8, [1]),
        _constant("last", TensorProto.INT64, [4]),
        _constant("flat", TensorProto.INT64, [0, 0, 0, -1]),
        _constant("from", TensorProto.INT64, [0]),
        _constant("vector", TensorProto.INT64, [1]),
        _constant("channel_axis", TensorProto.INT64, [3]),
        _constant("minus_two", TensorProto.FLOAT, [-2.0]),
        _constant("plus_one", TensorProto.FLOAT, [1.0]),
        _attribute("channels_number", "value_int", "channels", onnx.AttributeProto.INT),
        helper.make_node("Reshape", ["channels_number", "vector"], ["until"]),
        helper.make_node("Unsqueeze", ["W", "last"], ["bytes"]),
        helper.make_node("BitShift", ["bytes", "shifts"], ["shifted"], direction="RIGHT"),
        helper.make_node("BitwiseAnd", ["shifted", "one"], ["split"]),
        helper.make_node("Cast", ["split"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["real", "flat"], ["padded_bits"]),
        helper.make_node("Slice", ["padded_bits", "from", "until", "channel_axis"], ["bits"]),
        helper.make_node("Mul", ["bits", "minus_two"], ["twice"]),
        helper.make_node("Add", ["twice", "plus_one"], ["signs_OHWI"]),
        helper.make_node("Transpose", ["signs_OHWI"], ["signs_OIHW"], perm=[0, 3, 1, 2]),
        # Pad the two image axes, then convolve without padding.
        _attribute("border", "value_ints", "pads", onnx.AttributeProto.INTS),
        _attribute("border_value", "value_float", "pad_value", onnx.AttributeProto.FLOAT),
        _constant("image_axes", TensorProto.INT64, [2, 3]),
        helper.make_node("Pad", ["B", "border", "border_value", "image_axes"], ["padded"]),
        _with_references(
            helper.make_node("Conv", ["padded", "signs_OIHW"], ["acc"]),
            strides=onnx.AttributeProto.INTS,
            dilations=onnx.AttributeProto.INTS,
            group=onnx.AttributeProto.INT,
        ),
        _constant("per_channel", TensorProto.INT64, [-1, 1, 1]),
        helper.make_node("Reshape", ["scale", "per_channel"], ["scale_C11"]),
        helper.make_node("Reshape", ["bias", "per_channel"], ["bias_C11"]),
        helper.make_node("Mul", ["acc", "scale_C11"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias_C11"], ["Y"]),
    ]
    return _function(BINARY_CONV, ["B", "W", "scale", "bias"], ["Y"], nodes, ATTRIBUTES)


def _function(
    name: str, inputs: Sequence[str], outputs: Sequence[str], nodes: Sequence[NodeProto], attributes: Sequence[str]
) -> FunctionProto:
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, name, inputs, outputs, nodes, opsets, attributes)


def _constant(name: str, kind: int, values: Sequence[float]) -> NodeProto:
    tensor = helper.make_tensor("", kind, [len(values)], list(values))
    return helper.make_node("Constant", [], [name], value=tensor)


def _attribute(name: str, key: str, attribute: str, kind: onnx.AttributeProto.AttributeType) -> NodeProto:
    """Return a Constant whose value is an attribute of the function."""
    node = helper.make_node("Constant", [], [name])
    node.attribute.append(onnx.AttributeProto(name=key, type=kind, ref_attr_name=attribute))
    return node


def _with_references(node: NodeProto, **kinds: onnx.AttributeProto.AttributeType) -> NodeProto:
    """Hand attributes of the function on to a node under the same names."""
    for name, kind in kinds.items():
        node.attribute.append(onnx.AttributeProto(name=name, type=kind, ref_attr_name=name))
    return node
