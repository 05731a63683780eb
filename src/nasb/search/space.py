"""The architectures of a searchable network: as choices, as cells, what they cost, how one is made to fit a budget."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nasb.cells.architecture import Edge, live_pairs
from nasb.cells.cell import EdgeKey
from nasb.search.cost_model import CostModel
from nasb.search.derive import IDLE, Derivation

if TYPE_CHECKING:
    from nasb.cells.searchable import SearchableEdge

Choice = tuple[int, ...]
"""For each edge of the network, in the order of `named_edges`, the index of its candidate (0 is none)."""
Cells = dict[str, tuple[Edge, ...]]
"""The pruned edges of every cell."""

PROTECTION = 20.0
"""Added to the log-probability of what `Space.fit` has to keep."""


class Space:
    """All architectures of a searchable network.

    Args:
        named: (cell, key, edge) of every edge, as `named_edges` gives them.
        costs: cost models by name ("ops", "memory", "ms").
        budget_cost: name of the cost that has a budget.
        budget: what an architecture may cost, in that cost's unit.
    """

    def __init__(
        self,
        named: "Sequence[tuple[str, EdgeKey, SearchableEdge]]",
        costs: Mapping[str, CostModel],
        budget_cost: str,
        budget: float,
    ) -> None:
        self.named, self.costs, self.cost, self.budget = list(named), dict(costs), costs[budget_cost], budget
        self.names = [edge.names for _, _, edge in self.named]

    def cells(self, choice: Sequence[int]) -> Cells:
        """Return a choice's cells, dead edges left out."""
        chosen: dict[str, dict[EdgeKey, int]] = {}
        for (cell, key, _), index in zip(self.named, choice, strict=True):
            chosen.setdefault(cell, {})[key] = index
        return {cell: self.cost.pruned(cell, edges) for cell, edges in chosen.items()}

    def choice(self, cells: Mapping[str, Sequence[Edge]]) -> Choice:
        """Return the choice that gives these cells."""
        chosen = {(cell, e.source, e.target, e.operation) for cell, edges in cells.items() for e in edges}
        return tuple(
            next((i for i, name in enumerate(edge.names) if (cell, source, target, name) in chosen), 0)
            for cell, (source, target, _), edge in self.named
        )

    def select(self, choice: Sequence[int]) -> None:
        """Let the network run a choice."""
        for (_, _, edge), index in zip(self.named, choice, strict=True):
            edge.select([index])

    def selected(self) -> Choice:
        """Return what the network runs, where it is a single path."""
        return tuple(edge.selected() for _, _, edge in self.named)

    def relevant(self, choice: Sequence[int]) -> list[bool]:
        """Return for each edge whether what stands on it matters: its source is fed, and its target is read."""
        connected: dict[str, set[tuple[int, int]]] = {}
        for (cell, key, _), index in zip(self.named, choice, strict=True):
            pairs = connected.setdefault(cell, set())
            if index:
                pairs.add(key[:2])
        return [
            key[:2] in live_pairs({*connected[cell], key[:2]}, self.cost.cells[cell].config.nodes)
            for cell, key, _ in self.named
        ]

    def costs_of(self, cells: Mapping[str, Sequence[Edge]]) -> dict[str, float]:
        """Return every cost of an architecture's whole network, in the cost models' units."""
        return {name: cost.of(cells) for name, cost in self.costs.items()}

    def derive(self, gains: Sequence[Tensor], *, budget: float | None = None, idle: float = IDLE) -> Cells:
        """Return the cells of the most probable architecture within the budget.

        Args:
            gains: for each edge the logits of its candidates.
            budget: instead of the space's own.
            idle: share of the budget that may be left unspent, where there is a choice.
        """
        names: dict[str, dict[EdgeKey, tuple[str, ...]]] = {}
        logs: dict[str, dict[EdgeKey, list[float]]] = {}
        for (cell, key, edge), gain in zip(self.named, gains, strict=True):
            names.setdefault(cell, {})[key] = edge.names
            logs.setdefault(cell, {})[key] = gain.cpu().double().log_softmax(0).tolist()
        return Derivation(self.cost, names, logs, self.budget if budget is None else budget, idle).run()

    def noise(self, generator: torch.Generator) -> list[Tensor]:
        """Return random logits for every edge: the logarithms of uniform numbers."""
        return [torch.rand(len(names), generator=generator).double().log() for names in self.names]

    def draw(self, generator: torch.Generator, *, budget: float | None = None) -> Choice:
        """Return a random architecture that uses the budget: random logits, derived like alpha's."""
        return self.choice(self.derive(self.noise(generator), budget=budget))

    def fit(
        self, choice: Sequence[int], noise: Sequence[Tensor], *, fill: bool = True, keep: Sequence[int] = ()
    ) -> Choice:
        """Return the nearest architecture within the budget, by random logits among which the choice stands highest.

        Args:
            choice: what is to fit; dead edges may be on it.
            noise: decides what has to go or to come; equal noise gives equal results.
            fill: add operations too, until the budget is used up to 1%.
            keep: edges that change last.
        """
        logits = []
        for at, (log, index) in enumerate(zip(noise, choice, strict=True)):
            top, arranged = int(log.argmax()), log.clone()
            arranged[top], arranged[index] = log[index], log[top]
            if at in keep:
                arranged[index] += PROTECTION
            logits.append(arranged)
        return self.choice(self.derive(logits, idle=IDLE if fill else 1.0))
