"""From an image to the network's input, without torch: equal to nasb's own (nasb/data/_preprocessing.py)."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from PIL import Image

from nasb_engine._core import EngineError

Pixels = npt.NDArray[np.uint8]
Real = npt.NDArray[np.float32]

LARGEST_SIDE = 65_536
"""Pixels, of an image that a network reads and of what it is cut out of."""
LARGEST_BYTES = 2**30
"""Of a resized image, and of what is between the two passes of resizing."""
LARGEST_NUMBER = float(np.finfo(np.float32).max)
"""Of means and standard deviations, which fp32 holds."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalize one image.

    1. Grey (1 channel) or RGB (3 channels); transparency is dropped.
    2. If ``resize == size``: both sides become `size`. Else the shorter side becomes `resize`, the longer one in
       proportion (rounded down), and the centre of `size` x `size` is cut out. Pillow's bilinear filter.
    3. ``(pixel / 255 - mean) / std`` in fp32, per channel.

    Raises:
        EngineError: a value is not accepted.
    """

    channels: int
    """1 (grey) or 3 (RGB)."""
    size: int
    """Side of the network's input in pixels."""
    resize: int
    """Shorter side in pixels before the centre is cut out; equal to `size`: see above."""
    mean: tuple[float, ...]
    """Mean per channel, of pixels in [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation per channel, of pixels in [0, 1]."""

    def __post_init__(self) -> None:
        for name in ("channels", "size", "resize"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise EngineError(f"preprocessing.{name} is {value!r}; give an integer >= 1")
            if value > LARGEST_SIDE:
                raise EngineError(f"preprocessing.{name} is {value}; give at most {LARGEST_SIDE:,}")
        if self.channels not in (1, 3):
            raise EngineError(f"preprocessing.channels is {self.channels}; give 1 (grey) or 3 (RGB)")
        if self.resize < self.size:
            raise EngineError(f"preprocessing.resize is {self.resize}; give an integer >= the size ({self.size})")
        for name in ("mean", "std"):
            object.__setattr__(self, name, _per_channel(name, getattr(self, name), self.channels))
        if min(np.float32(value) for value in self.std) <= 0:
            raise EngineError(f"preprocessing.std is {self.std}; each standard deviation must be above 0 in fp32")

    @classmethod
    def from_json(cls, text: str) -> "Preprocessing":
        """Return what a model's metadata entry "nasb.preprocessing" says.

        Raises:
            EngineError: it is not JSON, a key is missing, or a value is not accepted.
        """
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise EngineError(f"preprocessing is not valid JSON: {error}") from None
        names = [field.name for field in fields(cls)]
        if not isinstance(record, dict):
            raise EngineError(f"preprocessing is {record!r}; a table of {', '.join(names)} is needed")
        for name in names:
            if name not in record:
                raise EngineError(f'preprocessing lacks the key "{name}"; needed: {", ".join(names)}')
        return cls(**{name: record[name] for name in names})

    def __call__(self, image: Image.Image) -> Real:
        """Return the network's input for one image: float32 [C, H, W]."""
        return self.normalize(self.pixels(image))

    def batch(self, images: Iterable[Image.Image]) -> Real:
        """Return the network's input for several images: float32 [N, C, H, W]."""
        made = [self(image) for image in images]
        return np.stack(made) if made else np.empty((0, self.channels, self.size, self.size), np.float32)

    def pixels(self, image: Image.Image) -> Pixels:
        """Return the resized and cropped image before normalization: uint8 [C, H, W].

        Raises:
            EngineError: see `resized`.
        """
        image = self._to_channels(image)
        width, height = self.resized(*image.size)
        image = _resize(image, width, height)
        if self.resize != self.size:
            left, top = round((width - self.size) / 2), round((height - self.size) / 2)
            image = image.crop((left, top, left + self.size, top + self.size))
        pixels = np.array(image, dtype=np.uint8)
        return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of an image after it is resized, before the centre is cut out.

        Raises:
            EngineError: that would take more than 1 GiB, as with very long images.
        """
        new_width = new_height = self.size
        if self.resize != self.size:
            shorter = min(width, height)
            new_width, new_height = self.resize * width // shorter, self.resize * height // shorter
        if max(width, new_width) * max(height, new_height) * self.channels > LARGEST_BYTES:
            raise EngineError(
                f"an image of {width:,} x {height:,} pixels cannot be resized to {new_width:,} x {new_height:,}, which "
                "takes more than 1 GiB"
            )
        return new_width, new_height

    def normalize(self, pixels: Pixels) -> Real:
        """Return uint8 pixels [..., C, H, W] as the network's input, float32 of the same shape."""
        mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (self.mean, self.std))
        result = pixels.astype(np.float32)
        result /= np.float32(255)
        result -= mean
        result /= std
        return result

    def _to_channels(self, image: Image.Image) -> Image.Image:
        mode = "L" if self.channels == 1 else "RGB"
        if image.mode == mode:
            return image
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        if image.mode == "LAB":
            image = image.convert("RGB")  # Pillow knows no way from there to grey
        return image.convert(mode)


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def _per_channel(name: str, values: object, channels: int) -> tuple[float, ...]:
    accepted = f"give {channels} finite number(s)"
    if not isinstance(values, (tuple, list)) or len(values) != channels:
        raise EngineError(f"preprocessing.{name} is {values!r}; {accepted}")
    for value in values:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) <= LARGEST_NUMBER:
            raise EngineError(f"preprocessing.{name} is {values!r}; {accepted}")
    return tuple(float(value) for value in values)
