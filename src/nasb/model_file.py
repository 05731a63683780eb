"""model.safetensors: the weights of a network together with all that is needed to use them.

The metadata holds one JSON object under "nasb": the file's version, the architecture, the phase of its layers, the
preprocessing of images and the class names.
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nasb.cells.architecture import Architecture
from nasb.errors import UserError
from nasb.files import load_safetensors, save_safetensors

if TYPE_CHECKING:
    from torch import nn

    from nasb.data import Preprocessing

T = TypeVar("T")
VERSION = 1
MODEL = "model.safetensors"
"""Of a run directory."""
BINARY = {"weights": "binary", "activations": "sign"}


@dataclass(frozen=True)
class Model:
    """A trained network, in evaluation mode, and what belongs to it."""

    network: "nn.Module"
    architecture: Architecture
    preprocessing: "Preprocessing"
    class_names: tuple[str, ...]


def save_model(
    path: Path,
    network: "nn.Module",
    architecture: Architecture,
    preprocessing: "Preprocessing",
    class_names: tuple[str, ...],
    phase: dict[str, str],
) -> None:
    """Write a model file atomically."""
    from nasb.networks.plan import host_of_network

    values = {
        "version": VERSION,
        "architecture": architecture.to_dict(),
        "phase": phase,
        "preprocessing": preprocessing.to_dict(),
        "class_names": list(class_names),
        "host": host_of_network(network),
    }
    save_safetensors(path, network.state_dict(), {"nasb": json.dumps(values)})


def load_model(path: str | Path, *, host: "nn.Module | None" = None) -> Model:
    """Read the trained network of a run directory, or a model file.

    Args:
        path: a run directory, or a model.safetensors.
        host: the real network that was converted, where it is not a registered one.

    Raises:
        UserError: the run has not finished, or the file is missing, cut short, not of nasb, or its tensors are not
            those of its architecture.
    """
    from nasb.binary import set_phase
    from nasb.data import Preprocessing
    from nasb.networks.plan import host_of_network

    path = Path(path)
    if path.is_dir():
        if not (path / MODEL).exists():
            raise UserError(f"{path}: holds no {MODEL}: the run has not finished, or it is not a run directory")
        path = path / MODEL
    tensors, metadata = load_safetensors(path)
    if "nasb" not in metadata:
        raise UserError(f"{path}: was not written by nasb (no metadata); weights of a real CNN are taken by --init")
    try:
        values: dict[str, Any] = json.loads(metadata["nasb"])
        version = values["version"]
        if version != VERSION:
            raise UserError(f"{path}: version {version} of the model file; this version of nasb reads {VERSION}")
        architecture = Architecture.from_dict(values["architecture"], f"{path}: architecture")
        preprocessing = _with_file(path, lambda: Preprocessing.from_dict(values["preprocessing"]))
        class_names = tuple(str(name) for name in values["class_names"])
        trained_host = values.get("host")
        phase = {"weights": str(values["phase"]["weights"]), "activations": str(values["phase"]["activations"])}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: its metadata is damaged: {error!r}") from None
    if len(class_names) != architecture.num_classes:
        raise UserError(f"{path}: names {len(class_names)} classes, its architecture has {architecture.num_classes}")
    network = _with_file(path, lambda: architecture.build(host))
    _with_file(path, lambda: set_phase(network, **phase))
    now = host_of_network(network)
    if trained_host is not None and now is not None and trained_host != now:
        warnings.warn(
            f"{path}: {architecture.host} computes something else than when this network was trained: its code has "
            "changed, or how this version of torch traces it. Accuracy may not be what it was",
            stacklevel=2,
        )
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: the tensors are not those of its architecture: {reason}") from None
    return Model(network.eval(), architecture, preprocessing, class_names)


def _with_file(path: str | Path, read: Callable[[], T]) -> T:
    """Return what `read` returns, and lead the message of its UserError with the file's name."""
    try:
        return read()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def load(path: str | Path) -> "nn.Module":
    """Return the trained network of a run directory or model file, in evaluation mode (`nasb.load`)."""
    return load_model(path).network
