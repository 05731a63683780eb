"""Search within milliseconds: the expectation against an enumeration, the budget's errors, what is derived."""

import itertools
import math

import pytest
import torch
from latency_tables import table_values, write_table
from search_hosts import SHAPE, searchable

from nasb.cells import Edge
from nasb.cells.architecture import prune
from nasb.errors import UserError
from nasb.networks.convert import convert
from nasb.search import SearchConfig
from nasb.search.cost_model import CostModel, check_table
from nasb.search.searcher import Searcher

WIDTHS = (4, 6, 6, 6)


def space(tmp_path, *widths, nodes=1, operations=None):
    network, backbone_ops, host, config = searchable(*(widths or WIDTHS), nodes=nodes, operations=operations)
    backbone = convert(host, SHAPE, cell=config)
    return network, backbone_ops, backbone, write_table(tmp_path / "table.json", table_values(backbone, operations))


def searcher_of(tmp_path, budget=1.3, nodes=1, operations=None, **options):
    network, backbone_ops, backbone, table = space(tmp_path, nodes=nodes, operations=operations)
    config = SearchConfig(budget_ms=budget * table.backbone_ms, latency_table=table.path, **options)
    return Searcher(network, backbone_ops, config, table), backbone, table


@pytest.mark.parametrize(
    ("nodes", "operations"),
    [(0, None), (1, ["identity", "avg_pool_3x3", "bin_conv_3x3"]), (2, ["identity", "bin_conv_1x1"])],
)
def test_expected_milliseconds_are_the_mean_over_all_choices(tmp_path, nodes, operations):
    network, _, backbone, table = space(tmp_path, 4, 6, nodes=nodes, operations=operations)
    model = CostModel.of_milliseconds(network, table)
    generator = torch.Generator().manual_seed(nodes)
    probabilities = {at: torch.randn(len(c), generator=generator).softmax(0) for at, c in model.costs.items()}
    (name,) = model.cells
    edges = [(key, model.cells[name].edge(key).names) for key in model.cells[name].edge_keys]
    total = 0.0
    for choice in itertools.product(*(range(len(names)) for _, names in edges)):
        chosen = [Edge(k[0], k[1], names[i]) for (k, names), i in zip(edges, choice, strict=True)]
        p = math.prod(float(probabilities[name, k][i]) for (k, _), i in zip(edges, choice, strict=True))
        total += p * table.predict(backbone, {name: prune(chosen, nodes)})
    assert float(model.expected(probabilities)) == pytest.approx(total, rel=1e-5)
    assert total > table.backbone_ms


@pytest.mark.parametrize("nodes", [0, 1, 2])
def test_the_cost_of_an_architecture_is_its_prediction(tmp_path, nodes):
    network, _, backbone, table = space(tmp_path, nodes=nodes)
    model = CostModel.of_milliseconds(network, table)
    generator = torch.Generator().manual_seed(nodes)
    for _ in range(5):
        cells = {}
        for name, cell in model.cells.items():
            edges = []
            for key in cell.edge_keys:
                names = cell.edge(key).names
                edges.append(Edge(key[0], key[1], names[int(torch.randint(len(names), (), generator=generator))]))
            cells[name] = prune(edges, nodes)
        assert model.of(cells) == pytest.approx(table.predict(backbone, cells), rel=1e-9)


@pytest.mark.parametrize("nodes", [0, 1, 2])
@pytest.mark.parametrize("budget", [1.05, 1.3, 1.8])
def test_the_start_meets_the_budget_in_milliseconds(tmp_path, nodes, budget):
    searcher, _, table = searcher_of(tmp_path, budget, nodes)
    assert searcher.expected_cost() == pytest.approx(budget * table.backbone_ms, rel=1e-3)
    report = searcher.report()
    assert report.expected_ms == pytest.approx(budget * table.backbone_ms, rel=1e-3)
    assert report.ops_ratio > 1


@pytest.mark.parametrize("nodes", [0, 1, 2])
@pytest.mark.parametrize("budget", [1.5, 2.0])
def test_what_is_derived_fills_the_budget_and_keeps_to_it(tmp_path, nodes, budget):
    searcher, backbone, table = searcher_of(tmp_path, budget, nodes)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for edge in searcher.edges:
            edge.alpha.data.copy_(torch.randn(edge.alpha.shape, generator=generator))
        spent = table.predict(backbone, searcher.derive())
        least = 0.98 if nodes else 0.9  # one free and one paid edge a cell do not fit any budget
        assert least * searcher.budget <= spent <= searcher.budget


def test_the_objective_is_the_one_of_milliseconds(tmp_path):
    searcher, _, _ = searcher_of(tmp_path, budget_weight=0.7)
    searcher.space.budget /= 1.1
    penalty = searcher._budget_penalty(searcher.probabilities())
    assert float(penalty.detach()) == pytest.approx(0.7 * math.log(1.1), rel=2e-2)
    penalty.backward()
    free = [edge.alpha.grad for _, (_, _, paid), edge in searcher.named if not paid]
    assert all(bool(gradient[0] < 0) for gradient in free)  # free operations cost time: more "none" brings it down


def test_a_budget_below_the_backbone_is_refused_with_both_numbers(tmp_path):
    with pytest.raises(UserError, match=r"budget_ms is 0\.45, but .* 0\.5 ms"):
        searcher_of(tmp_path, 0.9)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"budget_ms": 1.0}, "latency_table is None; give both"),
        ({"latency_table": "t.json"}, "budget_ms is None"),
        ({"budget_ms": 0.0, "latency_table": "t.json"}, "budget_ms is 0.0; it must be a number above 0"),
        ({"budget_ms": float("nan"), "latency_table": "t.json"}, "budget_ms is nan; it must be a number above 0"),
    ],
)
def test_options_that_do_not_fit(options, says):
    with pytest.raises(UserError, match=says):
        SearchConfig(**options)


def test_a_table_that_lacks_a_candidate_is_refused_by_operation_and_cell(tmp_path):
    network, _, backbone, _ = space(tmp_path)
    values = table_values(backbone, ["bin_conv_1x1", "bin_conv_3x3", "identity"])
    table = write_table(tmp_path / "few.json", values)
    check_table(table, backbone, ["bin_conv_3x3"])
    for check in (lambda: check_table(table, backbone, None), lambda: CostModel.of_milliseconds(network, table)):
        with pytest.raises(UserError, match=r"few\.json: has no entry for \w+ from 6x4x4 .* which 2 needs"):
            check()
