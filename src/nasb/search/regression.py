"""Strategy regression: what each operation is worth, by a linear model of the loss.

Weights are trained on single random paths. A step of alpha computes the loss of several paths on one of its batches,
forward only; what is on the edges explains how these losses differ:

    loss(path) - mean of the batch's paths = sum over operations f of w_f (x_f - mean of x_f) + noise

with x_f = 1 where f stands on a live edge. The gradient of a gate says what a branch a little stronger would change,
which is about nothing once its batch norm is trained; w_f says what having it changes.

Effects have three parts: one of (edge, operation) in the whole network, one in cells of one shape, and f's own, each
drawn from N(0, tau^2); tau^2 maximizes the evidence. So cells learn from each other as far as they behave alike. Later
observations weigh more, in proportion to the search's progress.

After an epoch alpha is ``base - w / (tau sqrt 3)``, base being where the expected cost meets the budget.
Linear models of one-hot choices: Hazan et al., Hyperparameter optimization: a spectral approach, ICLR 2018, arXiv
1706.00764. Bayesian linear model: MacKay, Bayesian interpolation, Neural Computation 4 (1992).
"""

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

from nasb.search.strategies import STRATEGIES, Compared, Strategy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nasb.cells.searchable import SearchableEdge
    from nasb.search.config import SearchConfig

LEVELS = 3


@STRATEGIES.register("regression")
class Regression(Strategy):
    """Random paths; effects of the operations by a linear model of the loss (see the module)."""

    description = "random paths; a linear model of the loss tells what each operation is worth"
    measures = True

    def __init__(self, edges: Sequence["SearchableEdge"], starts: Sequence["Tensor"], config: "SearchConfig") -> None:
        import torch

        super().__init__(edges, starts, config)
        self.first: list[int] = []
        kinds: list[tuple[Hashable, Hashable]] = []
        for edge in self.edges:
            self.first.append(len(kinds))
            kinds += [((edge.key, name), (edge.key, name, edge.shape)) for name in edge.names[1:]]
        size = len(kinds)
        levels = [_membership([kind[level] for kind in kinds]) for level in range(LEVELS - 1)]
        self.parts = torch.cat([*levels, torch.eye(size, dtype=torch.double)], 1)
        self.gram = torch.zeros(size, size, dtype=torch.double)
        self.moment = torch.zeros(size, dtype=torch.double)
        self.square = torch.zeros((), dtype=torch.double)
        self.count = 0.0

    def select_for_alpha(self, generator: "torch.Generator", progress: float) -> None:
        """Draw a path as for the weights."""
        import torch

        explore = float(torch.rand((), generator=generator)) < self.config.uniform_paths
        self.select_for_weights(generator, explore=explore)

    def observe(self, compared: Sequence[Compared], progress: float) -> None:
        """Take in the losses of some paths on one batch; `progress` of the search, 0 to 1."""
        import torch

        rows = torch.zeros(len(compared), len(self.moment), dtype=torch.double)
        for row, path in zip(rows, compared, strict=True):
            for first, chosen in zip(self.first, path.live(), strict=True):
                if chosen:
                    row[first + chosen - 1] = 1.0
        x, y = rows - rows.mean(0), torch.tensor([path.loss for path in compared], dtype=torch.double)
        y = y - y.mean()
        self.gram += progress * (x.T @ x)
        self.moment += progress * (x.T @ y)
        self.square += progress * (y @ y)
        self.count += progress * (len(compared) - 1)

    def effects(self) -> tuple["Tensor", float]:
        """Return (w: what each operation adds to the loss, tau: the spread of each part of it)."""
        import torch

        if self.count == 0:
            return torch.zeros_like(self.moment), 1.0
        gram, moment = self.parts.T @ self.gram @ self.parts, self.parts.T @ self.moment
        values, vectors = torch.linalg.eigh(gram)
        values, projected = values.clamp_min(0), vectors.T @ moment
        best: tuple[float, float, Tensor] | None = None
        for power in range(-16, 17):
            ratio = 4.0**power  # tau^2 over the variance of the noise
            shrunk = projected / (values + 1 / ratio)
            noise = float(self.square - projected @ shrunk) / self.count
            if noise <= 0:
                continue
            evidence = -self.count * math.log(noise) - float((1 + ratio * values).log().sum())
            if best is None or evidence > best[0]:
                best = evidence, math.sqrt(ratio * noise), vectors @ shrunk
        if best is None:
            return torch.zeros_like(self.moment), 1.0
        return self.parts @ best[2], best[1]

    def evidence(self) -> list["Tensor"]:
        """Return for each edge what speaks for each candidate, in units of the effects' spread; 0 for none."""
        import torch

        effects, tau = self.effects()
        scaled = (-effects / (tau * math.sqrt(LEVELS))).float()
        return [
            torch.cat([torch.zeros(1), scaled[first : first + len(edge.names) - 1]])
            for first, edge in zip(self.first, self.edges, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the sums."""
        return {"gram": self.gram, "moment": self.moment, "square": self.square, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.gram, self.moment = state["gram"].clone(), state["moment"].clone()
        self.square, self.count = state["square"].clone(), float(state["count"])


def _membership(kinds: Sequence[Hashable]) -> "Tensor":
    """Return [operations, groups]: 1 where the operation is of the group."""
    import torch

    order = {kind: column for column, kind in enumerate(dict.fromkeys(kinds))}
    matrix = torch.zeros(len(kinds), len(order), dtype=torch.double)
    for row, kind in enumerate(kinds):
        matrix[row, order[kind]] = 1.0
    return matrix
