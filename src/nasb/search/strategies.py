"""Search strategies: how paths are sampled, and how alpha is updated, behind one interface.

A strategy decides what every edge computes in a step of weights and in a step of alpha. The objective of alpha, its
optimizer, the budget and the derivation are the same for all (nasb.search.searcher), so that strategies can be
compared. Here are those that learn alpha by the network's own gradient; others compare losses (nasb.search.reinforce,
nasb.search.regression), or learn no alpha and judge whole architectures once the weights are trained
(nasb.search.population).

Departures from the papers: no strategy rescales alpha after a step (ProxylessNAS keeps the paths that were not
sampled as probable as before); gates compares the two paths of a share of the edges in each step, since "none" is one
of the two on most edges and comparing all would compute every edge.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from nasb.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nasb.cells.searchable import SearchableEdge
    from nasb.search.config import SearchConfig

STRATEGIES: Registry[type["Strategy"]] = Registry("search strategy")


@dataclass(frozen=True)
class Compared:
    """One of several paths that are compared on one batch."""

    choice: tuple[int, ...]
    """For each edge the index of the candidate that ran."""
    relevant: tuple[bool, ...]
    """For each edge whether what stands on it matters to this path (`Space.relevant`)."""
    loss: float
    """Cross-entropy, over all ranks."""
    penalty: float
    """w * |log(cost / budget)| of this path."""

    def live(self) -> list[int]:
        """Return the choice with 0, none, on every edge that is dead."""
        return [index if matters else 0 for index, matters in zip(self.choice, self.relevant, strict=True)]


class Strategy(ABC):
    """What the edges compute during the search.

    Args:
        edges: all edges of the searchable network.
        starts: the probabilities of each edge's candidates at the start, where the budget is met.
        config: options of the search.
    """

    trains_alpha = True
    """Whether there are steps of alpha."""
    measures = False
    """Whether a step of alpha compares the losses of several paths instead of taking the network's gradient."""
    judges = False
    """Whether whole architectures are judged once the weights are trained (nasb.search.population)."""
    description: str

    def __init__(self, edges: Sequence["SearchableEdge"], starts: Sequence["Tensor"], config: "SearchConfig") -> None:
        self.edges, self.starts, self.config = list(edges), list(starts), config

    def select_for_weights(self, generator: "torch.Generator", *, explore: bool) -> None:
        """Choose one path for a step of weights; `explore`: from the starting distribution."""
        if explore:
            probabilities = stacked(self.starts, 0.0)
        else:
            probabilities = stacked([edge.alpha.detach() for edge in self.edges], -math.inf).softmax(1)
        for edge, chosen in zip(self.edges, _draw(probabilities, generator), strict=True):
            edge.select([chosen])

    @abstractmethod
    def select_for_alpha(self, generator: "torch.Generator", progress: float) -> None:
        """Choose paths and gates for a step of alpha; `progress` goes from 0 to 1 over the search."""

    def observe(self, compared: Sequence[Compared], progress: float) -> "Tensor | None":
        """Take in some paths that ran on one batch (where `measures`).

        Returns:
            A value whose gradient alpha is to descend; None if there is none.
        """
        return None

    def evidence(self) -> list["Tensor"] | None:
        """Return for each edge what speaks for each candidate beside none, where that is not alpha (`measures`)."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold beside alpha."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a checkpoint's state back."""
        return

    @classmethod
    def check_installed(cls) -> None:
        """Refuse a strategy whose packages are missing.

        Raises:
            UserError: says what to install.
        """
        return


def stacked(rows: "Sequence[Tensor]", padding: float) -> "Tensor":
    """Return what edges have for each candidate as one tensor, [edges, most candidates], filled up with `padding`.

    There are some hundred edges of a few candidates each: one operation on all is much cheaper than one on each.
    """
    import torch

    lengths = tuple(len(row) for row in rows)
    if len(set(lengths)) == 1:
        return torch.stack(list(rows))
    flat = torch.cat([*rows, rows[0].new_full((1,), padding)])
    return flat[_places(lengths).to(flat.device)]


