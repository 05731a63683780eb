"""From a configuration to a data set: open, leave out what cannot be read, split, keep in memory or stream."""

import warnings
from collections.abc import Mapping

import numpy as np

from nasb.data._augmentation import CropResizeFlip, ShiftFlip
from nasb.data._catalog import DATASETS, DataSetEntry
from nasb.data._image_data import ImageData
from nasb.data._pools import MemoryPool, Pool, StreamPool, for_all_files
from nasb.data._preprocessing import Preprocessing
from nasb.data._reading import image_side, load_image
from nasb.data._sources import ArrayImages, FileImages, Images
from nasb.data._splits import complement, stratified_choice
from nasb.data.config import DataConfig
from nasb.errors import UserError

LARGEST_SMALL = 96
"""Side in pixels up to which images of one size count as small: varied by shifts, and kept in memory by default."""
LARGEST_IN_MEMORY = 10**9
"""Bytes of decoded images that are kept in memory unless the user says otherwise."""


def open_data(config: DataConfig, *, seed: int) -> ImageData:
    """Open a data set and split it.

    Reads every file once where the images are kept in memory, and every file's header to find out whether they are
    small images of one size; with ``unreadable="skip"`` first decodes every file to find those that cannot be read.

    Args:
        config: what to open.
        seed: seed of the split into train, validation and halves, and of `train_limit`. Test images never depend on it.
    Raises:
        UserError: files are missing, unreadable or inconsistent; the message names them.
    """
    entry = DATASETS[config.name]
    source = entry.open(config)
    parts, unreadable = dict(source.parts), 0
    if config.unreadable == "skip":
        parts, unreadable = _leave_out_unreadable(parts, source.class_names, str(config.root))
    parts = _split(parts, config, seed)

    size = entry.image_size if config.image_size is None else config.image_size
    small = _all_small(parts, size, entry)
    preprocessing = Preprocessing(
        channels=entry.channels,
        size=size,
        # Photos: the published 256 for 224, and the same share elsewhere.
        resize=size if small else round(size * 256 / 224),
        mean=config.mean or entry.mean,
        std=config.std or entry.std,
    )
    count = sum(len(images.targets) for images in parts.values())
    fits = count * entry.channels * size * size <= LARGEST_IN_MEMORY
    in_memory = (small and fits) if config.in_memory is None else config.in_memory
    augmentation: ShiftFlip | CropResizeFlip | None = None
    if config.augmentation == "default":
        # An image in memory is its centre crop, so it can only be shifted.
        shift = small or in_memory
        augmentation = ShiftFlip(max(1, round(size / 8)), entry.flip) if shift else CropResizeFlip(size)

    targets = parts["train"].targets
    weights = stratified_choice(targets, (len(targets) + 1) // 2, seed=seed, purpose="halves")
    return ImageData(
        name=config.name,
        class_names=source.class_names,
        pools={part: _pool(images, preprocessing, in_memory, config.workers) for part, images in parts.items()},
        halves={"weights": weights, "alpha": complement(len(targets), weights)},
        preprocessing=preprocessing,
        augmentation=augmentation,
        batch_size=config.batch_size,
        unreadable=unreadable,
    )


def _split(parts: Mapping[str, Images], config: DataConfig, seed: int) -> dict[str, Images]:
    """Hold out validation images where there are none, then limit the training images."""
    parts = dict(parts)
    train = parts["train"]
    if "validation" not in parts and config.validation_fraction > 0:
        count = len(train.targets)
        held_out = max(1, round(count * config.validation_fraction))
        chosen = stratified_choice(train.targets, held_out, seed=seed, purpose="validation", leave=1)
        if len(chosen):
            parts["validation"] = train.take(chosen)
            train = train.take(complement(count, chosen))
    limit, count = config.train_limit, len(train.targets)
    if limit is not None:
        classes = len(np.unique(train.targets))
        if not classes <= limit <= count:
            raise UserError(
                f"data.train_limit is {limit:,}; give a number from {classes:,} (one image per class) to {count:,} "
                "(all training images that are not held out)"
            )
        train = train.take(stratified_choice(train.targets, limit, seed=seed, purpose="limit", at_least=1))
    parts["train"] = train
    return parts


def _all_small(parts: Mapping[str, Images], size: int, entry: DataSetEntry) -> bool:
    if entry.photos:
        return False
    for images in parts.values():
        if isinstance(images, ArrayImages):
            continue  # small by nature, resized to any size
        if size > LARGEST_SMALL or any(image_side(path) != (size, size) for path in images.paths):
            return False
    return True


def _pool(images: Images, preprocessing: Preprocessing, in_memory: bool, workers: int) -> Pool:
    if isinstance(images, ArrayImages):
        return MemoryPool.from_arrays(images, preprocessing)
    if in_memory:
        return MemoryPool.from_files(images, preprocessing)
    return StreamPool(images, preprocessing, workers)


def _leave_out_unreadable(
    parts: Mapping[str, Images], class_names: tuple[str, ...], root: str
) -> tuple[dict[str, Images], int]:
    """Decode every file; return the parts without those that fail, and how many these are, and warn in one line."""
    kept: dict[str, Images] = {}
    lost: list[str] = []
    for part, images in parts.items():
        if not isinstance(images, FileImages):
            return dict(parts), 0
        readable = _readable(images)
        lost += [path for path, good in zip(images.paths, readable, strict=True) if not good]
        left_C = np.bincount(images.targets[readable], minlength=len(class_names))
        if left_C.min() == 0:
            name = class_names[int(left_C.argmin())]
            raise UserError(
                f'no image of class "{name}" in the {part} images of data.root "{root}" can be read; mend them'
            )
        kept[part] = images.take(np.flatnonzero(readable))
    if lost:
        total = sum(len(images.targets) for images in parts.values())
        more = ", ..." if len(lost) > 3 else ""
        warnings.warn(
            f"left out {len(lost):,} of {total:,} images that cannot be read: {', '.join(lost[:3])}{more}", stacklevel=3
        )
    return kept, len(lost)


def _readable(images: FileImages) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    readable = np.ones(len(images.paths), dtype=np.bool_)

    def check(numbers: range) -> None:
        for number in numbers:
            try:
                load_image(images.paths[number])
            except UserError:
                readable[number] = False

    for_all_files(check, len(images.paths))
    return readable
