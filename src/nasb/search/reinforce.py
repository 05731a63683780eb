"""Strategy reinforce: alpha by the score function of sampled paths, forward only.

A step of alpha samples n paths from softmax(alpha) and runs them on one batch of the alpha part. The reward of path i,
its budget included, is

    R_i = -(cross-entropy_i + w * |log(cost_i / budget)|)

and alpha descends, against the mean reward of the batch's other paths as the baseline,

    1/n sum_i (mean of R_j, j != i  -  R_i) * log p(path_i)

whose gradient is an unbiased estimate of that of -E[R]. In log p stand only the edges that matter to the path: what is
chosen on an edge that nothing feeds or nothing reads cannot change its reward, and would only add noise.

Source: Williams, Simple statistical gradient-following algorithms, Machine Learning 8 (1992); the baseline: Kool, van
Hoof and Welling, Buy 4 REINFORCE samples, get a baseline for free!, ICLR 2019 workshop. Departure: the reward is the
search's own objective on cross-entropy; MnasNet (arXiv 1807.11626) and ProxylessNAS take accuracy.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nasb.search.strategies import STRATEGIES, Compared, Strategy

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@STRATEGIES.register("reinforce")
class Reinforce(Strategy):
    """Paths from softmax(alpha); alpha by the score function, with the other paths as baseline (see the module)."""

    description = "sampled paths, forward only; alpha by the log-probabilities' gradient (REINFORCE)"
    measures = True

    def select_for_alpha(self, generator: "torch.Generator", progress: float) -> None:
        """Draw a path from softmax(alpha)."""
        self.select_for_weights(generator, explore=False)

    def observe(self, compared: Sequence[Compared], progress: float) -> "Tensor":
        """Return the surrogate whose gradient is the estimate."""
        import torch

        logs = [edge.alpha.log_softmax(0) for edge in self.edges]
        costs = [path.loss + path.penalty for path in compared]
        mean = sum(costs) / len(costs)
        total = torch.zeros((), device=logs[0].device)
        for path, cost in zip(compared, costs, strict=True):
            matter = [log[i] for log, i, m in zip(logs, path.choice, path.relevant, strict=True) if m]
            # What lies between a path and the mean of the others is n / (n - 1) of what lies to the mean of all.
            if matter:
                total = total + (cost - mean) / (len(costs) - 1) * torch.stack(matter).sum()
        return total
