"""Costs of architectures and their expectation under alpha, in closed form: OPs, bits of memory, or milliseconds from
a latency table.

An edge costs only if it lies on a way from the cell's input to its output. The edges into a node and those out of it
are different ones, and are chosen independently, so for an edge i -> j

    E[cost of i -> j] = P(i is fed) * sum_o p_o cost(o) * P(j leads to the output)

which is exact for cells of up to two inside nodes (with more, two ways into a node may share an edge).

Memory has a second part: what all binary convolutions that leave a node share, the thresholds of its binarization, is
there once where any of them is live. Its expectation is exact but for node 0 of cells with two inside nodes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nasb.cells.architecture import Edge, node_pairs, prune
from nasb.cells.cell import Cell, EdgeKey, edge_name, edge_shape
from nasb.cells.operations import OPERATIONS
from nasb.cells.searchable import SearchableEdge, candidates, searchable_cells
from nasb.cost.layers import is_layer, stored
from nasb.errors import UserError
from nasb.search.strategies import stacked

if TYPE_CHECKING:
    from nasb.cost.latency import LatencyTable

BOPS_PER_OP = 64


class CostModel:
    """Costs of all architectures of one searchable network: the backbone's, and what each edge's operation adds.

    Args:
        network: the searchable network.
        backbone: cost of the same network with every edge "none".
        edge_costs: gives what each candidate of an edge adds, from the cell's name, the cell, the edge's key and the
            edge.
        unit: of the costs.
        node_costs: gives what the first binary convolution that leaves a node of a cell adds beside its own cost.
    """

    def __init__(
        self,
        network: nn.Module,
        backbone: float,
        edge_costs: Callable[[str, Cell, EdgeKey, SearchableEdge], Sequence[float]],
        unit: str,
        node_costs: Callable[[Cell], Mapping[int, float]] = lambda _cell: {},
    ) -> None:
        self.backbone, self.unit = backbone, unit
        self.cells = searchable_cells(network)
        self.costs: dict[tuple[str, EdgeKey], Tensor] = {}
        self._by_name: dict[tuple[str, EdgeKey], dict[str, float]] = {}
        for name, cell in self.cells.items():
            for key in cell.edge_keys:
                edge = cell.edge(key)
                if isinstance(edge, SearchableEdge):
                    costs = edge_costs(name, cell, key, edge)
                    self._by_name[name, key] = dict(zip(edge.names, costs, strict=True))
                    self.costs[name, key] = torch.tensor(costs, dtype=torch.float32)
        self._node_costs = {name: node_costs(cell) for name, cell in self.cells.items()}
        alike: dict[tuple[int, tuple[EdgeKey, ...]], list[str]] = {}
        for name, cell in self.cells.items():
            keys = tuple(key for key in cell.edge_keys if (name, key) in self.costs)
            if keys:
                alike.setdefault((cell.config.nodes, keys), []).append(name)
        self._groups = [
            _AlikeCells(names, nodes, keys, self.costs, self._node_costs) for (nodes, keys), names in alike.items()
        ]

    @classmethod
    def of_ops(cls, network: nn.Module, backbone_ops: float) -> "CostModel":
        """Return the costs in OPs (FLOPs + BOPs / 64)."""

        def costs(_name: str, cell: Cell, _key: EdgeKey, edge: SearchableEdge) -> list[float]:
            return [cell.calls * bops / BOPS_PER_OP for bops in edge.bops]

        return cls(network, backbone_ops, costs, "OPs")

    @classmethod
    def of_milliseconds(cls, network: nn.Module, table: "LatencyTable") -> "CostModel":
        """Return the costs in milliseconds on the device of a table.

        Raises:
            UserError: the table lacks an operation of the network.
        """

        def costs(name: str, cell: Cell, key: EdgeKey, edge: SearchableEdge) -> list[float]:
            shape = edge_shape(cell.shape, key[0])
            return [cell.calls * table.milliseconds(operation, shape, name) for operation in edge.names]

        return cls(network, table.backbone_ms, costs, "ms")

    @classmethod
    def of_memory(cls, network: nn.Module, backbone_bits: float) -> "CostModel":
        """Return the costs in bits of the deployed network: 1 for a binary weight, 32 for any other number.

        A cell that is called several times is stored once.

        Raises:
            UserError: an operation stores numbers of an unknown kind.
        """

        def costs(_name: str, cell: Cell, key: EdgeKey, edge: SearchableEdge) -> list[float]:
            thresholds = sum(_bits(own) for name, own in cell.inside.items() if name == edge_name(*key))
            return [
                _bits(edge.candidates[name]) + thresholds if name in edge.candidates else 0.0 for name in edge.names
            ]

        return cls(network, backbone_bits, costs, "bits", _shared_thresholds)

    def expected(self, probabilities: Mapping[tuple[str, EdgeKey], Tensor]) -> Tensor:
        """Return the expected cost of the whole network.

        Args:
            probabilities: for each (cell, edge) the probability of each candidate, "none" first; zeros may follow.
        """
        total = torch.tensor(self.backbone)
        for group in self._groups:
            total = total + group.expected(probabilities)
        return total

    def of_cell(self, name: str, edges: Sequence[Edge]) -> float:
        """Return what the edges of one cell add, dead ones not counted."""
        cell, shared = self.cells[name], self._node_costs[name]
        total = 0.0
        read = set()
        for edge in prune(edges, cell.config.nodes):
            for paid in (False, True):
                total += self._by_name.get((name, (edge.source, edge.target, paid)), {}).get(edge.operation, 0.0)
            if shared and OPERATIONS[edge.operation].paid:
                read.add(edge.source)
        return total + sum(cost for node, cost in shared.items() if node in read)

    def pruned(self, name: str, chosen: Mapping[EdgeKey, int]) -> tuple[Edge, ...]:
        """Return the edges of one cell from the indices of the chosen candidates, dead ones left out."""
        cell = self.cells[name]
        names = {key: list(self._by_name[name, key]) for key in chosen}
        edges = [Edge(key[0], key[1], names[key][index]) for key, index in chosen.items()]
        return prune(edges, cell.config.nodes)

    def of(self, cells: Mapping[str, Sequence[Edge]]) -> float:
        """Return the cost of an architecture's whole network."""
        return self.backbone + sum(self.of_cell(name, edges) for name, edges in cells.items())


