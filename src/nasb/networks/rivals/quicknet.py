"""QuickNet: Bannink et al., Larq Compute Engine, MLSys 2021, arXiv 2011.09398, after its form in Larq Zoo.

    residual block:  y = BN(ReLU(conv3x3(sign(x)))) + x
    transition:      y = BN(conv1x1(blur(max_pool2x2(ReLU(x)))))

Weights: sign(w) without a scale, ``dL/dw = dL/dsign * 1[|w| <= 1.25]``, w clipped to [-1.25, 1.25] after each step of
the optimizer. Activations: sign(x) with the same gradient. The border of a binary convolution contributes +1. The
ReLU stands before the batch norm, and nothing behind the addition, so no sign sees a one-sided value.

Departure: strided convolutions pad both sides by 1; TensorFlow's "same" pads the end alone where the size is even.
"""

from torch import Tensor, nn

from nasb.binary import Binarize, BinaryConv2d
from nasb.errors import UserError
from nasb.networks.hosts import IMAGENET
from nasb.networks.registry import register_rival
from nasb.networks.rivals._resnet import initialize

STEM_STRIDES = (1, 2, 4)


class ResidualBlock(nn.Module):
    """``BN(ReLU(conv3x3(sign(x)))) + x``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.binarize = Binarize(surrogate="wide_clipped_identity")
        self.conv = BinaryConv2d(
            channels, channels, 3, 1, 1, pad_value=1, scale="none", surrogate="wide_clipped_identity", limit=1.25
        )
        self.relu = nn.ReLU()
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Map [N, C, H, W] to the same shape."""
        return self.bn(self.relu(self.conv(self.binarize(x_NCHW)))) + x_NCHW  # type: ignore[no-any-return]


class BlurPool(nn.Sequential):
    """Halve height and width (rounded up) with the fixed kernel [1, 2, 1] x [1, 2, 1] / 16 and zeros around.

    It is made of two average poolings, since [1, 1] * [1, 1] = [1, 2, 1]; so it is no MAC, as any pooling.
    Source: Zhang, arXiv 1904.11486.
    """

    def __init__(self) -> None:
        super().__init__(nn.AvgPool2d(2, 1, 1), nn.AvgPool2d(2, 2))


def transition(in_channels: int, out_channels: int) -> nn.Module:
    """Return ``BN(conv1x1(blur(max_pool2x2(ReLU(x)))))``; the max pooling has stride 1, the blur 2."""
    return nn.Sequential(
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        BlurPool(),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def _stem(in_channels: int, width: int, stride: int) -> nn.Module:
    """Return the stem: as published (stride 4), or one 3x3 convolution for small images."""
    if stride not in STEM_STRIDES:
        raise UserError(f"quicknet: stem_stride is {stride}; accepted: {', '.join(map(str, STEM_STRIDES))}")
    if stride < 4:
        return nn.Sequential(nn.Conv2d(in_channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width))
    if width < 4 or width % 4:
        raise UserError(f"quicknet: width is {width}; the stem of stride 4 needs a multiple of 4")
    narrow = width // 4
    return nn.Sequential(
        nn.Conv2d(in_channels, narrow, 3, 2, 1, bias=False),
        nn.BatchNorm2d(narrow),
        nn.ReLU(),
        nn.Conv2d(narrow, narrow, 3, 2, 1, groups=narrow, bias=False),
        nn.BatchNorm2d(narrow, affine=False),
        nn.Conv2d(narrow, width, 1, bias=False),
        nn.BatchNorm2d(width),
    )


def _quicknet(
    num_classes: int, in_channels: int, widths: tuple[int, ...], blocks: tuple[int, ...], stem_stride: int
) -> nn.Module:
    if widths[0] < 1:
        raise UserError(f"quicknet: width is {widths[0]}; it must be at least 1")
    layers = [_stem(in_channels, widths[0], stem_stride)]
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        if stage > 0:
            layers.append(transition(widths[stage - 1], width))
        layers.extend(ResidualBlock(width) for _ in range(count))
    head = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], num_classes))
    return initialize(nn.Sequential(*layers, *head))


def _doubling(width: int) -> tuple[int, ...]:
    return (width, 2 * width, 4 * width, 8 * width)


@register_rival("quicknet_small", input_shape=IMAGENET, num_classes=1000)
def quicknet_small(num_classes: int, in_channels: int, width: int = 32, stem_stride: int = 4) -> nn.Module:
    """QuickNetSmall for 224x224 images (stem_stride: 1 or 2 for small ones)."""
    return _quicknet(num_classes, in_channels, (width, 2 * width, 8 * width, 16 * width), (4, 4, 4, 4), stem_stride)


@register_rival("quicknet", input_shape=IMAGENET, num_classes=1000)
def quicknet(num_classes: int, in_channels: int, width: int = 64, stem_stride: int = 4) -> nn.Module:
    """QuickNet for 224x224 images (stem_stride: 1 or 2 for small ones)."""
    return _quicknet(num_classes, in_channels, _doubling(width), (4, 4, 4, 4), stem_stride)


@register_rival("quicknet_large", input_shape=IMAGENET, num_classes=1000)
def quicknet_large(num_classes: int, in_channels: int, width: int = 64, stem_stride: int = 4) -> nn.Module:
    """QuickNetLarge for 224x224 images (stem_stride: 1 or 2 for small ones)."""
    return _quicknet(num_classes, in_channels, _doubling(width), (6, 8, 12, 6), stem_stride)
