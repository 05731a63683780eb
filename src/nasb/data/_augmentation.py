"""How training images are varied. Every choice follows from 64 random bits per image, never from its batch.

Small images (He et al., "Deep residual learning", CVPR 2016, section 4.2): pad by an eighth of the side (4 pixels at
32), cut out at a random place, flip with probability 1/2. The border is padded with black *pixels*, before
normalization, as torchvision's RandomCrop does it by default. Photos: random resized crop (8% to 100% of the area) and
flip, as in torchvision's and timm's ImageNet recipes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nasb.data._draws import Bits
from nasb.data._preprocessing import channels_first
from nasb.data._sources import Integers, Pixels


@dataclass(frozen=True)
class ShiftFlip:
    """Shift by up to `padding` pixels in each direction, filling with black, and mirror half of the images."""

    padding: int
    """Largest shift in pixels."""
    flip: bool
    """Whether images are mirrored."""

    def choices(self, bits: Bits) -> tuple[Integers, Integers, Tensor]:
        """Return the first row and column of each crop in the padded image, and which images to mirror.

        Bits 0-23 choose the row, 24-47 the column, 63 the flip; a place's probability is uniform within 2**-24.
        """
        places, field = np.uint64(2 * self.padding + 1), np.uint64((1 << 24) - 1)
        top_N = ((bits & field) * places) >> np.uint64(24)
        left_N = (((bits >> np.uint64(24)) & field) * places) >> np.uint64(24)
        flip_N = (bits >> np.uint64(63)).astype(bool) & self.flip
        return top_N.astype(np.int64), left_N.astype(np.int64), torch.from_numpy(flip_N)

    def __call__(self, pixels: Tensor, bits: Bits) -> Tensor:
        """Vary a batch of uint8 images [N, C, H, W]; returns a new tensor of the same shape."""
        top_N, left_N, flip_N = self.choices(bits)
        height, width = pixels.shape[-2:]
        padded = F.pad(pixels, (self.padding,) * 4)
        crops = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: [N, C, top, left, H, W]
        cropped = crops[torch.arange(len(pixels)), :, torch.from_numpy(top_N), torch.from_numpy(left_N)]
        return torch.where(flip_N[:, None, None, None], cropped.flip(3), cropped)


@dataclass(frozen=True)
class CropResizeFlip:
    """Cut out a random part of a photo, resize it to `size` x `size` pixels, mirror it with probability 1/2."""

    size: int
    """Side of the result in pixels."""

    def __post_init__(self) -> None:
        # Here, so that worker processes find torchvision imported: importing it takes seconds.
        from torchvision.transforms import v2

        transform = v2.Compose([v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip()])
        object.__setattr__(self, "_transform", transform)

    def __call__(self, image: Image.Image, bits: int) -> Pixels:
        """Vary one grey or RGB image; returns uint8 [C, H, W]. torch's global random state is left as it was."""
        transform: Any = self.__dict__["_transform"]
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: that would seed the accelerators of the main process as well.
            torch.default_generator.manual_seed(bits >> 1)
            varied = transform(image)
        return channels_first(varied)
