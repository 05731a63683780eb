"""What a data set is before it is split: decoded arrays, or files, with their classes. NumPy only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nasb.data._members import Members

Integers = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ArrayImages:
    """Decoded images of one size."""

    pixels: Pixels
    """Grey or RGB pixels in 0..255, [images, height, width, channels]."""
    targets: Integers
    """Class number of each image."""

    def take(self, indices: npt.NDArray[Any]) -> "ArrayImages":
        """Return the images at `indices`, in that order."""
        return ArrayImages(self.pixels[indices], self.targets[indices])


@dataclass(frozen=True)
class FileImages:
    """Images that are files, or stand in tar files, not read yet."""

    paths: Sequence[str] | Members
    targets: Integers
    """Class number of each image."""

    def take(self, indices: npt.NDArray[Any]) -> "FileImages":
        """Return the images at `indices`, in that order."""
        if isinstance(self.paths, Members):
            return FileImages(self.paths.take(indices), self.targets[indices])
        return FileImages([self.paths[index] for index in indices], self.targets[indices])


Images = ArrayImages | FileImages


@dataclass(frozen=True)
class Source:
    """An opened data set: its classes, and its images under "train" and, where it has them, "validation" and "test"."""

    class_names: tuple[str, ...]
    parts: Mapping[str, Images]
