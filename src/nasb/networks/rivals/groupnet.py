"""Group-Net: Zhuang et al., CVPR 2019, arXiv 1811.10413. A multiple binary network: each block has K branches.

    x_k = sigmoid(g) o_k + (1 - sigmoid(g)) mean_j(o_j)            o_1 ... o_K: the branches of the block before
    u_k = BN(ReLU(conv3x3(sign(x_k)))) + shortcut(x_k)
    o_k = BN(ReLU(conv3x3(sign(u_k)))) + u_k                       behind the last block: mean_k(o_k)

Convolutions and batch norms are each branch's own; the gate's number g, and the shortcut where the shape changes, are
shared by the K branches of a block. All branches of the first block read the stem's output, and have no gate. That
shortcut is ``BN(conv1x1(sign(x_k)))`` with binary weights; in Group-Net** it is Bi-Real Net's (average pooling, real
1x1, batch norm). Weights: `nasb.binary.LayerScaleConv2d`. Activations: sign with Bi-Real Net's gradient ``max(0, 2 -
2|x|)``; the border contributes +1. Stem and classifier are real; the stem's pooling stands before its batch norm.

Departures: the sum of the branches is made out of place. In the authors' code it is an alias of the first branch, which
so hands on the sum of all: one reading of it, and a slightly different network. sign(0) is +1 here (docs/contracts.md),
0 there. Their pretraining with tanh in the sign's place is the stage pretrain here (`nasb.binary.set_phase`).
`learned_threshold` is no part of the paper: comparisons give this network by it what others have (ReActNet's RSign).
"""

from collections.abc import Sequence
from functools import reduce
from operator import add

from torch import Tensor, nn

from nasb.binary import Binarize, LayerScaleConv2d, SoftGate
from nasb.errors import UserError, unknown_name
from nasb.networks.hosts import CIFAR, IMAGENET
from nasb.networks.registry import register_rival
from nasb.networks.rivals._resnet import BLOCKS, SHORTCUTS, initialize, shortcut

BINARY = "binary"
"""The shortcut of Group-Net, beside those of all binary ResNets."""


class BinaryLayer(nn.Module):
    """``BN(ReLU(conv3x3(b)))`` of signs b."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = LayerScaleConv2d(in_channels, out_channels, 3, stride, 1)
        self.relu = nn.ReLU(inplace=True)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, b_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Map -1 / +1 [N, C, H, W] to real [N, C', H/stride, W/stride]."""
        return self.bn(self.relu(self.conv(b_NCHW)))  # type: ignore[no-any-return]


