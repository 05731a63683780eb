"""The hosts that come with nasb. Their real forms take published state dicts unchanged.

ResNet-18/34/50 are torchvision's own (He et al., CVPR 2016, arXiv 1512.03385); ResNet-20/32/44/56 are of
nasb.networks.resnet_cifar.
"""

from torch import nn

from nasb.networks.families import torchvision_model
from nasb.networks.registry import register_host
from nasb.networks.resnet_cifar import ResNetCifar

IMAGENET = (3, 224, 224)
CIFAR = (3, 32, 32)


@register_host("resnet18", input_shape=IMAGENET, num_classes=1000)
def resnet18(num_classes: int, in_channels: int) -> nn.Module:
    """ResNet-18 for 224x224 images, as in torchvision."""
    return torchvision_model("resnet18", num_classes, in_channels)


@register_host("resnet34", input_shape=IMAGENET, num_classes=1000)
def resnet34(num_classes: int, in_channels: int) -> nn.Module:
    """ResNet-34 for 224x224 images, as in torchvision."""
    return torchvision_model("resnet34", num_classes, in_channels)


@register_host("resnet50", input_shape=IMAGENET, num_classes=1000)
def resnet50(num_classes: int, in_channels: int) -> nn.Module:
    """ResNet-50 for 224x224 images, as in torchvision."""
    return torchvision_model("resnet50", num_classes, in_channels)


@register_host("resnet20", input_shape=CIFAR, num_classes=10)
def resnet20(num_classes: int, in_channels: int, width: int = 16, stem_stride: int = 1) -> nn.Module:
    """ResNet-20 for 32x32 images."""
    return ResNetCifar(20, num_classes, width, stem_stride, in_channels)


@register_host("resnet32", input_shape=CIFAR, num_classes=10)
def resnet32(num_classes: int, in_channels: int, width: int = 16, stem_stride: int = 1) -> nn.Module:
    """ResNet-32 for 32x32 images."""
    return ResNetCifar(32, num_classes, width, stem_stride, in_channels)


@register_host("resnet44", input_shape=CIFAR, num_classes=10)
def resnet44(num_classes: int, in_channels: int, width: int = 16, stem_stride: int = 1) -> nn.Module:
    """ResNet-44 for 32x32 images."""
    return ResNetCifar(44, num_classes, width, stem_stride, in_channels)


@register_host("resnet56", input_shape=CIFAR, num_classes=10)
def resnet56(num_classes: int, in_channels: int, width: int = 16, stem_stride: int = 1) -> nn.Module:
    """ResNet-56 for 32x32 images."""
    return ResNetCifar(56, num_classes, width, stem_stride, in_channels)
