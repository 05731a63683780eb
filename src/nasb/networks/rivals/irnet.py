"""IR-Net: Qin et al., CVPR 2020, arXiv 1909.10788.

    y = hardtanh(BN(conv3x3(sign(x))) + shortcut(x))

Weights: `nasb.binary.LibraConv2d` (standardized, sign, power of two as scale). Gradient of both signs: EDE, ``k t (1 -
tanh^2(t x))``, ``k = max(1/t, 1)``, with t growing geometrically from 0.1 to 10 over the epochs of a stage
(`nasb.binary.set_sharpness`, called by the training). A batch norm stands between global pooling and classifier.

Departures: sign(0) is +1 here (docs/contracts.md), 0 in the authors' code. t reaches 10 in the last epoch; in the
paper, ``t = 0.1 * 100^(epoch / epochs)``, at its end.
"""

from torch import nn

from nasb.binary import Binarize, LibraConv2d
from nasb.networks.hosts import CIFAR, IMAGENET
from nasb.networks.registry import register_rival
from nasb.networks.rivals._resnet import BinaryUnit, Unit, cifar_resnet, imagenet_resnet, shortcut


def libra_unit(kind: str) -> Unit:
    """Return the builder of IR-Net's unit, with that kind of shortcut where the shape changes."""

    def unit(in_channels: int, out_channels: int, stride: int) -> nn.Module:
        return BinaryUnit(
            Binarize(surrogate="tanh_annealed"),
            LibraConv2d(in_channels, out_channels, 3, stride, 1),
            shortcut(kind, in_channels, out_channels, stride),
            nn.Hardtanh(),
        )

    return unit


def _imagenet(depth: int, num_classes: int, in_channels: int) -> nn.Module:
    return imagenet_resnet(
        depth, libra_unit("strided"), num_classes, in_channels, convs_per_unit=1, activation=nn.Hardtanh(),
        before_linear=nn.BatchNorm1d(512),
    )  # fmt: skip


@register_rival("irnet_resnet18", input_shape=IMAGENET, num_classes=1000)
def irnet_resnet18(num_classes: int, in_channels: int) -> nn.Module:
    """IR-Net as ResNet-18 for 224x224 images."""
    return _imagenet(18, num_classes, in_channels)


@register_rival("irnet_resnet34", input_shape=IMAGENET, num_classes=1000)
def irnet_resnet34(num_classes: int, in_channels: int) -> nn.Module:
    """IR-Net as ResNet-34 for 224x224 images."""
    return _imagenet(34, num_classes, in_channels)


@register_rival("irnet_resnet20", input_shape=CIFAR, num_classes=10)
def irnet_resnet20(
    num_classes: int, in_channels: int, width: int = 16, stem_stride: int = 1, shortcut: str = "subsample"
) -> nn.Module:
    """IR-Net as ResNet-20 for 32x32 images."""
    return cifar_resnet(
        libra_unit(shortcut), num_classes, in_channels, width, stem_stride, convs_per_unit=1,
        activation=nn.Hardtanh(), before_linear=nn.BatchNorm1d(4 * width),
    )  # fmt: skip
