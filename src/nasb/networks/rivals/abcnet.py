"""ABC-Net: Lin et al., NeurIPS 2017, arXiv 1711.11294. A multiple binary network: each layer has M x N binary bases.

    y = BN(sum_n beta_n sum_m alpha_m conv3x3(B_m, A_n(BN(sum ... A_n(x))))) + shortcut(x)

Weights: `nasb.binary.AbcConv2d` (M bases of one real weight). Activations: ``A_n(x) = +1 where clip(x + v_n, 0, 1) >=
0.5, else -1``, ``dL/dx = sum_n dL/dA_n * 1[0 <= x + v_n <= 1]``, the same sums for v_n; v_n and beta_n are trained, one
number for each layer and n. Here ``x >= t_n`` with the threshold ``t_n = 0.5 - v_n`` is trained (nasb.binary.Binarize);
the two differ in nothing but the sign of t's gradient.

A binary activation is all that stands between batch norm and convolution. First layer, 1x1 shortcuts and classifier are
real. The shortcuts are ResNet's, one around two convolutions.

Departures, or what the paper was not at hand for: beta starts at 1 / N, and t evenly spread over [-0.5, 0.5] around the
mean of a batch norm's output (equal bases would stay equal); the border contributes 0.
"""

from torch import Tensor, nn

from nasb.binary import AbcConv2d, Binarize
from nasb.binary.multiple import spread
from nasb.networks.hosts import CIFAR, IMAGENET
from nasb.networks.registry import register_rival
from nasb.networks.rivals._resnet import Unit, cifar_resnet, imagenet_resnet, shortcut


class AbcLayer(nn.Module):
    """``BN(sum_n beta_n sum_m alpha_m conv3x3(B_m, A_n(x)))``."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, weight_bases: int, activation_bases: int
    ) -> None:
        super().__init__()
        self.conv = AbcConv2d(
            in_channels, out_channels, 3, stride, 1, weight_bases=weight_bases, activation_bases=activation_bases
        )
        self.binarize = nn.ModuleList(
            Binarize(1, learned=True, initial=start, surrogate="half_clipped_identity")
            for start in spread(activation_bases, 0.5)
        )
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Map [N, C, H, W] to [N, C', H/stride, W/stride]."""
        return self.bn(self.conv(*[binarize(x_NCHW) for binarize in self.binarize]))  # type: ignore[no-any-return]


class AbcBlock(nn.Module):
    """ResNet's basic block without its ReLUs: two layers, and the shortcut."""

    def __init__(self, layer1: AbcLayer, layer2: AbcLayer, shortcut: nn.Module) -> None:
        super().__init__()
        self.layer1 = layer1
        self.layer2 = layer2
        self.shortcut = shortcut

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Map [N, C, H, W] to [N, C', H/stride, W/stride]."""
        return self.layer2(self.layer1(x_NCHW)) + self.shortcut(x_NCHW)  # type: ignore[no-any-return]


def block(kind: str, weight_bases: int, activation_bases: int) -> Unit:
    """Return the builder of ABC-Net's block, with that kind of shortcut where the shape changes."""

    def unit(in_channels: int, out_channels: int, stride: int) -> nn.Module:
        return AbcBlock(
            AbcLayer(in_channels, out_channels, stride, weight_bases, activation_bases),
            AbcLayer(out_channels, out_channels, 1, weight_bases, activation_bases),
            shortcut(kind, in_channels, out_channels, stride),
        )

    return unit


def _imagenet(depth: int, num_classes: int, in_channels: int, weight_bases: int, activation_bases: int) -> nn.Module:
    unit = block("strided", weight_bases, activation_bases)
    return imagenet_resnet(depth, unit, num_classes, in_channels, convs_per_unit=2)


@register_rival("abcnet_resnet18", input_shape=IMAGENET, num_classes=1000)
def abcnet_resnet18(num_classes: int, in_channels: int, weight_bases: int = 5, activation_bases: int = 5) -> nn.Module:
    """ABC-Net as ResNet-18 for 224x224 images."""
    return _imagenet(18, num_classes, in_channels, weight_bases, activation_bases)


@register_rival("abcnet_resnet34", input_shape=IMAGENET, num_classes=1000)
def abcnet_resnet34(num_classes: int, in_channels: int, weight_bases: int = 5, activation_bases: int = 5) -> nn.Module:
    """ABC-Net as ResNet-34 for 224x224 images."""
    return _imagenet(34, num_classes, in_channels, weight_bases, activation_bases)


@register_rival("abcnet_resnet20", input_shape=CIFAR, num_classes=10)
def abcnet_resnet20(
    num_classes: int, in_channels: int, weight_bases: int = 3, activation_bases: int = 3, width: int = 16,
    stem_stride: int = 1, shortcut: str = "subsample",
) -> nn.Module:  # fmt: skip
    """ABC-Net as ResNet-20 for 32x32 images."""
    unit = block(shortcut, weight_bases, activation_bases)
    return cifar_resnet(unit, num_classes, in_channels, width, stem_stride, convs_per_unit=2)
