import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from nasb.data._idx import LARGEST, read_idx
from nasb.errors import UserError

VALUES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
GOOD = struct.pack(">HBB3I", 0, 8, 3, 2, 3, 4) + VALUES.tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_reads_what_was_written(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("a.gz" if packed else "a")
    path.write_bytes(gzip.compress(GOOD) if packed else GOOD)
    assert (read_idx(path, 3) == VALUES).all()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not an IDX file of unsigned bytes with 3 axes: it starts with "),
        (b"\x89PNG....", "it starts with 89 50 4e 47, not 00 00 08 03; fetch it again"),
        (struct.pack(">HBBI", 0, 8, 1, 3) + b"abc", "it starts with 00 00 08 01, not 00 00 08 03"),
        (b"\0\0\x0d\x03" + GOOD[4:], "it starts with 00 00 0d 03"),
        (GOOD[:10], "ends within its header; fetch it again"),
        (GOOD[:-1], "should hold 24 values (2, 3, 4), but holds only 23; fetch it again"),
        (GOOD + b"x", "should hold 24 values (2, 3, 4), but holds more; fetch it again"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "claims the shape (4294967295, 4294967295, 4294967295); accepted are 1 to"),
        (struct.pack(">HBB3I", 0, 8, 3, 0, 28, 28), "claims the shape (0, 28, 28)"),
        (struct.pack(">HBB3I", 0, 8, 3, 1, 1, LARGEST + 1), f"accepted are 1 to {LARGEST:,} values"),
    ],
)
def test_refuses_garbage(tmp_path: Path, data: bytes, message: str, packed: bool) -> None:
    path = tmp_path / ("a.gz" if packed else "a")
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


def test_refuses_what_gzip_refuses(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    packed = gzip.compress(GOOD)
    broken = bytearray(packed)
    broken[15] ^= 0xFF
    for data in (GOOD, packed[:-10], packed[:20], bytes(broken), packed[:-8] + b"\0" * 8):
        path.write_bytes(data)
        with pytest.raises(UserError, match="IDX file"):
            read_idx(path, 3)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'nothing" cannot be read \(No such file'):
        read_idx(tmp_path / "nothing", 3)
