"""Derivation: alpha in, an architecture within the budget out.

First the most probable operation of every edge. Then one change after the other, each of one or two edges of a cell:
while the network costs too much, the change that loses least log-probability per OP (or millisecond) saved; while more
than 1% of the budget lies idle, the change that gains most (or loses least) per OP added. Two edges change at once so
that a way through an inside node, which costs nothing until both of its edges are there, can be opened or closed.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from nasb.cells.architecture import Edge, prune
from nasb.cells.cell import EdgeKey
from nasb.errors import UserError
from nasb.search.cost_model import CostModel

Choice = dict[EdgeKey, int]
"""For each edge of a cell the index of the chosen candidate (0 is none)."""

IDLE = 0.01


class Derivation:
    """The candidates, their log-probabilities, and the budget.

    Args:
        cost: the cost model.
        names: for each cell and edge the candidates' names, "none" first.
        log_probabilities: the same with the log-probability of each.
        budget: what the derived network may cost, in the cost model's unit.
        idle: share of the budget that may be left unspent, where there is a choice.
    """

    def __init__(
        self,
        cost: CostModel,
        names: Mapping[str, Mapping[EdgeKey, Sequence[str]]],
        log_probabilities: Mapping[str, Mapping[EdgeKey, Sequence[float]]],
        budget: float,
        idle: float = IDLE,
    ) -> None:
        self.cost, self.names, self.log_probabilities = cost, names, log_probabilities
        self.budget, self.idle = budget, idle
        self.choices: dict[str, Choice] = {
            cell: {key: max(range(len(p)), key=p.__getitem__) for key, p in edges.items()}
            for cell, edges in log_probabilities.items()
        }
        self._moves: dict[str, list[tuple[Choice, float, float]]] = {}

    def run(self) -> dict[str, tuple[Edge, ...]]:
        """Return the pruned edges of every cell.

        Raises:
            UserError: the budget is below the backbone alone.
        """
        if self.budget < self.cost.backbone:
            raise UserError("the search's budget is below the cost of the backbone alone")
        spent = {cell: self.cost.of_cell(cell, self._edges(cell, choice)) for cell, choice in self.choices.items()}
        total = self.cost.backbone + sum(spent.values())
        while True:
            room = self.budget - total
            if 0 <= room <= self.idle * self.budget:
                break
            move = self._best_move(room)
            if move is None:
                break
            cell, changes, added = move
            self.choices[cell].update(changes)
            self._moves.pop(cell, None)
            total += added
        return {cell: prune(self._edges(cell, choice), self._nodes(cell)) for cell, choice in self.choices.items()}

    def _nodes(self, cell: str) -> int:
        return self.cost.cells[cell].config.nodes

    def _edges(self, cell: str, choice: Choice) -> list[Edge]:
        return [Edge(key[0], key[1], self.names[cell][key][index]) for key, index in choice.items()]

    def _best_move(self, room: float) -> tuple[str, Choice, float] | None:
        """Return (cell, changes, cost added) of the best change; `room` < 0: there is too much."""
        best: tuple[float, str, Choice, float] | None = None
        for cell in self.choices:
            if cell not in self._moves:
                self._moves[cell] = list(self._changes(cell))
            for changes, gain, added in self._moves[cell]:
                if (room < 0 and added >= 0) or (room >= 0 and not 0 < added <= room):
                    continue
                score = gain / abs(added)
                if best is None or score > best[0]:
                    best = score, cell, changes, added
        return None if best is None else best[1:]

    def _changes(self, cell: str) -> Iterator[tuple[Choice, float, float]]:
        """Yield every change of one or two edges that changes a cell's cost: (changes, log-probability, cost added)."""
        choice, logs = self.choices[cell], self.log_probabilities[cell]
        before = self.cost.of_cell(cell, self._edges(cell, choice))
        single = [(key, index) for key in choice for index in range(len(logs[key])) if index != choice[key]]
        pairs = (pair for pair in itertools.combinations(single, 2) if pair[0][0] != pair[1][0])
        for changes in itertools.chain(((change,) for change in single), pairs):
            added = self.cost.of_cell(cell, self._edges(cell, {**choice, **dict(changes)})) - before
            if added:
                yield dict(changes), sum(logs[key][i] - logs[key][choice[key]] for key, i in changes), added
