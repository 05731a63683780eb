"""The one loop that all stages run in: epochs, steps, seeds, checkpoints, stopping and resuming.

Before each step the random generators are seeded from (seed, stage, epoch, step), so a stage that goes on from a
checkpoint draws what the uninterrupted one draws.
"""

import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import torch

from nasb.errors import StoppedError, UserError
from nasb.seeding import derive_seed
from nasb.training.checkpoint import Position
from nasb.training.progress import StageProgress
from nasb.training.ranks import any_rank, batch_norms_told
from nasb.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SAME_REQUEST = 2.0
"""Seconds in which further signals are the same request: a launcher passes on what the whole group has got already."""


class Stage(ABC):
    """What the loop needs of a stage. `images` counts the images of one step, for the speed."""

    name: str
    epochs: int
    steps: int
    images: int

    @abstractmethod
    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """Yield the epoch's batches from step `start` on."""

    def begin_epoch(self, epoch: int) -> None:
        """Prepare an epoch (also one that is resumed)."""
        return

    @abstractmethod
    def step(self, epoch: int, step: int, batch: Any) -> None:
        """Make one step."""

    @abstractmethod
    def end_epoch(self, epoch: int) -> tuple[dict[str, Any], str | None]:
        """Return the epoch's metrics and a warning."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return all that a checkpoint has to hold, running sums of metrics included."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a checkpoint's state back."""


class _StopSignals:
    """Turns SIGINT and SIGTERM into a flag that the loop reads between steps; asked again, the process ends at once."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._former: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._first is not None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
        elif now - self._first > SAME_REQUEST:
            for signal_number, handler in self._former.items():
                signal.signal(signal_number, handler)
            os.kill(os.getpid(), number)

    def __enter__(self) -> "_StopSignals":
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._ask)
        except ValueError:  # not the main thread: whoever owns that decides about signals
            self._former = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)


def run_stage(stage: Stage, run: RunDirectory, fabric: "Fabric", *, seed: int) -> float:
    """Run a stage to its end, from its checkpoint if there is one.

    All ranks make the same steps, and save and stop after the same one; rank 0 writes and tells.

    Returns:
        The seconds that the stage took, over all sittings.

    Raises:
        StoppedError: SIGINT or SIGTERM came; the checkpoint is written.
        UserError: the checkpoint is damaged or does not fit, or a file cannot be written.
    """
    position = Position()
    restored = run.restore(stage.name)
    if restored is not None:
        position, state = restored
        try:
            stage.load_state_dict(state)
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"{run.path}: the checkpoint of stage {stage.name} does not fit this run: {reason}"
            ) from None
    begun = time.perf_counter() - position.seconds
    done = position.epoch * stage.steps + position.step
    with (
        _StopSignals() as stop,
        StageProgress(stage.name, stage.epochs * stage.steps, done, quiet=not fabric.is_global_zero) as progress,
    ):
        if restored is not None:
            progress.note(f"{stage.name}: going on at epoch {position.epoch}, step {position.step}")
        for epoch in range(position.epoch, stage.epochs):
            start = position.step if epoch == position.epoch else 0
            _run_epoch(stage, run, fabric, progress, stop, epoch, start, begun, seed)
    return time.perf_counter() - begun


def _run_epoch(
    stage: Stage,
    run: RunDirectory,
    fabric: "Fabric",
    progress: StageProgress,
    stop: _StopSignals,
    epoch: int,
    start: int,
    begun: float,
    seed: int,
) -> None:
    interval = run.config.checkpoint_minutes * 60
    # What a network draws itself (dropout) is to differ between ranks; rank 0 draws what one process draws.
    rank = () if fabric.is_global_zero else (fabric.global_rank,)
    saved = epoch_began = time.perf_counter()
    torch.manual_seed(derive_seed(seed, stage.name, epoch))
    images = stage.images
    stage.begin_epoch(epoch)
    if stage.images != images:  # a search's first epoch behind its warm-up
        progress.measure()
    for step, batch in enumerate(stage.batches(epoch, start), start):
        torch.manual_seed(derive_seed(seed, stage.name, epoch, step, *rank))
        with batch_norms_told(f"stage {stage.name}"):
            stage.step(epoch, step, batch)
        progress.advance()
        now = time.perf_counter()
        if step + 1 == stage.steps:
            continue  # the epoch's end saves
        stopping, due = any_rank(fabric, stop.asked, now - saved >= interval)
        if stopping or due:
            run.save(stage.name, Position(epoch, step + 1, now - begun), stage.state_dict())
            saved = now
        if stopping:
            raise StoppedError(f"stopped in stage {stage.name}, epoch {epoch}; the same command goes on from here")
    speed = (stage.steps - start) * stage.images / (time.perf_counter() - epoch_began)
    metrics, warning = stage.end_epoch(epoch)
    row = {"stage": stage.name, "epoch": epoch, **metrics}
    run.log(row)
    run.log_speed(stage.name, epoch, speed)
    progress.epoch(row)
    if warning is not None:
        progress.note(f"warning: {warning}")
    run.save(stage.name, Position(epoch + 1, 0, time.perf_counter() - begun), stage.state_dict())
    if any_rank(fabric, stop.asked)[0]:
        raise StoppedError(f"stopped in stage {stage.name} after epoch {epoch}; the same command goes on from here")
