"""The NASB cell: a small DAG on real-valued feature maps that stands where the host had one convolution.

    node 0   the cell's input x
    backbone S(x) + sum_k BN_k(BinaryConv_k(sign(x >= t_k)))
    node j   sum over edges i -> j of the chosen operations on node i          (j = 1..n)
    output   activation(backbone + sum over edges i -> output of the chosen operations on node i)

This is the project's own design, made to be true to the abstract of NASB (Zhu, Al-Ars, Hofstee, IJCNN 2020, arXiv
2008.03515). With every edge "none" it is exactly Bi-Real Net's block (arXiv 1808.00278). The design's lambda_k, one
factor for each base, is carried by BN_k's gamma and beta, which it would only multiply; they start at branch_gain / K.

One class serves derived and searchable cells; what differs is what stands on the edges (`FixedEdge`, or
`SearchableEdge` of nasb.cells.searchable).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from nasb.binary import Binarize, RPReLU
from nasb.cells.adapt import Adapt, ConvShape
from nasb.cells.architecture import Edge, live_pairs, node_pairs
from nasb.cells.config import CellConfig
from nasb.cells.operations import OPERATIONS, BinaryBranch, binary_branch
from nasb.errors import UserError

EdgeKey = tuple[int, int, bool]
"""(source, target, paid): between two nodes free and paid operations stand on separate edges."""


class EdgeModule(Protocol):
    """What stands on an edge."""

    def connects(self) -> bool:
        """Whether anything but none is chosen at the moment."""

    def __call__(self, read: Callable[[], Tensor]) -> Tensor | None:
        """Return the edge's contribution; `read` gives the source's signs (paid) or its adapted value (free)."""


class FixedEdge(nn.Module):
    """The one operation that a derived cell has on an edge."""

    def __init__(self, operation: nn.Module) -> None:
        super().__init__()
        self.operation = operation

    def connects(self) -> bool:
        """Return True."""
        return True

    def forward(self, read: Callable[[], Tensor]) -> Tensor:
        """Apply the operation."""
        return self.operation(read())  # type: ignore[no-any-return]


class Cell(nn.Module):
    """A NASB cell.

    Args:
        shape: the convolution whose place it takes.
        config: options that all cells of the network share.
        edges: what stands on each edge; keys that are missing are "none".
        shortcut: S, or None where the host passes the input on around the cell, or no shortcut is possible.
        gain: start of gamma of the backbone; by default the config's branch_gain.
        passed_by: what of the host passes the input on where there is no S: "addition", "concatenation", or nothing.

    Shapes: [N, in_channels, H, W] to [N, out_channels, H', W'].
    """

    def __init__(
        self,
        shape: ConvShape,
        config: CellConfig,
        edges: Mapping[EdgeKey, nn.Module],
        shortcut: nn.Module | None,
        *,
        gain: float | None = None,
        passed_by: str = "",
    ) -> None:
        super().__init__()
        self.shape, self.config = shape, config
        self.shortcut, self.passed_by = shortcut, passed_by
        self.calls = 1
        """How often the network calls it for one image."""
        gain = (config.branch_gain if gain is None else gain) / config.bases
        self.backbone = nn.ModuleList(
            binary_branch(shape, config, shape.kernel_size, shape.padding, shape.dilation, shape.groups, gain=gain)
            for _ in range(config.bases)
        )
        self._edge_keys: list[EdgeKey] = []
        for source, target in node_pairs(config.nodes):
            self._edge_keys += [(source, target, paid) for paid in (False, True) if (source, target, paid) in edges]
        paid = [key for key in self._edge_keys if key[2]]
        # Base 0 shares its binarization with the edges that leave the input; each further base has a threshold of its
        # own, and each such edge where the config says so. Equal thresholds would stay equal, as what is told by them:
        # they start evenly spread around 0, the bases' nearest to it.
        own = [key for key in paid if key[0] == 0] if config.thresholds == "edge" else []
        count = config.bases + len(own)
        starts = sorted(torch.linspace(-0.5, 0.5, count).tolist(), key=abs) if count > 1 else [0.0]
        learned = config.learned_threshold or count > 1
        self.binarize = nn.ModuleList(
            self._binarize(shape.in_channels, start, learned) for start in starts[: config.bases]
        )
        self.adapt = Adapt(shape)
        self.edges = nn.ModuleDict({edge_name(*key): edges[key] for key in self._edge_keys})
        # What other paid edges read: a binarization for each inside node, or one for each edge.
        self.inside = nn.ModuleDict()
        for key, start in zip(own, starts[config.bases :], strict=True):
            self.inside[edge_name(*key)] = self._binarize(shape.in_channels, start, True)
        for key in paid:
            if key[0] and config.thresholds == "edge":
                self.inside[edge_name(*key)] = self._binarize(shape.out_channels, 0.0, True)
            elif key[0] and str(key[0]) not in self.inside:
                self.inside[str(key[0])] = self._binarize(shape.out_channels, 0.0, learned)
        self.activation = activation(config, shape.out_channels)

    def _binarize(self, channels: int, start: float, learned: bool) -> Binarize:
        return Binarize(channels, learned=learned, initial=start, surrogate=self.config.surrogate)

    def bases(self) -> list[BinaryBranch]:
        """Return the backbone's binary bases."""
        return [cast(BinaryBranch, base) for base in self.backbone]

    def edge(self, key: EdgeKey) -> EdgeModule:
        """Return what stands on an edge."""
        return cast(EdgeModule, self.edges[edge_name(*key)])

    @property
    def edge_keys(self) -> Sequence[EdgeKey]:
        """The edges that are there, by target."""
        return tuple(self._edge_keys)

    def live_edges(self) -> list[EdgeKey]:
        """Return the edges that are connected at the moment and lie on a way from input to output."""
        connected = [key for key in self._edge_keys if self.edge(key).connects()]
        live = live_pairs(((source, target) for source, target, _ in connected), self.config.nodes)
        return [key for key in connected if key[:2] in live]

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Map [N, C, H, W] to [N, C', H', W']."""
        signs: dict[int, Tensor] = {0: self.binarize[0](x_NCHW)}
        values: dict[int, Tensor] = {}
        output = self.backbone[0](signs[0])
        for base, binarize in zip(self.backbone[1:], self.binarize[1:], strict=True):
            output = output + base(binarize(x_NCHW))
        if self.shortcut is not None:
            output = output.add_(self.shortcut(x_NCHW))

        def read_signs(node: int, target: int) -> Tensor:
            if self.config.thresholds == "edge":
                return self.inside[edge_name(node, target, True)](values[node] if node else x_NCHW)  # type: ignore[no-any-return]
            if node not in signs:
                signs[node] = self.inside[str(node)](values[node])
            return signs[node]

        def read_value(node: int, target: int) -> Tensor:
            if node == 0 and 0 not in values:
                values[0] = self.adapt(x_NCHW)
            return values[node]

        last = self.config.nodes + 1
        for source, target, paid in self.live_edges():
            read = read_signs if paid else read_value
            y = self.edge((source, target, paid))(lambda read=read, s=source, t=target: read(s, t))  # type: ignore[misc]
            if y is None:
                continue
            if target == last:
                output = output + y
            else:
                values[target] = values[target] + y if target in values else y
        output = self.activation(output)
        if output.requires_grad and not torch.compiler.is_compiling():
            # Global pooling hands back an expanded gradient. Without a ReLU in its way it would go from cell to cell in
            # that layout, and every batch norm and convolution would leave its fast path.
            channels_last = output.is_contiguous(memory_format=torch.channels_last)
            layout = torch.channels_last if channels_last else torch.contiguous_format
            output.register_hook(lambda gradient: gradient.contiguous(memory_format=layout))
        return output  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        s = self.shape
        return f"{s.in_channels}, {s.out_channels}, kernel_size={s.kernel_size}, stride={s.stride}"


def edge_name(source: int, target: int, paid: bool) -> str:
    """Return the name of an edge in a cell's `edges`, e.g. ``0_to_2_paid``."""
    return f"{source}_to_{target}_{'paid' if paid else 'free'}"


def edge_shape(shape: ConvShape, source: int) -> ConvShape:
    """Return the shape that an operation has to give: edges out of the input change it, all others keep it."""
    if source == 0:
        return shape
    return ConvShape(
        in_channels=shape.out_channels,
        out_channels=shape.out_channels,
        kernel_size=(3, 3),
        padding=(1, 1),
        groups=shape.groups,
        in_size=shape.out_size,
    )


def derived_edges(shape: ConvShape, config: CellConfig, edges: Sequence[Edge], where: str) -> dict[EdgeKey, nn.Module]:
    """Build the operations of a derived cell.

    Raises:
        UserError: an operation that cannot give the shape of its edge.
    """
    modules: dict[EdgeKey, nn.Module] = {}
    for edge in edges:
        operation = OPERATIONS[edge.operation]
        wanted = edge_shape(shape, edge.source)
        if not operation.fits(wanted):
            raise UserError(
                f"{where}: {edge.operation} cannot map {wanted.in_channels} channels of {wanted.in_size} pixels to "
                f"{wanted.out_channels} of {wanted.out_size}"
            )
        module = operation.build(wanted, config.of_edge(edge.target))
        if module is not None:
            modules[edge.source, edge.target, operation.paid] = FixedEdge(module)
    return modules


def activation(config: CellConfig, channels: int) -> nn.Module:
    """Return what `CellConfig.activation` names."""
    match config.activation:
        case "prelu":
            return nn.PReLU(channels, config.activation_slope)
        case "rprelu":
            return RPReLU(channels, config.activation_slope)
    return nn.Identity()
