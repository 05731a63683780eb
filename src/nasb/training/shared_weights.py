"""What the search's trained weights say of whole architectures: a loss for each, and the best of several.

An architecture is judged on batches of the alpha part, which the weights have not been trained on: quickly by the
batches' own statistics (`losses`), or with its batch norms' statistics estimated anew on batches of the weights part
(`ranking`), since those that the search has gathered are of all paths. Validation and test images are not touched.

Ranks share the architectures, not their images: each is judged by one rank alone, so that its loss does not depend on
how many ranks there are.
"""

import csv
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nasb.data import ImageData
from nasb.files import write_text
from nasb.search.config import SearchConfig
from nasb.search.space import Cells, Choice, Space
from nasb.seeding import derive_seed
from nasb.training.evaluation import Result, Score
from nasb.training.progress import StageProgress
from nasb.training.ranks import batch_norms_told, own_statistics

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Batch = tuple[Tensor, Tensor]


class SharedWeights:
    """Judges architectures with the weights of a searchable network, which stays as it is.

    Args:
        network: the searchable network.
        space: its architectures.
        data: images; parts "weights" and "alpha" are used, varied as in training.
        config: options of the search.
        fabric: devices and ranks.
        seed: of the stage.
    """

    def __init__(
        self, network: nn.Module, space: Space, data: ImageData, config: SearchConfig, fabric: "Fabric", seed: int
    ) -> None:
        self.network, self.space, self.data, self.config, self.fabric = network, space, data, config, fabric
        self.seed = seed
        self.progress: StageProgress | None = None
        """Counts the rounds that are judged."""

    @torch.no_grad()
    def losses(self, choices: Sequence[Choice]) -> list[float]:
        """Return the cross-entropy of each architecture, by its batches' own statistics (images are read once)."""

        def judge(mine: Sequence[Choice]) -> list[Result]:
            scores = [Score() for _ in mine]
            for x_NCHW, target_N in self._batches("alpha", self.config.candidate_batches):
                for choice, score in zip(mine, scores, strict=True):
                    self._add(choice, x_NCHW, target_N, score)
            return [score.take() for score in scores]

        with _statistics_of_batches(self.network), _kept_statistics(self.network):
            found = [result.loss for result in self._shared(choices, judge)]
        if self.progress is not None:
            self.progress.advance()
        return found

    @torch.no_grad()
    def ranking(self, choices: Sequence[Choice]) -> list[Result]:
        """Return loss and Top-1 of each architecture in evaluation mode, batch norms recalibrated."""
        batches = self.config.derive_batches

        def judge(mine: Sequence[Choice]) -> list[Result]:
            found = []
            for choice in mine:
                score = Score()
                self.space.select(choice)
                with recalibrated(self.network, (x_NCHW for x_NCHW, _ in self._batches("weights", batches))):
                    for x_NCHW, target_N in self._batches("alpha", batches):
                        self._add(choice, x_NCHW, target_N, score)
                found.append(score.take())
            return found

        return self._shared(choices, judge)

    def _add(self, choice: Choice, x_NCHW: Tensor, target_N: Tensor, score: Score) -> None:  # noqa: N803
        self.space.select(choice)
        with batch_norms_told("search, judging architectures"):
            logits = self.network(x_NCHW)
        score.add(logits, target_N, F.cross_entropy(logits, target_N))

    def _shared(self, choices: Sequence[Choice], judge: Callable[[Sequence[Choice]], list[Result]]) -> list[Result]:
        """Return what `judge` says of each architecture; each is judged by one rank."""
        rank, ranks = self.fabric.global_rank, self.fabric.world_size
        own = choices[rank::ranks]
        with own_statistics(self.network):
            mine = judge(own) if own else []
        if ranks == 1:
            return mine
        table = torch.zeros(len(choices), 4, dtype=torch.float64)
        for index, result in zip(range(rank, len(choices), ranks), mine, strict=True):
            row = (result.top1, result.loss, result.images, result.correct)
            table[index] = torch.tensor(row, dtype=torch.float64)
        total = self.fabric.all_reduce(table.to(self.fabric.device), reduce_op="sum")
        assert isinstance(total, Tensor)
        return [Result(top1, loss, int(images), int(correct)) for top1, loss, images, correct in total.tolist()]

    def _batches(self, part: str, count: int) -> Iterator[Batch]:
        """Yield the first shuffled batches of a part, the same ones each time."""
        seed, device = derive_seed(self.seed, "judge"), self.fabric.device
        for images, targets in itertools.islice(self.data.train_batches(part, seed=seed, epoch=0), count):
            yield images.to(device).contiguous(memory_format=torch.channels_last), targets.to(device)


@contextmanager
def recalibrated(network: nn.Module, batches: Iterator[Tensor]) -> Iterator[None]:
    """Give every batch norm the mean statistics of some batches, in evaluation mode; put everything back afterwards."""
    norms = _norms(network)
    momenta = [norm.momentum for norm in norms]
    with _kept_statistics(network):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches, each counting the same
        with _statistics_of_batches(network):
            for x_NCHW in batches:
                with batch_norms_told("search, ranking architectures"):
                    network(x_NCHW)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        with _evaluation(network):
            yield


@contextmanager
def _kept_statistics(network: nn.Module) -> Iterator[None]:
    norms = _norms(network)
    kept = [{key: buffer.clone() for key, buffer in norm.named_buffers()} for norm in norms]
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for key, buffer in norm.named_buffers():
                buffer.copy_(buffers[key])


@contextmanager
def _evaluation(network: nn.Module) -> Iterator[None]:
    before = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(before)


@contextmanager
def _statistics_of_batches(network: nn.Module) -> Iterator[None]:
    """Evaluation mode but for the batch norms: dropout and the like would judge by their luck."""
    with _evaluation(network):
        for norm in _norms(network):
            norm.train()
        yield


def _norms(network: nn.Module) -> list[_BatchNorm]:
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def write_candidates(
    path: Path, space: Space, candidates: Sequence[Cells], results: Sequence[Result], best: int
) -> None:
    """Write the ranking of derived architectures as CSV: loss, Top-1 (percent), costs, and which one was kept.

    Raises:
        UserError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["candidate", "kept", "loss", "top1", *space.costs])
    for index, (cells, result) in enumerate(zip(candidates, results, strict=True)):
        writer.writerow([index, int(index == best), result.loss, result.top1, *space.costs_of(cells).values()])
    write_text(path, text.getvalue())
