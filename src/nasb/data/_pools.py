"""Where the images of a part are while a network trains on them: decoded in memory, or in files, read per batch.

Both give the same uint8 batches for the same files, in the order asked for.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nasb.data._augmentation import CropResizeFlip
from nasb.data._draws import Bits
from nasb.data._preprocessing import Preprocessing
from nasb.data._reading import load_image
from nasb.data._sources import ArrayImages, FileImages, Integers, Pixels
from nasb.errors import UserError


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
        from PIL import Image

        pixels_NHWC = images.pixels
        if pixels_NHWC.shape[1:3] == (preprocessing.size, preprocessing.size):
            return cls(np.ascontiguousarray(pixels_NHWC.transpose(0, 3, 1, 2)), images.targets)
        pixels_NCHW = _empty(len(pixels_NHWC), preprocessing)
        for number, pixels_HWC in enumerate(pixels_NHWC):
            grey = pixels_HWC.shape[2] == 1
            pixels_NCHW[number] = preprocessing.pixels(Image.fromarray(pixels_HWC[:, :, 0] if grey else pixels_HWC))
        return cls(pixels_NCHW, images.targets)

    @classmethod
    def from_files(cls, images: FileImages, preprocessing: Preprocessing) -> "MemoryPool":
        """Read all files, with threads: Pillow's decoders run outside of Python's lock."""
        pixels_NCHW = _empty(len(images.paths), preprocessing)

        def read(numbers: range) -> None:
            for number in numbers:
                pixels_NCHW[number] = preprocessing.pixels(read_image(images.paths[number]))

        for_all_files(read, len(images.paths))
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

    def describe(self) -> str:
        """Say in a few words where the images are."""
        return f"read from files ({self._workers} workers)"

    def batches(
        self, index_batches: Sequence[Integers], bits_batches: Sequence[Bits], vary: CropResizeFlip | None
    ) -> Iterator[Tensor]:
        """Yield uint8 images [N, C, H, W] for each batch of image numbers."""
        reader = _BatchReader(self._paths, self._preprocessing, index_batches, bits_batches, vary)
        if not self._workers:
            for number in range(len(reader)):
                yield reader.read(number)
            return
        loader = torch.utils.data.DataLoader(
            reader,
            batch_size=None,  # an item of the reader is a whole batch already
            num_workers=self._workers,
            generator=torch.Generator(),  # else the loader draws from the caller's global random state
        )
        for images in loader:
            if isinstance(images, str):
                raise UserError(images)
            yield images


class _BatchReader(torch.utils.data.Dataset[Tensor | str]):
    """Batches by number; what worker processes run. They send uint8 pixels: a quarter of the shared memory of fp32."""

    def __init__(
        self,
        paths: Sequence[str],
        preprocessing: Preprocessing,
        index_batches: Sequence[Integers],
        bits_batches: Sequence[Bits],
        vary: CropResizeFlip | None,
    ) -> None:
        self._paths = paths
        self._preprocessing = preprocessing
        self._index_batches = index_batches
        self._bits_batches = bits_batches
        self._vary = vary

    def __len__(self) -> int:
        return len(self._index_batches)

    def __getitem__(self, batch: int) -> Tensor | str:
        # An exception would reach the user wrapped in the worker's traceback; so its message travels as a value.
        try:
            return self.read(batch)
        except UserError as error:
            return str(error)

    def read(self, batch: int) -> Tensor:
        """Return one batch, uint8 [N, C, H, W]."""
        pixels_NCHW = _empty(len(self._index_batches[batch]), self._preprocessing)
        for place, number in enumerate(self._index_batches[batch]):
            image = read_image(self._paths[number])
            if self._vary is None:
                pixels_NCHW[place] = self._preprocessing.pixels(image)
            else:
                bits = int(self._bits_batches[batch][place])
                pixels_NCHW[place] = self._vary(self._preprocessing.to_channels(image), bits)
        return torch.from_numpy(pixels_NCHW)


def read_image(path: str) -> Any:
    """Load one image of a data set; the error says how to go on without it."""
    try:
        return load_image(path)
    except UserError as error:
        raise UserError(f"{error}, or set data.unreadable to skip") from error


def for_all_files(work: Any, count: int) -> list[Any]:
    """Call ``work(range)`` for consecutive pieces of range(count) in threads; the first error in order is raised."""
    pieces = [range(first, min(first + 256, count)) for first in range(0, count, 256)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return list(threads.map(work, pieces))


def _empty(count: int, preprocessing: Preprocessing) -> Pixels:
    return np.empty((count, preprocessing.channels, preprocessing.size, preprocessing.size), dtype=np.uint8)