class Branch(nn.Module):
    """What a branch of a block has of its own: two convolutions with their batch norms."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, learned_threshold: bool) -> None:
        super().__init__()
        self.layer1 = BinaryLayer(in_channels, out_channels, stride)
        self.binarize = Binarize(out_channels, learned=learned_threshold)
        self.layer2 = BinaryLayer(out_channels, out_channels, 1)

    def forward(self, b_NCHW: Tensor, shortcut: Tensor) -> Tensor:  # noqa: N803
        """Map the signs of the branch's input, and what its shortcut made of that, to the branch's output."""
        u = self.layer1(b_NCHW) + shortcut
        return self.layer2(self.binarize(u)) + u  # type: ignore[no-any-return]


class GroupBlock(nn.Module):
    """K branches side by side.

    Args:
        in_channels, out_channels, stride: of each branch.
        bases: K.
        kind: the shortcut where the shape changes: ``binary``, or one of `nasb.networks.rivals._resnet.shortcut`.
        first: whether all branches read one tensor, which nothing gates.
        learned_threshold: whether each tensor that is binarized has thresholds of its own.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        bases: int,
        kind: str,
        first: bool,
        learned_threshold: bool = False,
    ) -> None:
        super().__init__()
        self.gate = None if first else SoftGate()
        self.binarize = nn.ModuleList(
            Binarize(in_channels, learned=learned_threshold) for _ in range(1 if first else bases)
        )
        self.reads_signs = kind == BINARY and (stride > 1 or in_channels != out_channels)
        self.shortcut = (
            nn.Sequential(LayerScaleConv2d(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
            if self.reads_signs
            else shortcut("conv" if kind == BINARY else kind, in_channels, out_channels, stride)
        )
        self.branches = nn.ModuleList(
            Branch(in_channels, out_channels, stride, learned_threshold=learned_threshold) for _ in range(bases)
        )

    def forward(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Map the outputs of the block before, one or K of [N, C, H, W], to K of [N, C', H/stride, W/stride]."""
        inputs = outputs if self.gate is None else self.gate(outputs)
        signs = [binarize(x) for binarize, x in zip(self.binarize, inputs, strict=True)]
        shortcuts = [self.shortcut(b if self.reads_signs else x) for x, b in zip(inputs, signs, strict=True)]
        if len(inputs) == 1:
            signs, shortcuts = signs * len(self.branches), shortcuts * len(self.branches)
        return [branch(*both) for branch, *both in zip(self.branches, signs, shortcuts, strict=True)]


class GroupNet(nn.Module):
    """Stem, blocks, mean of the branches, head; each stage but the first begins with stride 2 and its own width.

    Args:
        stem: images to the first stage's input, [N, widths[0], H, W].
        widths: channels of each stage.
        blocks: how many blocks each stage has.
        num_classes: outputs.
        bases: K.
        kind, learned_threshold: see `GroupBlock`.

    Raises:
        UserError: `bases` is below 1, or there is no such shortcut.
    """

    def __init__(
        self,
        stem: nn.Module,
        widths: Sequence[int],
        blocks: Sequence[int],
        num_classes: int,
        bases: int,
        kind: str,
        *,
        learned_threshold: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(bases, bool) or not isinstance(bases, int) or bases < 1:
            raise UserError(f"bases is {bases!r}; it must be a whole number from 1")
        if kind not in (BINARY, *SHORTCUTS):
            raise UserError(f"shortcut: {unknown_name('shortcut', kind, (BINARY, *SHORTCUTS))}")
        self.stem = stem
        made: list[GroupBlock] = []
        channels = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                made.append(
                    GroupBlock(
                        channels,
                        width,
                        stride,
                        bases=bases,
                        kind=kind,
                        first=not made,
                        learned_threshold=learned_threshold,
                    )
                )
                channels = width
        self.blocks = nn.ModuleList(made)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
        initialize(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Map images [N, C, H, W] to logits [N, classes]."""
        outputs = [self.stem(x_NCHW)]
        for block in self.blocks:
            outputs = block(outputs)
        return self.head(reduce(add, outputs) * (1 / len(outputs)))  # type: ignore[no-any-return]


def _imagenet(num_classes: int, in_channels: int, bases: int, kind: str) -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(64))
    return GroupNet(stem, (64, 128, 256, 512), BLOCKS[18], num_classes, bases, kind)


@register_rival("groupnet_resnet18", input_shape=IMAGENET, num_classes=1000)
def groupnet_resnet18(num_classes: int, in_channels: int, bases: int = 5) -> nn.Module:
    """Group-Net as ResNet-18 for 224x224 images."""
    return _imagenet(num_classes, in_channels, bases, BINARY)


@register_rival("groupnet2_resnet18", input_shape=IMAGENET, num_classes=1000)
def groupnet2_resnet18(num_classes: int, in_channels: int, bases: int = 5) -> nn.Module:
    """Group-Net** (real down-sampling) as ResNet-18 for 224x224 images."""
    return _imagenet(num_classes, in_channels, bases, "conv")


@register_rival("groupnet_resnet20", input_shape=CIFAR, num_classes=10)
def groupnet_resnet20(
    num_classes: int,
    in_channels: int,
    bases: int = 3,
    width: int = 16,
    stem_stride: int = 1,
    shortcut: str = BINARY,
    learned_threshold: bool = False,
) -> nn.Module:
    """Group-Net as ResNet-20 for 32x32 images (shortcut: conv for Group-Net**)."""
    for name, value in (("width", width), ("stem_stride", stem_stride)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(width))
    widths = (width, 2 * width, 4 * width)
    return GroupNet(stem, widths, (3, 3, 3), num_classes, bases, shortcut, learned_threshold=learned_threshold)