@cache
def _places(lengths: tuple[int, ...]) -> "Tensor":
    """Return where in a row of all candidates and a padding each entry of [edges, most candidates] is."""
    import torch

    places = torch.full((len(lengths), max(lengths)), sum(lengths))
    first = 0
    for row, length in zip(places, lengths, strict=True):
        row[:length] = torch.arange(first, first + length)
        first += length
    return places


def _draw(probabilities: "Tensor", generator: "torch.Generator") -> list[int]:
    """Return a candidate for each edge, from [edges, candidates]."""
    return probabilities.cpu().multinomial(1, generator=generator).flatten().tolist()


@STRATEGIES.register("gumbel")
class Gumbel(Strategy):
    """Sample one path; gradient of alpha through a Gumbel softmax at the sampled operation.

    ``gate = onehot(argmax(alpha + G)) + softmax((alpha + G) / temperature)`` without the value of the latter.
    Source: Xie et al., SNAS, ICLR 2019, arXiv 1812.09926; single path as in Dong and Yang, GDAS, CVPR 2019, arXiv
    1910.04465.
    """

    description = "Gumbel-softmax sampling of single paths (SNAS, GDAS)"

    def select_for_alpha(self, generator: "torch.Generator", progress: float) -> None:
        """Sample with Gumbel noise; the gate's value is 1, its gradient that of the softmax."""
        import torch

        first, last = self.config.temperature, self.config.final_temperature
        temperature = first * (last / first) ** progress
        alpha = stacked([edge.alpha for edge in self.edges], -math.inf)
        uniform = torch.rand(alpha.shape, generator=generator).clamp_(1e-10, 1 - 1e-7)
        noisy = alpha + (-(-uniform.log()).log()).to(alpha.device)
        soft = (noisy / temperature).softmax(1)
        chosen = noisy.argmax(1, keepdim=True)
        gates = torch.zeros_like(soft).scatter_(1, chosen, 1.0) + soft - soft.detach()
        for edge, index, gate in zip(self.edges, chosen.flatten().tolist(), gates.unbind(), strict=True):
            edge.select([index], gate)


@STRATEGIES.register("gates")
class Gates(Strategy):
    """Sample two paths of an edge, one of them with gate 1; gradient of alpha through the two binary gates.

    ``dL/dalpha_i = sum_j dL/dg_j p_j (delta_ij - p_i)`` over the two, with p the softmax over the two. The other one
    is computed as well, times 0, for the gradient of its gate.
    Source: Cai et al., ProxylessNAS, ICLR 2019, arXiv 1812.00332.
    """

    description = "two-path binary gates (ProxylessNAS)"

    def select_for_alpha(self, generator: "torch.Generator", progress: float) -> None:
        """Draw pairs on a share of the edges, and single paths on the others."""
        import torch

        for edge in self.edges:
            probabilities = edge.alpha.detach().softmax(0).cpu()
            paired = float(torch.rand((), generator=generator)) < self.config.pair_share
            if not paired or int((probabilities > 0).sum()) < 2:
                edge.select(_draw(probabilities[None], generator))
                continue
            pair = probabilities.multinomial(2, generator=generator)
            soft = edge.alpha[pair.to(edge.alpha.device)].softmax(0)
            hard = torch.zeros_like(soft)
            hard[_draw(soft.detach()[None], generator)] = 1.0
            gates = torch.zeros_like(edge.alpha).index_put((pair.to(edge.alpha.device),), hard + soft - soft.detach())
            edge.select(pair.tolist(), gates)


@STRATEGIES.register("darts")
class Darts(Strategy):
    """Run the full mixture of all operations, weighted by softmax(alpha); first order.

    Source: Liu et al., DARTS, ICLR 2019, arXiv 1806.09055.
    """

    description = "full mixture, first order (DARTS); needs the time and memory of all operations"

    def select_for_weights(self, generator: "torch.Generator", *, explore: bool) -> None:
        """Run the mixture."""
        for edge in self.edges:
            edge.select(range(len(edge.names)), edge.alpha.detach().softmax(0))

    def select_for_alpha(self, generator: "torch.Generator", progress: float) -> None:
        """Run the mixture."""
        for edge in self.edges:
            edge.select(range(len(edge.names)), edge.alpha.softmax(0))
