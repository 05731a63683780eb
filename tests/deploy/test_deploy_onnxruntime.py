"""Stock ONNX Runtime runs the file as it is. It is a peer, not a dependency: `make test-onnxruntime` runs these."""

import numpy as np
import onnx
import pytest
import torch
from deploy_reference import TOLERANCE, export, first_flips, steady, zoo
from torch import nn

from nasb.binary import Binarize, BinaryConv2d
from nasb.deploy._interpreter import Interpreter
from nasb.networks import create_network

runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (a peer, not a dependency of nasb)")


def run(data, images, outputs=("logits",), level="ORT_DISABLE_ALL"):
    options = runtime.SessionOptions()
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(list(outputs), {"images": images.numpy()}), strict=True))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("pad_value", [-1, 0, 1])
def test_accumulators_are_equal(pad_value, groups, tmp_path):
    conv = BinaryConv2d(6, 4, 3, 2, 1, 2, groups, pad_value=pad_value, scale="none")
    network = nn.Sequential(Binarize(), conv, nn.Flatten()).eval()
    export(network, tmp_path / "m.onnx", (6, 9, 9))
    images = torch.randn(3, 6, 9, 9)
    with torch.no_grad():
        assert np.array_equal(run(str(tmp_path / "m.onnx"), images)["logits"], network(images).numpy())


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize(
    "options", [{}, {"activation": "rprelu", "bases": 2, "shortcut": "adapt"}, {"nodes": 2, "pad_value": 1}]
)
def test_cells(options, level, tmp_path):
    network = steady(zoo(**options).build(), (3, 16, 16))
    export(network, tmp_path / "m.onnx", (3, 16, 16))
    agree(tmp_path / "m.onnx", (3, 16, 16), level)


@pytest.mark.parametrize("name", ["resnet20", "bireal_resnet20", "bireal_resnet18"])
def test_networks(name, tmp_path):
    network = steady(create_network(name, input_shape=(3, 32, 32), num_classes=10), (3, 32, 32))
    export(network, tmp_path / "m.onnx", (3, 32, 32))
    agree(tmp_path / "m.onnx", (3, 32, 32), "ORT_DISABLE_ALL")


def agree(path, shape, level):
    """Logits to 1e-4, and a reason for each sign that differs: a copy of the file hands out what Binarize reads."""
    images = torch.randn(6, *shape)
    interpreter = Interpreter(path.read_bytes())
    torchs = interpreter.run(images)
    model = onnx.load(path)
    around = [name for node in model.graph.node if node.op_type == "Binarize" for name in (node.input[0], *node.output)]
    names = [name for name in dict.fromkeys(around) if name != "images"]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    own = run(model.SerializeToString(), images, names, level) if names else {}
    flipped = first_flips(interpreter, {**own, "images": images.numpy()}, torchs)
    wanted = torchs.tensors["logits"].numpy()
    error = np.abs(run(str(path), images, level=level)["logits"] - wanted).max(1) / np.abs(wanted).max(1)
    assert (error[~flipped] <= TOLERANCE).all(), error
    assert not flipped.all(), "no image is left to compare"
