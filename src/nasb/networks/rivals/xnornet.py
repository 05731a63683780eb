"""XNOR-Net: Rastegari et al., ECCV 2016, arXiv 1603.05279.

    on a ResNet:  y = conv3x3(sign(BN(conv3x3(sign(BN(x)))))) + shortcut(x)
    AlexNet:      y = max_pool(conv(sign(BN(x)))), pooling where AlexNet pools

Weights: `nasb.binary.XnorConv2d` (scale mean|W|, centred and clipped after each step). Activations: sign(x), ``dL/dx =
dL/dsign * 1[|x| <= 1]`` (in the released code strictly below 1, which differs in single points). The batch norm stands
before the sign, so there is no ReLU between binary layers. Behind the last block: BN, ReLU, global pooling. First
layer, 1x1 shortcuts and classifier are real, as published.

Departures: the scale K of the activations (mean |x| over channels, box-filtered) is left out, as in the released
AlexNet, so that a binary convolution needs no real one beside it. sign(0) is +1 here (docs/contracts.md), 0 in the
released code.
"""

from torch import Tensor, nn

from nasb.binary import Binarize, XnorConv2d
from nasb.errors import UserError
from nasb.networks.hosts import CIFAR, IMAGENET
from nasb.networks.registry import register_rival
from nasb.networks.rivals._resnet import Unit, cifar_resnet, imagenet_resnet, initialize, shortcut


class PreActivationBlock(nn.Module):
    """Two times batch norm, sign, binary convolution; then the shortcut is added."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.binarize1 = Binarize(surrogate="clipped_identity")
        self.conv1 = XnorConv2d(in_channels, out_channels, 3, stride, 1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.binarize2 = Binarize(surrogate="clipped_identity")
        self.conv2 = XnorConv2d(out_channels, out_channels, 3, 1, 1)
        self.shortcut = shortcut

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Map [N, C, H, W] to [N, C', H/stride, W/stride]."""
        y = self.conv1(self.binarize1(self.bn1(x_NCHW)))
        y = self.conv2(self.binarize2(self.bn2(y)))
        return y + self.shortcut(x_NCHW)  # type: ignore[no-any-return]


def block(kind: str) -> Unit:
    """Return the builder of XNOR-Net's block, with that kind of shortcut where the shape changes."""

    def unit(in_channels: int, out_channels: int, stride: int) -> nn.Module:
        return PreActivationBlock(in_channels, out_channels, stride, shortcut(kind, in_channels, out_channels, stride))

    return unit


def _before_pool(channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


@register_rival("xnor_resnet18", input_shape=IMAGENET, num_classes=1000)
def xnor_resnet18(num_classes: int, in_channels: int) -> nn.Module:
    """XNOR-Net as ResNet-18 for 224x224 images."""
    return imagenet_resnet(
        18, block("strided"), num_classes, in_channels, convs_per_unit=2, activation=nn.ReLU(),
        before_pool=_before_pool(512),
    )  # fmt: skip


@register_rival("xnor_resnet20", input_shape=CIFAR, num_classes=10)
def xnor_resnet20(
    num_classes: int, in_channels: int, width: int = 16, stem_stride: int = 1, shortcut: str = "conv"
) -> nn.Module:
    """XNOR-Net as ResNet-20 for 32x32 images."""
    return cifar_resnet(
        block(shortcut), num_classes, in_channels, width, stem_stride, convs_per_unit=2, activation=nn.ReLU(),
        before_pool=_before_pool(4 * width),
    )  # fmt: skip


@register_rival("xnor_alexnet", input_shape=IMAGENET, num_classes=1000)
def xnor_alexnet(num_classes: int, in_channels: int, width: int = 96) -> nn.Module:
    """XNOR-Net as AlexNet for 224x224 images."""
    if width < 3 or width % 3:
        raise UserError(f"xnor_alexnet: width is {width}; it must be a multiple of 3")

    def layer(inputs: int, outputs: int, kernel: int, padding: int, *, pool: bool = False) -> list[nn.Module]:
        pooling = [nn.MaxPool2d(3, 2)] if pool else []
        sign = Binarize(surrogate="clipped_identity")
        return [nn.BatchNorm2d(inputs), sign, XnorConv2d(inputs, outputs, kernel, 1, padding), *pooling]

    a, b, c, e = width, width // 3 * 8, 4 * width, width // 3 * 128
    network = nn.Sequential(
        *(nn.Conv2d(in_channels, a, 11, 4, 2, bias=False), nn.BatchNorm2d(a), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *layer(a, b, 5, 2, pool=True),
        *layer(b, c, 3, 1),
        *layer(c, c, 3, 1),
        *layer(c, b, 3, 1, pool=True),
        *layer(b, e, 6, 0),
        *layer(e, e, 1, 0),
        *(nn.BatchNorm2d(e), nn.ReLU(), nn.Flatten(), nn.Linear(e, num_classes)),
    )
    return initialize(network)
