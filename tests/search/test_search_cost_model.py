"""Expected OPs against an enumeration of all choices, OPs of architectures against the counter."""

import itertools

import pytest
import torch
from search_hosts import SHAPE, searchable

from nasb.cells import Edge
from nasb.cells.architecture import prune
from nasb.cells.operations import OPERATIONS
from nasb.cost import count
from nasb.networks.convert import convert
from nasb.search.cost_model import CostModel

CASES = [  # nodes, operations: all choices of all edges are enumerated
    (0, None),
    (1, ["identity", "bin_conv_1x1", "bin_conv_3x3"]),
    (1, ["bin_conv_1x1", "bin_conv_3x3", "dil_bin_conv_5x5"]),
    (2, ["identity", "bin_conv_3x3"]),
    (2, ["bin_conv_1x1", "bin_conv_3x3"]),
]


def enumerated(network, backbone, alphas):
    """The mean of the OPs over every choice of every edge; each cell by itself, since costs add up."""
    total = backbone
    for name, cell in CostModel.of_ops(network, backbone).cells.items():
        edges = [(key, cell.edge(key)) for key in cell.edge_keys]
        for choice in itertools.product(*(range(len(edge.names)) for _, edge in edges)):
            probability, chosen, bops = 1.0, [], {}
            for (key, edge), index in zip(edges, choice, strict=True):
                probability *= float(alphas[name, key][index])
                operation = edge.names[index]
                chosen.append(Edge(key[0], key[1], operation))
                bops[chosen[-1]] = edge.bops[index]
            total += probability * sum(bops[edge] for edge in prune(chosen, cell.config.nodes)) / 64
    return total


@pytest.mark.parametrize(("nodes", "operations"), CASES)
@pytest.mark.parametrize("sharp", [0.3, 3.0])
def test_expected_ops_are_the_mean_over_all_choices(nodes, operations, sharp):
    network, backbone, _, _ = searchable(4, 6, nodes=nodes, operations=operations)
    model = CostModel.of_ops(network, backbone)
    generator = torch.Generator().manual_seed(nodes)
    probabilities = {
        key: (sharp * torch.randn(len(bops), generator=generator)).softmax(0) for key, bops in model.costs.items()
    }
    expected = enumerated(network, backbone, probabilities)
    assert float(model.expected(probabilities)) == pytest.approx(expected, rel=1e-5)
    assert expected > backbone


def test_expected_ops_of_a_certain_choice_are_the_ops_of_its_architecture():
    network, backbone, _, _ = searchable(4, 6, 6, nodes=2)
    model = CostModel.of_ops(network, backbone)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        probabilities, cells = {}, {name: [] for name in model.cells}
        for (name, key), bops in model.costs.items():
            index = int(torch.randint(len(bops), (), generator=generator))
            probabilities[name, key] = torch.nn.functional.one_hot(torch.tensor(index), len(bops)).float()
            cells[name].append(Edge(key[0], key[1], model.cells[name].edge(key).names[index]))
        assert float(model.expected(probabilities)) == pytest.approx(model.of(cells), rel=1e-6)


def test_expected_ops_have_the_gradient_of_the_enumeration():
    network, backbone, _, _ = searchable(4, 6, nodes=1, operations=["identity", "bin_conv_1x1"])
    model = CostModel.of_ops(network, backbone)
    alphas = {key: torch.randn(len(bops), requires_grad=True) for key, bops in model.costs.items()}
    model.expected({key: alpha.softmax(0) for key, alpha in alphas.items()}).backward()
    for key, alpha in alphas.items():
        for index in range(len(alpha)):
            values = []
            for step in (1e-3, -1e-3):
                moved = {k: a.detach().double().clone() for k, a in alphas.items()}
                moved[key][index] += step
                values.append(enumerated(network, backbone, {k: a.softmax(0) for k, a in moved.items()}))
            slope = (values[0] - values[1]) / 2e-3
            assert float(alpha.grad[index]) == pytest.approx(slope, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("nodes", [0, 1, 2])
@pytest.mark.parametrize("bases", [1, 2])
def test_ops_of_an_architecture_are_what_the_counter_finds_in_the_derived_network(nodes, bases):
    network, backbone, host, config = searchable(4, 6, 6, nodes=nodes, bases=bases)
    model = CostModel.of_ops(network, backbone)
    generator = torch.Generator().manual_seed(nodes)
    for _ in range(4):
        cells = {}
        for name, cell in model.cells.items():
            edges = []
            for source, target, paid in cell.edge_keys:
                names = cell.edge((source, target, paid)).names
                index = int(torch.randint(len(names), (), generator=generator))
                edges.append(Edge(source, target, names[index]))
            cells[name] = prune(edges, nodes)
        derived = convert(host, SHAPE, cell=config, cells=cells)
        assert model.of(cells) == count(derived, SHAPE).ops
        spent = [model.of_cell(name, edges) for name, edges in cells.items()]
        assert model.of(cells) == pytest.approx(backbone + sum(spent))


def test_dead_edges_cost_nothing():
    network, backbone, _, _ = searchable(4, 6, nodes=2)
    model = CostModel.of_ops(network, backbone)
    (name,) = model.cells
    assert model.of_cell(name, [Edge(0, 1, "bin_conv_3x3"), Edge(2, 3, "bin_conv_3x3")]) == 0
    alive = [Edge(0, 1, "bin_conv_3x3"), Edge(1, 3, "identity")]
    assert model.of_cell(name, alive) == 4 * 4 * 6 * 4 * 9 / 64
    assert model.of_cell(name, [Edge(0, 3, "bin_conv_1x1"), *alive]) == 4 * 4 * 6 * 4 * 10 / 64
    assert all(OPERATIONS[e.operation].paid == (e.operation != "identity") for e in alive)
