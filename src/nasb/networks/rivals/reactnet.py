"""ReActNet: Liu et al., ECCV 2020, arXiv 2003.03488.

    on a ResNet:  y = RPReLU(BN(conv3x3(RSign(x))) + shortcut(x))
    ReActNet-A:   u = RPReLU(BN(conv3x3(RSign(x))) + adapt(x)),  y = RPReLU(BN(conv1x1(RSign(u))) + u)

RSign(x) is +1 where ``x >= t``, with a learned threshold per channel (`nasb.binary.Binarize`; the paper writes ``sign(x
+ b)``, t = -b) and Bi-Real Net's gradient ``max(0, 2 - 2|x - t|)``. RPReLU: ``prelu(x + b1) + b2``, all per channel.
Weights: ``mean|w| sign(w)`` per filter, the scale without gradient, ``dL/dw = dL/dsign * 1[|w| <= 1]``, started
uniformly in [0, 0.001).

Departure: sign(0) is +1 here (docs/contracts.md), 0 in the authors' code.
"""

import torch
from torch import Tensor, nn

from nasb.binary import Binarize, BinaryConv2d, RPReLU
from nasb.cells.adapt import Adapt, ConvShape
from nasb.errors import UserError
from nasb.networks.hosts import CIFAR, IMAGENET
from nasb.networks.registry import register_rival
from nasb.networks.rivals._resnet import BinaryUnit, Unit, cifar_resnet, imagenet_resnet, shortcut


def react_unit(kind: str) -> Unit:
    """Return the builder of ReActNet's unit on a ResNet, with that kind of shortcut where the shape changes."""

    def unit(in_channels: int, out_channels: int, stride: int) -> nn.Module:
        return BinaryUnit(
            Binarize(in_channels, learned=True),
            BinaryConv2d(in_channels, out_channels, 3, stride, 1),
            shortcut(kind, in_channels, out_channels, stride),
            RPReLU(out_channels),
        )

    return unit


def start_positive(network: nn.Module) -> nn.Module:
    """Draw all binary weights uniformly in [0, 0.001), as the authors' code does, and return the network."""
    for module in network.modules():
        if isinstance(module, BinaryConv2d):
            nn.init.uniform_(module.weight, 0, 1e-3)
    return network


@register_rival("reactnet_resnet18", input_shape=IMAGENET, num_classes=1000)
def reactnet_resnet18(num_classes: int, in_channels: int) -> nn.Module:
    """ReActNet as ResNet-18 for 224x224 images."""
    network = imagenet_resnet(18, react_unit("conv"), num_classes, in_channels, convs_per_unit=1)
    return start_positive(network)


@register_rival("reactnet_resnet20", input_shape=CIFAR, num_classes=10)
def reactnet_resnet20(
    num_classes: int, in_channels: int, width: int = 16, stem_stride: int = 1, shortcut: str = "conv"
) -> nn.Module:
    """ReActNet as ResNet-20 for 32x32 images."""
    network = cifar_resnet(react_unit(shortcut), num_classes, in_channels, width, stem_stride, convs_per_unit=1)
    return start_positive(network)


BLOCKS_A = ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *5 * ((16, 1),), (32, 2), (32, 1))
"""Of ReActNet-A: each block's channels, as multiples of the stem's, and its stride."""


class ReactBlock(nn.Module):
    """ReActNet-A's block: a binary 3x3 that strides, then a binary 1x1, or two of them side by side to double.

        u = RPReLU(BN(conv3x3(RSign(x))) + adapt(x)),  v = RSign(u)
        y = RPReLU(BN(conv1x1(v)) + u)                                       where C_out = C_in
        y = RPReLU(cat(BN_1(conv1x1_1(v)) + u, BN_2(conv1x1_2(v)) + u))      where C_out = 2 C_in

    All convolutions have groups = 1: the 3x3 is no depthwise one, other than in MobileNet, whose shape this has.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        shape = ConvShape(
            in_channels=in_channels,
            out_channels=in_channels,
            kernel_size=(3, 3),
            stride=(stride, stride),
            padding=(1, 1),
        )
        self.binarize1 = Binarize(in_channels, learned=True)
        self.conv1 = BinaryConv2d(in_channels, in_channels, 3, stride, 1)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.adapt = Adapt(shape)
        self.activation1 = RPReLU(in_channels)
        self.binarize2 = Binarize(in_channels, learned=True)
        copies = out_channels // in_channels
        self.conv2 = nn.ModuleList(BinaryConv2d(in_channels, in_channels, 1) for _ in range(copies))
        self.bn2 = nn.ModuleList(nn.BatchNorm2d(in_channels) for _ in range(copies))
        self.activation2 = RPReLU(out_channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Map [N, C, H, W] to [N, C', H/stride, W/stride]."""
        u = self.activation1(self.bn1(self.conv1(self.binarize1(x_NCHW))) + self.adapt(x_NCHW))
        v = self.binarize2(u)
        parts = [bn(conv(v)) + u for conv, bn in zip(self.conv2, self.bn2, strict=True)]
        return self.activation2(parts[0] if len(parts) == 1 else torch.cat(parts, 1))  # type: ignore[no-any-return]


@register_rival("reactnet_a", input_shape=IMAGENET, num_classes=1000)
def reactnet_a(num_classes: int, in_channels: int, width: int = 32, stem_stride: int = 2) -> nn.Module:
    """ReActNet-A, of MobileNet's shape, for 224x224 images (stem_stride: 1 for small ones)."""
    for name, value in (("width", width), ("stem_stride", stem_stride)):
        if value < 1:
            raise UserError(f"reactnet_a: {name} is {value}; it must be at least 1")
    layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(width)]
    channels = width
    for multiple, stride in BLOCKS_A:
        layers.append(ReactBlock(channels, multiple * width, stride))
        channels = multiple * width
    return start_positive(
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
    )
