"""Strategy evolution: regularized evolution on the shared weights.

The first `population` architectures are drawn at random, each within the budget. From then on a parent is the best of
`tournament` that are drawn from the living; its child differs in one operation, and where it then costs too much or too
little, in what brings it back to the budget. The child joins, and the oldest dies, however good it is.

Source: Real et al., Regularized evolution for image classifier architecture search, AAAI 2019, arXiv 1802.01548.
Departures: architectures are judged with shared weights, not trained; children of one round have the same living.
"""

from typing import TYPE_CHECKING

from nasb.search.population import PopulationStrategy
from nasb.search.strategies import STRATEGIES

if TYPE_CHECKING:
    import torch

    from nasb.search.space import Choice

ATTEMPTS = 20
"""Mutations that are tried until the child is another architecture than its parent."""


@STRATEGIES.register("evolution")
class Evolution(PopulationStrategy):
    """Mutants of the best of a few; the oldest dies (see the module)."""

    description = "mutants of good architectures, judged with shared weights; the oldest dies (regularized evolution)"

    def propose(self, numbers: range) -> list["Choice"]:
        """Draw the first ones, then mutate."""
        living = self.population[-self.config.population :]
        proposed = []
        for number in numbers:
            generator = self.generator("evolution", number)
            if number < self.config.population or not living:
                proposed.append(self.space.draw(generator))
                continue
            size = min(self.config.tournament, len(living))
            drawn = _sample(len(living), size, generator)
            parent = min((living[index] for index in drawn), key=lambda judged: judged.loss)
            proposed.append(self.mutate(parent.choice, generator))
        return proposed

    def mutate(self, parent: "Choice", generator: "torch.Generator") -> "Choice":
        """Return a child: one operation is another one, and the budget is met."""
        child = parent
        for _ in range(ATTEMPTS):
            (at,) = _sample(len(parent), 1, generator)
            others = [index for index in range(len(self.space.names[at])) if index != parent[at]]
            (drawn,) = _sample(len(others), 1, generator)
            changed = (*parent[:at], others[drawn], *parent[at + 1 :])
            child = self.space.fit(changed, self.space.noise(generator), keep=(at,))
            if child != parent:
                break
        return child


def _sample(count: int, size: int, generator: "torch.Generator") -> list[int]:
    """Return `size` different numbers below `count`."""
    import torch

    return torch.randperm(count, generator=generator)[:size].tolist()
