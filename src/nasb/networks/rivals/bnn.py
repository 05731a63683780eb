"""BNN: Courbariaux et al., 2016, arXiv 1602.02830.

    on a ResNet:  y = hardtanh(BN(conv3x3(sign(hardtanh(BN(conv3x3(sign(x))))))) + shortcut(x))
    AlexNet:      y = BN(max_pool(conv(sign(x)))), pooling where AlexNet pools

Weights: sign(w) without a scale, ``dL/dw = dL/dsign * 1[|w| <= 1]``, w clipped to [-1, 1] after each step of the
optimizer. Activations: sign(x), ``dL/dx = dL/dsign * 1[|x| <= 1]``.

Departures: the first layer is real (the input of a binary layer is -1 / +1 here, which an image is not). On a ResNet,
which the paper has not, classifier and 1x1 shortcuts are real, as in most later comparisons. AlexNet follows Larq Zoo's
(arXiv 2011.09398), with AlexNet's first layer of 55x55 pixels; its classifier is binary and ends in a batch norm.
"""

from torch import Tensor, nn

from nasb.binary import Binarize, BinaryConv2d
from nasb.errors import UserError
from nasb.networks.hosts import CIFAR, IMAGENET
from nasb.networks.registry import register_rival
from nasb.networks.rivals._resnet import Unit, cifar_resnet, imagenet_resnet, initialize, shortcut


def clipped_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int) -> BinaryConv2d:
    """Return BNN's convolution: signs without a scale, weights that are clipped to [-1, 1] after each step."""
    return BinaryConv2d(in_channels, out_channels, kernel_size, stride, padding, scale="none", limit=1.0)


class BasicBlock(nn.Module):
    """ResNet's basic block with hardtanh for ReLU and a sign before each convolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.binarize1 = Binarize(surrogate="clipped_identity")
        self.conv1 = clipped_conv(in_channels, out_channels, 3, stride, 1)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.hardtanh1 = nn.Hardtanh()
        self.binarize2 = Binarize(surrogate="clipped_identity")
        self.conv2 = clipped_conv(out_channels, out_channels, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut
        self.hardtanh2 = nn.Hardtanh()

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Map [N, C, H, W] to [N, C', H/stride, W/stride]."""
        y = self.hardtanh1(self.bn1(self.conv1(self.binarize1(x_NCHW))))
        y = self.bn2(self.conv2(self.binarize2(y)))
        return self.hardtanh2(y + self.shortcut(x_NCHW))  # type: ignore[no-any-return]


def block(kind: str) -> Unit:
    """Return the builder of BNN's basic block, with that kind of shortcut where the shape changes."""

    def unit(in_channels: int, out_channels: int, stride: int) -> nn.Module:
        return BasicBlock(in_channels, out_channels, stride, shortcut(kind, in_channels, out_channels, stride))

    return unit


@register_rival("bnn_resnet18", input_shape=IMAGENET, num_classes=1000)
def bnn_resnet18(num_classes: int, in_channels: int) -> nn.Module:
    """BNN as ResNet-18 for 224x224 images."""
    return imagenet_resnet(18, block("strided"), num_classes, in_channels, convs_per_unit=2, activation=nn.Hardtanh())


@register_rival("bnn_resnet20", input_shape=CIFAR, num_classes=10)
def bnn_resnet20(
    num_classes: int, in_channels: int, width: int = 16, stem_stride: int = 1, shortcut: str = "subsample"
) -> nn.Module:
    """BNN as ResNet-20 for 32x32 images."""
    return cifar_resnet(
        block(shortcut), num_classes, in_channels, width, stem_stride, convs_per_unit=2, activation=nn.Hardtanh()
    )


@register_rival("bnn_alexnet", input_shape=IMAGENET, num_classes=1000)
def bnn_alexnet(num_classes: int, in_channels: int, width: int = 64) -> nn.Module:
    """BNN as AlexNet for 224x224 images."""
    if width < 1:
        raise UserError(f"bnn_alexnet: width is {width}; it must be at least 1")

    def layer(inputs: int, outputs: int, kernel: int, padding: int, *, pool: bool = False) -> list[nn.Module]:
        pooling = [nn.MaxPool2d(3, 2)] if pool else []
        sign = Binarize(surrogate="clipped_identity")
        return [sign, clipped_conv(inputs, outputs, kernel, 1, padding), *pooling, nn.BatchNorm2d(outputs)]

    a, b, c, d, e = width, 3 * width, 6 * width, 4 * width, 64 * width
    network = nn.Sequential(
        *(nn.Conv2d(in_channels, a, 11, 4, 2, bias=False), nn.MaxPool2d(3, 2), nn.BatchNorm2d(a)),
        *layer(a, b, 5, 2, pool=True),
        *layer(b, c, 3, 1),
        *layer(c, c, 3, 1),
        *layer(c, d, 3, 1, pool=True),
        *layer(d, e, 6, 0),
        *layer(e, e, 1, 0),
        *layer(e, num_classes, 1, 0),
        nn.Flatten(),
    )
    return initialize(network)
