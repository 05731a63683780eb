"""Reader for IDX files, the format of MNIST and Fashion-MNIST: unsigned bytes, plain or gzip, every length checked.

Format (http://yann.lecun.com/exdb/mnist): two zero bytes, a type (8 = unsigned byte), the number of axes, each axis as
a big-endian 32-bit integer, then the values, last axis fastest.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from nasb.data._sources import Pixels
from nasb.errors import UserError

LARGEST = 10**9
"""Largest number of values (bytes) that is accepted, so that a damaged header cannot ask for all memory."""


def read_idx(path: Path, axes: int) -> Pixels:
    """Return the values of an IDX file as an array with that many axes.

    Raises:
        UserError: the file is missing, is not IDX, or is shorter or longer than its header says.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return _parse(cast(BinaryIO, file), path, axes)
        with path.open("rb") as file:
            return _parse(file, path, axes)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f'IDX file "{path}" cannot be read ({reason}); fetch it again') from error


def _parse(file: BinaryIO, path: Path, axes: int) -> Pixels:
    expected = struct.pack(">HBB", 0, 8, axes)
    magic = file.read(4)
    if magic != expected:
        raise UserError(
            f'"{path}" is not an IDX file of unsigned bytes with {axes} axes: it starts with {magic.hex(" ")}, '
            f"not {expected.hex(' ')}; fetch it again"
        )
    header = file.read(4 * axes)
    if len(header) < 4 * axes:
        raise UserError(f'IDX file "{path}" ends within its header; fetch it again')
    shape = struct.unpack(f">{axes}I", header)
    count = math.prod(shape)
    if not 0 < count <= LARGEST:
        raise UserError(f'IDX file "{path}" claims the shape {shape}; accepted are 1 to {LARGEST:,} values')
    values = file.read(count + 1)  # one more than there should be: finds what is too long as well
    if len(values) != count:
        found = f"only {len(values):,}" if len(values) < count else "more"
        raise UserError(f'IDX file "{path}" should hold {count:,} values {shape}, but holds {found}; fetch it again')
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)
