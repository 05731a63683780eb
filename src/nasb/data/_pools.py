"""Where the images of a part are while a network trains on them: decoded in memory, or in files, read per batch.

Both give the same uint8 batches for the same files, in the order asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nasb.data._augmentation import CropResizeFlip
from nasb.data._draws import Bits
from nasb.data._preprocessing import Preprocessing
from nasb.data._reading import Place, load_image, preparing
from nasb.data._sources import ArrayImages, FileImages, Integers, Pixels
from nasb.data._workers import in_order
from nasb.errors import UserError

_PIECE = 256
"""Images of a piece of work."""


class OtherSizeError(Exception):
    """An image is not of the size that all were taken to have."""


class Pool(Protocol):
    """Images with their classes, by number."""

    targets: Integers

    def describe(self) -> str:
        """Say in a few words where the images are."""
        ...

    def batches(
        self, index_batches: Sequence[Integers], bits_batches: Sequence[Bits], vary: CropResizeFlip | None
    ) -> Iterator[Tensor]:
        """Yield uint8 images [N, C, H, W] for each batch of image numbers.

        Args:
            index_batches: the image numbers of each batch.
            bits_batches: random bits for each of these images; used by `vary` only.
            vary: how single images are cropped; None gives them as in evaluation.
        """
        ...


class MemoryPool:
    """Images that are kept in memory at the network's size."""

    def __init__(self, pixels: Pixels, targets: Integers) -> None:
        self._pixels_NCHW = torch.from_numpy(pixels)
        self.targets = targets

    @classmethod
    def from_arrays(cls, images: ArrayImages, preprocessing: Preprocessing) -> "MemoryPool":
        """Resize decoded images."""
        if images.pixels.shape[1:3] == (preprocessing.size, preprocessing.size):
            return cls(np.require(images.pixels.transpose(0, 3, 1, 2), requirements=("C", "W")), images.targets)
        pixels_NCHW = _empty(len(images.pixels), preprocessing)
        for number, pixels_HWC in enumerate(images.pixels):
            grey = pixels_HWC.shape[2] == 1
            pixels_NCHW[number] = preprocessing.pixels(Image.fromarray(pixels_HWC[:, :, 0] if grey else pixels_HWC))
        return cls(pixels_NCHW, images.targets)

    @classmethod
    def from_files(cls, images: FileImages, preprocessing: Preprocessing, workers: int, *, exact: bool) -> "MemoryPool":
        """Read all files.

        Raises:
            OtherSizeError: an image is not of the network's size, which `exact` asks for.
        """
        count = len(images.paths)
        pixels_NCHW = _empty(count, preprocessing)
        pieces = np.split(np.arange(count), range(256, count, 256))
        reader = _BatchReader(images.paths, preprocessing, pieces, (), None, exact)
        for numbers_N, pixels in zip(pieces, in_order(reader, len(pieces), workers), strict=True):
            if len(pixels) < len(numbers_N):
                raise OtherSizeError
            pixels_NCHW[numbers_N] = pixels.numpy()
        return cls(pixels_NCHW, images.targets)

    def describe(self) -> str:
        """Say in a few words where the images are."""
        return f"in memory ({self._pixels_NCHW.nbytes / 1e6:.1f} MB)"

    def batches(
        self, index_batches: Sequence[Integers], bits_batches: Sequence[Bits], vary: CropResizeFlip | None
    ) -> Iterator[Tensor]:
        """Yield uint8 images [N, C, H, W] for each batch of image numbers."""
        if vary is not None:
            raise ValueError("images in memory have lost what lies outside of their centre crop")
        for numbers_N in index_batches:
            yield self._pixels_NCHW[torch.from_numpy(numbers_N)]


class StreamPool:
    """Images that are read from their files for each batch, in this process or in worker processes."""

    def __init__(self, images: FileImages, preprocessing: Preprocessing, workers: int) -> None:
        self.targets = images.targets
        self._paths = images.paths
        self._preprocessing = preprocessing
        self._workers = workers

    def check(self) -> None:
        """Decode every image once.

        Raises:
            UserError: one cannot be read; the message names it.
        """
        pieces = -(-len(self._paths) // _PIECE)
        for _ in in_order(_Decode(self._paths), pieces, self._workers):
            pass

    def describe(self) -> str:
        """Say in a few words where the images are."""
        by = f"{self._workers} worker processes" if self._workers else "the main process"
        return f"read from files by {by}"

    def batches(
        self, index_batches: Sequence[Integers], bits_batches: Sequence[Bits], vary: CropResizeFlip | None
    ) -> Iterator[Tensor]:
        """Yield uint8 images [N, C, H, W] for each batch of image numbers."""
        reader = _BatchReader(self._paths, self._preprocessing, index_batches, bits_batches, vary)
        return in_order(reader, len(index_batches), self._workers)


@dataclass(frozen=True)
class _BatchReader:
    """Batches by number, uint8: what worker processes send takes a quarter of the shared memory of fp32.

    With `exact`, a batch with an image that is not of the network's size is an empty one.
    """

    paths: Sequence[Place]
    preprocessing: Preprocessing
    index_batches: Sequence[Integers]
    bits_batches: Sequence[Bits]
    vary: CropResizeFlip | None
    exact: bool = False

    def __call__(self, batch: int) -> Tensor:
        pixels_NCHW = _empty(len(self.index_batches[batch]), self.preprocessing)
        size = self.preprocessing.size
        for place, number in enumerate(self.index_batches[batch]):
            image = _read(self.paths[number])
            if self.exact and image.size != (size, size):
                return torch.empty(0, dtype=torch.uint8)
            with preparing(self.paths[number]):
                if self.vary is None:
                    pixels_NCHW[place] = self.preprocessing.pixels(image)
                else:
                    bits = int(self.bits_batches[batch][place])
                    pixels_NCHW[place] = self.vary(self.preprocessing.to_channels(image), bits)
        return torch.from_numpy(pixels_NCHW)


@dataclass(frozen=True)
class _Decode:
    """Pieces of files, read for nothing but to see whether they can be."""

    paths: Sequence[Place]

    def __call__(self, piece: int) -> Tensor:
        for path in self.paths[piece * _PIECE : (piece + 1) * _PIECE]:
            _read(path)
        return torch.empty(0)


def _read(path: Place) -> Image.Image:
    try:
        return load_image(path)
    except UserError as error:
        raise UserError(f"{error}; --data.unreadable skip leaves such images out") from error


def _empty(count: int, preprocessing: Preprocessing) -> Pixels:
    return np.empty((count, preprocessing.channels, preprocessing.size, preprocessing.size), dtype=np.uint8)
