"""ResNet-20/32/44/56 for 32x32 images, after section 4.2 of He et al., CVPR 2016, arXiv 1512.03385.

Three stages of widths w, 2w, 4w with 3n basic blocks in all (depth 6n + 2); shortcuts without parameters ("option A":
every second pixel, missing channels zero). Departure: `stem_stride` = 2 quarters the cost of everything behind the
stem.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from nasb.errors import UserError


class OptionAShortcut(nn.Module):
    """Every `stride`-th pixel, and zero channels added evenly on both sides: [N, C, H, W] to [N, C', H/s, W/s]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Return the reduced and padded input."""
        return F.pad(x_NCHW[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """relu(bn(conv3x3(relu(bn(conv3x3(x))))) + shortcut(x))."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        changes_shape = stride != 1 or in_channels != out_channels
        self.shortcut = OptionAShortcut(in_channels, out_channels, stride) if changes_shape else nn.Identity()

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Map [N, C, H, W] to [N, C', H/stride, W/stride]."""
        y = F.relu(self.bn1(self.conv1(x_NCHW)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x_NCHW))


class ResNetCifar(nn.Module):
    """ResNet of depth 6n + 2 for 32x32 images.

    Args:
        depth: 20, 32, 44, 56, ... (6n + 2).
        num_classes: outputs.
        width: channels of the first stage.
        stem_stride: 1 as published; 2 for machines with few cores.
        in_channels: 3 for RGB, 1 for grey.

    Raises:
        UserError: a depth that is not 6n + 2, or a width or stride below 1.
    """

    def __init__(
        self, depth: int, num_classes: int = 10, width: int = 16, stem_stride: int = 1, in_channels: int = 3
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise UserError(f"ResNetCifar: depth is {depth}; accepted: 6n + 2 (20, 32, 44, 56, ...)")
        for name, value in (("width", width), ("stem_stride", stem_stride), ("num_classes", num_classes)):
            if value < 1:
                raise UserError(f"ResNetCifar: {name} is {value}; it must be at least 1")
        self.conv1 = nn.Conv2d(in_channels, width, 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks = (depth - 2) // 6
        self.layer1 = _stage(blocks, width, width, 1)
        self.layer2 = _stage(blocks, width, 2 * width, 2)
        self.layer3 = _stage(blocks, 2 * width, 4 * width, 2)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Map images [N, C, H, W] to logits [N, classes]."""
        x_NCHW = F.relu(self.bn1(self.conv1(x_NCHW)))
        x_NCHW = self.layer3(self.layer2(self.layer1(x_NCHW)))
        return self.linear(F.adaptive_avg_pool2d(x_NCHW, 1).flatten(1))  # type: ignore[no-any-return]


def _stage(blocks: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))
