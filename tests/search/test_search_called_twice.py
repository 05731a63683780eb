"""A cell that a network calls twice: computed twice, stored once."""

import pytest
import torch
from latency_tables import table_values, write_table
from search_hosts import SHAPE
from torch import nn

from nasb.cells import CellConfig, Edge
from nasb.cells.architecture import prune
from nasb.cost import count
from nasb.cost.latency import shapes_of
from nasb.networks.convert import convert
from nasb.search.cost_model import CostModel


class Twice(nn.Module):
    """A stem, a convolution that is called twice, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(SHAPE[0], 6, 1, bias=False), nn.BatchNorm2d(6)
        self.conv, self.norm = nn.Conv2d(6, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6)
        self.pool, self.flatten, self.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)

    def forward(self, x_NCHW):  # noqa: N803
        y_NCHW = self.norm0(self.stem(x_NCHW))
        for _ in range(2):
            y_NCHW = self.norm(self.conv(y_NCHW))
        return self.fc(self.flatten(self.pool(y_NCHW)))


def drawn(model, nodes, seed):
    """Pruned edges of every cell, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    cells = {}
    for name, cell in model.cells.items():
        names = {key: cell.edge(key).names for key in cell.edge_keys}
        edges = [Edge(k[0], k[1], n[int(torch.randint(len(n), (), generator=generator))]) for k, n in names.items()]
        cells[name] = prune(edges, nodes)
    return cells


@pytest.mark.parametrize("seed", range(4))
def test_costs_are_those_of_the_derived_network(seed, tmp_path):
    config = CellConfig(nodes=1)
    backbone, network = convert(Twice(), SHAPE, cell=config), convert(Twice(), SHAPE, cell=config, search=True)
    cost, table = count(backbone, SHAPE), write_table(tmp_path / "table.json", table_values(backbone))
    by_ops, by_memory = CostModel.of_ops(network, cost.ops), CostModel.of_memory(network, cost.memory_bits)
    assert [cell.calls for cell in by_ops.cells.values()] == [2]
    cells = drawn(by_ops, 1, seed)
    derived = count(convert(Twice(), SHAPE, cell=config, cells=cells), SHAPE)
    assert derived.bops > cost.bops
    assert by_ops.of(cells) == derived.ops
    assert by_memory.of(cells) == derived.memory_bits
    assert CostModel.of_milliseconds(network, table).of(cells) == pytest.approx(table.predict(backbone, cells))


def test_a_probe_counts_what_runs_twice_twice():
    shapes = shapes_of(convert(Twice(), SHAPE, cell=CellConfig(nodes=1)), None)
    for kind, probe in shapes.probes.items():
        assert len(shapes.probe_entries[kind]) == 2 * sum(map(len, probe.values()))