class _AlikeCells:
    """Cells with the same edges: what they are expected to add is computed for all of them at once.

    Args:
        names: the cells.
        nodes: inside nodes of each.
        costs: for each (cell, edge) what its candidates add.
        node_costs: for each cell what a node's first binary convolution adds.
    """

    def __init__(
        self, names: Sequence[str], nodes: int, keys: Sequence[EdgeKey], costs: Mapping[tuple[str, EdgeKey], Tensor],
        node_costs: Mapping[str, Mapping[int, float]],
    ) -> None:  # fmt: skip
        self.names, self.nodes, self.keys = list(names), nodes, list(keys)
        self.costs = {key: stacked([costs[name, key] for name in names], 0.0) for key in keys}
        self.costly = [key for key in keys if bool(self.costs[key].any())]
        sources = dict.fromkeys(source for name in names for source in node_costs[name])
        self.node_costs = {
            source: torch.tensor([node_costs[name].get(source, 0.0) for name in names]) for source in sources
        }

    def expected(self, probabilities: Mapping[tuple[str, EdgeKey], Tensor]) -> Tensor:
        """Return what they add in all; see the module for the formula."""
        rows = {key: stacked([probabilities[name, key] for name in self.names], 0.0) for key in self.keys}
        output = self.nodes + 1
        one = torch.ones(len(self.names), device=next(iter(rows.values())).device)
        connected: dict[tuple[int, int], Tensor] = {}
        for pair in node_pairs(self.nodes):
            none = one
            for key in ((*pair, False), (*pair, True)):
                if key in rows:
                    none = none * rows[key][:, 0]
            connected[pair] = 1 - none
        fed = {0: one}
        for target in range(1, output):
            unfed = one
            for source in range(target):
                unfed = unfed * (1 - fed[source] * connected[source, target])
            fed[target] = 1 - unfed
        leads = {output: one}
        for source in range(self.nodes, 0, -1):
            lost = one
            for target in range(source + 1, output + 1):
                lost = lost * (1 - connected[source, target] * leads[target])
            leads[source] = 1 - lost
        total = torch.zeros_like(one)
        for key in self.costly:
            costs = self.costs[key].to(one.device)
            cost = (rows[key][:, : costs.shape[1]] * costs).sum(1)
            total = total + fed[key[0]] * cost * leads[key[1]]
        for source, costs in self.node_costs.items():
            unread = one
            for target in range(source + 1, output + 1):
                if (source, target, True) in rows:
                    unread = unread * (1 - (1 - rows[source, target, True][:, 0]) * leads[target])
            total = total + fed[source] * (1 - unread) * costs.to(one.device)
        return total.sum()


def _bits(module: nn.Module) -> float:
    """Return the bits that a deployed operation stores; a batch norm takes up what can be folded into it."""
    total = 0.0
    for part in module.modules():
        if is_layer(part):
            numbers = stored(part)
            if numbers is None:
                raise UserError(f"memory: {type(part).__name__} stores numbers whose width is not known")
            total += sum(n.numbers * n.bits_each for n in numbers if not n.foldable)
    return total


def _shared_thresholds(cell: Cell) -> dict[int, float]:
    """Return the bits of each node's thresholds that are there once any binary convolution leaves the node."""
    shared = {int(node): _bits(binarize) for node, binarize in cell.inside.items() if node.isdigit()}
    if cell.config.thresholds == "edge" and cell.config.bases == 1 and not cell.config.learned_threshold:
        shared[0] = _bits(cell.binarize[0])  # fixed at 0 where it stands alone
    return {node: bits for node, bits in shared.items() if bits}


def check_table(table: "LatencyTable", backbone: nn.Module, operations: Sequence[str] | None) -> None:
    """Refuse a table that lacks a candidate of the search around a backbone.

    Raises:
        UserError: names the candidate and the cell.
    """
    for name, cell in searchable_cells(backbone).items():
        for (source, _, _), names in candidates(cell.shape, cell.config, operations).items():
            for operation in names:
                table.milliseconds(operation, edge_shape(cell.shape, source), name)
