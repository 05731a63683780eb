"""What the binary ResNets of several papers have in common: stem, stages of units, head, and the shortcuts.

A unit is built by ``unit(in_channels, out_channels, stride)``. It holds one binary 3x3 convolution with a shortcut of
its own, as Bi-Real Net (arXiv 1808.00278) introduced it, or an ordinary basic block of two. At the size of ImageNet: He
et al., arXiv 1512.03385, table 1. For 32x32 images: section 4.2 there, with the options of nasb.networks.resnet_cifar.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from nasb.cells.adapt import Adapt, ConvShape, ConvShortcut
from nasb.errors import UserError, unknown_name
from nasb.networks.resnet_cifar import OptionAShortcut

Unit = Callable[[int, int, int], nn.Module]

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Basic blocks of two convolutions in each stage, by depth."""
SHORTCUTS = ("conv", "strided", "adapt", "subsample")


def initialize(network: nn.Module) -> nn.Module:
    """Draw the weights of all convolutions, binary ones too, as He et al. do, arXiv 1502.01852; return the network."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return network


class BinaryResNet(nn.Module):
    """Stem, stages and head; each stage but the first begins with stride 2 and its own width.

    Args:
        stem: images to the first stage's input, [N, widths[0], H, W].
        unit: builds what the stages are made of.
        widths: channels of each stage.
        units: how many of them each stage has.
        head: the last stage's output to logits.
    """

    def __init__(
        self, stem: nn.Module, unit: Unit, widths: Sequence[int], units: Sequence[int], head: nn.Module
    ) -> None:
        super().__init__()
        self.stem = stem
        stages, channels = [], widths[0]
        for stage, (width, count) in enumerate(zip(widths, units, strict=True)):
            first = unit(channels, width, 1 if stage == 0 else 2)
            stages.append(nn.Sequential(first, *(unit(width, width, 1) for _ in range(count - 1))))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.head = head
        initialize(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Map images [N, C, H, W] to logits [N, classes]."""
        return self.head(self.stages(self.stem(x_NCHW)))  # type: ignore[no-any-return]


class BinaryUnit(nn.Module):
    """``activation(bn(conv(binarize(x))) + shortcut(x))``: one binary convolution with a shortcut of its own."""

    def __init__(self, binarize: nn.Module, conv: nn.Conv2d, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.binarize = binarize
        self.conv = conv
        self.bn = nn.BatchNorm2d(conv.out_channels)
        self.shortcut = shortcut
        self.activation = activation

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Map [N, C, H, W] to [N, C', H/stride, W/stride]."""
        y = self.bn(self.conv(self.binarize(x_NCHW)))
        return self.activation(y + self.shortcut(x_NCHW))  # type: ignore[no-any-return]


def imagenet_resnet(
    depth: int, unit: Unit, num_classes: int, in_channels: int, *, convs_per_unit: int,
    activation: nn.Module | None = None, before_pool: nn.Module | None = None, before_linear: nn.Module | None = None,
) -> BinaryResNet:  # fmt: skip
    """Build a ResNet-18 or -34: stem 7x7 of stride 2, batch norm, `activation`, max pooling; four stages.

    Args:
        depth: 18 or 34.
        unit: see the module.
        num_classes, in_channels: of the head and of the images.
        convs_per_unit: binary convolutions that one unit holds, 1 or 2.
        activation: of the stem.
        before_pool, before_linear: layers of the head in front of the global pooling and of the classifier.
    """
    stem = _sequence(
        nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), activation, nn.MaxPool2d(3, 2, 1)
    )
    units = [2 * blocks // convs_per_unit for blocks in BLOCKS[depth]]
    return BinaryResNet(stem, unit, (64, 128, 256, 512), units, _head(512, num_classes, before_pool, before_linear))


def cifar_resnet(
    unit: Unit, num_classes: int, in_channels: int, width: int, stem_stride: int, *, convs_per_unit: int,
    activation: nn.Module | None = None, before_pool: nn.Module | None = None, before_linear: nn.Module | None = None,
) -> BinaryResNet:  # fmt: skip
    """Build a ResNet-20 for 32x32 images; `width` and `stem_stride` as in `ResNetCifar`, the rest as above.

    Raises:
        UserError: a width or stride below 1.
    """
    for name, value in (("width", width), ("stem_stride", stem_stride)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    stem = _sequence(nn.Conv2d(in_channels, width, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(width), activation)
    widths = (width, 2 * width, 4 * width)
    head = _head(4 * width, num_classes, before_pool, before_linear)
    return BinaryResNet(stem, unit, widths, [6 // convs_per_unit] * 3, head)


def _head(channels: int, num_classes: int, before_pool: nn.Module | None, before_linear: nn.Module | None) -> nn.Module:
    return _sequence(
        before_pool, nn.AdaptiveAvgPool2d(1), nn.Flatten(), before_linear, nn.Linear(channels, num_classes)
    )


def _sequence(*layers: nn.Module | None) -> nn.Sequential:
    return nn.Sequential(*(layer for layer in layers if layer is not None))


def shortcut(kind: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the shortcut of a unit; the identity where nothing changes.

    Args:
        kind: ``conv`` (average pooling, real 1x1, batch norm: Bi-Real Net), ``strided`` (real strided 1x1, batch norm:
            ResNet), ``adapt`` (average pooling, repeated channels) or ``subsample`` (every second pixel, zero
            channels: ResNet for 32x32 images).
        in_channels, out_channels, stride: of the unit.

    Raises:
        UserError: another kind.
    """
    if kind not in SHORTCUTS:
        raise UserError(f"shortcut: {unknown_name('shortcut', kind, SHORTCUTS)}")
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    shape = ConvShape(
        in_channels=in_channels, out_channels=out_channels, kernel_size=(3, 3), stride=(stride, stride), padding=(1, 1)
    )
    if kind == "conv":
        return ConvShortcut(shape)
    if kind == "adapt":
        return Adapt(shape)
    if kind == "subsample":
        return OptionAShortcut(in_channels, out_channels, stride)
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
