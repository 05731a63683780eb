"""A race of derived architectures: each is trained by itself for a few epochs, and the best one wins.

Each is trained on the weights part of the images, with the same batches for all, and judged on the alpha part. The
options are finetune's, but for a cosine schedule over these epochs and no moving average; it begins with the host's
weights (`init`, or fresh ones), binary from the first step. A race costs these epochs for each architecture.

Source: the first rung of successive halving (Jamieson and Talwalkar, AISTATS 2016, arXiv 1502.07943).
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nasb.errors import UserError
from nasb.files import write_text
from nasb.search.space import Cells
from nasb.seeding import derive_seed
from nasb.training.evaluation import Result, evaluate
from nasb.training.progress import StageProgress
from nasb.training.ranks import batch_norms_told
from nasb.training.train_stage import TrainStage

if TYPE_CHECKING:
    from lightning_fabric import Fabric

FILE = "race.json"


class Race:
    """Trains architectures, one after the other; what is finished is kept, so that a race that is killed goes on.

    The architecture that was being trained then begins anew.

    Args:
        stage_of: builds an architecture and returns its training, before its first step.
        fabric: devices and ranks, which share each batch.
        seed: of the run.
        folder: where results are kept, on the rank that writes; None: nowhere.
    """

    name = "race"
    part = "weights"
    judged_on = "alpha"

    def __init__(
        self, stage_of: Callable[[Cells], TrainStage], fabric: "Fabric", *, seed: int, folder: Path | None
    ) -> None:
        self.stage_of, self.fabric, self.seed = stage_of, fabric, seed
        self.path = None if folder is None else folder / FILE
        self.seconds: dict[str, float] = {}
        self.earlier = 0.0
        """Seconds of what was finished in earlier sittings."""

    def results(self, candidates: Sequence[Cells]) -> list[Result]:
        """Return loss and Top-1 of each after its training, on the alpha part.

        Raises:
            UserError: what the folder keeps is damaged, or cannot be written.
        """
        known: dict[str, Result] = self.fabric.broadcast(self._restore())
        self.earlier = sum(self.seconds.values())
        title = f"race of {len(candidates)} architectures"
        left = sum(_key(cells) not in known for cells in candidates)
        with StageProgress(title, len(candidates), len(candidates) - left, quiet=not self.fabric.is_global_zero) as bar:
            for number, cells in enumerate(candidates, 1):
                key = _key(cells)
                if key not in known:
                    began = time.perf_counter()
                    known[key] = self._run(self.stage_of(cells))
                    self.seconds[key] = time.perf_counter() - began
                    self._keep(known)
                    bar.advance()
                    loss, top1 = known[key].loss, known[key].top1
                    bar.note(
                        f"{self.name}: architecture {number} of {len(candidates)}: loss {loss:.4g}, Top-1 {top1:.2f}% "
                        f"after {self.seconds[key]:.0f} s of training"
                    )
        return [known[_key(cells)] for cells in candidates]

    def _run(self, stage: TrainStage) -> Result:
        rank = () if self.fabric.is_global_zero else (self.fabric.global_rank,)
        for epoch in range(stage.epochs):
            stage.begin_epoch(epoch)
            for step, batch in enumerate(stage.batches(epoch, 0)):
                torch.manual_seed(derive_seed(self.seed, self.name, epoch, step, *rank))
                with batch_norms_told(self.name):
                    stage.step(epoch, step, batch)
        return evaluate(stage.trained(), stage.data, self.judged_on, self.fabric)

    def _restore(self) -> dict[str, Result]:
        if self.path is None or not self.path.exists():
            return {}
        try:
            rows: list[dict[str, Any]] = json.loads(self.path.read_text(encoding="utf-8"))
            self.seconds = {row["cells"]: float(row.pop("seconds")) for row in rows}
            return {str(row.pop("cells")): Result(**row) for row in rows}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{self.path}: is damaged. Delete the file to run the race anew") from None

    def _keep(self, known: dict[str, Result]) -> None:
        if self.path is not None:
            rows = [{"cells": key, "seconds": self.seconds[key], **vars(result)} for key, result in known.items()]
            write_text(self.path, json.dumps(rows, indent=1) + "\n")


def _key(cells: Cells) -> str:
    """Return an architecture as text: equal for equal ones."""
    return "; ".join(
        f"{name} " + " ".join(f"{e.source}-{e.target}:{e.operation}" for e in sorted(edges))
        for name, edges in sorted(cells.items())
    )
