"""Every hand-made network becomes a file, small in width where it can be: the evaluator's logits, the engine's sums."""

import pytest
import torch
from deploy_reference import agree, export, steady

from nasb.binary import AbcConv2d, BinaryConv2d
from nasb.networks import create_network, list_networks
from nasb.networks.registry import RIVALS

list_networks()  # registers
SMALL = {
    "abcnet_resnet20": {"width": 4, "weight_bases": 3, "activation_bases": 2},
    "bnn_alexnet": {"width": 2},
    "bnn_resnet20": {"width": 4},
    "groupnet_resnet20": {"width": 4, "bases": 3},
    "irnet_resnet20": {"width": 4},
    "quicknet": {"width": 8},
    "quicknet_large": {"width": 4},
    "quicknet_small": {"width": 8},
    "reactnet_a": {"width": 4},
    "reactnet_resnet20": {"width": 4},
    "xnor_alexnet": {"width": 3},
    "xnor_resnet20": {"width": 4},
}
LARGE = {name: {} for name in RIVALS if name not in SMALL and not name.endswith("34")}  # more of the 18's blocks
LARGE |= {
    "abcnet_resnet18": {"weight_bases": 2, "activation_bases": 2},
    "groupnet_resnet18": {"bases": 2},
    "groupnet2_resnet18": {"bases": 2},
}


def make(name, options):
    size = 224 if name.endswith("alexnet") else 64 if name.startswith(("quicknet", "reactnet_a")) else 32
    shape = (3, size, size)
    torch.manual_seed(0)
    network = create_network(name, num_classes=5, input_shape=shape, **options)
    for layer in network.modules():
        if isinstance(layer, BinaryConv2d):  # ReActNet's all start positive
            torch.nn.init.normal_(layer.weight, 0, 0.1)
    return steady(network, shape), shape


@pytest.mark.parametrize("name", SMALL)
def test_small_ones(name, tmp_path, record_property):
    network, shape = make(name, SMALL[name])
    _, model = export(network, tmp_path / "m.onnx", shape)
    convs = [layer for layer in network.modules() if isinstance(layer, BinaryConv2d)]
    bases = [layer.weight_bases * layer.activation_bases if isinstance(layer, AbcConv2d) else 1 for layer in convs]
    nodes = [node.op_type for node in model.graph.node].count("BinaryConv2d")
    shared = 2 * 2 if name == "groupnet_resnet20" else 0  # both binary 1x1 are called three times
    assert nodes == sum(bases) + shared
    agree(network, tmp_path / "m.onnx", shape, 2)
    engine = pytest.importorskip("test_deploy_engine", reason="the engine is not installed: make setup builds it")
    engine.check(tmp_path / "m.onnx", shape, record_property)


@pytest.mark.parametrize("name", LARGE)
def test_those_of_imagenet(name, tmp_path, record_property):
    engine = pytest.importorskip("test_deploy_engine", reason="the engine is not installed: make setup builds it")
    network, shape = make(name, LARGE[name])
    export(network, tmp_path / "m.onnx", shape)
    engine.check(tmp_path / "m.onnx", shape, record_property)
