"""The candidate operations of a cell's edges.

Free operations (none, identity, pooling) cost no OPs; paid ones are binary convolutions. Every operation but none
ends in a batch norm whose gamma starts small, at `edge_gain`: without it a few identity paths multiply the signal of a
cell, and the binary branches drown in it. Batch norms are folded at export.

A free operation reads the node's real value, already adapted to the edge's shape; a paid one reads the node's signs
and takes the stride, the change of channels and the groups as its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from nasb.binary import BinaryConv2d
from nasb.cells.adapt import Adapt, ConvShape
from nasb.cells.config import CellConfig
from nasb.registry import Registry

NONE = "none"


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One candidate: what it is, how it is built, and its binary MACs (BOPs) as a function of the edge's shape."""

    description: str
    paid: bool
    build: Callable[[ConvShape, CellConfig], nn.Module | None]
    bops: Callable[[ConvShape], int]
    fits: Callable[[ConvShape], bool]
    """Whether it can give the shape that an edge out of the cell's input asks."""


OPERATIONS: Registry[Operation] = Registry("operation")


class BinaryBranch(nn.Module):
    """Binary convolution and batch norm: signs [N, C, H, W] in, real [N, C', H', W'] out."""

    def __init__(self, conv: BinaryConv2d, gain: float) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm2d(conv.out_channels)
        nn.init.constant_(self.bn.weight, gain)

    def forward(self, b_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Return bn(conv(b))."""
        return self.bn(self.conv(b_NCHW))  # type: ignore[no-any-return]


class FreeBranch(nn.Module):
    """Identity or pooling, and batch norm: real [N, C', H', W'] in and out."""

    def __init__(self, pool: nn.Module, channels: int, gain: float) -> None:
        super().__init__()
        self.pool = pool
        self.bn = nn.BatchNorm2d(channels)
        nn.init.constant_(self.bn.weight, gain)

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Return bn(pool(x))."""
        return self.bn(self.pool(x_NCHW))  # type: ignore[no-any-return]


def binary_branch(
    shape: ConvShape, config: CellConfig, kernel_size: tuple[int, int], padding: tuple[int, int],
    dilation: tuple[int, int] = (1, 1), groups: int = 1, *, gain: float,
) -> BinaryBranch:  # fmt: skip
    """Build a binary convolution of an edge's channels and stride with its batch norm."""
    conv = BinaryConv2d(
        shape.in_channels,
        shape.out_channels,
        kernel_size,
        shape.stride,
        padding,
        dilation,
        groups,
        pad_value=config.pad_value,  # type: ignore[arg-type]
        scale=config.weight_scale,
    )
    return BinaryBranch(conv, gain)


def _free(name: str, description: str, pool: Callable[[], nn.Module]) -> None:
    def build(shape: ConvShape, config: CellConfig) -> nn.Module:
        return FreeBranch(pool(), shape.out_channels, config.edge_gain)

    def fits(shape: ConvShape) -> bool:
        return Adapt.possible(shape.in_channels, shape.out_channels)

    OPERATIONS.register(name)(
        Operation(description=description, paid=False, build=build, bops=lambda shape: 0, fits=fits)
    )


def _binary_convolution(name: str, description: str, kernel: int, dilation: int) -> None:
    reach = dilation * (kernel - 1) // 2

    def padding(shape: ConvShape) -> tuple[int, int]:
        # The edge's output must have the size of the host's convolution, whatever that one's kernel and padding were.
        vertical, horizontal = (
            p + reach - d * (k - 1) // 2
            for p, d, k in zip(shape.padding, shape.dilation, shape.kernel_size, strict=True)
        )
        return vertical, horizontal

    def fits(shape: ConvShape) -> bool:
        own = replace(shape, kernel_size=(kernel, kernel), padding=padding(shape), dilation=(dilation, dilation))
        return min(padding(shape)) >= 0 and own.out_size == shape.out_size

    def build(shape: ConvShape, config: CellConfig) -> nn.Module:
        dilations = (dilation, dilation)
        return binary_branch(
            shape, config, (kernel, kernel), padding(shape), dilations, shape.groups, gain=config.edge_gain
        )

    def bops(shape: ConvShape) -> int:
        height, width = shape.out_size
        return height * width * shape.out_channels * (shape.in_channels // shape.groups) * kernel * kernel

    OPERATIONS.register(name)(Operation(description=description, paid=True, build=build, bops=bops, fits=fits))


OPERATIONS.register(NONE)(
    Operation(
        description="no connection",
        paid=False,
        build=lambda shape, config: None,
        bops=lambda shape: 0,
        fits=lambda shape: True,
    )
)
_free("identity", "the node's value, batch norm", nn.Identity)
_free("avg_pool_3x3", "average pooling 3x3, batch norm", lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False))
_free("max_pool_3x3", "max pooling 3x3, batch norm", lambda: nn.MaxPool2d(3, 1, 1))
_binary_convolution("bin_conv_1x1", "binary convolution 1x1, batch norm", 1, 1)
_binary_convolution("bin_conv_3x3", "binary convolution 3x3, batch norm", 3, 1)
_binary_convolution("bin_conv_5x5", "binary convolution 5x5, batch norm", 5, 1)
_binary_convolution("dil_bin_conv_3x3", "binary convolution 3x3 with dilation 2, batch norm", 3, 2)
_binary_convolution("dil_bin_conv_5x5", "binary convolution 5x5 with dilation 2, batch norm", 5, 2)


def free_operations() -> list[str]:
    """Return the names of the free operations, none first."""
    return [NONE, *(name for name in OPERATIONS if not OPERATIONS[name].paid and name != NONE)]


def paid_operations() -> list[str]:
    """Return the names of the paid operations, none first."""
    return [NONE, *(name for name in OPERATIONS if OPERATIONS[name].paid)]
