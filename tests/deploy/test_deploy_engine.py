"""Whole networks in the engine: accumulators bit for bit, logits to 1e-4, and a reason for each sign that differs."""

import numpy as np
import pytest
import torch
from deploy_reference import TOLERANCE, first_flips, steady, zoo
from test_deploy_networks import CASES, HOSTS, ZOOS, make

from nasb.cells.config import CellConfig
from nasb.deploy import export_onnx
from nasb.deploy._interpreter import Attributes, Interpreter, _accumulate
from nasb.networks import create_network
from nasb.networks.convert import convert

nasb_engine = pytest.importorskip("nasb_engine")
helper = pytest.importorskip("onnx.helper")

IMAGES = 6
KERNELS = [kernel.name for kernel in nasb_engine.kernels() if kernel.verified and kernel.name != "reference"]


def attributes(node: object) -> Attributes:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}  # type: ignore[attr-defined]


def check(path: object, shape: tuple[int, int, int], record_property: object) -> None:
    interpreter = Interpreter(path.read_bytes())  # type: ignore[attr-defined]
    images = torch.randn(IMAGES, *shape, generator=torch.Generator().manual_seed(5))
    torchs = interpreter.run(images)
    session = nasb_engine.Session(path, threads=1)
    own = {**session.run(images, session.tensor_names), "images": images.numpy()}
    sums = 0
    for node in interpreter.graph.node:
        if node.op_type == "BinaryConv2d":  # on the engine's own signs
            wanted = _accumulate(torch.from_numpy(own[node.input[0]]), torchs.tensors[node.input[1]], attributes(node))
            assert np.array_equal(own[f"{node.name}:accumulators"], wanted.numpy()), node.name
            sums += wanted.numel()
    flipped = first_flips(interpreter, own, torchs)
    logits = session.run(images)
    assert np.array_equal(logits, own["logits"])
    for threads, kernel in ((2, ""), (3, ""), *((1, kernel) for kernel in KERNELS)):
        again = nasb_engine.Session(path, threads=threads, kernel=kernel).run(images)
        assert np.array_equal(again, logits), f"{threads} threads, {kernel}"
    wanted = torchs.tensors["logits"].numpy()
    error = np.abs(logits - wanted).max(1) / np.abs(wanted).max(1)
    assert (error[~flipped] <= TOLERANCE).all()
    assert not flipped.all(), "no image is left to compare"
    record_property("accumulators", sums)  # type: ignore[operator]
    record_property("images with flips", f"{flipped.sum()} of {IMAGES}")  # type: ignore[operator]


@pytest.mark.parametrize("name", ZOOS)
def test_cells_of_every_kind(name, tmp_path, record_property):
    architecture = zoo(**ZOOS[name])
    network = steady(architecture.build(), architecture.input_shape)
    export_onnx(network, tmp_path / "m.onnx", architecture.input_shape)
    check(tmp_path / "m.onnx", architecture.input_shape, record_property)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet20", {"width": 4}),
        ("resnet18", {}),
        ("bireal_resnet20", {"width": 4, "activation": "prelu"}),
        ("bireal_resnet18", {}),
        ("bireal_resnet18", {"bases": 2, "activation": "rprelu"}),
        ("bireal_resnet50", {"activation": "rprelu"}),
    ],
)
def test_registered_networks(name, options, tmp_path, record_property):
    shape = (3, 64, 64)
    network = steady(create_network(name, num_classes=5, input_shape=shape, **options), shape)
    export_onnx(network, tmp_path / "m.onnx", shape)
    check(tmp_path / "m.onnx", shape, record_property)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(("name", "binary"), CASES)
def test_hosts_of_torchvision(name, binary, tmp_path, record_property):
    shape = (3, HOSTS[name], HOSTS[name])
    torch.manual_seed(0)
    host = make(name).eval()
    network = convert(host, shape, cell=CellConfig(activation="prelu")) if binary else host
    export_onnx(network.eval(), tmp_path / "m.onnx", shape)
    check(tmp_path / "m.onnx", shape, record_property)
