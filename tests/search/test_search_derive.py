"""Derivation: within the budget, little of it idle, and the most probable architecture where it fits."""

import itertools

import pytest
import torch
from search_hosts import searchable

from nasb.cells import Edge
from nasb.cells.architecture import prune
from nasb.errors import UserError
from nasb.search.cost_model import CostModel
from nasb.search.derive import IDLE, Derivation


class Space:
    """A searchable network's candidates with log-probabilities."""

    def __init__(self, *widths, nodes=1, operations=None):
        network, self.backbone, _, _ = searchable(*widths, nodes=nodes, operations=operations)
        self.cost = CostModel.of_ops(network, self.backbone)
        self.names = {
            name: {key: cell.edge(key).names for key in cell.edge_keys} for name, cell in self.cost.cells.items()
        }
        self.nodes = nodes

    def random(self, seed, none=0.0):
        generator = torch.Generator().manual_seed(seed)
        logs = {}
        for cell, edges in self.names.items():
            logs[cell] = {}
            for key, names in edges.items():
                alpha = torch.randn(len(names), generator=generator, dtype=torch.float64)
                alpha[0] += none
                logs[cell][key] = alpha.log_softmax(0).tolist()
        return logs

    def certain(self, probabilities, rest=1e-4):
        """Logs from {(source, target, operation): probability} of every cell; what is left goes to none."""
        logs = {}
        for cell, edges in self.names.items():
            logs[cell] = {}
            for key, names in edges.items():
                p = torch.tensor([probabilities.get((*key[:2], name), rest) for name in names], dtype=torch.float64)
                p[0] = 1 - p[1:].sum()
                logs[cell][key] = p.log().tolist()
        return logs

    def derive(self, logs, budget_ops):
        return Derivation(self.cost, self.names, logs, budget_ops).run()

    def architectures(self, cell):
        """Every choice of a cell: (edges, indices by edge)."""
        edges = self.names[cell]
        for choice in itertools.product(*(range(len(names)) for names in edges.values())):
            chosen = dict(zip(edges, choice, strict=True))
            yield [Edge(k[0], k[1], edges[k][i]) for k, i in chosen.items()], chosen


@pytest.fixture(scope="module", params=[0, 1, 2])
def space(request):
    return Space(4, 6, 6, nodes=request.param)


def swap_one(space, cells):
    """Every architecture that differs from `cells` on one edge."""
    for cell, edges in space.names.items():
        for key, names in edges.items():
            for name in names:
                rest = [e for e in cells[cell] if not ((e.source, e.target) == key[:2] and e.operation in names)]
                yield {**cells, cell: [*rest, Edge(key[0], key[1], name)]}


@pytest.mark.parametrize("none", [0.0, 4.0])
@pytest.mark.parametrize("budget", [1.05, 1.3, 2.5])
def test_never_above_the_budget_and_no_more_than_one_percent_idle(space, budget, none):
    for seed in range(2):
        budget_ops = budget * space.backbone
        cells = space.derive(space.random(seed, none), budget_ops)
        spent = space.cost.of(cells)
        assert spent <= budget_ops
        assert all(edges == prune(edges, space.nodes) for edges in cells.values())
        if spent < (1 - IDLE) * budget_ops:  # then no operation is left that would fit
            for other in swap_one(space, cells):
                assert not spent < space.cost.of(other) <= budget_ops


def test_a_budget_of_the_backbone_alone_gives_the_hand_made_network_or_free_operations(space):
    cells = space.derive(space.random(0), space.backbone)
    assert space.cost.of(cells) == space.backbone


def test_a_budget_below_the_backbone_is_refused(space):
    with pytest.raises(UserError, match="below the cost of the backbone"):
        space.derive(space.random(0), 0.99 * space.backbone)


@pytest.mark.parametrize("seed", range(6))
def test_where_the_most_probable_architecture_meets_the_budget_it_is_derived(seed):
    space = Space(4, 6, nodes=1, operations=["identity", "bin_conv_1x1", "bin_conv_3x3"])
    (cell,) = space.names
    logs = space.random(seed)

    def log_probability(chosen):
        return sum(logs[cell][key][index] for key, index in chosen.items())

    most, chosen = max(space.architectures(cell), key=lambda pair: log_probability(pair[1]))
    ops = space.cost.of({cell: most})
    budget_ops = ops * 1.005
    fitting = [(e, c) for e, c in space.architectures(cell) if space.cost.of({cell: e}) <= budget_ops]
    best, _ = max(fitting, key=lambda pair: log_probability(pair[1]))
    assert space.derive(logs, budget_ops)[cell] == prune(best, 1) == prune(most, 1)
    assert chosen


def test_the_seeds_above_are_not_all_the_hand_made_cell():
    space = Space(4, 6, nodes=1, operations=["identity", "bin_conv_1x1", "bin_conv_3x3"])
    found = set()
    for seed in range(6):
        cells = space.derive(space.random(seed), 10 * space.backbone)
        found.add(len(next(iter(cells.values()))))
    assert len(found) > 1


def test_a_way_through_an_inside_node_is_opened_where_it_is_probable():
    # None is the likeliest on each edge, so both edges of the way have to change at once.
    space = Space(4, 4, nodes=1, operations=["identity", "bin_conv_3x3"])
    (cell,) = space.names
    logs = space.certain({(0, 1, "bin_conv_3x3"): 0.45, (1, 2, "identity"): 0.45, (0, 2, "bin_conv_3x3"): 0.01})
    one = space.cost.of({cell: [Edge(0, 2, "bin_conv_3x3")]})
    assert space.derive(logs, one)[cell] == (Edge(0, 1, "bin_conv_3x3"), Edge(1, 2, "identity"))
    logs = space.certain({(0, 1, "bin_conv_3x3"): 0.1, (1, 2, "identity"): 0.1, (0, 2, "bin_conv_3x3"): 0.3})
    assert space.derive(logs, one)[cell] == (Edge(0, 2, "bin_conv_3x3"),)


def test_what_is_least_probable_goes_first():
    space = Space(4, 4, 4, nodes=0, operations=["bin_conv_1x1", "bin_conv_3x3"])
    first, second = space.names
    logs = {first: {(0, 1, True): [-1.0, -5.0, -0.5]}, second: {(0, 1, True): [-2.5, -5.0, -0.2]}}
    both = space.cost.of({first: [Edge(0, 1, "bin_conv_3x3")], second: [Edge(0, 1, "bin_conv_3x3")]})
    assert space.derive(logs, both) == {first: (Edge(0, 1, "bin_conv_3x3"),), second: (Edge(0, 1, "bin_conv_3x3"),)}
    # Both cost the same ("first" strides, but reads a map four times as large): giving up the first loses less.
    first_ops = space.cost.of_cell(first, [Edge(0, 1, "bin_conv_3x3")])
    assert first_ops == space.cost.of_cell(second, [Edge(0, 1, "bin_conv_3x3")])
    cells = space.derive(logs, both - first_ops)
    assert cells == {first: (), second: (Edge(0, 1, "bin_conv_3x3"),)}


def test_the_likeliest_of_equal_cost_fills_the_budget():
    space = Space(4, 4, nodes=0, operations=["bin_conv_3x3", "dil_bin_conv_3x3"])
    (cell,) = space.names
    one = space.cost.of({cell: [Edge(0, 1, "bin_conv_3x3")]})
    for name, logs in (("bin_conv_3x3", [-0.1, -2.0, -3.0]), ("dil_bin_conv_3x3", [-0.1, -3.0, -2.0])):
        assert space.derive({cell: {(0, 1, True): logs}}, one) == {cell: (Edge(0, 1, name),)}
