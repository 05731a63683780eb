"""A run is a directory.

config.yaml          the resolved config
environment.json     versions, hardware, command
images.json          classes, and how many training and validation images each has
metrics.jsonl        a line for each epoch; bit-identical in a run that was stopped and resumed
tensorboard/         the same as curves
checkpoints/         one, for the stage that is under way
latency-table.json   copy of the latency table, for a budget in milliseconds
architecture.json    what the search found, and architecture.svg, its drawing
population.jsonl     architectures that strategies random and evolution judged; optuna.journal: those of tpe and nsga2
candidates.csv       the ranking of the architectures that were derived; race.json: what their short trainings gave
front.csv, .json, .png, front/  of a search with several objectives
supernet.safetensors the searchable network at the search's end, alpha included
pretrained.safetensors, model.safetensors
stages.json          finished stages and their seconds
summary.json         what came out
"""

import fcntl
import json
import os
import platform
import sys
import warnings
import weakref
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from nasb.errors import UserError
from nasb.files import write_text
from nasb.training.checkpoint import Position, load_checkpoint, save_checkpoint
from nasb.training.config import RunConfig, first_difference

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LATENCY_TABLE = "latency-table.json"
IMAGES = "images.json"
JUDGED = ("population.jsonl", "optuna.journal")
"""Architectures that were judged with the weights of a search."""
RESULTS = (
    "architecture.json", "stages.json", "metrics.jsonl", "supernet.safetensors", "pretrained.safetensors",
    "model.safetensors", "summary.json", "checkpoints/*.pt", "candidates.csv", "race.json", "front.csv", *JUDGED,
)  # fmt: skip
"""What stages leave; wildcards."""


_OPEN: "weakref.WeakSet[RunDirectory]" = weakref.WeakSet()


def _close_locks() -> None:
    """Close the locks in a forked process: a worker that outlives its killed parent must not hold them."""
    for run in _OPEN:
        if run._lock is not None:
            run._lock.close()


os.register_at_fork(after_in_child=_close_locks)


