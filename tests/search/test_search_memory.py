"""Costs in memory: against the counter, their expectation against an enumeration, and a search within such a budget."""

import itertools
import math

import pytest
import torch
from search_hosts import SHAPE, searchable

from nasb.cells import Edge
from nasb.cells.architecture import prune
from nasb.cost import count
from nasb.errors import UserError
from nasb.networks.convert import convert
from nasb.search import SearchConfig
from nasb.search.cost_model import CostModel
from nasb.search.searcher import Searcher

CELLS = [
    {},
    {"learned_threshold": True},
    {"thresholds": "edge"},
    {"thresholds": "edge", "learned_threshold": True},
    {"thresholds": "edge", "bases": 2},
    {"bases": 2, "weight_scale": "learned"},
    {"activation": "prelu", "shortcut": "conv"},
]


def model_of(*widths, nodes, operations=None, **cell):
    network, _, host, config = searchable(*widths, nodes=nodes, operations=operations, **cell)
    backbone = count(convert(host, SHAPE, cell=config), SHAPE).memory_bits
    return CostModel.of_memory(network, backbone), host, config


@pytest.mark.parametrize("cell", CELLS, ids=str)
@pytest.mark.parametrize("nodes", [0, 2])
def test_the_memory_of_an_architecture_is_what_the_counter_finds_in_the_derived_network(nodes, cell):
    model, host, config = model_of(4, 6, 6, nodes=nodes, **cell)
    generator = torch.Generator().manual_seed(nodes)
    for _ in range(3):
        cells = {}
        for name, searched in model.cells.items():
            edges = []
            for key in searched.edge_keys:
                names = searched.edge(key).names
                drawn = int(torch.randint(len(names), (), generator=generator))
                edges.append(Edge(key[0], key[1], names[drawn]))
            cells[name] = prune(edges, nodes)
        derived = convert(host, SHAPE, cell=config, cells=cells)
        assert model.of(cells) == count(derived, SHAPE).memory_bits


@pytest.mark.parametrize("cell", CELLS[:3], ids=str)
@pytest.mark.parametrize(("nodes", "operations"), [(1, ["identity", "bin_conv_3x3"]), (2, ["bin_conv_1x1"])])
def test_expected_memory_is_the_mean_over_all_choices(nodes, operations, cell):
    model, _, _ = model_of(4, 6, nodes=nodes, operations=operations, **cell)
    generator = torch.Generator().manual_seed(nodes)
    probabilities = {at: torch.randn(len(c), generator=generator).softmax(0) for at, c in model.costs.items()}
    (name,) = model.cells
    edges = [(key, model.cells[name].edge(key).names) for key in model.cells[name].edge_keys]
    total = 0.0
    for choice in itertools.product(*(range(len(names)) for _, names in edges)):
        chosen = [Edge(k[0], k[1], names[i]) for (k, names), i in zip(edges, choice, strict=True)]
        p = math.prod(float(probabilities[name, k][i]) for (k, _), i in zip(edges, choice, strict=True))
        total += p * model.of({name: prune(chosen, nodes)})
    exact = not (nodes == 2 and cell.get("thresholds") == "edge")  # node 0 shares, see the module
    assert float(model.expected(probabilities)) == pytest.approx(total, rel=1e-5 if exact else 2e-3)


def searcher_of(budget_memory, nodes=1, **options):
    network, backbone_ops, host, config = searchable(4, 6, 6, nodes=nodes)
    bits = count(convert(host, SHAPE, cell=config), SHAPE).memory_bits
    return Searcher(
        network, backbone_ops, SearchConfig(budget_memory=budget_memory, **options), backbone_bits=bits
    ), bits


@pytest.mark.parametrize("budget", [1.1, 1.5, 2.5])
def test_a_search_within_memory_starts_at_the_budget_and_fills_it(budget):
    searcher, bits = searcher_of(budget)
    assert searcher.budget == budget * bits
    assert searcher.expected_cost() == pytest.approx(searcher.budget, rel=1e-3)
    report = searcher.report()
    assert report.memory_ratio == pytest.approx(budget, rel=1e-3)
    assert report.expected_ms is None
    assert searcher_of(2.0, strategy="random")[0].report().ops_ratio > 1
    cheapest = min(float(costs[costs > 0].min()) for costs in searcher.cost.costs.values())
    for seed in range(3):
        idle = searcher.budget - searcher.cost.of(searcher.draw(torch.Generator().manual_seed(seed)))
        assert 0 <= idle < max(cheapest, 0.01 * searcher.budget)


def test_an_operation_whose_numbers_are_unknown_is_refused_by_its_class():
    network, _, _, _ = searchable(4, 6, nodes=0)
    edge = next(iter(CostModel.of_memory(network, 1.0).cells.values())).edge((0, 1, True))
    edge.candidates["bin_conv_3x3"].odd = torch.nn.Bilinear(2, 2, 2)
    with pytest.raises(UserError, match="memory: Bilinear stores numbers whose width is not known"):
        CostModel.of_memory(network, 1.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"budget_memory": 0.9}, r"search.budget_memory is 0.9, but .* takes 1.0"),
        ({"budget_memory": float("nan")}, "search.budget_memory is nan"),
        ({"budget_memory": 1.5, "budget_ms": 1.0, "latency_table": "t.json"}, "both given; give one"),
    ],
)
def test_options_that_do_not_fit(options, says):
    with pytest.raises(UserError, match=says):
        SearchConfig(**options)
