"""Every hand-made network's block against its written form; what must be equal to Bi-Real Net; borders; starts."""

import math

import pytest
import rivals_reference as reference
import torch
from torch import nn

from nasb.binary import Binarize, BinaryConv2d, LibraConv2d, RPReLU, XnorConv2d, set_sharpness
from nasb.cells.cell import Cell
from nasb.networks import create_network
from nasb.networks.rivals import bnn, irnet, quicknet, reactnet, xnornet
from nasb.networks.rivals._resnet import BinaryUnit, shortcut


def without(build):
    """A builder of (inputs, outputs, stride) for a block that takes less."""
    return lambda inputs, outputs, stride: build(*(inputs, outputs)[: 2 if build is quicknet.transition else 1])


BLOCKS = {
    "reactnet": (reactnet.react_unit("conv"), reference.react),
    "reactnet_a": (reactnet.ReactBlock, reference.react_a),
    "irnet": (irnet.libra_unit("strided"), reference.libra),
    "bnn": (bnn.block("strided"), reference.bnn),
    "xnornet": (xnornet.block("strided"), reference.xnor),
    "quicknet": (without(quicknet.ResidualBlock), reference.quick),
    "quicknet transition": (without(quicknet.transition), reference.quick_transition),
}
SHAPES = [(8, 8, 1), (8, 16, 2), (8, 16, 1), (8, 8, 2)]
KEEPS = ("quicknet",)


@pytest.mark.parametrize(("inputs", "outputs", "stride"), SHAPES)
@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_is_its_written_form(name, inputs, outputs, stride, randomize):
    build, written = BLOCKS[name]
    block = randomize(build(inputs, outputs, stride)).eval()
    x = torch.randn(2, inputs, 6, 10)
    with torch.no_grad():
        found, expected = block(x), written(x, block.state_dict(), stride)
    if name not in KEEPS:
        size = (3, 5) if stride == 2 or "transition" in name else (6, 10)
        assert found.shape == (2, outputs, *size)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_threshold_is_compared():
    x = torch.tensor([0.5, 0.0, -0.0, -0.25]).view(1, 4, 1, 1)
    block = reactnet.react_unit("conv")(4, 4, 1)
    with torch.no_grad():
        block.binarize.threshold.copy_(torch.tensor([0.5, 0.0, 0.0, -0.2]))
    assert block.binarize(x).flatten().tolist() == [1, 1, 1, -1]


def test_blur_of_any_size_has_the_size_of_a_strided_convolution():
    for size in (1, 2, 5, 6, 7):
        x = torch.randn(1, 3, size, size)
        assert quicknet.BlurPool()(x).shape[-1] == math.ceil(size / 2)


def matching(kind, network):
    return [layer for layer in network.modules() if type(layer) is kind]


@pytest.mark.parametrize(("kind", "shape"), [("conv", (3, 16, 16)), ("adapt", (3, 15, 17))])
def test_reactnet_without_its_shifts_and_slopes_is_bireal_net(kind, shape, randomize):
    options = {"input_shape": shape, "num_classes": 5, "width": 8}
    bireal = randomize(create_network("bireal_resnet20", **options, shortcut=kind, weight_scale="mean")).eval()
    react = create_network("reactnet_resnet20", **options, shortcut=kind).eval()
    cells, units = matching(Cell, bireal), matching(BinaryUnit, react)
    assert len(cells) == len(units) == 18
    pairs = [(bireal.conv1, react.stem[0]), (bireal.bn1, react.stem[1]), (bireal.linear, react.head[2])]
    for cell, unit in zip(cells, units, strict=True):
        base = cell.bases()[0]
        pairs += [(base.conv, unit.conv), (base.bn, unit.bn), (cell.shortcut, unit.shortcut)]
    for source, target in pairs:
        target.load_state_dict(source.state_dict())
    for layer in matching(RPReLU, react):
        nn.init.ones_(layer.slope)
    x = torch.randn(3, *shape)
    with torch.no_grad():
        torch.testing.assert_close(react(x), bireal(x), rtol=1e-5, atol=1e-5)


def test_only_quicknet_has_a_border_of_one():
    for name, border in (("quicknet", 1), ("reactnet_a", 0), *((f"{n}_resnet20", 0) for n in ("bnn", "xnor", "irnet"))):
        convs = [layer for layer in create_network(name, width=8).modules() if isinstance(layer, BinaryConv2d)]
        assert {conv.pad_value for conv in convs} == {border}


def test_weights_start_clip_and_scale_as_published():
    def convs(name):
        return [layer for layer in create_network(name, width=8).modules() if isinstance(layer, BinaryConv2d)]

    for conv in (*convs("reactnet_resnet20"), *convs("reactnet_a")):
        assert 0 <= conv.weight.min() < conv.weight.max() < 1e-3
        assert (conv.scale_kind, conv.surrogate, conv.limit) == ("mean", "clipped_identity", None)
    assert {(c.scale_kind, c.surrogate, c.limit) for c in convs("bnn_resnet20")} == {("none", "clipped_identity", 1.0)}
    assert {(c.scale_kind, c.surrogate, c.limit) for c in convs("quicknet")} == {
        ("none", "wide_clipped_identity", 1.25)
    }
    assert {type(c) for c in convs("xnor_resnet20")} == {XnorConv2d}
    assert {type(c) for c in convs("irnet_resnet20")} == {LibraConv2d}


@pytest.mark.parametrize(
    ("name", "surrogate", "learned"),
    [
        ("reactnet_resnet20", "polynomial", True),
        ("reactnet_a", "polynomial", True),
        ("bnn_resnet20", "clipped_identity", False),
        ("xnor_resnet20", "clipped_identity", False),
        ("irnet_resnet20", "tanh_annealed", False),
        ("quicknet", "wide_clipped_identity", False),
    ],
)
def test_activations_have_the_published_gradient(name, surrogate, learned):
    signs = matching(Binarize, create_network(name, width=8))
    assert signs
    assert {layer.surrogate for layer in signs} == {surrogate}
    assert all(isinstance(layer.threshold, nn.Parameter) is learned for layer in signs)
    if learned:
        assert not any(layer.threshold.any() for layer in signs)


def test_the_schedule_of_ir_net_reaches_every_sign():
    network = create_network("irnet_resnet20", width=8)
    set_sharpness(network, 4.0)
    layers = [*matching(Binarize, network), *matching(LibraConv2d, network)]
    assert len(layers) == 2 * 18
    assert {layer.sharpness for layer in layers} == {4.0}


def test_kinds_of_shortcuts():
    x = torch.randn(1, 8, 4, 4)
    assert isinstance(shortcut("conv", 8, 8, 1), nn.Identity)
    repeated = shortcut("adapt", 8, 16, 2)(x)
    torch.testing.assert_close(repeated, torch.cat([nn.functional.avg_pool2d(x, 2)] * 2, 1))
    zeros = shortcut("subsample", 8, 16, 2)(x)
    torch.testing.assert_close(zeros[:, 4:12], x[:, :, ::2, ::2])
    assert not zeros[:, :4].any()
    assert not zeros[:, 12:].any()
