"""From a configuration to a data set: open, leave out what cannot be read, split, keep in memory or stream."""

import math
from collections.abc import Mapping
from contextlib import suppress

import numpy as np

from nasb.data._augmentation import CropResizeFlip, ShiftFlip
from nasb.data._catalog import DATASETS, DataSetEntry
from nasb.data._image_data import ImageData
from nasb.data._pools import MemoryPool, OtherSizeError, Pool, StreamPool
from nasb.data._preprocessing import Preprocessing
from nasb.data._readable import leave_out_unreadable
from nasb.data._reading import image_side
from nasb.data._sources import ArrayImages, FileImages, Images
from nasb.data._splits import complement, stratified_choice
from nasb.data.config import DataConfig
from nasb.errors import UserError

LARGEST_SMALL = 96
"""Side in pixels up to which images of one size count as small: varied by shifts, and kept in memory by default."""
LARGEST_IN_MEMORY = 10**9
"""Bytes of decoded images that are kept in memory unless the user says otherwise."""


def open_data(config: DataConfig, *, seed: int, alpha_share: float = 0.5) -> ImageData:
    """Open a data set and split it.

    Reads every file once where the images are kept in memory, and every file's header to find out whether they are
    small images of one size; with ``unreadable="skip"`` first decodes every file to find those that cannot be read.

    Args:
        config: what to open.
        seed: seed of the split into train, validation and shares, and of `train_limit`. Test images never depend on it.
        alpha_share: share of the training images that part "alpha" has; "weights" has the others.

    Raises:
        UserError: files are missing, unreadable or inconsistent; the message names them.
    """
    entry = DATASETS[config.name]
    source = entry.open(config)
    parts, unreadable = dict(source.parts), 0
    files = {part: images for part, images in parts.items() if isinstance(images, FileImages)}
    if files and config.unreadable == "skip":
        readable, unreadable = leave_out_unreadable(files, source.class_names, config.workers)
        parts |= readable
    parts = _split(parts, config, seed)
    pools, preprocessing, augmentation = _place(parts, config, entry)
    targets = parts["train"].targets
    weights = stratified_choice(
        targets, math.ceil(round(len(targets) * (1 - alpha_share), 6)), seed=seed, purpose="halves"
    )
    return ImageData(
        name=config.name,
        class_names=source.class_names,
        pools=pools,
        shares={"weights": weights, "alpha": complement(len(targets), weights)},
        preprocessing=preprocessing,
        augmentation=augmentation,
        batch_size=config.batch_size,
        unreadable=unreadable,
        held_out="validation" not in source.parts,
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


def _place(
    parts: Mapping[str, Images], config: DataConfig, entry: DataSetEntry
) -> tuple[dict[str, Pool], Preprocessing, ShiftFlip | CropResizeFlip | None]:
    """Keep the images in memory or stream them; choose preprocessing and augmentation for small images or photos."""
    size = entry.image_size if config.image_size is None else config.image_size
    mean, std = config.mean or entry.mean, config.std or entry.std
    as_small = Preprocessing(entry.channels, size, size, mean, std)
    # The published 256 for 224, and the same share elsewhere.
    as_photos = Preprocessing(entry.channels, size, round(size * 256 / 224), mean, std)
    shift = ShiftFlip(max(1, round(size / 8)), entry.flip) if config.augmentation == "default" else None

    arrays = {part: images for part, images in parts.items() if isinstance(images, ArrayImages)}
    if arrays:
        return {part: MemoryPool.from_arrays(images, as_small) for part, images in arrays.items()}, as_small, shift

    files = {part: images for part, images in parts.items() if isinstance(images, FileImages)}
    count, workers = sum(len(images.paths) for images in files.values()), config.workers
    fits = count * entry.channels * size * size <= LARGEST_IN_MEMORY
    keep = fits if config.in_memory is None else config.in_memory

    def read(preprocessing: Preprocessing, exact: bool) -> dict[str, Pool]:
        return {part: MemoryPool.from_files(files[part], preprocessing, workers, exact=exact) for part in files}

    def stream(preprocessing: Preprocessing) -> dict[str, Pool]:
        return {part: StreamPool(files[part], preprocessing, workers) for part in files}

    if not entry.photos and size <= LARGEST_SMALL and image_side(files["train"].paths[0]) == (size, size):
        if keep:
            with suppress(OtherSizeError):
                return read(as_small, exact=True), as_small, shift
        elif all(image_side(path) == (size, size) for images in files.values() for path in images.paths):
            return stream(as_small), as_small, shift
    if config.in_memory:
        # An image in memory is its centre crop, so it can only be shifted.
        return read(as_photos, exact=False), as_photos, shift
    return stream(as_photos), as_photos, CropResizeFlip(size) if config.augmentation == "default" else None
