"""The searchable twin: mixtures, single paths, gates, and that what is not chosen is not computed."""

import copy

import pytest
import torch
from cell_reference import mixture_cell

from nasb.cells import CellConfig, Edge
from nasb.cells.adapt import Adapt, ConvShape
from nasb.cells.architecture import prune
from nasb.cells.cell import Cell, derived_edges, edge_name
from nasb.cells.operations import NONE, paid_operations
from nasb.cells.searchable import SearchableEdge, named_edges, searchable_cells, searchable_edges
from nasb.errors import UserError

SMALL = ["identity", "max_pool_3x3", "bin_conv_1x1", "dil_bin_conv_3x3"]


def shape_of(stride=1, out_channels=4):
    return ConvShape(
        in_channels=4,
        out_channels=out_channels,
        kernel_size=(3, 3),
        stride=(stride, stride),
        padding=(1, 1),
        in_size=(8, 8),
    )


def searchable(stride=1, out_channels=4, nodes=2, operations=SMALL, **config):
    shape, config = shape_of(stride, out_channels), CellConfig(nodes=nodes, **config)
    return Cell(shape, config, searchable_edges(shape, config, operations), Adapt(shape))


def edges_of(cell):
    return {key: cell.edge(key) for key in cell.edge_keys}


def choose(cell, chosen):
    """Let each edge run the one operation that `chosen` names for it, none by default."""
    for key, edge in edges_of(cell).items():
        names = [e.operation for e in chosen if (e.source, e.target) == key[:2] and e.operation in edge.names]
        edge.select([edge.names.index(names[0] if names else NONE)])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("stride", "out_channels"), [(1, 4), (2, 8)])
@pytest.mark.parametrize("nodes", [0, 1, 2])
def test_a_fresh_cell_runs_the_sum_of_softmax_times_candidate(nodes, stride, out_channels, training, randomize):
    cell = randomize(searchable(stride, out_channels, nodes)).train(training).double()
    state = copy.deepcopy(cell.state_dict())
    factors = {}
    for key, edge in edges_of(cell).items():
        weights = edge.alpha.detach().exp() / edge.alpha.detach().exp().sum()
        for name, weight in zip(edge.names, weights, strict=True):
            if name != NONE:
                where = f"edges.{edge_name(*key)}.candidates.{name}"
                factors.setdefault(key[:2], []).append((name, where, float(weight)))
    assert sum(map(len, factors.values())) == {0: 3, 1: 11, 2: 23}[nodes]
    x = torch.randn(3, 4, 8, 8).double()  # in fp32, sums in another order turn values at a threshold around
    torch.testing.assert_close(cell(x), mixture_cell(x, state, nodes, out_channels, stride, factors, training))


