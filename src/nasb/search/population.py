"""Strategies that judge whole architectures: weights are trained on random paths, then architectures are proposed and
judged with the shared weights, and the best are kept.

Architectures are proposed in rounds of `at_once`: nothing of a round is judged before all of it is proposed. So ranks
can share a round, and what comes out does not depend on how many there are.

What is proposed follows from the seed and from what was judged before. A round is kept on disk once it is judged (in
population.jsonl, a line for each architecture); a search that is killed and started again proposes the same ones, takes
the losses that are known already, and goes on with the first that is not.
"""

import json
import math
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasb.errors import UserError
from nasb.search.strategies import STRATEGIES, Strategy
from nasb.seeding import derive_seed

if TYPE_CHECKING:
    import torch

    from nasb.search.space import Choice, Space

Judge = Callable[[Sequence["Choice"]], list[float]]
"""Gives the losses of architectures with the shared weights."""


@dataclass(frozen=True)
class Judged:
    """A judged architecture."""

    choice: "Choice"
    """Its candidates by edge, dead edges none."""
    loss: float
    """Cross-entropy with the shared weights."""
    costs: Mapping[str, float] = field(default_factory=dict)
    """OPs, bits of memory, milliseconds, as far as they are known."""


class PopulationStrategy(Strategy):
    """Proposes architectures and learns from how they are judged; alpha is not trained."""

    trains_alpha = False
    judges = True
    file = "population.jsonl"
    """What holds the judged architectures, in the run directory."""
    population: list[Judged]

    def select_for_alpha(self, generator: "torch.Generator", progress: float) -> None:
        """Nothing is learned: draw a path as for the weights."""
        self.select_for_weights(generator, explore=True)

    def total(self) -> int:
        """Return how many architectures are judged."""
        return self.config.trials

    def objectives(self) -> tuple[str, ...]:
        """Return the costs that are minimized beside the loss, and so make a front; none by default."""
        return ()

    def begin(self, space: "Space", seed: int) -> None:
        """Prepare the proposals."""
        self.space, self.seed, self.population = space, seed, []

    def search(self, judge: Judge, folder: Path | None, share: "Share") -> None:
        """Propose and judge architectures until `total` are judged.

        Args:
            judge: judges the architectures of a round; the same on all ranks.
            folder: where judged architectures are kept; None: nowhere.
            share: gives all ranks what rank 0 has.

        Raises:
            UserError: what is kept in the folder is damaged, or of another search.
        """
        known: list[Judged] = share(self.restore(folder) if folder is not None else [])
        total, size = self.total(), self.config.at_once
        for start in range(0, total, size):
            choices = self.propose(range(start, min(start + size, total)))
            earlier = known[start : start + len(choices)]
            if any(judged.choice != choice for judged, choice in zip(earlier, choices, strict=False)):
                raise UserError(
                    f"{self.file} in the run directory is of another search, or of another version of what proposes "
                    "architectures: it does not hold the ones that this search proposes. Delete it to judge them anew"
                )
            rest = choices[len(earlier) :]
            losses = {judged.choice: judged.loss for judged in (*self.population, *earlier)}
            new = [choice for choice in dict.fromkeys(rest) if choice not in losses]
            losses |= zip(new, judge(new) if new else [], strict=True)
            for choice in rest:
                loss, costs = losses[choice], self.space.costs_of(self.space.cells(choice))
                judged = Judged(choice, loss if math.isfinite(loss) else math.inf, costs)
                if folder is not None:
                    self.keep(folder, judged, start + len(earlier))
                earlier.append(judged)
            self.learn(earlier)
            self.population += earlier

    @abstractmethod
    def propose(self, numbers: range) -> list["Choice"]:
        """Return the architectures of a round; dead edges are none.

        Args:
            numbers: of the architectures; those before them are judged.
        """

    def learn(self, judged: Sequence[Judged]) -> None:
        """Take in a round that is judged."""
        return

    def best(self, count: int) -> list["Choice"]:
        """Return the best that differ, the very best first."""
        ranked = sorted(self.population, key=lambda judged: judged.loss)
        return list(dict.fromkeys(judged.choice for judged in ranked))[:count]

    def generator(self, *place: int | str) -> "torch.Generator":
        """Return a generator for a place in the search."""
        import torch

        return torch.Generator().manual_seed(derive_seed(self.seed, *place))

    def restore(self, folder: Path) -> list[Judged]:
        """Return what was judged in earlier sittings.

        Raises:
            UserError: the file is damaged.
        """
        path = folder / self.file
        if not path.exists():
            return []
        cut_torn_line(path)
        found = []
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()):
            try:
                values: dict[str, Any] = json.loads(line)
                found.append(self.judged_of(values["cells"], values["loss"]))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(
                    f"{path}: line {number + 1} is damaged. Delete the file to judge the architectures anew"
                ) from None
        return found

    def keep(self, folder: Path, judged: Judged, number: int) -> None:
        """Write a judged architecture to the file, and to disk.

        Raises:
            UserError: it cannot be written.
        """
        row = {"number": number, "loss": judged.loss, **judged.costs, "cells": self.edges_of(judged.choice)}
        path = folder / self.file
        try:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None

    def edges_of(self, choice: "Choice") -> dict[str, list[list[int | str]]]:
        """Return an architecture as plain values: for each cell that has any, its edges."""
        cells = self.space.cells(choice)
        return {cell: [[e.source, e.target, e.operation] for e in edges] for cell, edges in cells.items() if edges}

    def judged_of(self, edges: Mapping[str, Sequence[Sequence[Any]]], loss: float) -> Judged:
        """Return the judged architecture that was written so."""
        from nasb.cells.architecture import Edge

        cells = {cell: tuple(Edge(*values) for values in rows) for cell, rows in edges.items()}
        choice = self.space.choice(cells)
        return Judged(choice, float(loss), self.space.costs_of(self.space.cells(choice)))


Share = Callable[[list[Judged]], list[Judged]]


def cut_torn_line(path: Path) -> None:
    """Cut off what a kill or a full disk has left of a line."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as stream:
            stream.truncate(whole)


@STRATEGIES.register("random")
class RandomSearch(PopulationStrategy):
    """Train weights on random paths, then keep the best of random architectures that use the budget.

    Source: Li and Talwalkar, Random search with weight sharing, UAI 2019, arXiv 1902.07638.
    """

    description = "random architectures, ranked with shared weights"

    def total(self) -> int:
        """Return how many architectures are judged."""
        return self.config.candidates

    def propose(self, numbers: range) -> list["Choice"]:
        """Draw random architectures."""
        return [self.space.draw(self.generator("draw", number)) for number in numbers]
