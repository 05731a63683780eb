"""Whole networks: everything that a search or a conversion can make becomes a file that gives the same logits."""

import json

import numpy as np
import pytest
import torch
from deploy_reference import agree, evaluate, export, steady, zoo
from onnx import numpy_helper
from torch import nn

import nasb
from nasb.binary import BinaryConv2d, set_phase
from nasb.cells.config import CellConfig
from nasb.cells.operations import OPERATIONS
from nasb.data import Preprocessing
from nasb.errors import UserError
from nasb.networks import create_network
from nasb.networks.convert import convert
from nasb.networks.resnet_cifar import ResNetCifar

PREPROCESSING = Preprocessing(channels=3, size=16, resize=18, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
ZOOS = {
    "published": {},
    "PReLU, mean scale, adapt": {"activation": "prelu", "weight_scale": "mean", "shortcut": "adapt"},
    "RPReLU, two bases": {"activation": "rprelu", "bases": 2},
    "thresholds, learned scale, border +1": {"learned_threshold": True, "weight_scale": "learned", "pad_value": 1},
    "three bases, border -1": {"bases": 3, "pad_value": -1, "shortcut": "adapt", "activation": "rprelu"},
    "two nodes": {"nodes": 2, "learned_threshold": True},
    "thresholds of edges": {"nodes": 2, "thresholds": "edge", "shortcut": "avgmax"},
    "no inside node": {"nodes": 0, "activation": "prelu"},
}


@pytest.mark.parametrize("name", ZOOS)
def test_cells_of_every_kind(name, tmp_path):
    architecture = zoo(**ZOOS[name])
    network = steady(architecture.build(), architecture.input_shape)
    result, _ = export(network, tmp_path / "m.onnx", architecture.input_shape, architecture=architecture)
    agree(network, tmp_path / "m.onnx", architecture.input_shape)
    assert result.verification.images >= 8


def test_the_cells_have_every_operation():
    used = {edge.operation for edges in zoo().cells.values() for edge in edges}
    assert used == set(OPERATIONS) - {"none"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet20", {"width": 4}),
        ("bireal_resnet20", {"width": 4, "activation": "prelu"}),
        ("bireal_resnet18", {"bases": 2}),
        # (With slopes of 1 a sign of one image lies within rounding of its threshold, for torch in fp64, too.)
        ("bireal_resnet50", {"activation": "rprelu", "activation_slope": 0.25}),
        ("resnet18", {}),
    ],
)
def test_registered_networks(name, options, tmp_path):
    shape = (3, 64, 64) if name.endswith("50") else (3, 32, 32)
    network = steady(create_network(name, num_classes=5, input_shape=shape, **options), shape)
    export(network, tmp_path / "m.onnx", shape)
    agree(network, tmp_path / "m.onnx", shape, 2)


@pytest.mark.parametrize("size", [15, 17])
def test_odd_sizes_of_images(size, tmp_path):
    shape = (1, size, size)
    host = ResNetCifar(8, 5, 4, 1, 1)
    network = steady(convert(host, shape, cell=CellConfig(shortcut="adapt")), shape)
    export(network, tmp_path / "m.onnx", shape)
    agree(network, tmp_path / "m.onnx", shape)


def make(name):
    from torchvision import models

    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    network = models.get_model(name, weights=None, num_classes=7, **options)
    if name in SMALL_HEADS:  # in place of hundreds of megabytes
        network.classifier = nn.Sequential(nn.Dropout(), nn.Linear(SMALL_HEADS[name], 7))
    return network


