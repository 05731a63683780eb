"""What a user says about the data: one frozen, validated dataclass. Imports no torch."""

import math
from dataclasses import dataclass

from nasb.data._catalog import DATASETS
from nasb.errors import UserError, unknown_name


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, at which size, in which parts and batches.

    Raises:
        UserError: a value is not accepted; the message names it, e.g. ``data.batch_size``.
    """

    name: str = "digits"
    """The data set: `nasb list datasets`."""
    root: str | None = None
    """Folder that holds the data; digits needs none."""
    image_size: int | None = None
    """Side in pixels of the images that the network sees; by default the data set's own (folder and imagenet: 224)."""
    batch_size: int = 128
    """Images in one training step, over all processes; also of an evaluation batch."""
    validation_fraction: float = 0.1
    """Share of the training images held out for validation, the same in each class; unused where root has val/."""
    augmentation: str = "default"
    """How training images are varied: "default" (what is usual for the data set) or "none"."""
    train_limit: int | None = None
    """Train on that many images only, each class with its share: for quick trials."""
    workers: int = 0
    """Processes that read image files; 0 reads in the main process. Batches are the same for any number."""
    in_memory: bool | None = None
    """Keep decoded images in memory; by default small ones (every file of exactly image_size <= 96) up to 1 GB in all.
    True keeps larger ones as well, at image_size, and varies them by shifts and flips, not by random resized crops."""
    unreadable: str = "error"
    """An image that cannot be read: "error" stops, before a run begins if it is a validation or test image (of up to
    20,000 each); "skip" leaves it out, and first decodes every image once."""
    download: bool = False
    """Fetch cifar10, cifar100 or fashion-mnist into root where it is missing."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel in [0, 1] that is subtracted; by default the data set's usual one."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel in [0, 1] that is divided by; by default the data set's usual one."""

    def __post_init__(self) -> None:
        if self.name not in DATASETS:
            raise UserError(f"data.name: {unknown_name('data set', self.name, DATASETS)}")
        entry = DATASETS[self.name]
        if self.root is None and entry.needs_root:
            raise UserError(f"data.root is missing: {self.name} needs the folder that holds the data")
        if self.download and not entry.downloadable:
            fetchable = [name for name in DATASETS if DATASETS[name].downloadable]
            raise UserError(f"data.download does not work for {self.name}; only for {', '.join(fetchable)}")
        if self.in_memory is False and not entry.from_files:
            raise UserError(f"data.in_memory is False, but {self.name} is always kept in memory; leave it out")
        _check_integer("data.image_size", self.image_size, 1)
        _check_integer("data.batch_size", self.batch_size, 1)
        _check_integer("data.train_limit", self.train_limit, 1)
        _check_integer("data.workers", self.workers, 0)
        if not _is_number(self.validation_fraction) or not 0 <= self.validation_fraction < 1:
            raise UserError(f"data.validation_fraction is {self.validation_fraction!r}; give a number >= 0 and below 1")
        _check_choice("data.augmentation", self.augmentation, ("default", "none"))
        _check_choice("data.unreadable", self.unreadable, ("error", "skip"))
        for name in ("mean", "std"):
            object.__setattr__(self, name, self._per_channel(name, entry.channels))

    def _per_channel(self, name: str, channels: int) -> tuple[float, ...] | None:
        values = getattr(self, name)
        if values is None:
            return None
        if not isinstance(values, (tuple, list)) or len(values) != channels or not all(map(_is_number, values)):
            raise UserError(f"data.{name} is {values!r}; {self.name} needs a list of {channels} finite number(s)")
        if name == "std" and min(values) <= 0:
            raise UserError(f"data.std is {values!r}; each standard deviation must be above 0")
        return tuple(float(value) for value in values)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_integer(name: str, value: object, lowest: int) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < lowest):
        raise UserError(f"{name} is {value!r}; give an integer >= {lowest}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name} is {value!r}; known: {', '.join(choices)}")
