"""OPs of architectures and their expectation under alpha, in closed form.

An edge costs only if it lies on a way from the cell's input to its output. The edges into a node and those out of it
are different ones, and are chosen independently, so for an edge i -> j

    E[OPs of i -> j] = P(i is fed) * sum_o p_o OPs(o) * P(j leads to the output)

which is exact for cells of up to two inside nodes (with more, two ways into a node may share an edge).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nasb.cells.architecture import Edge, node_pairs, prune
from nasb.cells.cell import Cell, EdgeKey
from nasb.cells.searchable import SearchableEdge, searchable_cells

BOPS_PER_OP = 64


class CostModel:
    """Costs of all architectures of one searchable network, in OPs (FLOPs + BOPs / 64).

    Args:
        network: the searchable network.
        backbone_ops: OPs of the same network with every edge "none".
    """

    def __init__(self, network: nn.Module, backbone_ops: float) -> None:
        self.backbone_ops = backbone_ops
        self.cells = searchable_cells(network)
        self.bops: dict[tuple[str, EdgeKey], Tensor] = {}
        self._by_name: dict[tuple[str, EdgeKey], dict[str, int]] = {}
        for name, cell in self.cells.items():
            for key in cell.edge_keys:
                edge = cell.edge(key)
                if isinstance(edge, SearchableEdge):
                    self.bops[name, key] = torch.tensor(edge.bops, dtype=torch.float32)
                    self._by_name[name, key] = dict(zip(edge.names, edge.bops, strict=True))

    def expected_ops(self, probabilities: Mapping[tuple[str, EdgeKey], Tensor]) -> Tensor:
        """Return the expected OPs of the whole network.

        Args:
            probabilities: for each (cell, edge) the probability of each candidate, "none" first.
        """
        total: Tensor | None = None
        for name, cell in self.cells.items():
            bops = _expected_bops(name, cell, probabilities, self.bops)
            total = bops if total is None else total + bops
        if total is None:
            return torch.tensor(self.backbone_ops)
        return self.backbone_ops + total / BOPS_PER_OP

    def cell_ops(self, name: str, edges: Sequence[Edge]) -> float:
        """Return the OPs that the edges of one cell add, dead ones not counted."""
        cell = self.cells[name]
        bops = 0
        for edge in prune(edges, cell.config.nodes):
            for paid in (False, True):
                bops += self._by_name.get((name, (edge.source, edge.target, paid)), {}).get(edge.operation, 0)
        return bops / BOPS_PER_OP

    def ops(self, cells: Mapping[str, Sequence[Edge]]) -> float:
        """Return the OPs of an architecture's whole network."""
        return self.backbone_ops + sum(self.cell_ops(name, edges) for name, edges in cells.items())


def _expected_bops(
    name: str,
    cell: Cell,
    probabilities: Mapping[tuple[str, EdgeKey], Tensor],
    bops: Mapping[tuple[str, EdgeKey], Tensor],
) -> Tensor:
    nodes = cell.config.nodes
    output = nodes + 1
    one = torch.ones(())
    connected: dict[tuple[int, int], Tensor] = {}
    for source, target in node_pairs(nodes):
        none = one
        for paid in (False, True):
            if (name, (source, target, paid)) in probabilities:
                none = none * probabilities[name, (source, target, paid)][0]
        connected[source, target] = 1 - none
    fed = {0: one}
    for target in range(1, nodes + 1):
        unfed = one
        for source in range(target):
            unfed = unfed * (1 - fed[source] * connected[source, target])
        fed[target] = 1 - unfed
    leads = {output: one}
    for source in range(nodes, 0, -1):
        lost = one
        for target in range(source + 1, output + 1):
            lost = lost * (1 - connected[source, target] * leads[target])
        leads[source] = 1 - lost
    total = torch.zeros(())
    for key in cell.edge_keys:
        if key[2] and (name, key) in probabilities:
            cost = probabilities[name, key] @ bops[name, key].to(probabilities[name, key].device)
            total = total + fed[key[0]] * cost * leads[key[1]]
    return total
