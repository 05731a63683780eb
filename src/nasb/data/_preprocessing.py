"""From an image file to the network's input, as in evaluation: a small record that goes with every trained network."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nasb.data._sources import Pixels
from nasb.errors import UserError

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
    2. If ``resize == size``: both sides become `size`, whatever the shape (nothing happens to an image of that size).
       Else the shorter side becomes `resize`, the longer one in proportion (rounded down), and the centre of `size` x
       `size` is cut out. Resizing is Pillow's bilinear filter, as torchvision's Resize and CenterCrop on Pillow images.
    3. ``(pixel / 255 - mean) / std`` in fp32, per channel.

    Raises:
        UserError: a value is not accepted.
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
                raise UserError(f"preprocessing.{name} is {value!r}; give an integer >= 1")
            if value > LARGEST_SIDE:
                raise UserError(f"preprocessing.{name} is {value}; give at most {LARGEST_SIDE:,}")
        if self.channels not in (1, 3):
            raise UserError(f"preprocessing.channels is {self.channels}; give 1 (grey) or 3 (RGB)")
        if self.resize < self.size:
            raise UserError(
                f"preprocessing.resize is {self.resize}; give an integer >= preprocessing.size ({self.size})"
            )
        for name in ("mean", "std"):
            object.__setattr__(self, name, _per_channel(name, getattr(self, name), self.channels))
        if min(np.float32(value) for value in self.std) <= 0:
            raise UserError(f"preprocessing.std is {self.std}; each standard deviation must be above 0 in fp32")

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the network's input for one image: fp32 [C, H, W]."""
        return self.normalize(torch.from_numpy(self.pixels(image)))

    def pixels(self, image: Image.Image) -> Pixels:
        """Return the resized and cropped image before normalization: uint8 [C, H, W].

        Raises:
            UserError: see `resized`.
        """
        image = self.to_channels(image)
        width, height = self.resized(*image.size)
        image = _resize(image, width, height)
        if self.resize != self.size:
            left, top = round((width - self.size) / 2), round((height - self.size) / 2)
            image = image.crop((left, top, left + self.size, top + self.size))
        return channels_first(image)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of an image after it is resized, before the centre is cut out.

        Raises:
            UserError: that would take more than 1 GiB, as with very long images.
        """
        new_width = new_height = self.size
        if self.resize != self.size:
            shorter = min(width, height)
            new_width, new_height = self.resize * width // shorter, self.resize * height // shorter
        if max(width, new_width) * max(height, new_height) * self.channels > LARGEST_BYTES:
            raise UserError(
                f"an image of {width:,} x {height:,} pixels cannot be resized to {new_width:,} x {new_height:,}, which "
                "takes more than 1 GiB"
            )
        return new_width, new_height

    def to_channels(self, image: Image.Image) -> Image.Image:
        """Return the image as grey or RGB with 8 bits per channel."""
        mode = "L" if self.channels == 1 else "RGB"
        if image.mode == mode:
            return image
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        if image.mode == "LAB":
            image = image.convert("RGB")  # Pillow knows no way from there to grey
        return image.convert(mode)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return uint8 pixels [..., C, H, W] as the network's input, fp32 of the same shape."""
        mean, std = (torch.tensor(values, device=pixels.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)

    def to_dict(self) -> dict[str, Any]:
        """Return a record for JSON."""
        record = asdict(self)
        return record | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, record: object) -> "Preprocessing":
        """Return what `to_dict` gave.

        Raises:
            UserError: a key is missing or unknown, or a value is not accepted.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(record, Mapping):
            raise UserError(f"preprocessing is {record!r}; give a table of {', '.join(names)}")
        for name in record:
            if name not in names:
                raise UserError(f'preprocessing has the unknown key "{name}"; known: {", ".join(names)}')
        for name in names:
            if name not in record:
                raise UserError(f'preprocessing lacks the key "{name}"; needed: {", ".join(names)}')
        return cls(**record)


def channels_first(image: Image.Image) -> Pixels:
    """Return the pixels of a grey or RGB image, uint8 [C, H, W]."""
    pixels = np.array(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def _per_channel(name: str, values: object, channels: int) -> tuple[float, ...]:
    accepted = f"give {channels} finite number(s)"
    if not isinstance(values, (tuple, list)) or len(values) != channels:
        raise UserError(f"preprocessing.{name} is {values!r}; {accepted}")
    for value in values:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) <= LARGEST_NUMBER:
            raise UserError(f"preprocessing.{name} is {values!r}; {accepted}")
    return tuple(float(value) for value in values)
