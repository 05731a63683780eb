"""Checkpoints of a run: atomic, its own only, read with weights_only=True.

A checkpoint is the whole state of one stage at one step: network, alpha, optimizers, moving average, running sums of
metrics, and how long metrics.jsonl was. Random numbers need no state (nasb.seeding).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasb.errors import UserError
from nasb.files import write_atomically

VERSION = 1


@dataclass(frozen=True)
class Position:
    """The next step of a stage: `epoch` and `step` within it, and the seconds that the stage has taken so far."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0


def save_checkpoint(path: Path, stage: str, position: Position, metrics_bytes: int, state: dict[str, Any]) -> None:
    """Write a checkpoint.

    Raises:
        UserError: it cannot be written; the former checkpoint stands.
    """
    values = {
        "version": VERSION,
        "stage": stage,
        "epoch": position.epoch,
        "step": position.step,
        "seconds": position.seconds,
        "metrics_bytes": metrics_bytes,
        "state": state,
    }

    write_atomically(path, lambda temporary: _write(values, temporary))


def _write(values: dict[str, Any], path: Path) -> None:
    """Write with torch.save; on a full disk, its own error tells of positions in a file, the one behind it why.

    Raises:
        OSError: it cannot be written.
    """
    import torch

    with path.open("wb") as stream:
        try:
            torch.save(values, stream)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise OSError(str(error).splitlines()[0]) from error


def load_checkpoint(path: Path, stage: str) -> tuple[Position, int, dict[str, Any]]:
    """Read a checkpoint of the stage: (position, bytes of metrics.jsonl, state).

    Raises:
        UserError: the file is damaged, or is not a checkpoint of this stage and version.
    """
    import torch

    mend = f"Delete it to begin the stage {stage} again; earlier stages are kept"
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        if values["version"] != VERSION or values["stage"] != stage:
            raise UserError(
                f"{path}: is a checkpoint of stage {values['stage']}, version {values['version']}; "
                f"expected {stage}, {VERSION}"
            )
        return Position(values["epoch"], values["step"], values["seconds"]), values["metrics_bytes"], values["state"]
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception:  # a damaged file may raise anything, and torch's words are advice to who writes programs
        raise UserError(f"{path}: is damaged, or no checkpoint of this run. {mend}") from None