CHOICES = [
    [],
    [Edge(0, 3, "dil_bin_conv_3x3")],
    [Edge(0, 1, "identity"), Edge(1, 3, "bin_conv_1x1")],
    [
        Edge(0, 1, "max_pool_3x3"),
        Edge(0, 1, "bin_conv_1x1"),
        Edge(0, 2, "identity"),
        Edge(1, 2, "dil_bin_conv_3x3"),
        Edge(1, 3, "identity"),
        Edge(2, 3, "bin_conv_1x1"),
        Edge(2, 3, "max_pool_3x3"),
    ],
    [Edge(0, 1, "identity"), Edge(0, 2, "bin_conv_1x1"), Edge(2, 3, "identity")],
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("chosen", CHOICES, ids=len)
def test_a_single_path_is_the_derived_cell(chosen, training, randomize):
    cell = randomize(searchable(2, 8, bases=2, activation="prelu")).train(training)
    choose(cell, chosen)
    kept = prune(chosen, 2)
    derived = Cell(
        cell.shape, cell.config, derived_edges(cell.shape, cell.config, kept, "here"), Adapt(cell.shape)
    ).train(training)
    state = {}
    for name, tensor in cell.state_dict().items():
        parts = name.split(".")
        if parts[0] == "edges":
            if parts[2] in ("alpha", "base"):
                continue
            source, _, target, _ = parts[1].split("_")
            if Edge(int(source), int(target), parts[3]) not in kept:
                continue
            name = ".".join([*parts[:2], "operation", *parts[4:]])  # noqa: PLW2901
        state[name] = tensor
    own = derived.state_dict()
    assert set(own) <= set(state)
    derived.load_state_dict({name: state[name] for name in own})
    x = torch.randn(3, 4, 8, 8)
    assert torch.equal(cell(x), derived(x))


def test_gates_multiply_the_chosen_candidates():
    cell = searchable(nodes=0).eval()
    edge = cell.edge((0, 1, True))
    assert edge.names == (NONE, "bin_conv_1x1", "dil_bin_conv_3x3")
    b = torch.randn(2, 4, 8, 8).sign()
    first, second = edge.candidates["bin_conv_1x1"](b), edge.candidates["dil_bin_conv_3x3"](b)
    gates = torch.tensor([7.0, 2.0, -0.5])
    edge.select([0, 1, 2], gates)
    torch.testing.assert_close(edge(lambda: b), 2 * first - 0.5 * second)
    edge.select([2], gates)
    torch.testing.assert_close(edge(lambda: b), -0.5 * second)
    edge.select([1])
    assert torch.equal(edge(lambda: b), first)
    edge.select([0])
    assert edge(lambda: b) is None
    assert not edge.connects()
    edge.select(None)
    assert edge.connects()


def test_dead_sampled_paths_compute_nothing():
    cell = searchable(nodes=2)
    ran = []
    for name, layer in cell.named_modules():
        layer.register_forward_hook(lambda module, inputs, output, name=name: ran.append(name))

    def run(*chosen):
        choose(cell, chosen)
        ran.clear()
        cell(torch.randn(2, 4, 8, 8))
        branches = {name.split(".candidates.")[0][6:] for name in ran if ".candidates." in name}
        return branches, {name for name in ran if name.startswith("inside") and name != "inside"}

    assert run() == (set(), set())
    assert run(Edge(0, 1, "bin_conv_1x1")) == (set(), set())
    assert run(Edge(1, 3, "bin_conv_1x1"), Edge(2, 3, "identity")) == (set(), set())
    assert run(Edge(0, 1, "identity"), Edge(1, 2, "bin_conv_1x1")) == (set(), set())
    assert run(Edge(0, 1, "identity"), Edge(1, 3, "bin_conv_1x1"), Edge(0, 2, "bin_conv_1x1")) == (
        {"0_to_1_free", "1_to_3_paid"},
        {"inside.1"},
    )
    assert run(Edge(0, 3, "bin_conv_1x1")) == ({"0_to_3_paid"}, set())


def test_a_binarization_of_a_searchable_node_is_shared_too():
    cell = searchable(nodes=2, bases=3, operations=None)
    calls = []
    for index, layer in enumerate([*cell.binarize, *cell.inside.values()]):
        layer.register_forward_hook(lambda module, inputs, output, index=index: calls.append(index))
    cell(torch.randn(2, 4, 8, 8))
    assert sorted(calls) == [0, 1, 2, 3, 4]


def test_every_edge_has_the_candidates_that_fit():
    cell = searchable(operations=None)
    edges = edges_of(cell)
    pairs = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    assert sorted(edges) == sorted((*pair, paid) for pair in pairs for paid in (False, True))
    assert edges[0, 3, False].names == (NONE, "avg_pool_3x3", "max_pool_3x3")
    assert edges[0, 1, False].names == (NONE, "avg_pool_3x3", "identity", "max_pool_3x3")
    assert len(edges[0, 3, True].names) == 6
    assert all(edge.bops[0] == 0 and not edge.alpha.any() for edge in edges.values())


def test_no_free_operation_where_channels_do_not_divide_and_no_small_kernel_without_padding():
    config = CellConfig(nodes=0)
    shape = ConvShape(in_channels=6, out_channels=4, kernel_size=(3, 3), padding=(0, 0), in_size=(8, 8))
    edges = searchable_edges(shape, config, None)
    assert list(edges) == [(0, 1, True)]
    assert edges[0, 1, True].names == (
        NONE, "bin_conv_3x3", "bin_conv_5x5", "dil_bin_conv_3x3", "dil_bin_conv_5x5",
    )  # fmt: skip


@pytest.mark.parametrize("inside", [None, 0.7])
@pytest.mark.parametrize("nodes", [0, 1, 2])
def test_edges_to_inside_nodes_can_start_with_a_gain_of_their_own(nodes, inside):
    gains = {"edge_gain": 0.2, "inside_gain": inside}
    cell = searchable(nodes=nodes, **gains)
    for key, edge in edges_of(cell).items():
        wanted = 0.2 if key[1] == nodes + 1 or inside is None else inside
        for name, candidate in edge.candidates.items():
            found = candidate.bn.weight.unique()
            torch.testing.assert_close(found, torch.tensor([wanted]))
            built = derived_edges(shape_of(), CellConfig(nodes=nodes, **gains), [Edge(*key[:2], name)], "here")[key]
            torch.testing.assert_close(built.operation.bn.weight.unique(), found)


def test_unknown_candidates_are_refused_with_the_closest():
    with pytest.raises(UserError, match="closest: bin_conv_5x5"):
        searchable(operations=["bin_conv_5x6"])
    assert searchable(operations=[NONE]).edge_keys == ()


def test_cells_and_edges_are_found_by_qualified_name():
    network = torch.nn.Sequential()
    network.add_module("a", torch.nn.Sequential(searchable(nodes=0)))
    network.add_module("b", searchable(nodes=1))
    assert list(searchable_cells(network)) == ["a.0", "b"]
    found = [(name, key) for name, key, _ in named_edges(network)]
    assert found[:2] == [("a.0", (0, 1, False)), ("a.0", (0, 1, True))]
    assert len(found) == 2 + 6


def test_convolutions_of_an_edge_share_the_largest_kernel():
    edge = SearchableEdge(paid_operations(), shape_of(), CellConfig(weight_scale="mean"))
    convs = {name: branch.conv for name, branch in edge.candidates.items()}
    whole = convs["bin_conv_5x5"].weight
    taps = {
        "bin_conv_1x1": whole[:, :, 2:3, 2:3],
        "bin_conv_3x3": whole[:, :, 1:4, 1:4],
        "dil_bin_conv_3x3": whole[:, :, ::2, ::2],
    }
    for name, expected in taps.items():
        assert torch.equal(convs[name].real_weight(), expected)
        assert torch.equal(convs[name].weight_scale(), expected.abs().flatten(1).mean(1))
    assert isinstance(convs["dil_bin_conv_5x5"].weight, torch.nn.Parameter)  # it reaches farther
    assert sum(name.endswith("conv.weight") for name, _ in edge.named_parameters()) == 2

    edge.select([edge.names.index("dil_bin_conv_3x3")])
    edge(lambda: torch.ones(1, 4, 8, 8)).square().sum().backward()
    trained = torch.zeros(5, 5, dtype=torch.bool)
    trained[::2, ::2] = True
    assert not whole.grad[:, :, ~trained].any()
    assert whole.grad[:, :, trained].any()


def test_shared_kernels_stay_shared_in_a_copy_and_are_built_as_plain_ones_when_derived():
    edge = copy.deepcopy(SearchableEdge(paid_operations(), shape_of(), CellConfig()))
    convs = {name: branch.conv for name, branch in edge.candidates.items()}
    with torch.no_grad():
        convs["bin_conv_5x5"].weight.fill_(3.0)
    assert (convs["bin_conv_3x3"].weight == 3.0).all()
    derived = derived_edges(shape_of(), CellConfig(), [Edge(0, 2, "bin_conv_3x3")], "cell")
    (fixed,) = derived.values()
    assert [name for name, _ in fixed.named_parameters() if "conv" in name] == ["operation.conv.weight"]


def test_without_the_largest_kernel_the_next_one_is_shared():
    names = ["none", "bin_conv_1x1", "bin_conv_3x3", "dil_bin_conv_3x3"]
    convs = [b.conv for b in SearchableEdge(names, shape_of(), CellConfig()).candidates.values()]
    assert torch.equal(convs[0].weight, convs[1].weight[:, :, 1:2, 1:2])
    assert isinstance(convs[2].weight, torch.nn.Parameter)
