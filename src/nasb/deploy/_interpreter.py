"""A small interpreter of exported files, the oracle of verification.

It knows nothing of how a file was made: it parses the bytes, unpacks the weights by code of its own, and runs each node
with torch.nn.functional. It keeps every tensor, and the accumulators of the binary convolutions, by name.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import NodeProto, helper, numpy_helper
from torch import Tensor

Attributes = dict[str, Any]


@dataclass
class Values:
    """What one run of a file has computed."""

    tensors: dict[str, Tensor]
    """Every tensor, by name."""
    accumulators: dict[str, Tensor] = field(default_factory=dict)
    """Of the binary convolutions [N, C_out, H', W'], by the name of their output."""


class Interpreter:
    """Runs a file on images.

    Args:
        data: the file's bytes.
    """

    def __init__(self, data: bytes) -> None:
        self.graph = onnx.load_model_from_string(data).graph
        self._constants = {
            tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in self.graph.initializer
        }

    @torch.no_grad()
    def run(self, images_NCHW: Tensor) -> Values:  # noqa: N803
        """Return every tensor of the graph."""
        values = Values({**self._constants, self.graph.input[0].name: images_NCHW})
        for node in self.graph.node:
            attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            inputs = [values.tensors[name] for name in node.input]
            if node.domain == "nasb" and node.op_type == "BinaryConv2d":
                accumulators = _accumulate(inputs[0], inputs[1], attributes)
                values.accumulators[node.output[0]] = accumulators
                scale, bias = (numbers.view(-1, 1, 1) for numbers in inputs[2:])
                values.tensors[node.output[0]] = accumulators * scale + bias
            else:
                values.tensors[node.output[0]] = _run(node, inputs, attributes)
        return values


def _accumulate(b_NCHW: Tensor, packed_OHWB: Tensor, a: Attributes) -> Tensor:  # noqa: N803
    """Return the exact sums: every accumulator is an integer below 2^24, which fp32 holds exactly."""
    bits = (packed_OHWB.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
    signs_OHWI = 1 - 2 * bits.flatten(-2)[..., : a["channels"]].float()
    top, left, bottom, right = a["pads"]
    padded = F.pad(b_NCHW, (left, right, top, bottom), value=a["pad_value"])
    return F.conv2d(padded, signs_OHWI.permute(0, 3, 1, 2), None, a["strides"], 0, a["dilations"], a["group"])


def _run(node: NodeProto, inputs: list[Tensor], attributes: Attributes) -> Tensor:
    return OPERATORS[node.op_type](attributes, *inputs)


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    top, left, bottom, right = a["pads"]
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, a["strides"], 0, a["dilations"], a["group"])


def _gemm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    assert a["transB"] == 1
    return F.linear(x, weight, bias)


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    top, left, bottom, right = a["pads"]
    padded = F.pad(x, (left, right, top, bottom), value=-torch.inf)
    return F.max_pool2d(padded, a["kernel_shape"], a["strides"], 0, a["dilations"])


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    top, left, bottom, right = a["pads"]

    def average(values: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(values, (left, right, top, bottom)), a["kernel_shape"], a["strides"])

    # Averages over the window divide by its whole size; that of ones is the share of pixels that lie inside.
    return average(x) if a["count_include_pad"] else average(x) / average(torch.ones_like(x[:1, :1]))


def _pad(a: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None) -> Tensor:
    begin, end = pads.view(2, -1).tolist()
    if a["mode"] == b"constant":
        widths = [width for axis in reversed(range(x.dim())) for width in (begin[axis], end[axis])]
        return F.pad(x, widths, value=0.0 if value is None else value.item())
    for axis in range(x.dim()):
        index = torch.arange(-begin[axis], x.shape[axis] + end[axis]).clamp(0, x.shape[axis] - 1)
        x = x.index_select(axis, index)
    return x


def _slice(a: Attributes, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor, steps: Tensor) -> Tensor:
    index = [slice(None)] * x.dim()
    for start, end, axis, step in zip(*(v.tolist() for v in (starts, ends, axes, steps)), strict=True):
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Binarize": lambda a, x, threshold: torch.where(x >= threshold, 1.0, -1.0),
    "Conv": _conv,
    "Gemm": _gemm,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda a, x: x.mean((2, 3), keepdim=True),
    "Relu": lambda a, x: F.relu(x),
    "PRelu": lambda a, x, slope: torch.where(x < 0, x * slope, x),
    "Clip": lambda a, x, low, high: x.clamp(low.item(), high.item()),
    "Sigmoid": lambda a, x: x.sigmoid(),
    "HardSigmoid": lambda a, x: (a["alpha"] * x + a["beta"]).clamp(0, 1),
    "HardSwish": lambda a, x: x * (x / 6 + 0.5).clamp(0, 1),
    "Add": lambda a, x, y: x + y,
    "Mul": lambda a, x, y: x * y,
    "Concat": lambda a, *tensors: torch.cat(tensors, a["axis"]),
    "Slice": _slice,
    "Pad": _pad,
    "Flatten": lambda a, x: x.flatten(1),
    "Reshape": lambda a, x, shape: x.reshape(len(x), *shape.tolist()[1:]),
}
"""Every operator that a file may hold besides nasb.BinaryConv2d (docs/onnx-file.md)."""
