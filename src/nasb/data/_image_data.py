"""A data set as training and search see it: parts, and batches of normalized images.

Tensor axes: N images, C channels, H rows, W columns.
"""

from collections.abc import Iterator, Mapping
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from nasb.data._augmentation import CropResizeFlip, ShiftFlip
from nasb.data._draws import draw_bits, shuffled
from nasb.data._pools import Pool, StreamPool
from nasb.data._preprocessing import Preprocessing
from nasb.data._sources import Integers
from nasb.errors import UserError, unknown_name

TRAINING_PARTS = ("train", "weights", "alpha")
PARTS = (*TRAINING_PARTS, "validation", "test")


@final
class ImageData:
    """Images in parts; made by `open_data`.

    The parts: "train" are all training images but those held out; "weights" and "alpha" are its two shares, for the
    search; "validation" are the images that choices are made on; "test" the ones that only final numbers come from.
    Every part but these two has images of its own.
    """

    def __init__(
        self,
        *,
        name: str,
        class_names: tuple[str, ...],
        pools: Mapping[str, Pool],
        shares: Mapping[str, Integers],
        preprocessing: Preprocessing,
        augmentation: ShiftFlip | CropResizeFlip | None,
        batch_size: int,
        unreadable: int,
        held_out: bool,
    ) -> None:
        self.name = name
        self.class_names = class_names
        self.preprocessing = preprocessing
        self._pools = pools
        self._shares = shares
        self._augmentation = augmentation
        self._batch_size = batch_size
        self._unreadable = unreadable
        self._held_out = held_out

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, rows, columns) of one image."""
        return self.preprocessing.channels, self.preprocessing.size, self.preprocessing.size

    def size(self, part: str) -> int:
        """Return the number of images in a part, 0 where the data set does not have it."""
        return len(self._numbers(part))

    def census(self) -> dict[str, Any]:
        """Return what tells a run's images from others: class names, how many images of each train it and choose.

        "held_out" tells that those that choose are some of the training images.
        """
        images = {
            part: np.bincount(self._pools[part].targets, minlength=self.num_classes).tolist()
            for part in ("train", "validation")
            if part in self._pools
        }
        return {"classes": list(self.class_names), "images": images, "held_out": self._held_out}

    def check_readable(self, part: str, most: int) -> None:
        """Decode the images of a part once, if they are in files and not more than `most`.

        Raises:
            UserError: one cannot be read; the message names it.
        """
        pool = self._pools.get(part)
        if isinstance(pool, StreamPool) and len(pool.targets) <= most:
            pool.check()

    def steps_per_epoch(self, part: str) -> int:
        """Return the number of training batches of a part; for "validation" and "test", of evaluation batches."""
        size = self.size(part)
        if part in TRAINING_PARTS and size >= self._batch_size:
            return size // self._batch_size
        return -(-size // self._batch_size)

    def check_shared(self, part: str, world_size: int) -> None:
        """Refuse more processes than a training batch of the part has images.

        Raises:
            UserError: a batch is too small for `world_size`.
        """
        size = self.images_per_step(part)
        if size < world_size:
            raise UserError(f"data.batch_size: a batch of {size} images cannot be shared by {world_size} processes")

    def images_per_step(self, part: str) -> int:
        """Return the number of images in one training batch of a part, over all processes."""
        return min(self._batch_size, self.size(part))

    def train_batches(
        self,
        part: str,
        *,
        seed: int,
        epoch: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch of shuffled, varied batches from `start_step` on.

        A batch is a function of (seed, part, epoch, step), an image's variation of (seed, part, epoch, image): neither
        depends on where the iteration starts, on worker processes, on the number of ranks or on torch's random state,
        which is left as it was. The last images that do not fill a batch are left out of this epoch; a part smaller
        than one batch is one smaller batch.

        Args:
            part: "train", "weights" or "alpha".
            seed: seed of this training.
            epoch: number of the epoch, from 0.
            start_step: number of the first batch to yield, from 0.
            rank: number of this process; it gets its slice of each batch.
            world_size: number of processes.
            device: where the batches are to be; images go there as bytes and are normalized there.
        Returns:
            Iterator of (images fp32 [N, C, H, W], classes int64 [N]).
        Raises:
            UserError: the part is not for training or has no images, or a batch is too small for `world_size`.
        """
        if part not in TRAINING_PARTS:
            problem = (
                f'data part "{part}" is not for training' if part in PARTS else unknown_name("data part", part, PARTS)
            )
            raise UserError(f"{problem}; train on {', '.join(TRAINING_PARTS)}")
        numbers_N, steps = self._some_numbers(part), self.steps_per_epoch(part)
        if epoch < 0 or not 0 <= start_step <= steps:
            raise ValueError(f"epoch {epoch}, start_step {start_step}: must be >= 0, and at most {steps} steps")
        self.check_shared(part, world_size)
        size = self.images_per_step(part)
        order_N = numbers_N[shuffled(len(numbers_N), seed, "shuffle", part, epoch)]
        index_batches = [order_N[_slice(step * size, size, rank, world_size)] for step in range(start_step, steps)]
        bits_batches = [draw_bits(batch_N, seed, "augment", part, epoch) for batch_N in index_batches]
        pool, augmentation = self._pool(part), self._augmentation
        vary = augmentation if isinstance(augmentation, CropResizeFlip) else None

        def iterate() -> Iterator[tuple[Tensor, Tensor]]:
            images = pool.batches(index_batches, bits_batches, vary)
            for pixels_NCHW, batch_N, bits_N in zip(images, index_batches, bits_batches, strict=True):
                if isinstance(augmentation, ShiftFlip):
                    pixels_NCHW = augmentation(pixels_NCHW, bits_N)  # noqa: PLW2901
                yield self._placed(pixels_NCHW, pool.targets[batch_N], device)

        return iterate()

    def evaluation_batches(
        self,
        part: str,
        batch_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image of a part once, in a fixed order, as `preprocessing` gives it.

        The last batch may be smaller.

        Args:
            part: any part.
            batch_size: images in a batch over all processes; by default ``data.batch_size``.
            rank: number of this process; it gets its slice of each batch, and no batch where that is empty.
            world_size: number of processes.
            device: where the batches are to be; images go there as bytes and are normalized there.
        Returns:
            Iterator of (images fp32 [N, C, H, W], classes int64 [N]).
        Raises:
            UserError: the part is unknown or has no images.
        """
        numbers_N = self._some_numbers(part)
        size = self._batch_size if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"batch_size is {size}: must be >= 1")
        shares = [
            numbers_N[_slice(first, min(size, len(numbers_N) - first), rank, world_size)]
            for first in range(0, len(numbers_N), size)
        ]
        index_batches = [batch_N for batch_N in shares if len(batch_N)]
        pool = self._pool(part)

        def iterate() -> Iterator[tuple[Tensor, Tensor]]:
            for pixels_NCHW, batch_N in zip(pool.batches(index_batches, (), None), index_batches, strict=True):
                yield self._placed(pixels_NCHW, pool.targets[batch_N], device)

        return iterate()

    def _placed(self, pixels_NCHW: Tensor, targets_N: Integers, device: torch.device | None) -> tuple[Tensor, Tensor]:  # noqa: N803
        images = self.preprocessing.normalize(pixels_NCHW.to(device))
        return images, torch.from_numpy(targets_N).to(device)

    def describe(self) -> str:
        """Return one line: name, classes, input, images in each part, where they are, how many were unreadable."""
        sizes = {part: f"{part} {self.size(part):,}" for part in PARTS}
        shares = f"{sizes['train']} ({sizes['weights']}, {sizes['alpha']})"
        shape = "x".join(map(str, self.input_shape))
        line = f"{self.name}: {self.num_classes} classes, {shape}, {shares}, {sizes['validation']}, {sizes['test']}"
        skipped = f"; {self._unreadable:,} unreadable images left out" if self._unreadable else ""
        return f"{line}; training images {self._pools['train'].describe()}{skipped}"

    def _pool(self, part: str) -> Pool:
        return self._pools["train" if part in TRAINING_PARTS else part]

    def _numbers(self, part: str) -> Integers:
        if part not in PARTS:
            raise UserError(unknown_name("data part", part, PARTS))
        if part in self._shares:
            return self._shares[part]
        count = len(self._pools[part].targets) if part in self._pools else 0
        return np.arange(count, dtype=np.int64)

    def _some_numbers(self, part: str) -> Integers:
        numbers_N = self._numbers(part)
        if len(numbers_N):
            return numbers_N
        mend = {
            "validation": "set data.validation_fraction above 0",
            "test": "add the folder test/ (imagenet: val/) to data.root, or use another part",
        }
        raise UserError(f'data set "{self.name}" has no images in "{part}"; {mend.get(part, "add training images")}')


def _slice(first: int, count: int, rank: int, world_size: int) -> slice:
    """Return the share of process `rank` in `count` consecutive images; shares differ by at most one image."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}: must be >= 0 and below world_size ({world_size})")
    return slice(first + rank * count // world_size, first + (rank + 1) * count // world_size)
