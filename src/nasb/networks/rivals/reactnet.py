"""ReActNet: Liu et al., ECCV 2020, arXiv 2003.03488.

    y = RPReLU(BN(conv3x3(RSign(x))) + shortcut(x))

RSign(x) is +1 where ``x >= t``, with a learned threshold per channel (`nasb.binary.Binarize`; the paper writes ``sign(x
+ b)``, t = -b) and Bi-Real Net's gradient ``max(0, 2 - 2|x - t|)``. RPReLU: ``prelu(x + b1) + b2``, all per channel.
Weights: ``mean|w| sign(w)`` per filter, the scale without gradient, ``dL/dw = dL/dsign * 1[|w| <= 1]``, started
uniformly in [0, 0.001).

Departure: sign(0) is +1 here (docs/contracts.md), 0 in the authors' code.
"""

from torch import nn

from nasb.binary import Binarize, BinaryConv2d, RPReLU
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
