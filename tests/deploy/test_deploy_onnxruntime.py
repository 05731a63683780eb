"""Stock ONNX Runtime runs the file as it is. It is a peer, not a dependency: it lives in an environment of its own."""

import numpy as np
import pytest
import torch
from deploy_reference import export, steady, zoo
from torch import nn

from nasb.binary import Binarize, BinaryConv2d
from nasb.networks import create_network

runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (a peer, not a dependency of nasb)")


def run(path, images, level="ORT_DISABLE_ALL"):
    options = runtime.SessionOptions()
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("pad_value", [-1, 0, 1])
def test_accumulators_are_equal(pad_value, groups, tmp_path):
    conv = BinaryConv2d(6, 4, 3, 2, 1, 2, groups, pad_value=pad_value, scale="none")
    network = nn.Sequential(Binarize(), conv, nn.Flatten()).eval()
    export(network, tmp_path / "m.onnx", (6, 9, 9))
    images = torch.randn(3, 6, 9, 9)
    with torch.no_grad():
        assert torch.equal(run(tmp_path / "m.onnx", images), network(images))


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize(
    "options", [{}, {"activation": "rprelu", "bases": 2, "shortcut": "adapt"}, {"nodes": 2, "pad_value": 1}]
)
def test_cells(options, level, tmp_path):
    network = steady(zoo(**options).build(), (3, 16, 16))
    export(network, tmp_path / "m.onnx", (3, 16, 16))
    few_signs_turn(network, tmp_path / "m.onnx", (3, 16, 16), level)


@pytest.mark.parametrize("name", ["resnet20", "bireal_resnet20", "bireal_resnet18"])
def test_networks(name, tmp_path):
    network = steady(create_network(name, input_shape=(3, 32, 32), num_classes=10), (3, 32, 32))
    export(network, tmp_path / "m.onnx", (3, 32, 32))
    few_signs_turn(network, tmp_path / "m.onnx", (3, 32, 32), "ORT_DISABLE_ALL")


def few_signs_turn(network, path, shape, level):
    images = torch.randn(6, *shape)
    with torch.no_grad():
        expected = network(images)
    error = (run(path, images, level) - expected).abs().amax(1) / expected.abs().max()
    assert np.count_nonzero(error <= 1e-4) >= 4, error  # rounding may turn a sign in the others