BINARY_TOO = ("alexnet", "mobilenet_v3_small")
"""Those that test_deploy_zoo.py does not have: they are tried as binary networks, too."""
SMALL_HEADS = {"alexnet": 256 * 6 * 6, "vgg11_bn": 512 * 7 * 7}
HOSTS = {
    "squeezenet1_1": 64,
    "googlenet": 64,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "alexnet": 63,
    "vgg11_bn": 32,
}
CASES = [(name, binary) for name in HOSTS for binary in (False, True) if name in BINARY_TOO or not binary]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(("name", "binary"), CASES)
def test_hosts_of_torchvision(name, binary, tmp_path):
    shape = (3, HOSTS[name], HOSTS[name])
    host = make(name).eval()
    network = convert(host, shape, cell=CellConfig(activation="prelu")) if binary else host
    export(network.eval(), tmp_path / "m.onnx", shape)
    images = torch.randn(2, *shape)
    with torch.no_grad():
        expected = network(images)
    assert (evaluate(tmp_path / "m.onnx", images) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_one_binarization_serves_all_that_read_it(tmp_path):
    architecture = zoo(nodes=1)
    network = steady(architecture.build(), architecture.input_shape)
    _, model = export(network, tmp_path / "m.onnx", architecture.input_shape)
    readers = {}
    for node in model.graph.node:
        if node.op_type == "BinaryConv2d":
            readers.setdefault(node.input[0], []).append(node.name)
    cell = "layer1.0.conv1"
    assert readers[f"{cell}.binarize.0"] == [
        f"{cell}.backbone.0.conv",
        f"{cell}.edges.0_to_1_paid.operation.conv",
        f"{cell}.edges.0_to_2_paid.operation.conv",
    ]
    zeros = [node.input[1] for node in model.graph.node if node.op_type == "Binarize"]
    assert set(zeros) == {"number.0"}, "thresholds of 0 are one initializer"


def test_equal_binarizations_of_one_tensor_are_merged_and_others_are_not(tmp_path):
    class Two(nn.Module):
        def __init__(self, second):
            super().__init__()
            self.first, self.second = nasb.binary.Binarize(initial=0.25), second
            self.a, self.b = BinaryConv2d(3, 4, 1), BinaryConv2d(3, 4, 1)

        def forward(self, x):
            return (self.a(self.first(x)) + self.b(self.second(x))).mean((2, 3))

    for initial, number in ((0.25, 1), (0.5, 2)):
        network = Two(nasb.binary.Binarize(initial=initial)).eval()
        _, model = export(network, tmp_path / "m.onnx", (3, 4, 4))
        assert sum(node.op_type == "Binarize" for node in model.graph.node) == number


@pytest.mark.parametrize("value", [0.1, np.nextafter(np.float32(1), np.float32(2)), -1e-40])
def test_a_fixed_threshold_is_exact(value, tmp_path):
    network = nn.Sequential(nasb.binary.Binarize(initial=float(value)), nn.Conv2d(3, 4, 1), nn.Flatten())
    _, model = export(network.eval(), tmp_path / "m.onnx", (3, 1, 1))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert stored[model.graph.node[0].input[1]].tolist() == [float(np.float32(value))]


def test_nodes_have_the_names_of_the_layers(tmp_path):
    network = steady(create_network("bireal_resnet20", width=4, activation="prelu"), (3, 32, 32))
    _, model = export(network, tmp_path / "m.onnx", (3, 32, 32))
    names = [node.name for node in model.graph.node]
    layers = dict(network.named_modules())
    assert len(set(names)) == len(names)
    assert names[:3] == ["conv1", "bn1_prelu", "layer1.0.conv1.binarize.0"]
    assert {"layer1.0.conv1.backbone.0.conv", "layer1.0.conv1.add", "layer1.0.conv1.activation"} <= set(names)
    assert names[-1] == "linear"
    binary = [node.name for node in model.graph.node if node.op_type == "BinaryConv2d"]
    assert all(isinstance(layers[name], BinaryConv2d) for name in binary)
    without = steady(create_network("bireal_resnet20", width=4), (3, 32, 32))
    _, model = export(without, tmp_path / "m.onnx", (3, 32, 32))
    assert "layer1.0.conv1" in [node.name for node in model.graph.node], "a cell's sum is called after the cell"


def test_a_layer_that_is_called_twice_has_numbered_nodes_and_one_weight(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(self.conv(self.relu(self.conv(x)))).mean((2, 3))

    _, model = export(Twice().eval(), tmp_path / "m.onnx", (3, 4, 4))
    assert [node.name for node in model.graph.node][:4] == ["conv", "relu", "conv#2", "relu#2"]
    assert [tensor.name for tensor in model.graph.initializer] == ["conv.weight", "conv.bias"]


def test_metadata(tmp_path):
    architecture = zoo()
    names = [f"class {number}" for number in range(9)] + ["größe"]
    _, model = export(
        architecture.build(), tmp_path / "m.onnx", (3, 16, 16), class_names=names, preprocessing=PREPROCESSING,
        architecture=architecture,
    )  # fmt: skip
    values = {entry.key: entry.value for entry in model.metadata_props}
    assert set(values) == {
        f"nasb.{key}"
        for key in ("layout_version", "version", "class_names", "preprocessing", "architecture", "input_shape")
    }
    assert values["nasb.layout_version"] == "1"
    assert json.loads(values["nasb.input_shape"]) == [3, 16, 16]
    assert json.loads(values["nasb.class_names"]) == names
    assert Preprocessing.from_dict(json.loads(values["nasb.preprocessing"])) == PREPROCESSING
    assert nasb.Architecture.from_dict(json.loads(values["nasb.architecture"])) == architecture


def test_without_names_and_preprocessing_the_classes_are_numbers(tmp_path):
    _, model = export(zoo().build(), tmp_path / "m.onnx", (3, 16, 16))
    values = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(values["nasb.class_names"]) == [str(number) for number in range(10)]
    assert not {"nasb.preprocessing", "nasb.architecture"} & set(values)


def test_the_same_network_gives_the_same_bytes(tmp_path):
    network = steady(zoo().build(), (3, 16, 16))
    for name in ("a", "b"):
        export(network, tmp_path / name, (3, 16, 16))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.slow
def test_the_size_of_bireal_resnet18_at_224_is_predicted_and_a_tenth_of_the_real_one(tmp_path):
    shape = (3, 224, 224)
    result, _ = export(create_network("bireal_resnet18"), tmp_path / "m.onnx", shape)
    assert result.predicted_bytes == nasb.count(create_network("bireal_resnet18"), shape).memory_bits / 8
    assert 0.98 * result.predicted_bytes <= result.file_bytes <= 1.02 * result.predicted_bytes
    real = sum(parameter.numel() * 4 for parameter in create_network("resnet18").parameters())
    assert result.file_bytes * 10.5 <= real
    reasons = {layer.name: layer.reason for layer in result.real_layers}
    assert reasons == {
        "conv1": "first convolution",
        **{f"layer{stage}.0.conv1.shortcut.conv": "1x1 of a shortcut" for stage in (2, 3, 4)},
        "fc": "classifier",
    }


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"class_names": ["a", "b"]}, "2 class names are given, the network has 10 outputs"),
        ({"class_names": [1, 2, 3]}, "class_names[0] is 1; give texts, such as '1'"),
        ({"class_names": ["cat", "dog", "cat"]}, "class_names has 'cat' twice"),
        ({"class_names": ["caf\udce9"]}, "class_names[0] is 'caf\\udce9', which is not valid Unicode"),
        ({"class_names": "cat"}, "class_names is the text 'cat'; give a list"),
        ({"input_shape": (3, 16)}, "input_shape is (3, 16); give (channels, height, width)"),
        ({"input_shape": (3, 32, 32), "preprocessing": PREPROCESSING}, "the preprocessing gives 3 channels of 16x16"),
        ({"input_shape": (1, 16, 16)}, "does not run on images of shape (1, 16, 16)"),
    ],
)
def test_wrong_arguments(options, says, tmp_path):
    network = zoo().build()
    options = {"input_shape": (3, 16, 16)} | options
    with pytest.raises(UserError) as caught:
        nasb.export_onnx(network, tmp_path / "m.onnx", **options)
    assert says in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("phase", "layer"),
    [
        ({"weights": "real", "activations": "sign"}, "layer1.0.conv1.backbone.0.conv"),
        ({"weights": "binary", "activations": "tanh"}, "layer1.0.conv1.binarize.0"),
    ],
)
def test_pretraining_is_refused(phase, layer, tmp_path):
    network = zoo().build()
    set_phase(network, **phase)
    with pytest.raises(UserError, match=f"export: {layer} is in its phase of pretraining .*; finetune") as caught:
        nasb.export_onnx(network, tmp_path / "m.onnx", (3, 16, 16))
    assert "\n" not in str(caught.value)


def test_a_searchable_network_is_refused(tmp_path):
    network = create_network("nasb_resnet20", width=4, input_shape=(3, 16, 16))
    with pytest.raises(UserError, match=r"layer1.0.conv1.edges.* is searchable; derive"):
        nasb.export_onnx(network, tmp_path / "m.onnx", (3, 16, 16))


def test_other_precisions_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"conv1.weight is float64; the file holds float32"):
        nasb.export_onnx(zoo().build().double(), tmp_path / "m.onnx", (3, 16, 16))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_numbers_that_are_not_finite_are_refused(value, tmp_path):
    network = zoo().build()
    with torch.no_grad():
        norm = network.get_submodule("layer1.0.conv1.backbone.0.bn")
        norm.weight[0] = value
        norm.running_var[0] = 1e-6
    with pytest.raises(UserError, match=r"layer1.0.conv1.backbone.0.conv has numbers that are not finite \(scale\)"):
        nasb.export_onnx(network, tmp_path / "m.onnx", (3, 16, 16))