class RunDirectory:
    """The directory of one run; opening it locks it against a second process.

    Args:
        path: the directory; made if it is not there.
        config: the run's config.
        writes: whether this process writes (rank 0).
        images: what tells its images from others (`ImageData.census`).

    Raises:
        UserError: it holds a run of another config or of other images, or any run with ``resume: never``; another
            process works on it; it cannot be written; it holds results, but no config.
    """

    def __init__(
        self, path: str | Path, config: RunConfig, *, writes: bool = True, images: dict[str, Any] | None = None
    ) -> None:
        self.path, self.config, self.writes = Path(path), config, writes
        self._lock: IO[str] | None = None
        _OPEN.add(self)
        self._writer: SummaryWriter | None = None
        if not writes:
            return
        self._refuse_what_is_of_no_run()
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be made a run directory: {error.strerror or error}") from None
        try:
            self._take_lock()
            self._begin(images)
            self._drop_half_written()
        except BaseException:
            self.close()
            raise

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def _refuse_what_is_of_no_run(self) -> None:
        """Refuse results without a config: they would be taken for this run's own, or be lost."""
        found = [str(path.relative_to(self.path)) for name in RESULTS for path in sorted(self.path.glob(name))]
        if found and not (self.path / "config.yaml").exists():
            raise UserError(
                f"{self.path}: holds {', '.join(found)}, but no config.yaml that tells of which run; give another "
                "directory to --out"
            )

    def _take_lock(self) -> None:
        try:
            self._lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror or error}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.path}: another process is working on this run") from None
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be locked against other processes: {error.strerror or error}; give a directory "
                "on a file system that has locks"
            ) from None

    def _begin(self, images: dict[str, Any] | None) -> None:
        config_file = self.path / "config.yaml"
        if config_file.exists():
            if self.config.resume == "never":
                raise UserError(f"{self.path}: holds a run already, and resume is never; give another directory")
            difference = first_difference(read_config(self.path), self.config.to_dict())
            if difference is not None:
                raise UserError(f"{self.path}: holds another run: {difference}. Give another directory to --out")
            self._compare(images)
            return
        import yaml

        if images is not None:
            write_text(self.path / IMAGES, json.dumps(images) + "\n")

        write_text(self.path / "environment.json", json.dumps(environment(), indent=1) + "\n")
        # Last: with it the directory is a run. `resume` is of a command, not of the run: its later stages go on in it.
        kept = self.config.to_dict() | {"resume": RunConfig().resume}
        write_text(config_file, yaml.safe_dump(kept, sort_keys=False))

    def _compare(self, images: dict[str, Any] | None) -> None:
        """Refuse to go on with other images: they would be split and numbered otherwise. Earlier runs noted none."""
        path = self.path / IMAGES
        if images is None or not path.exists():
            return
        try:
            begun = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            raise UserError(f"{path}: is damaged; it should hold the classes and the number of their images") from None
        others = f"{self.path}: was begun with other images ({_told(begun)}; now {_told(images)})"
        if not _trains_alike(begun, images):
            raise UserError(f"{others}. Give those to go on, or another directory to --out")
        if begun["images"] != images["images"]:
            warnings.warn(f"{others}; it goes on, and chooses by those that are there now", stacklevel=2)

    def _drop_half_written(self) -> None:
        """Delete checkpoints and weights that a kill left half written; the lock says that nobody else writes here."""
        for folder, ending in (("checkpoints", "pt"), (".", "safetensors")):
            for path in (self.path / folder).glob(f".*.{ending}.*.tmp"):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the log files and give the lock back."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # Stages

    def finished(self) -> dict[str, dict[str, Any]]:
        """Return what is noted of each finished stage, e.g. ``{"search": {"seconds": 12.3}}``."""
        path = self.path / "stages.json"
        if not path.exists():
            return {}
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            values = None
        if not isinstance(values, dict) or not all(isinstance(e, dict) and "seconds" in e for e in values.values()):
            raise UserError(f"{path}: is damaged; it should hold the seconds of each finished stage")
        return values

    def finish_stage(self, stage: str, seconds: float) -> None:
        """Note that a stage is finished (its result stands already), and delete its checkpoint."""
        if not self.writes:
            return
        write_text(
            self.path / "stages.json", json.dumps({**self.finished(), stage: {"seconds": seconds}}, indent=1) + "\n"
        )
        self._checkpoint(stage).unlink(missing_ok=True)

    # Checkpoints

    def _checkpoint(self, stage: str) -> Path:
        return self.path / "checkpoints" / f"{stage}.pt"

    def save(self, stage: str, position: Position, state: dict[str, Any]) -> None:
        """Write the stage's checkpoint."""
        if self.writes:
            metrics = self.path / "metrics.jsonl"
            size = metrics.stat().st_size if metrics.exists() else 0
            save_checkpoint(self._checkpoint(stage), stage, position, size, state)

    def restore(self, stage: str) -> tuple[Position, dict[str, Any]] | None:
        """Read the stage's checkpoint, and cut metrics.jsonl back to where it stood then; None if there is none."""
        path = self._checkpoint(stage)
        if not path.exists():
            self._begin_anew(stage)
            return None
        position, metrics_bytes, state = load_checkpoint(path, stage)
        metrics = self.path / "metrics.jsonl"
        if self.writes and metrics.exists() and metrics.stat().st_size > metrics_bytes:
            with metrics.open("r+b") as stream:
                stream.truncate(metrics_bytes)
        return position, state

    def _begin_anew(self, stage: str) -> None:
        """Drop the lines of a stage that begins anew (it has no checkpoint), and what its former weights judged."""
        if not self.writes:
            return
        for name in JUDGED if stage == "search" else ():
            (self.path / name).unlink(missing_ok=True)
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _stage_of(line) not in (stage, None)]
            if len(kept) != len(lines):
                write_text(path, "".join(f"{line}\n" for line in kept))

    # Logs

    def log(self, row: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl (flushed to disk), and its numbers to TensorBoard."""
        if not self.writes:
            return
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
        for key, value in row.items():
            if isinstance(value, int | float) and key != "epoch":
                self._tensorboard().add_scalar(f"{row['stage']}/{key}", value, row["epoch"])

    def log_speed(self, stage: str, epoch: int, images_per_second: float) -> None:
        """Write the speed to TensorBoard alone: it is not the same in two equal runs."""
        if self.writes:
            self._tensorboard().add_scalar(f"{stage}/images_per_second", images_per_second, epoch)

    def _tensorboard(self) -> "SummaryWriter":
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.path / "tensorboard"))
        return self._writer


def _trains_alike(begun: Any, now: dict[str, Any]) -> bool:
    """Whether two censuses tell of the same training images; other validation images may be some that trained."""
    try:
        same = begun["classes"] == now["classes"] and begun["images"]["train"] == now["images"]["train"]
        apart = begun.get("held_out") is now.get("held_out") is False
        return bool(same) and (apart or begun["images"] == now["images"])
    except (KeyError, TypeError):
        return False


def _told(images: Any) -> str:
    """Tell a census in a few words."""
    try:
        classes, parts = [str(name) for name in images["classes"]], images["images"]
        names = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
        counts = ", ".join(f"{sum(count)} {part}" for part, count in parts.items())
    except (KeyError, TypeError, AttributeError):
        return "unknown ones"
    return f"classes {names}: {counts}"


def _stage_of(line: str) -> str | None:
    """Return the stage of a line of metrics.jsonl; None if a kill has cut it short."""
    try:
        return str(json.loads(line)["stage"])
    except (ValueError, KeyError, TypeError):
        return None


def read_config(path: Path) -> dict[str, Any]:
    """Read the config of a run directory.

    Raises:
        UserError: there is none, or it is not YAML.
    """
    import yaml

    file = path / "config.yaml"
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{path}: is not a run directory (no config.yaml)") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: is not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: is not a config")
    return values


def environment() -> dict[str, Any]:
    """Return versions, hardware and command of this process."""
    import torch

    packages = ("nasb", "torch", "torchvision", "lightning-fabric", "numpy", "safetensors")
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "openmp": {key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")},
        "versions": {name: version(name) for name in packages},
    }


def cpu_name() -> str:
    """Return the processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
