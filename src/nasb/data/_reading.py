"""Image files, and images within tar files: which there are, and their pixels."""

import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from nasb.data._members import Member
from nasb.errors import UserError

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


Place = str | os.PathLike[str] | Member


@cache
def _known_formats() -> tuple[str, ...]:
    Image.preinit()  # the common formats, to be tried first
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _NOT_DECODED)


@cache
def known_extensions() -> frozenset[str]:
    """Return the endings (".jpg", ...) of the files that are taken for images."""
    formats = _known_formats()
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in formats)


@contextmanager
def _opened(place: Place) -> Iterator[Image.Image]:
    """Open an image without decoding it. Images of 89 to 179 million pixels pass; Pillow refuses larger ones."""
    file = place.open() if isinstance(place, Member) else place
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(file, formats=_known_formats()) as image:
            yield image


def load_image(path: Place) -> Image.Image:
    """Read and decode one image completely.

    Returns:
        An image with 8 bits per channel; 16-bit grey is scaled to 8 bits. Orientation tags are not applied, as in
        torchvision's ImageFolder.
    Raises:
        UserError: the file is missing, truncated, not an image, or has 32-bit pixels of unknown range.
    """
    try:
        with _opened(path) as image:
            image.load()
            return _to_8_bits(image)
    except FileNotFoundError as error:
        raise UserError(f'image "{_name(path)}" does not exist') from error
    except UnidentifiedImageError as error:
        raise UserError(
            f'image "{_name(path)}" cannot be read: not an image that Pillow decodes; replace or remove it'
        ) from error
    except _DAMAGED as error:
        raise UserError(f'image "{_name(path)}" cannot be read: {_reason(error)}; replace or remove it') from error


@contextmanager
def preparing(path: Place) -> Iterator[None]:
    """Name the image whose preparation fails.

    Raises:
        UserError: its preparation was refused, or there is not enough memory for it.
    """
    try:
        yield
    except (UserError, MemoryError) as error:
        problem = "not enough memory" if isinstance(error, MemoryError) else str(error)
        raise UserError(f'image "{_name(path)}" cannot be prepared: {problem}') from error


def _name(path: Place) -> str:
    return str(path) if isinstance(path, Member) else str(Path(path))


def image_side(path: Place) -> tuple[int, int]:
    """Return (width, height) in pixels from a file's header, without decoding it.

    Raises:
        UserError: the header cannot be read.
    """
    try:
        with _opened(path) as image:
            return image.size
    except _DAMAGED:
        return load_image(path).size  # says what is wrong


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
