"""Verification finds what is wrong in a file, by layer, and accepts what rounding explains."""

import onnx
import pytest
import torch
from deploy_reference import steady, zoo
from onnx import numpy_helper
from torch import nn

import nasb.deploy.export as exporting
from nasb.binary import Binarize, BinaryConv2d
from nasb.deploy._interpreter import OPERATORS, Interpreter
from nasb.deploy.graph import GraphBuilder
from nasb.deploy.lowering import Lowering
from nasb.deploy.step import is_layer
from nasb.deploy.tracing import trace
from nasb.deploy.verify import _images, verify
from nasb.errors import UserError

SHAPE = (3, 16, 16)


def lower(network, shape=SHAPE):
    found = trace(network.eval(), shape, is_layer)
    lowering = Lowering(found, GraphBuilder(found.names.values()))
    output = lowering.run()
    return lowering, lowering.graph.model(output, shape, lowering.classes, {}, "0")


@pytest.fixture(scope="module")
def made():
    network = steady(zoo(learned_threshold=True, activation="rprelu").build(), SHAPE)
    return lower(network)


def change(model, name, alter):
    """Return a file's bytes with one initializer altered."""
    model = onnx.load_model_from_string(model.SerializeToString())
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    alter(values.reshape(-1))
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return model.SerializeToString()


def bit(values):
    values ^= 1  # everywhere: the corners of a wide kernel never lie inside a small image


def scaled(factor):
    def alter(values):
        values[0] *= factor

    return alter


def moved(values):
    values[0] += 0.3


CELL = "layer2.1.conv1"
WRONG = [
    (f"{CELL}.backbone.0.conv.W", bit, f"{CELL}.backbone.0.conv: the file's accumulators are not equal"),
    (f"{CELL}.edges.0_to_1_paid.operation.conv.W", bit, "operation.conv: the file's accumulators are not equal"),
    (f"{CELL}.backbone.0.conv.scale", scaled(1.0003), f"{CELL}.backbone.0.bn: the file's value differs"),
    (f"{CELL}.backbone.0.conv.bias", moved, f"{CELL}.backbone.0.bn: the file's value differs"),
    (f"{CELL}.binarize.0.threshold", moved, f"{CELL}.binarize.0: the file's signs are not equal"),
    (f"{CELL}.edges.0_to_1_free.operation.bn.scale", scaled(1.001), "operation.bn: the file's value differs"),
    (f"{CELL}.activation.slope", scaled(1.01), f"{CELL}.activation: the file's value differs"),
    (f"{CELL}.activation.shift_out", moved, f"{CELL}.activation: the file's value differs"),
    ("conv1.weight", scaled(1.001), "bn1: the file's value differs"),
    ("linear.bias", moved, "linear: the file's value differs"),
]


@pytest.mark.parametrize(("name", "alter", "says"), WRONG, ids=[name for name, _, _ in WRONG])
def test_a_wrong_number_is_found_in_its_layer(made, name, alter, says):
    lowering, model = made
    with pytest.raises(UserError) as caught:
        verify(change(model, name, alter), lowering, SHAPE)
    assert says in str(caught.value)
    assert str(caught.value).endswith("no file was written")


def test_the_file_as_made_is_right(made):
    lowering, model = made
    result = verify(model.SerializeToString(), lowering, SHAPE)
    assert result.logit_error < 1e-5


@pytest.mark.parametrize(
    ("attribute", "value"), [("pads", [0, 1, 1, 1]), ("pad_value", 1.0), ("strides", [1, 1]), ("dilations", [2, 2])]
)
def test_a_wrong_attribute_is_found(attribute, value):
    network = nn.Sequential(Binarize(), BinaryConv2d(3, 4, 3, 2, 1), nn.Flatten())
    lowering, model = lower(network)
    (entry,) = (entry for entry in model.graph.node[1].attribute if entry.name == attribute)
    entry.CopyFrom(onnx.helper.make_attribute(attribute, value))
    with pytest.raises((UserError, RuntimeError)):
        verify(model.SerializeToString(), lowering, SHAPE)


def test_a_sign_that_rounding_turned_is_accepted_and_counted():
    torch.manual_seed(3)
    shape = (3, 8, 8)
    conv, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    network = steady(nn.Sequential(conv, norm, Binarize(4, learned=True), nn.Conv2d(4, 5, 6), nn.Flatten()), shape)
    lowering, model = lower(network, shape)
    images = next(iter(_images(shape)))
    with torch.no_grad():
        own = network[:2](images)
    found = Interpreter(model.SerializeToString()).run(images).tensors["0"]
    below = (found < own).nonzero()[0]
    with torch.no_grad():  # between the two, closer than any rounding bound
        network[2].threshold[below[1]] = own[tuple(below)]
    lowering, model = lower(network, shape)
    result = verify(model.SerializeToString(), lowering, shape)
    assert result.flipped >= 1
    assert result.logit_error < 1e-4


def test_a_dead_channel_whose_sign_is_rounding_alone_is_no_fault():
    """Weights of 0, a variance of 0, a mean that is the bias: what is left is rounding, times 1 / sqrt(eps)."""
    shape = (3, 8, 8)
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    network = steady(nn.Sequential(conv, norm, Binarize(), BinaryConv2d(4, 5, 6), nn.Flatten()), shape)
    with torch.no_grad():
        conv.weight[:2], conv.bias[:2], norm.bias[:2] = 0, torch.tensor([1000.1, -777.7]), 0
        norm.running_var[:2], norm.running_mean[:2] = 1e-12, conv.bias[:2]
    lowering, model = lower(network, shape)
    verify(model.SerializeToString(), lowering, shape)


def test_an_error_that_shows_only_in_the_whole_is_found(made, monkeypatch):
    lowering, model = made
    monkeypatch.setattr("nasb.deploy.verify.TOLERANCE", 1.0)
    with pytest.raises(UserError, match=r"export: .*(signs differ from the network's where|logits differ)"):
        verify(change(model, "conv1.weight", scaled(1.5)), lowering, SHAPE)


def test_a_file_that_fails_does_not_appear(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"former")

    def fail(*arguments):
        raise UserError("export: fc: the file's value differs; no file was written")

    monkeypatch.setattr(exporting, "verify", fail)
    with pytest.raises(UserError):
        exporting.export_onnx(zoo().build(), path, SHAPE)
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]


def test_the_interpreter_knows_the_operators_of_the_document_and_no_others():
    documented = set()
    text = (exporting.Path(__file__).parents[2] / "docs" / "onnx-file.md").read_text(encoding="utf-8")
    table = text.split("## Other operators")[1].split("What they stand for")[0]
    for line in table.splitlines():
        if line.startswith("| ") and not line.startswith("| operator"):
            documented |= {name.strip() for name in line.split("|")[1].split(",")}
    assert documented == set(OPERATORS) - {"Binarize"}


def test_images_have_heavy_borders_and_different_counts():
    batches = list(_images(SHAPE))
    assert {len(batch) for batch in batches} == {2, 3}
    inside = batches[0][-1, :, 2:-2, 2:-2]
    assert not inside.any()
    assert batches[0][-1].any()
    assert torch.cat(batches).isfinite().all()
