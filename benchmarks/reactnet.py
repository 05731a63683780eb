"""ReActNet-A: the body that decides whether a binary network pays on a CPU, with random weights, for timing alone.

MobileNetV1's plan with binary 3x3 and 1x1 convolutions, a threshold per channel before each sign (RSign), batch norm, a
shortcut without parameters around each convolution, RPReLU. Where the channels double, two 1x1 convolutions share one
binarization, each adds the shortcut, and their results are concatenated. 4.82e9 binary and 0.012e9 real MACs for an
image of 224x224.

Source: Liu et al., ReActNet, ECCV 2020, arXiv 2003.03488.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from nasb.binary import Binarize, BinaryConv2d, RPReLU

STEM = 32
PLAN = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""Output channels and stride of each block."""


class Branch(nn.Module):
    """Binary convolution and batch norm."""

    def __init__(self, channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = BinaryConv2d(channels, channels, kernel_size, stride, kernel_size // 2)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, b_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Map -1 / +1 [N, C, H, W] to real [N, C, H', W']."""
        return self.norm(self.conv(b_NCHW))  # type: ignore[no-any-return]


class Block(nn.Module):
    """3x3, then one 1x1, or two where the channels double: [N, C, H, W] to [N, C or 2 C, H / stride, W / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.sign3 = Binarize(in_channels, learned=True)
        self.conv3 = Branch(in_channels, 3, stride)
        self.shortcut = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
        self.activation3 = RPReLU(in_channels)
        self.sign1 = Binarize(in_channels, learned=True)
        self.conv1 = nn.ModuleList(Branch(in_channels, 1) for _ in range(out_channels // in_channels))
        self.activation1 = RPReLU(out_channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Apply the block."""
        u_NCHW = self.activation3(self.conv3(self.sign3(x_NCHW)) + self.shortcut(x_NCHW))
        b_NCHW = self.sign1(u_NCHW)
        parts = [branch(b_NCHW) + u_NCHW for branch in self.conv1]
        return self.activation1(parts[0] if len(parts) == 1 else torch.cat(parts, 1))  # type: ignore[no-any-return]


class ReActNetA(nn.Module):
    """ReActNet-A: [N, 3, H, W] to [N, classes]."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, STEM, 3, 2, 1, bias=False), nn.BatchNorm2d(STEM))
        widths = [STEM, *(channels for channels, _ in PLAN)]
        strides = [stride for _, stride in PLAN]
        self.blocks = nn.Sequential(
            *(Block(*pair, stride) for pair, stride in zip(pairwise(widths), strides, strict=True))
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Return the logits."""
        return self.fc(self.pool(self.blocks(self.stem(x_NCHW))).flatten(1))  # type: ignore[no-any-return]


def random_reactnet(seed: int = 0) -> ReActNetA:
    """Return the network in evaluation mode, all its parameters and statistics random."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = ReActNetA().eval()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5, generator=generator)
                layer.bias.normal_(0, 0.2, generator=generator)
            elif isinstance(layer, Binarize | RPReLU):
                for parameter in layer.parameters():
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        # Running statistics of its own signals, so that no layer drowns in the shortcut.
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum, layer.training = 1.0, True
        network(torch.randn(4, 3, 224, 224, generator=generator))
    return network.eval()
