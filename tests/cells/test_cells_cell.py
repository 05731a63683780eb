"""The derived cell against functional rewrites: Bi-Real's block, a rich DAG, one binarization per node."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cell_reference import binary, norm, pool, sign
from torch import nn

import nasb.binary.layers
from nasb.binary import Binarize, BinaryConv2d
from nasb.cells import CellConfig, Edge
from nasb.cells.adapt import Adapt, ConvShape, ConvShortcut
from nasb.cells.cell import Cell, derived_edges
from nasb.errors import UserError

RICH = [
    Edge(0, 1, "avg_pool_3x3"),
    Edge(0, 1, "bin_conv_3x3"),
    Edge(0, 2, "identity"),
    Edge(0, 2, "dil_bin_conv_5x5"),
    Edge(0, 3, "max_pool_3x3"),
    Edge(0, 3, "dil_bin_conv_3x3"),
    Edge(1, 2, "max_pool_3x3"),
    Edge(1, 2, "bin_conv_1x1"),
    Edge(1, 3, "identity"),
    Edge(1, 3, "bin_conv_5x5"),
    Edge(2, 3, "identity"),
    Edge(2, 3, "bin_conv_3x3"),
]


def shape_of(in_channels=4, out_channels=4, stride=1, kernel=3, size=(8, 8)):
    return ConvShape(
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=(kernel, kernel),
        stride=(stride, stride),
        padding=(kernel // 2, kernel // 2),
        in_size=size,
    )


def cell_of(shape, config, edges=(), shortcut=Adapt):
    return Cell(shape, config, derived_edges(shape, config, edges, "here"), shortcut and shortcut(shape))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shortcut", [Adapt, ConvShortcut, None])
@pytest.mark.parametrize(("stride", "out_channels", "kernel"), [(1, 4, 3), (2, 4, 3), (2, 8, 3), (2, 8, 1), (1, 8, 5)])
def test_with_every_edge_none_it_is_bi_real_s_block(stride, out_channels, kernel, shortcut, training, randomize):
    cell = randomize(cell_of(shape_of(4, out_channels, stride, kernel), CellConfig(nodes=2), shortcut=shortcut))
    cell.train(training)
    state = copy.deepcopy(cell.state_dict())
    x = torch.randn(3, 4, 8, 8)
    expected = binary(sign(x), state, "backbone.0", stride, kernel // 2, training)
    if shortcut is Adapt:
        expected = expected + pool(x, stride, out_channels)
    elif shortcut is ConvShortcut:
        pooled = F.avg_pool2d(x, stride) if stride > 1 else x
        expected = expected + norm(F.conv2d(pooled, state["shortcut.conv.weight"]), state, "shortcut.bn", training)
    torch.testing.assert_close(cell(x), expected, rtol=1e-4, atol=1e-5)
    names = {
        "backbone.0.conv",
        "backbone.0.bn",
        *(("shortcut.conv", "shortcut.bn") if shortcut is ConvShortcut else ()),
    }
    assert {key.rpartition(".")[0] for key in state} == names


def rprelu(x, state, name):
    view = (1, -1, 1, 1)
    shifted = x + state[f"{name}.shift_in"].view(view)
    slope = state[f"{name}.slope"].view(view)
    return torch.where(shifted >= 0, shifted, slope * shifted) + state[f"{name}.shift_out"].view(view)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_rich_cell_is_the_dag_written_by_hand(stride, training, randomize):
    config = CellConfig(nodes=2, bases=2, activation="rprelu", learned_threshold=True)
    cell = randomize(cell_of(shape_of(4, 6, stride), config, RICH)).train(training).double()
    s = copy.deepcopy(cell.state_dict())
    x = torch.randn(3, 4, 8, 8).double()  # in fp32, sums in another order turn values at a threshold around

    def threshold(name):
        return s[f"{name}.threshold"].view(1, -1, 1, 1)

    def bn(y, edge):
        return norm(y, s, f"edges.{edge}.operation.bn", training)

    def conv(b, edge, own_stride, padding, dilation=1):
        return binary(b, s, f"edges.{edge}.operation", own_stride, padding, training, dilation)

    b0 = sign(x, threshold("binarize.0"))
    v0 = pool(x, stride, 6)
    v1 = bn(F.avg_pool2d(v0, 3, 1, 1, count_include_pad=False), "0_to_1_free") + conv(b0, "0_to_1_paid", stride, 1)
    b1 = sign(v1, threshold("inside.1"))
    v2 = bn(v0, "0_to_2_free") + conv(b0, "0_to_2_paid", stride, 4, 2)
    v2 = v2 + bn(F.max_pool2d(v1, 3, 1, 1), "1_to_2_free") + conv(b1, "1_to_2_paid", 1, 0)
    b2 = sign(v2, threshold("inside.2"))
    y = v0 + binary(b0, s, "backbone.0", stride, 1, training)
    y = y + binary(sign(x, threshold("binarize.1")), s, "backbone.1", stride, 1, training)
    y = y + bn(F.max_pool2d(v0, 3, 1, 1), "0_to_3_free") + conv(b0, "0_to_3_paid", stride, 2, 2)
    y = y + bn(v1, "1_to_3_free") + conv(b1, "1_to_3_paid", 1, 2)
    y = y + bn(v2, "2_to_3_free") + conv(b2, "2_to_3_paid", 1, 1)
    torch.testing.assert_close(cell(x), rprelu(y, s, "activation"))


@pytest.mark.parametrize("bases", [1, 3])
def test_operations_that_leave_one_node_share_one_binarization(bases, monkeypatch):
    cell = cell_of(shape_of(4, 6, 2), CellConfig(nodes=2, bases=bases), RICH)
    calls = []
    plain = nasb.binary.layers.binarize
    monkeypatch.setattr(nasb.binary.layers, "binarize", lambda x, *a, **k: calls.append(x) or plain(x, *a, **k))
    cell(torch.randn(2, 4, 8, 8))
    weights = [layer.weight for layer in cell.modules() if isinstance(layer, BinaryConv2d)]
    of_weights = [x for x in calls if any(x is weight for weight in weights)]
    assert len(weights) == len(of_weights) == bases + 6
    assert len(calls) - len(of_weights) == 3 + (bases - 1)
    assert sum(isinstance(layer, Binarize) for layer in cell.modules()) == 3 + (bases - 1)


@pytest.mark.parametrize("stride", [1, 2])
def test_thresholds_of_edges_are_written_by_hand(stride, randomize):
    edges = [Edge(0, 1, "bin_conv_3x3"), Edge(0, 2, "bin_conv_3x3"), Edge(1, 2, "bin_conv_1x1")]
    cell = randomize(cell_of(shape_of(4, 6, stride), CellConfig(nodes=1, thresholds="edge"), edges)).eval().double()
    s = cell.state_dict()
    x = torch.randn(3, 4, 8, 8).double()

    def threshold(name):
        return s[f"{name}.threshold"].view(1, -1, 1, 1)

    def conv(value, edge, own_stride, padding):
        b = sign(value, threshold(f"inside.{edge}"))
        return binary(b, s, f"edges.{edge}.operation", own_stride, padding, False)

    y = pool(x, stride, 6) + binary(sign(x, threshold("binarize.0")), s, "backbone.0", stride, 1, False)
    y = y + conv(x, "0_to_2_paid", stride, 1) + conv(conv(x, "0_to_1_paid", stride, 1), "1_to_2_paid", 1, 0)
    torch.testing.assert_close(cell(x), y)


@pytest.mark.parametrize("bases", [1, 2])
def test_thresholds_of_edges_out_of_the_input_start_spread_with_those_of_the_bases(bases):
    cell = cell_of(shape_of(), CellConfig(nodes=2, thresholds="edge", bases=bases), RICH)
    inside = {name: binarize.threshold for name, binarize in cell.inside.items()}
    assert set(inside) == {f"{i}_to_{j}_paid" for i, j in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))}
    assert all(not inside[name].any() for name in inside if not name.startswith("0"))
    own = [start for name, start in inside.items() if name.startswith("0")]
    starts = [*(binarize.threshold for binarize in cell.binarize), *own]
    assert len(starts) == bases + 3
    assert all(isinstance(start, nn.Parameter) and start.unique().numel() == 1 for start in starts)
    assert sorted(start[0].item() for start in starts) == pytest.approx(torch.linspace(-0.5, 0.5, bases + 3).tolist())


def test_without_edges_the_cell_is_the_hand_made_one_whatever_the_thresholds():
    cell = cell_of(shape_of(), CellConfig(nodes=2, thresholds="edge"), [Edge(0, 3, "max_pool_3x3")])
    assert [binarize.threshold for binarize in cell.binarize] == [None]
    assert not cell.inside


def test_a_dead_edge_of_a_derived_cell_computes_nothing():
    edges = [Edge(0, 1, "bin_conv_3x3"), Edge(2, 3, "bin_conv_3x3"), Edge(0, 3, "bin_conv_1x1")]
    cell = cell_of(shape_of(), CellConfig(nodes=2), edges)
    ran = []
    for name, layer in cell.named_modules():
        layer.register_forward_hook(lambda module, inputs, output, name=name: ran.append(name))
    cell(torch.randn(2, 4, 8, 8))
    assert [name for name in ran if name.startswith("edges.") and name.endswith("conv")] == [
        "edges.0_to_3_paid.operation.conv"
    ]
    assert not any(name.startswith("inside") for name in ran)


def test_the_thresholds_of_three_bases_start_spread_and_apart():
    cell = cell_of(shape_of(), CellConfig(bases=3))
    starts = [binarize.threshold.detach() for binarize in cell.binarize]
    assert all(torch.equal(start, start[0].expand(4)) for start in starts)
    numbers = [float(start[0]) for start in starts]
    assert numbers[0] == 0  # the one that the edges share
    assert sorted(numbers) == [-0.5, 0, 0.5]
    assert all(isinstance(binarize.threshold, nn.Parameter) for binarize in cell.binarize)
    torch.testing.assert_close(cell.backbone[0].bn.weight.data, torch.full((4,), 1 / 9))


@pytest.mark.parametrize(("bases", "learned", "parameters"), [(1, False, 0), (1, True, 3), (2, False, 4), (3, True, 5)])
def test_one_threshold_per_node_and_one_more_per_base(bases, learned, parameters):
    cell = cell_of(shape_of(), CellConfig(nodes=2, bases=bases, learned_threshold=learned), RICH)
    assert sum("threshold" in name for name, _ in cell.named_parameters()) == parameters


@pytest.mark.parametrize("activation", ["prelu", "rprelu"])
def test_an_activation_whose_slopes_start_at_1_starts_as_none(activation):
    x = torch.randn(4, 4, 8, 8)
    outputs = []
    for config in (CellConfig(), CellConfig(activation=activation, activation_slope=1)):
        torch.manual_seed(0)
        outputs.append(cell_of(shape_of(), config)(x))
    assert torch.equal(*outputs)


def test_gradients_reach_every_parameter_and_the_input():
    cell = cell_of(shape_of(4, 6, 2), CellConfig(nodes=2, bases=2, activation="prelu"), RICH, ConvShortcut)
    x = torch.randn(4, 4, 8, 8, requires_grad=True)
    cell(x).square().mean().backward()
    assert x.grad.abs().sum() > 0
    assert [name for name, p in cell.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_gradient_of_global_pooling_takes_the_layout_of_the_maps(layout):
    cells = nn.Sequential(*(cell_of(shape_of(), CellConfig()) for _ in range(2))).to(memory_format=layout)
    layouts = []

    def watch(module, inputs, output):
        output.register_hook(lambda gradient: layouts.append(gradient.is_contiguous(memory_format=layout)))

    for cell in cells:
        cell.backbone[0].bn.register_forward_hook(watch)
    x = torch.randn(2, 4, 8, 8).contiguous(memory_format=layout).requires_grad_()
    F.adaptive_avg_pool2d(cells(x), 1).flatten(1).square().sum().backward()
    assert layouts == [True, True]


def test_an_operation_that_does_not_fit_is_refused_where_it_stands():
    shape = ConvShape(in_channels=6, out_channels=4, kernel_size=(3, 3), padding=(1, 1), in_size=(8, 8))
    with pytest.raises(UserError, match="architecture: c: avg_pool_3x3 cannot"):
        derived_edges(shape, CellConfig(), [Edge(0, 1, "avg_pool_3x3")], "architecture: c")


def test_an_operation_that_does_not_fit_for_its_channels_says_channels():
    shape = ConvShape(in_channels=6, out_channels=4, kernel_size=(3, 3), padding=(1, 1), in_size=(8, 8))
    with pytest.raises(UserError, match=r"6 channels of \(8, 8\) pixels to 4 of"):
        derived_edges(shape, CellConfig(), [Edge(0, 1, "identity")], "architecture: c")
