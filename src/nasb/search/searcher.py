"""Searcher: alpha, its objective and its optimizer over one searchable network; watching it; deriving from it.

Objective of alpha: ``cross-entropy + w * |log(E[cost] / budget)| - entropy bonus``, two-sided in the budget (a
one-sided penalty left half of it unspent). Costs are OPs, bits of memory or, with a latency table, milliseconds. Alpha
starts where E[cost] meets the budget, with its mass on "none", so that a step costs about what a step of the derived
network costs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nasb.cells.architecture import Edge
from nasb.cells.cell import EdgeKey
from nasb.cells.operations import NONE, OPERATIONS
from nasb.cells.searchable import SearchableEdge, named_edges
from nasb.errors import UserError
from nasb.search.config import ALPHA_BETAS, SearchConfig
from nasb.search.cost_model import CostModel
from nasb.search.population import Judge, PopulationStrategy, Share
from nasb.search.space import Cells, Space
from nasb.search.strategies import STRATEGIES, Compared, stacked

if TYPE_CHECKING:
    from nasb.cost.latency import LatencyTable

CERTAIN = 10.0
"""Gain of the operations of an architecture that is settled."""
NOISE = 0.5
"""Standard deviation of what is added to alpha's gains for each further candidate, as a share of the gains' own."""


@dataclass(frozen=True)
class SearchReport:
    """How the search stands: `entropy` of alpha in [0, 1] (1: uniform), `ops_ratio` = E[OPs] / backbone, E[ms] or
    E[memory] / backbone where these have the budget, `histogram` of the derived architecture's operations, and a
    warning where the search collapses.
    """

    entropy: float
    ops_ratio: float
    expected_ms: float | None
    memory_ratio: float | None
    histogram: Mapping[str, int]
    warning: str | None


class Searcher:
    """The architecture's side of a search.

    Args:
        network: a searchable network.
        backbone_ops: OPs of the same network with every edge "none".
        config: options of the search.
        table: for a budget, or a front, in milliseconds.
        backbone_bits: memory of the network with every edge "none"; without it there are no costs in memory.

    Raises:
        UserError: the network has no searchable edges, the table lacks an operation, or its backbone alone takes more
            than the budget.
    """

    def __init__(
        self, network: nn.Module, backbone_ops: float, config: SearchConfig, table: "LatencyTable | None" = None, *,
        backbone_bits: float | None = None,
    ) -> None:  # fmt: skip
        self.network, self.config = network, config
        self.named = list(named_edges(network))
        if not self.named:
            raise UserError("the network has no searchable edges: are there candidate operations besides none?")
        self.edges: list[SearchableEdge] = [edge for _, _, edge in self.named]
        self.ops = CostModel.of_ops(network, backbone_ops)
        costs = {"ops": self.ops}
        if backbone_bits is not None:
            costs["memory"] = CostModel.of_memory(network, backbone_bits)
        if table is not None:
            costs["ms"] = CostModel.of_milliseconds(network, table)
        self.cost = costs[config.budget_cost]
        if config.budget_ms is not None and table is not None:
            budget = checked_budget_ms(config.budget_ms, table)
        else:
            budget = (config.budget if config.budget_memory is None else config.budget_memory) * self.cost.backbone
        self.space = Space(self.named, costs, config.budget_cost, budget)
        self._start()
        starts = [edge.alpha.detach().softmax(0).cpu() for edge in self.edges]
        self.strategy = STRATEGIES[config.strategy](self.edges, starts, config)
        alphas = self.alphas()
        fused = True if alphas[0].device.type == "cpu" else None  # elsewhere torch chooses
        self.optimizer = torch.optim.Adam(alphas, lr=config.alpha_learning_rate, betas=ALPHA_BETAS, fused=fused)
        known = {id(alpha) for alpha in alphas}
        self._weights = [parameter for parameter in network.parameters() if id(parameter) not in known]

    @property
    def budget(self) -> float:
        """What an architecture may cost, in the cost model's unit."""
        return self.space.budget

    def alphas(self) -> list[nn.Parameter]:
        """Return alpha, one parameter for each edge."""
        return [edge.alpha for edge in self.edges]

    def weights(self) -> list[nn.Parameter]:
        """Return all parameters but alpha."""
        return self._weights

    def probabilities(self) -> dict[tuple[str, EdgeKey], Tensor]:
        """Return softmax(alpha) of every edge, each filled up with zeros to the most candidates that an edge has."""
        rows = stacked([edge.alpha for edge in self.edges], -math.inf).softmax(1).unbind()
        return {(cell, key): row for (cell, key, _), row in zip(self.named, rows, strict=True)}

    @torch.no_grad()
    def _start(self) -> None:
        """Set alpha so that E[cost] meets the budget or comes nearest: bisection of the logit of none on paid edges.

        Free operations cost milliseconds and memory: where these are the budget, free edges are connected as rarely as
        paid ones, and at most by their share.
        """
        free_logit = _none_logit(1 - self.config.free_share)
        free_lunch = self.cost is self.ops
        low, high = -20.0, 30.0
        for _ in range(60):
            middle = (low + high) / 2
            for _, (_, _, paid), edge in self.named:
                edge.alpha.zero_()
                # P(none) counts against all others together, so that it does not depend on how many there are.
                logit = middle if paid else free_logit if free_lunch else max(free_logit, middle)
                edge.alpha[0] = logit + math.log(len(edge.names) - 1)
            low, high = (middle, high) if self.expected_cost() > self.budget else (low, middle)
        for edge in self.edges:
            edge.base.copy_(edge.alpha)

    def expected_cost(self) -> float:
        """Return E[cost] of the whole network under alpha, in the budget's unit."""
        return float(self.cost.expected(self.probabilities()).detach())

    def select_for_weights(self, generator: torch.Generator, *, warmup: bool) -> None:
        """Choose what the network computes in a step of weights."""
        draw = float(torch.rand((), generator=generator))
        self.strategy.select_for_weights(generator, explore=warmup or draw < self.config.uniform_paths)

    def alpha_step(
        self, loss: Callable[[], Tensor], generator: torch.Generator, *, progress: float, epoch: int
    ) -> float:
        """Make one step of alpha.

        Args:
            loss: computes the cross-entropy of the network on a batch of the alpha part; on several ranks, the mean
                over all of them, with its gradient.
            generator: source of the sampled paths; equal on all ranks.
            progress: 0 at the search's start, 1 at its end.
            epoch: for the decay of the entropy bonus.

        Returns:
            The cross-entropy; where it is no finite number, alpha stays as it is.
        """
        if self.strategy.measures:
            return self._measure(loss, generator, progress, epoch)
        self.strategy.select_for_alpha(generator, progress)
        cross_entropy = loss()
        if not math.isfinite(float(cross_entropy.detach())):
            return float(cross_entropy.detach())
        probabilities = self.probabilities()
        objective = cross_entropy + self._budget_penalty(probabilities) - self._entropy_bonus(probabilities, epoch)
        self._descend(objective)
        return float(cross_entropy.detach())

    def _descend(self, objective: Tensor) -> None:
        gradients = torch.autograd.grad(objective, self.alphas(), allow_unused=True)
        for alpha, gradient in zip(self.alphas(), gradients, strict=True):
            alpha.grad = None if gradient is None else gradient.contiguous()  # as the fused optimizer needs it
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _measure(self, loss: Callable[[], Tensor], generator: torch.Generator, progress: float, epoch: int) -> float:
        """Compare the losses of several paths on one batch, unless one is no number; return their mean."""
        choices, losses = [], []
        with torch.no_grad():
            for _ in range(self.config.paths):
                self.strategy.select_for_alpha(generator, progress)
                choices.append(self.space.selected())
                losses.append(float(loss()))
        mean = sum(losses) / len(losses)
        if not math.isfinite(mean):  # an overflow of fp16, or a path that diverges: it says nothing, and would stay
            return mean
        compared = []
        for choice, value in zip(choices, losses, strict=True):
            cost = self.cost.of(self.space.cells(choice))
            penalty = self.config.budget_weight * abs(math.log(cost / self.budget))
            compared.append(Compared(choice, tuple(self.space.relevant(choice)), value, penalty))
        surrogate = self.strategy.observe(compared, progress)
        if surrogate is not None:
            # All ranks have the same losses, and so the same gradient.
            self._descend(surrogate - self._entropy_bonus(self.probabilities(), epoch))
        return mean

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Move alpha to what has been measured; base so that the expected cost stays at the budget."""
        evidence = self.strategy.evidence()
        if evidence is None:
            return
        low, high = -30.0, 30.0
        for _ in range(60):
            middle = (low + high) / 2
            for (_, (_, _, paid), edge), gain in zip(self.named, evidence, strict=True):
                edge.alpha.copy_(edge.base + gain.to(edge.base.device))
                edge.alpha[0] += middle if paid else 0.0
            low, high = (middle, high) if self.expected_cost() > self.budget else (low, middle)
        for edge, gain in zip(self.edges, evidence, strict=True):
            edge.base.copy_(edge.alpha - gain.to(edge.base.device))

    def _budget_penalty(self, probabilities: Mapping[tuple[str, EdgeKey], Tensor]) -> Tensor:
        ratio = self.cost.expected(probabilities) / self.budget
        return self.config.budget_weight * ratio.log().abs()

    def _entropy_bonus(self, probabilities: Mapping[tuple[str, EdgeKey], Tensor], epoch: int) -> Tensor:
        weight = self.config.entropy_weight * math.exp(-epoch / self.config.entropy_decay)
        if weight == 0:
            return torch.zeros(())
        return weight * _entropy(torch.stack(list(probabilities.values()))).mean()

    def derive(self) -> dict[str, tuple[Edge, ...]]:
        """Return the derived architecture's edges by cell.

        What counts is what alpha has gained over where it began: there "none" stands as high as the budget asks, which
        says nothing of the operations.
        """
        return self.space.derive([edge.gain() for edge in self.edges])

    def candidates(self, count: int, generator: torch.Generator) -> list[Cells]:
        """Return several architectures that use the budget, the derived one first.

        The further ones are the best that a population has, or derived from alpha's gains with noise on them. They may
        be fewer than `count`: no architecture comes twice.
        """
        found = {self.space.choice(cells): cells for cells in [self.derive()]}
        if isinstance(self.strategy, PopulationStrategy):
            for choice in self.strategy.best(2 * count):
                if len(found) < count:
                    filled = self.space.fit(choice, self.space.noise(generator))
                    found.setdefault(filled, self.space.cells(filled))
            return list(found.values())
        gains = [edge.gain().cpu() for edge in self.edges]
        spread = NOISE * float(torch.cat(gains).std())
        for _ in range(2 * count):
            if len(found) < count:
                noisy = [gain + spread * torch.randn(gain.shape, generator=generator) for gain in gains]
                cells = self.space.derive(noisy)
                found.setdefault(self.space.choice(cells), cells)
        return list(found.values())

    def score(self, cells: Mapping[str, Sequence[Edge]]) -> float:
        """Return the log-probability of an architecture under what alpha has gained; higher is better.

        Strategies that judge whole architectures train no alpha: their own score is the shared weights' loss
        (`SearchStage.score`).
        """
        choice = self.space.choice(cells)
        return sum(float(e.gain().log_softmax(0)[index]) for e, index in zip(self.edges, choice, strict=True))

    def draw(self, generator: torch.Generator) -> Cells:
        """Return a random architecture's edges by cell: random log-probabilities, derived like alpha's, so that it uses
        the budget.
        """
        return self.space.cells(self.space.draw(generator))

    def judged_in_all(self) -> int:
        """Return how many architectures are judged once the weights are trained."""
        return self.strategy.total() if isinstance(self.strategy, PopulationStrategy) else 0

    def finish(
        self, judge: Judge, *, seed: int = 0, folder: Path | None = None, share: Share = lambda judged: judged
    ) -> None:
        """Let the strategy do what is left after the last epoch: judge whole architectures, where it does that.

        Args:
            judge: gives the losses of architectures; the same on all ranks.
            seed: of what is proposed.
            folder: where judged architectures are kept, so that a search that is killed goes on; None: nowhere.
            share: gives all ranks what rank 0 has.

        Raises:
            UserError: what is kept in the folder is damaged, or of another search.
        """
        strategy = self.strategy
        if isinstance(strategy, PopulationStrategy):
            strategy.begin(self.space, seed)
            strategy.search(judge, folder, share)
            (best,) = strategy.best(1)
            self.settle(self.space.cells(self.space.fit(best, self.space.noise(strategy.generator("best")))))

    @torch.no_grad()
    def settle(self, cells: Mapping[str, Sequence[Edge]]) -> None:
        """Put all of alpha's mass on an architecture."""
        for edge, index in zip(self.edges, self.space.choice(cells), strict=True):
            edge.alpha.copy_(edge.base)
            edge.alpha[index] += CERTAIN

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold beside the network, of which alpha is a part."""
        return {"optimizer": self.optimizer.state_dict(), "strategy": self.strategy.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a checkpoint's state back."""
        load_optimizer(self.optimizer, state["optimizer"])
        self.strategy.load_state_dict(state["strategy"])

    @torch.no_grad()
    def report(self) -> SearchReport:
        """Return how the search stands."""
        relative = [float(_entropy(edge.alpha.softmax(0))) / math.log(len(edge.names)) for edge in self.edges]
        cells = self.derive()
        histogram: dict[str, int] = {}
        for edges in cells.values():
            for edge in edges:
                histogram[edge.operation] = histogram.get(edge.operation, 0) + 1
        histogram = dict(sorted(histogram.items()))
        entropy = sum(relative) / len(relative)
        return SearchReport(
            entropy,
            float(self.ops.expected(self.probabilities())) / self.ops.backbone,
            self.expected_cost() if self.config.budget_cost == "ms" else None,
            self.expected_cost() / self.cost.backbone if self.config.budget_cost == "memory" else None,
            histogram,
            self._collapse(cells, entropy),
        )

    def collapse_of(self, cells: Mapping[str, tuple[Edge, ...]]) -> str | None:
        """Say so if an architecture has only what costs nothing, though there is a budget for more, or leaves much of
        the budget unspent.
        """
        paid = sum(OPERATIONS[edge.operation].paid for edges in cells.values() for edge in edges)
        idle = 1 - self.cost.of(cells) / self.budget
        could_pay = any(key[2] for _, key, _ in self.named)
        if paid == 0 and could_pay and self.budget > 1.01 * self.cost.backbone:
            return "the search collapses: the derived architecture has no binary convolution besides its backbone"
        return f"the search leaves {idle:.0%} of the budget unspent" if could_pay and idle > 0.05 else None

    def _collapse(self, cells: Mapping[str, tuple[Edge, ...]], entropy: float) -> str | None:
        """Say so if the search has fallen back on what costs nothing, or has decided nothing at all."""
        if (warning := self.collapse_of(cells)) is not None:
            return warning
        mass: dict[str, float] = {}
        for _, (_, _, is_paid), edge in self.named:
            if is_paid:
                for name, p in zip(edge.names, edge.alpha.softmax(0).tolist(), strict=True):
                    mass[name] = mass.get(name, 0.0) + p
        paid_mass = 1 - mass.get(NONE, 0.0) / max(sum(mass.values()), 1e-9)
        if paid_mass < 1e-3 and self.budget > 1.01 * self.cost.backbone:
            return f'the search collapses to "none": paid operations hold {paid_mass:.2%} of the probability'
        return "the search collapses: alpha has lost nearly all of its entropy" if entropy < 0.01 else None


def checked_budget_ms(budget_ms: float, table: "LatencyTable") -> float:
    """Return the budget in milliseconds.

    Raises:
        UserError: it is below what the table's backbone alone takes.
    """
    if budget_ms < table.backbone_ms:
        raise UserError(
            f'search.budget_ms is {budget_ms:g}, but with every edge "none" the network takes {table.backbone_ms:g} ms '
            f"already, by {table.path}. Give more"
        )
    return budget_ms


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state, but for which kernel it runs: that is the device's, which may be another one now."""
    fused = [group.get("fused") for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, fused, strict=True):
        group["fused"] = own


def _none_logit(probability: float) -> float:
    probability = min(max(probability, 1e-6), 1 - 1e-6)
    return math.log(probability / (1 - probability))


def _entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy over the last dimension."""
    return -(probabilities * probabilities.clamp_min(1e-12).log()).sum(-1)
