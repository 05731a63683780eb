"""Plugin: the real ResNet-20 of the claim's study as a network that is trained as it is, beside the binary ones."""

from torch import nn

from nasb.networks.hosts import CIFAR, HOSTS
from nasb.networks.registry import register_rival


@register_rival("real_resnet20", input_shape=CIFAR, num_classes=10)
def real_resnet20(num_classes: int, in_channels: int, width: int = 16, stem_stride: int = 1) -> nn.Module:
    """Real ResNet-20 for 32x32 images."""
    return HOSTS["resnet20"].build(
        num_classes=num_classes, in_channels=in_channels, width=width, stem_stride=stem_stride
    )
