"""The bodies of the two functions, run by ONNX's reference evaluator, against the layers of torch."""

import itertools

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from nasb.binary import BinaryConv2d, sign
from nasb.deploy.functions import functions
from nasb.deploy.packing import pack_signs


def run(operator, inputs, **attributes):
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8}
    names = list(inputs)
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["y"], domain="nasb", **attributes)],
        "one",
        [helper.make_tensor_value_info(name, kinds[inputs[name].dtype], None) for name in names],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nasb", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions(), ir_version=9)
    return torch.from_numpy(ReferenceEvaluator(model).run(None, inputs)[0])


@pytest.mark.parametrize("threshold", [0.0, -0.0, 0.25, float("nan")])
def test_binarize_compares(threshold):
    values = [-1.0, -1e-45, -0.0, 0.0, 1e-45, 0.25, np.nextafter(np.float32(0.25), np.float32(0)), np.inf, np.nan]
    x = np.array(values, dtype=np.float32).reshape(1, -1, 1, 1)
    found = run("Binarize", {"x": x, "t": np.array([threshold], dtype=np.float32)})
    assert torch.equal(found, sign(torch.from_numpy(x), torch.tensor([threshold])))


@pytest.mark.parametrize("shape", [(2, 5, 3, 3), (2, 5)])
def test_binarize_has_a_threshold_per_channel(shape):
    x, threshold = torch.randn(shape), torch.randn(5)
    found = run("Binarize", {"x": x.numpy(), "t": threshold.view(-1, *(1,) * (len(shape) - 2)).numpy()})
    assert torch.equal(found, sign(x, threshold.view(1, -1, *(1,) * (len(shape) - 2))))


CASES = list(itertools.product([1, 3], [1, 2], [1, 2], [0, 2], [1, 2], [0, 1, -1], [3, 16]))


@pytest.mark.parametrize(("kernel", "stride", "dilation", "padding", "groups", "pad_value", "channels"), CASES)
def test_binary_conv2d_sums_exactly(kernel, stride, dilation, padding, groups, pad_value, channels):
    inputs = channels * groups
    conv = BinaryConv2d(
        inputs, 4, kernel, stride, padding, dilation, groups, pad_value=pad_value, scale="none", bias=False
    )
    signs = sign(torch.randn(2, inputs, 7, 6))
    found = run(
        "BinaryConv2d",
        {
            "b": signs.numpy(),
            "w": pack_signs(conv.weight.detach().numpy()),
            "s": np.ones(4, dtype=np.float32),
            "o": np.zeros(4, dtype=np.float32),
        },
        strides=[stride] * 2,
        pads=[padding] * 4,
        dilations=[dilation] * 2,
        group=groups,
        channels=channels,
        pad_value=float(pad_value),
    )
    assert torch.equal(found, conv.accumulate(signs))


def test_pads_are_top_left_bottom_right_and_scale_comes_after_the_sum():
    signs = sign(torch.randn(1, 3, 4, 4))
    weight = torch.randn(2, 3, 2, 2)
    scale, bias = torch.tensor([0.3, -0.7]), torch.tensor([1.0, 2.0])
    found = run(
        "BinaryConv2d",
        {"b": signs.numpy(), "w": pack_signs(weight.numpy()), "s": scale.numpy(), "o": bias.numpy()},
        strides=[1, 2], pads=[1, 0, 2, 3], dilations=[1, 1], group=1, channels=3, pad_value=1.0,
    )  # fmt: skip
    padded = torch.nn.functional.pad(signs, (0, 3, 1, 2), value=1.0)
    sums = torch.nn.functional.conv2d(padded, sign(weight), stride=(1, 2))
    assert torch.equal(found, sums * scale.view(-1, 1, 1) + bias.view(-1, 1, 1))
