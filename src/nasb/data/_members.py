"""Images within tar files: where their bytes stand."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, overload

import numpy as np
import numpy.typing as npt


class Member(NamedTuple):
    """An image within a tar file: `size` bytes from byte `offset` on."""

    shard: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}, bytes {self.offset} to {self.offset + self.size}"

    def open(self) -> BinaryIO:
        """Return the image's bytes as a file.

        Raises:
            OSError: they cannot be read, or the tar file is shorter.
        """
        with open(self.shard, "rb", buffering=0) as shard:  # noqa: PTH123 - a Path costs more than the rest
            shard.seek(self.offset)
            data = shard.read(self.size)
        if len(data) < self.size:
            raise OSError(f"the file ends after {len(data)} of its {self.size} bytes")
        return io.BytesIO(data)


@dataclass(frozen=True)
class Members(Sequence[Member]):
    """The images of a part: in which shard each stands, from which byte on, and how many bytes it has."""

    shards: tuple[str, ...]
    shard: npt.NDArray[np.int64]
    """Index into `shards` of each image."""
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.shard)

    @overload
    def __getitem__(self, index: int) -> Member: ...
    @overload
    def __getitem__(self, index: slice) -> "Members": ...
    def __getitem__(self, index: int | slice) -> "Member | Members":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return Member(self.shards[self.shard[index]], int(self.offset[index]), int(self.size[index]))

    def take(self, indices: npt.NDArray[Any]) -> "Members":
        """Return the images at `indices`, in that order."""
        return Members(self.shards, self.shard[indices], self.offset[indices], self.size[indices])
