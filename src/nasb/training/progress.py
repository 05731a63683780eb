"""What a person sees of a run: a bar with the time left at a terminal, a line an epoch elsewhere."""

import resource
import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

MEASURED_STEPS = 3


class StageProgress:
    """Progress of one stage, on standard error.

    Args:
        stage: its name.
        total: steps of the whole stage.
        done: steps that are done already.
        quiet: show nothing (all ranks but the first).
    """

    def __init__(self, stage: str, total: int, done: int, *, quiet: bool = False) -> None:
        self.stage, self.total, self.done, self.quiet = stage, total, done, quiet
        self._console = Console(file=sys.stderr, quiet=quiet, highlight=False, markup=False, emoji=False)
        self.measure()
        self._bar: Progress | None = None
        if self._console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False), console=self._console,
            )  # fmt: skip
            self._task = self._bar.add_task(stage, total=total, completed=done)

    def __enter__(self) -> "StageProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def measure(self) -> None:
        """Tell anew what the rest will need: from here on steps take another time."""
        self._first, self._began = self.done, time.perf_counter()

    def advance(self) -> None:
        """Count a step; after the first few, say what the stage will need."""
        self.done += 1
        if self._bar is not None:
            self._bar.advance(self._task)
        measured = self.done - self._first
        if measured == 1:
            self._began = time.perf_counter()  # the first step warms up
        if measured == 1 + MEASURED_STEPS:
            seconds = (time.perf_counter() - self._began) / MEASURED_STEPS
            self.note(
                f"{self.stage}: {self.total - self._first} steps of {seconds:.3g} s: about "
                f"{_duration(seconds * (self.total - self._first))} and the evaluations; memory so far {_memory()}"
            )

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        (self._bar.console if self._bar is not None else self._console).print(text, soft_wrap=True)

    def epoch(self, row: dict[str, Any]) -> None:
        """Print an epoch's metrics."""
        numbers = [f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float)]
        left = (time.perf_counter() - self._began) / max(self.done - self._first, 1) * (self.total - self.done)
        self.note(f"{self.stage} epoch {row['epoch']}: {', '.join(numbers)}; {_duration(left)} left")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _memory() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB on the device"
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{kilobytes * 1024 / 1e9:.1f} GB"
