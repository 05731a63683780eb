"""adapt(x), the parameter-free change of shape, and the kinds of shortcut that are made of it."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ConvShape:
    """The convolution of the host whose place a cell takes; sizes in pixels, [height, width]."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    in_size: tuple[int, int] = (1, 1)

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size of the convolution's output for an input of `size`."""
        height, width = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        )
        return height, width

    @property
    def out_size(self) -> tuple[int, int]:
        """The size of the output at `in_size`."""
        return self.output_size(self.in_size)

    @property
    def keeps_shape(self) -> bool:
        """Whether input and output agree in channels and size."""
        return self.in_channels == self.out_channels and self.stride == (1, 1) and self.out_size == self.in_size


class Adapt(nn.Module):
    """Change [N, C, H, W] to the shape of a convolution's output, without parameters.

    Stride s by s x s average pooling; sizes that s does not divide are extended by their last row and column (or cut
    at the centre) to what the convolution's output asks. More channels by repeating and cutting; fewer by averaging
    channels c, c + C', c + 2C', ..., the inverse of repeating.

    Args:
        shape: the convolution.
        maximum: pool by the maximum instead.
    """

    def __init__(self, shape: ConvShape, *, maximum: bool = False) -> None:
        super().__init__()
        self.shape, self.maximum = shape, maximum

    @staticmethod
    def possible(in_channels: int, out_channels: int) -> bool:
        """Whether the change of channels can be made: fewer channels must divide the input's."""
        return out_channels >= in_channels or in_channels % out_channels == 0

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Return [N, C', H', W']; the input itself where the shapes agree."""
        shape = self.shape
        if shape.keeps_shape:
            return x_NCHW
        x_NCHW = _fit(x_NCHW, shape)
        if shape.stride != (1, 1):
            x_NCHW = (F.max_pool2d if self.maximum else F.avg_pool2d)(x_NCHW, shape.stride)
        if shape.out_channels > shape.in_channels:
            repeats = -(-shape.out_channels // shape.in_channels)
            x_NCHW = torch.cat([x_NCHW] * repeats, 1)[:, : shape.out_channels]
        elif shape.out_channels < shape.in_channels:
            x_NCHW = x_NCHW.reshape(len(x_NCHW), -1, shape.out_channels, *x_NCHW.shape[-2:]).mean(1)
        return x_NCHW


def _fit(x_NCHW: Tensor, shape: ConvShape) -> Tensor:  # noqa: N803
    """Cut at the centre, or repeat the last row and column, until the size is the stride times the output's."""
    out_height, out_width = shape.output_size((x_NCHW.shape[2], x_NCHW.shape[3]))
    height, width = out_height * shape.stride[0], out_width * shape.stride[1]
    top, left = max(x_NCHW.shape[2] - height, 0) // 2, max(x_NCHW.shape[3] - width, 0) // 2
    x_NCHW = x_NCHW[:, :, top : top + height, left : left + width]
    bottom, right = height - x_NCHW.shape[2], width - x_NCHW.shape[3]
    # Not F.pad(mode="replicate"): torch.compile gives up on its backward in channels_last (torch 2.14.1).
    if bottom > 0:
        x_NCHW = torch.cat([x_NCHW, x_NCHW[:, :, -1:].expand(-1, -1, bottom, -1)], 2)
    if right > 0:
        x_NCHW = torch.cat([x_NCHW, x_NCHW[:, :, :, -1:].expand(-1, -1, -1, right)], 3)
    return x_NCHW


class AvgMaxShortcut(nn.Module):
    """More channels by max pooling: the input's own are average-pooled; those that are added are the input's,
    max-pooled and batch-normalized.

    It costs no OPs, as adapt does, but what it adds is new: average and maximum of the same pixels differ.
    """

    def __init__(self, shape: ConvShape) -> None:
        super().__init__()
        added = shape.out_channels - shape.in_channels
        self.average = Adapt(replace(shape, out_channels=shape.in_channels))
        self.maximum = Adapt(replace(shape, out_channels=added), maximum=True)
        self.bn = nn.BatchNorm2d(added)

    @staticmethod
    def possible(shape: ConvShape) -> bool:
        """Whether there are channels to add, and they can be had from the input's."""
        added = shape.out_channels - shape.in_channels
        return added > 0 and Adapt.possible(shape.in_channels, added)

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Map [N, C, H, W] to [N, C', H', W']."""
        return torch.cat([self.average(x_NCHW), self.bn(self.maximum(x_NCHW))], 1)


class ConvShortcut(nn.Module):
    """Average pooling by the stride, a real 1x1 convolution, batch norm: the shortcut of Bi-Real Net as published."""

    def __init__(self, shape: ConvShape) -> None:
        super().__init__()
        self.pool = Adapt(replace(shape, out_channels=shape.in_channels))
        self.conv = nn.Conv2d(shape.in_channels, shape.out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(shape.out_channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Map [N, C, H, W] to [N, C', H', W']."""
        return self.bn(self.conv(self.pool(x_NCHW)))  # type: ignore[no-any-return]
