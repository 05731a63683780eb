"""Image files and folders, read as nasb reads them for training (nasb/data/_reading.py, _folders.py)."""

import os
import struct
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, UnidentifiedImageError

from nasb_engine._core import EngineError

# Formats that Pillow recognizes but does not decode itself; EPS would even start another program (Ghostscript).
_NOT_DECODED = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})

# What Pillow's decoders raise on damaged files.
_DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)


@cache
def _formats() -> tuple[str, ...]:
    Image.preinit()  # the common formats, to be tried first
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _NOT_DECODED)


@cache
def _endings() -> frozenset[str]:
    formats = _formats()
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in formats)


_OPENING = Lock()
"""The filters of warnings belong to the process: of threads that change them in turn, each puts back what it found."""


def _open(path: str | os.PathLike[str]) -> Image.Image:
    """Open an image of up to 179 million pixels, without Pillow's warning from 89 on; it refuses larger ones."""
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path, formats=_formats())


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read and decode one image file completely.

    Returns:
        An image with 8 bits per channel; 16-bit grey is scaled to 8 bits. Orientation tags are not applied.
    Raises:
        EngineError: the file is missing, truncated, not an image, or has 32-bit pixels of unknown range.
    """
    try:
        with _open(path) as image:
            image.load()
            return _to_8_bits(image)
    except FileNotFoundError as error:
        raise EngineError(f'image "{Path(path)}" does not exist') from error
    except UnidentifiedImageError as error:
        raise EngineError(
            f'image "{Path(path)}" cannot be read: not an image that Pillow decodes; replace or remove it'
        ) from error
    except _DAMAGED as error:
        raise EngineError(f'image "{Path(path)}" cannot be read: {_reason(error)}; replace or remove it') from error


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory"
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error).rstrip(".")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey (0..65535) to 0..255: Pillow's own conversion would clip it to white."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its 32-bit pixels (mode {image.mode}) have no fixed range; save it with 8 or 16 bits")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def list_folder(folder: str | os.PathLike[str], class_names: Sequence[str]) -> list[tuple[Path, int]]:
    """Return the images under folder/<class>/ with the number of their class.

    Where `folder` holds test/ or a validation folder (val/, valid/, validation/) with the classes in it, as nasb's data
    `folder` does, that one is taken, test/ first. Hidden files and folders and files whose ending is no image's are
    left out.

    Args:
        folder: holds a folder for each class, not necessarily for all.
        class_names: of the model, in its order.
    Raises:
        EngineError: no such folder, no class folders, a folder that is none of the classes, or no images.
    """
    root = Path(os.path.expanduser(folder))  # noqa: PTH111 - Path.expanduser raises for "~nobody"
    if not root.is_dir():
        raise EngineError(f'"{folder}" {"is not a folder" if root.exists() else "does not exist"}')
    found = _subfolders(root)
    if not set(found) & set(class_names):
        parts = [name for name in ("test", "val", "valid", "validation") if name in found]
        if parts:
            root = root / parts[0]
            found = _subfolders(root)
    if not found:
        raise EngineError(f'"{root}" has no class folders; put the images of each class into {root}/<class>/')
    unknown = [name for name in found if name not in class_names]
    if unknown:
        names = ", ".join(class_names[:5]) + (", ..." if len(class_names) > 5 else "")
        raise EngineError(f'"{root}" has the folder "{unknown[0]}", which is none of the model\'s classes ({names})')
    number = {name: index for index, name in enumerate(class_names)}
    images = [(path, number[name]) for name in found for path in _image_files(root / name)]
    if not images:
        raise EngineError(f'"{root}": its class folders hold no images')
    return images


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _leads_back(folder: Path) -> bool:
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _raise(error: OSError) -> None:
    raise error


def _image_files(folder: Path) -> list[Path]:
    found = []
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".") and not _leads_back(Path(place, name))]
        found += [
            Path(place, name) for name in files if not name.startswith(".") and Path(name).suffix.lower() in _endings()
        ]
    return sorted(found)
