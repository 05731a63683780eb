"""The search as a stage: weights and alpha in turn, on two halves of the training images."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasb.cells.architecture import Edge
from nasb.data import ImageData
from nasb.search.config import SearchConfig
from nasb.search.searcher import Searcher
from nasb.search.space import Cells
from nasb.seeding import derive_seed
from nasb.training.config import StageConfig
from nasb.training.evaluation import Score
from nasb.training.fabric import mean_over_ranks
from nasb.training.loop import Stage
from nasb.training.optimization import learning_rate, set_learning_rate
from nasb.training.progress import StageProgress
from nasb.training.shared_weights import SharedWeights, write_candidates

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from nasb.cost.latency import LatencyTable

Batch = tuple[Tensor, Tensor]
CANDIDATES = "candidates.csv"


class SearchStage(Stage):
    """Train a searchable network: each step is one of weights and, after the warm-up, one of alpha.

    Args:
        network: the searchable network, its layers in the phase of the search.
        backbone_ops: OPs of the network with every edge "none".
        data: images; parts "weights" and "alpha" are used.
        config: options of the search.
        fabric: devices and precision.
        seed: of the run.
        table: for a budget, or a front, in milliseconds.
        backbone_bits: memory of the network with every edge "none", for a budget or a front in memory.
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
    ) -> None:
        self.network, self.data, self.config, self.fabric = network, data, config, fabric
        self.seed, self.epochs, self.steps = (
            derive_seed(seed, self.name),
            config.epochs,
            data.steps_per_epoch("weights"),
        )
        self.images = 2 * (data.size("weights") // self.steps)
        self.weights_config = StageConfig(epochs=config.epochs, learning_rate=config.learning_rate)
        network.to(memory_format=torch.channels_last)
        fabric.to_device(network)
        self.searcher = Searcher(network, backbone_ops, config, table, backbone_bits=backbone_bits)
        self.optimizer = torch.optim.AdamW(self.searcher.weights(), lr=config.learning_rate, weight_decay=0.0)
        self.model, self.fabric_optimizer = fabric.setup(network, self.optimizer, move_to_device=False)
        self.weights_score, self.alpha_score = Score(), Score()
        self.shared = SharedWeights(network, self.searcher.space, data, config, fabric, self.seed)

    def batches(self, epoch: int, start: int) -> Iterator[tuple[Batch, Batch]]:
        """Yield a batch of each half; the alpha half begins anew where it is the shorter one."""
        rank, world_size = self.fabric.global_rank, self.fabric.world_size
        weights = self.data.train_batches(
            "weights", seed=self.seed, epoch=epoch, start_step=start, rank=rank, world_size=world_size
        )
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
                ):
                    done += 1
                    yield batch

        yield from zip(weights, alpha(), strict=False)

    def begin_epoch(self, epoch: int) -> None:
        """Set the training mode."""
        self.network.train()

    def step(self, epoch: int, step: int, batch: tuple[Batch, Batch]) -> None:
        """Make a step of weights, then one of alpha."""
        # The paths are the same on all ranks: their generator does not know the rank.
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "paths", epoch, step))
        warmup = epoch < self.config.warmup_epochs
        at = epoch * self.steps + step
        set_learning_rate(self.optimizer, learning_rate(self.weights_config, at, self.steps))
        x_NCHW, target_N = self._place(batch[0])
        self.searcher.select_for_weights(generator, warmup=warmup)
        self.fabric_optimizer.zero_grad()
        logits = self.model(x_NCHW)
        loss = F.cross_entropy(logits, target_N)
        self.fabric.backward(loss)
        self.fabric_optimizer.step()
        self.weights_score.add(logits.detach(), target_N, loss.detach())
        if not warmup and self.searcher.strategy.trains_alpha:
            self._alpha_step(self._place(batch[1]), generator, at, epoch)

    def _alpha_step(self, batch: Batch, generator: torch.Generator, at: int, epoch: int) -> None:
        x_NCHW, target_N = batch

        def loss() -> Tensor:
            with self.fabric.autocast():
                logits = self.network(x_NCHW)
            value = F.cross_entropy(logits, target_N)
            self.alpha_score.add(logits.detach(), target_N, value.detach())
            return value

        first = self.config.warmup_epochs * self.steps
        progress = (at - first) / max(self.epochs * self.steps - first, 1)
        self.searcher.alpha_step(loss, generator, progress=progress, epoch=epoch, reduce=mean_over_ranks(self.fabric))

    def _place(self, batch: Batch) -> Batch:
        images, targets = batch
        return (
            images.to(self.fabric.device).contiguous(memory_format=torch.channels_last),
            targets.to(self.fabric.device),
        )

    def end_epoch(self, epoch: int) -> tuple[dict[str, Any], str | None]:
        """Return losses, entropy of alpha, expected OPs and the histogram of the derived operations."""
        weights, alpha = self.weights_score.take(self.fabric), self.alpha_score.take(self.fabric)
        self.searcher.end_epoch()
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
        if alpha.images > 1:
            metrics |= {"alpha_loss": alpha.loss, "alpha_top1": alpha.top1}
        return metrics, report.warning if epoch >= self.config.warmup_epochs else None

    def derive(self, folder: Path | None = None) -> Cells:
        """Let the strategy finish; return the best of several derived architectures.

        Args:
            folder: the run directory, on the rank that writes: it keeps what was judged, and candidates.csv.

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
            results = self.shared.ranking([searcher.space.choice(cells) for cells in found])
            best = min(range(len(found)), key=lambda index: results[index].loss)
            if folder is not None:
                write_candidates(folder / CANDIDATES, searcher.space, found, results, best)
        if judged:
            searcher.settle(found[best])
        warning = searcher.collapse_of(found[best])
        if warning is not None:
            self.fabric.print(f"warning: {warning}", file=sys.stderr)
        return found[best]

    def score(self, cells: Mapping[str, Sequence[Edge]]) -> float:
        """Return the strategy's own score of an architecture; higher is better.

        It is the log-probability under what alpha has gained; strategies that judge whole architectures have no alpha,
        and theirs is the loss with the shared weights, negative.
        """
        return -self.shared_loss(cells) if self.searcher.strategy.judges else self.searcher.score(cells)

    def shared_loss(self, cells: Mapping[str, Sequence[Edge]]) -> float:
        """Return the loss of an architecture with the shared weights, on some batches of the alpha half."""
        return self.shared.losses([self.searcher.space.choice(cells)])[0]

    def state_dict(self) -> dict[str, Any]:
        """Return network (alpha is part of it), optimizer, the searcher's state and running sums."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "weights_score": self.weights_score.state_dict(),
            "alpha_score": self.alpha_score.state_dict(),
            "searcher": self.searcher.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a checkpoint's state back."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.weights_score.load_state_dict(state["weights_score"])
        self.alpha_score.load_state_dict(state["alpha_score"])
        self.searcher.load_state_dict(state["searcher"])
