"""The search as a stage: weights and alpha in turn, on two parts of the training images."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasb.cells.architecture import Edge
from nasb.data import ImageData
from nasb.errors import UserError
from nasb.search.config import SearchConfig
from nasb.search.searcher import Searcher, load_optimizer
from nasb.search.space import Cells
from nasb.seeding import derive_seed
from nasb.training.config import StageConfig
from nasb.training.evaluation import Score, best_of
from nasb.training.fabric import begin_scaling
from nasb.training.loop import Stage
from nasb.training.optimization import anneal, learning_rate, set_learning_rate
from nasb.training.progress import StageProgress
from nasb.training.race import Race
from nasb.training.ranks import (
    Batch,
    as_on_first_,
    average_,
    average_gradients,
    begin_equal,
    pieces,
    running_statistics,
    share_statistics,
)
from nasb.training.shared_weights import SharedWeights, write_candidates

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.wrappers import _FabricOptimizer

    from nasb.cost.latency import LatencyTable

CANDIDATES = "candidates.csv"


class SearchStage(Stage):
    """Train a searchable network: each step is one of weights and, after the warm-up, one of alpha.

    All ranks take the same path, so they average the gradients that are there, after the backward pass. DDP would send
    all candidates' (and keep room for them), though most have none.

    Args:
        network: the searchable network, its layers in the phase of the search.
        backbone_ops: OPs of the network with every edge "none".
        data: images; parts "weights" and "alpha" are used.
        config: options of the search.
        fabric: devices and precision.
        seed: of the run.
        table: for a budget, or a front, in milliseconds.
        backbone_bits: memory of the network with every edge "none", for a budget or a front in memory.
        accumulate: pieces in which a rank computes its share of a batch.
        sync_batch_norm: share the statistics of batch norms among the ranks.
    """

    name = "search"

    def __init__(
        self,
        network: nn.Module,
        backbone_ops: float,
        data: ImageData,
        config: SearchConfig,
        fabric: "Fabric",
        *,
        seed: int,
        table: "LatencyTable | None" = None,
        backbone_bits: float | None = None,
        accumulate: int = 1,
        sync_batch_norm: bool = False,
    ) -> None:
        self.network, self.data, self.config, self.fabric = network, data, config, fabric
        self.seed, self.epochs, self.steps = (
            derive_seed(seed, self.name),
            config.epochs,
            data.steps_per_epoch("weights"),
        )
        self.images, self.accumulate = data.images_per_step("weights"), accumulate
        self.weights_config = StageConfig(epochs=config.epochs, learning_rate=config.learning_rate)
        if sync_batch_norm:
            share_statistics(network)
        network.to(memory_format=torch.channels_last)
        fabric.to_device(network)
        begin_equal(network, fabric)
        self.told: str | None = None  # the last epoch's warning
        self.searcher = Searcher(network, backbone_ops, config, table, backbone_bits=backbone_bits)
        fused = True if fabric.device.type == "cpu" else None  # elsewhere torch chooses
        self.optimizer = torch.optim.AdamW(
            self.searcher.weights(), lr=config.learning_rate, weight_decay=0.0, fused=fused
        )
        begin_scaling(fabric)
        self.fabric_optimizer = cast("_FabricOptimizer", fabric.setup_optimizers(self.optimizer))
        self.statistics = running_statistics(network)
        self.weights_score, self.alpha_score = Score(fabric), Score(fabric)
        self.shared = SharedWeights(network, self.searcher.space, data, config, fabric, self.seed)

    def _moves_alpha(self, epoch: int) -> bool:
        """Tell whether the steps of an epoch end with one of alpha."""
        return epoch >= self.config.warmup_epochs and self.searcher.strategy.trains_alpha

    def batches(self, epoch: int, start: int) -> Iterator[tuple[Batch, Batch | None]]:
        """Yield a batch of each part; that of alpha begins anew where it is the shorter one, None if it has no step."""
        rank, world_size, device = self.fabric.global_rank, self.fabric.world_size, self.fabric.device
        weights = self.data.train_batches(
            "weights", seed=self.seed, epoch=epoch, start_step=start, rank=rank, world_size=world_size, device=device
        )
        if not self._moves_alpha(epoch):
            yield from ((batch, None) for batch in weights)
            return
        alpha_steps = self.data.steps_per_epoch("alpha")

        def alpha() -> Iterator[Batch]:
            done = start
            while True:
                round_, first = divmod(done, alpha_steps)
                for batch in self.data.train_batches(
                    "alpha",
                    seed=derive_seed(self.seed, "round", round_),
                    epoch=epoch,
                    start_step=first,
                    rank=rank,
                    world_size=world_size,
                    device=device,
                ):
                    done += 1
                    yield batch

        yield from zip(weights, alpha(), strict=False)

    def begin_epoch(self, epoch: int) -> None:
        """Set the phase's sharpness and the training mode."""
        anneal(self.network, epoch, self.epochs)
        self.network.train()
        self.images = self.data.images_per_step("weights") * (2 if self._moves_alpha(epoch) else 1)

    def step(self, epoch: int, step: int, batch: tuple[Batch, Batch | None]) -> None:
        """Make a step of weights, then one of alpha."""
        # The paths are the same on all ranks: their generator does not know the rank.
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "paths", epoch, step))
        warmup = epoch < self.config.warmup_epochs
        at = epoch * self.steps + step
        set_learning_rate(self.optimizer, learning_rate(self.weights_config, at, self.steps))
        self.searcher.select_for_weights(generator, warmup=warmup)
        self.fabric_optimizer.zero_grad()
        for loss, weight in self._losses(batch[0], self.data.images_per_step("weights"), self.weights_score):
            self.fabric.backward(loss * weight)
        average_gradients(self.searcher.weights(), self.fabric)
        self.fabric_optimizer.step()
        if batch[1] is not None:
            self._alpha_step(batch[1], generator, at, epoch)
        average_(self.statistics, self.fabric)

    def _losses(self, batch: Batch, images: int, score: Score) -> Iterator[tuple[Tensor, float]]:
        """Yield (mean loss, weight) of each piece of this rank's share of a batch."""
        for piece, weight in pieces(batch, self.accumulate, images, self.fabric.world_size):
            x_NCHW, target_N = self._place(piece)
            with self.fabric.autocast():
                logits = self.network(x_NCHW)
            loss = F.cross_entropy(logits.float(), target_N)
            score.add(logits.detach(), target_N, loss.detach())
            yield loss, weight
            del logits, loss  # with the piece's graph, before the next one is made

    def _alpha_step(self, batch: Batch, generator: torch.Generator, at: int, epoch: int) -> None:
        def loss() -> Tensor:
            losses = self._losses(batch, self.data.images_per_step("alpha"), self.alpha_score)
            if torch.is_grad_enabled():
                return self._with_gradients_of_alpha(losses)
            value = torch.stack([loss * weight for loss, weight in losses]).sum()
            average_([value], self.fabric)  # what is measured has to be the same on all ranks
            return value

        first = self.config.warmup_epochs * self.steps
        progress = (at - first) / max(self.epochs * self.steps - first, 1)
        self.searcher.alpha_step(loss, generator, progress=progress, epoch=epoch)
        as_on_first_(self.searcher.alphas(), self.fabric)  # all ranks draw their paths from it

    def _with_gradients_of_alpha(self, losses: Iterator[tuple[Tensor, float]]) -> Tensor:
        """Return the mean loss over the batch of all ranks, differentiable by alpha.

        Pieces are differentiated one by one, so that only one of them is in memory, by a scaled loss where fp16 needs
        it, and averaged over the ranks: what comes back is linear in alpha, with that gradient.
        """
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if self.accumulate == self.fabric.world_size == 1 and scaler is None:
            return torch.stack([loss * weight for loss, weight in losses]).sum()
        alphas = self.searcher.alphas()
        scale = 1.0 if scaler is None else scaler.get_scale()
        value = torch.zeros((), device=self.fabric.device)
        slopes: dict[int, Tensor] = {}  # of those that the paths pass; the same ones on all ranks
        for loss, weight in losses:
            # The way from alpha to the gates is common to the pieces; the rest goes with its loss.
            gradients = torch.autograd.grad(loss * (weight * scale), alphas, retain_graph=True, allow_unused=True)
            value += loss.detach() * weight
            del loss
            for index, gradient in enumerate(gradients):
                if gradient is not None:
                    finite = (gradient / scale).nan_to_num(0.0, 0.0, 0.0)  # an overflow of fp16 leaves alpha alone
                    slopes[index] = slopes[index] + finite if index in slopes else finite
        average_([value, *slopes.values()], self.fabric)
        for index, slope in slopes.items():
            value = value + ((alphas[index] - alphas[index].detach()) * slope).sum()
        return value

    def _place(self, batch: Batch) -> Batch:
        images, targets = batch
        return (
            images.to(self.fabric.device).contiguous(memory_format=torch.channels_last),
            targets.to(self.fabric.device),
        )

    def end_epoch(self, epoch: int) -> tuple[dict[str, Any], str | None]:
        """Return losses, entropy of alpha, expected OPs and the histogram of the derived operations."""
        weights, alpha = self.weights_score.take(), self.alpha_score.take()
        self.searcher.end_epoch()
        as_on_first_((value for edge in self.searcher.edges for value in (edge.alpha, edge.base)), self.fabric)
        report = self.searcher.report()
        metrics: dict[str, Any] = {
            "weights_loss": weights.loss,
            "weights_top1": weights.top1,
            "alpha_entropy": report.entropy,
            "expected_ops_ratio": report.ops_ratio,
            "operations": dict(report.histogram),
        }
        if report.expected_ms is not None:
            metrics["expected_ms"] = report.expected_ms
        if report.memory_ratio is not None:
            metrics["expected_memory_ratio"] = report.memory_ratio
        if alpha.images:
            metrics |= {"alpha_loss": alpha.loss, "alpha_top1": alpha.top1}
        if weights.loss != weights.loss:
            says = "the loss of the weights is not a number: lower search.learning_rate"
            if epoch + 1 == self.epochs:
                raise UserError(
                    f"{self.name}: {says}. Nothing is derived from such weights; begin in another directory"
                )
            return metrics, says
        self.told = report.warning if epoch >= self.config.warmup_epochs else None
        return metrics, self.told

    def derive(self, folder: Path | None = None, race: Race | None = None) -> Cells:
        """Let the strategy finish; return the best of several derived architectures.

        Args:
            folder: the run directory, on the rank that writes: it keeps what was judged, and candidates.csv.
            race: what tells which one is best; None: the shared weights do.

        Raises:
            UserError: what the folder keeps is damaged or of another search, or cannot be written.
        """
        searcher, rank = self.searcher, self.fabric.global_rank
        judged = searcher.judged_in_all()
        rounds = -(-judged // self.config.at_once)
        name = f"rounds of {self.config.at_once} architectures"
        with StageProgress(name, rounds, 0, quiet=rank > 0 or not judged) as self.shared.progress:
            searcher.finish(self.shared.losses, seed=self.seed, folder=folder, share=self.fabric.broadcast)
        self.shared.progress = None
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "candidates"))
        found = searcher.candidates(self.config.derive_candidates, generator)
        best = 0
        if len(found) > 1:
            choices = [searcher.space.choice(cells) for cells in found]
            results = self.shared.ranking(choices) if race is None else race.results(found)
            best = best_of(results)
            if folder is not None:
                write_candidates(folder / CANDIDATES, searcher.space, found, results, best)
        if judged:
            searcher.settle(found[best])
        warning = searcher.collapse_of(found[best])
        if warning is not None and warning != self.told:
            self.fabric.print(f"warning: {warning}", file=sys.stderr)
        return found[best]

    def score(self, cells: Mapping[str, Sequence[Edge]]) -> float:
        """Return the strategy's own score of an architecture; higher is better.

        It is the log-probability under what alpha has gained; strategies that judge whole architectures have no alpha,
        and theirs is the loss with the shared weights, negative.
        """
        return -self.shared_loss(cells) if self.searcher.strategy.judges else self.searcher.score(cells)

    def shared_loss(self, cells: Mapping[str, Sequence[Edge]]) -> float:
        """Return the loss of an architecture with the shared weights, on some batches of the alpha part."""
        return self.shared.losses([self.searcher.space.choice(cells)])[0]

    def state_dict(self) -> dict[str, Any]:
        """Return network (alpha is part of it), optimizer, the searcher's state and running sums."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "weights_score": self.weights_score.state_dict(),
            "alpha_score": self.alpha_score.state_dict(),
            "searcher": self.searcher.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a checkpoint's state back."""
        self.network.load_state_dict(state["network"])
        load_optimizer(self.optimizer, state["optimizer"])
        if state["scaler"]:  # it is empty where the precision needs none, which may have changed since
            self.fabric.strategy.precision.load_state_dict(state["scaler"])
        self.weights_score.load_state_dict(state["weights_score"])
        self.alpha_score.load_state_dict(state["alpha_score"])
        self.searcher.load_state_dict(state["searcher"])
