"""The searchable twin of the cell: every candidate present on every edge, and alpha, the logits that choose among them.

What an edge computes is set from outside, by a search strategy: `select(active, gates)` names the candidates that run
and what they are multiplied by. A fresh edge runs the full mixture, weighted by softmax(alpha).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nasb.binary import BinaryConv2d
from nasb.cells.adapt import ConvShape
from nasb.cells.architecture import node_pairs
from nasb.cells.cell import Cell, EdgeKey, edge_shape
from nasb.cells.config import CellConfig
from nasb.cells.operations import NONE, OPERATIONS, BinaryBranch


class SharedKernel(BinaryConv2d):
    """A binary convolution whose weights are some taps of another one's, and are trained by both.

    Args:
        conv: what it stands for.
        whole: a convolution of the same channels with dilation 1; `conv`'s taps lie on its own.

    Source: Stamoulis et al., Single-Path NAS, ECML PKDD 2019, arXiv 1904.02877.
    """

    def __init__(self, conv: BinaryConv2d, whole: BinaryConv2d) -> None:
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
            conv.groups, pad_value=conv.pad_value, scale=conv.scale_kind, surrogate=conv.surrogate,
        )  # fmt: skip
        del self.weight
        self._whole = (whole,)  # in a tuple: no part of this module
        taps = _taps(conv, whole)
        assert taps is not None
        self._taps = taps

    def __getattr__(self, name: str) -> Any:
        """Return the taps [C_out, C_in / groups, kH, kW] as `weight`."""
        if name == "weight" and name not in self._parameters:
            return self._whole[0].weight[:, :, self._taps[0], self._taps[1]]
        return super().__getattr__(name)


def _taps(conv: BinaryConv2d, whole: BinaryConv2d) -> list[slice] | None:
    """Return which rows and columns of one kernel are all of another one's; None: some are not there."""
    if whole.dilation != (1, 1):
        return None
    found = []
    for taps, dilation, there in zip(conv.kernel_size, conv.dilation, whole.kernel_size, strict=True):
        reach = dilation * (taps - 1)
        if reach >= there or (there - 1 - reach) % 2:
            return None
        first = (there - 1 - reach) // 2
        found.append(slice(first, first + reach + 1, dilation))
    return found


def share_kernels(candidates: nn.ModuleDict) -> None:
    """Let binary convolutions read their weights from the largest one, as far as it has their taps.

    Only one of them runs in a step: with weights of their own, each would be trained in a fraction of these steps. What
    sharing is worth to the search is not measured by itself.
    """
    branches = [module for module in candidates.values() if isinstance(module, BinaryBranch)]
    if not branches:
        return
    whole = max((b.conv for b in branches), key=lambda conv: (conv.dilation == (1, 1), conv.kernel_size))
    for branch in branches:
        if branch.conv is not whole and _taps(branch.conv, whole) is not None:
            branch.conv = SharedKernel(branch.conv, whole)


class SearchableEdge(nn.Module):
    """All candidates of one edge.

    Args:
        names: the candidates, "none" first.
        shape: what they have to give.
        config: options of the network's cells.
        key: where in its cell it stands.

    `base` is where alpha began, as the budget asks: what alpha says of the operations is its gain over that.
    """

    def __init__(self, names: Sequence[str], shape: ConvShape, config: CellConfig, key: EdgeKey = (0, 1, True)) -> None:
        super().__init__()
        self.names, self.shape, self.key = tuple(names), shape, key
        self.bops = tuple(OPERATIONS[name].bops(shape) for name in names)
        built = {name: OPERATIONS[name].build(shape, config.of_edge(key[1])) for name in names}
        self.candidates = nn.ModuleDict({name: module for name, module in built.items() if module is not None})
        share_kernels(self.candidates)
        self.alpha = nn.Parameter(torch.zeros(len(names)))
        self.base: Tensor
        self.register_buffer("base", torch.zeros(len(names)))
        # (active, gates), in a list: a module is slow to take attributes, and these change each step.
        self._selected: list[tuple[tuple[int, ...] | None, Tensor | None]] = [(None, None)]

    def select(self, active: Sequence[int] | None, gates: Tensor | None = None) -> None:
        """Choose what runs: the indices of candidates, and factors [>= len(names)] (None: 1). None: the mixture."""
        self._selected[0] = (None if active is None else tuple(active), gates)

    @property
    def active(self) -> tuple[int, ...] | None:
        """The indices of what runs; None: the mixture."""
        return self._selected[0][0]

    @property
    def gates(self) -> Tensor | None:
        """What it is multiplied by."""
        return self._selected[0][1]

    def gain(self) -> Tensor:
        """Return what alpha has gained over where it began, [len(names)]."""
        return self.alpha.detach() - self.base

    def selected(self) -> int:
        """Return the index of the one candidate that runs; 0 where it is none, or not one alone."""
        return self.active[0] if self.active is not None and len(self.active) == 1 else 0

    def connects(self) -> bool:
        """Return whether anything but none runs at the moment."""
        active = self.active
        return len(self.names) > 1 and (active is None or any(self.names[i] != NONE for i in active))

    def forward(self, read: Callable[[], Tensor]) -> Tensor | None:
        """Return the sum of the active candidates, each times its gate; None if there are none."""
        active, gates = self._selected[0]
        if active is None:
            active, gates = tuple(range(len(self.names))), self.alpha.softmax(0)
        total: Tensor | None = None
        for index in active:
            if self.names[index] == NONE:
                continue
            y: Tensor = self.candidates[self.names[index]](read())
            if gates is not None:
                y = y * gates[index]
            total = y if total is None else total + y
        return total


def candidates(shape: ConvShape, config: CellConfig, operations: Sequence[str] | None) -> dict[EdgeKey, list[str]]:
    """Return the candidates of every edge of a searchable cell, "none" first.

    Args:
        shape: the convolution whose place the cell takes.
        config: options of the network's cells.
        operations: the candidates (None: all that are registered); "none" is always one.

    Returns:
        Edges with at least one candidate besides none. There is no identity from input to output: the shortcut is
        there.
    """
    for name in operations or ():
        OPERATIONS[name]  # raises with the closest known names
    edges: dict[EdgeKey, list[str]] = {}
    chosen = [name for name in (OPERATIONS if operations is None else operations) if name != NONE]
    for source, target in node_pairs(config.nodes):
        wanted = edge_shape(shape, source)
        for paid in (False, True):
            names = [
                name
                for name in chosen
                if OPERATIONS[name].paid == paid
                and OPERATIONS[name].fits(wanted)
                and not (name == "identity" and source == 0 and target == config.nodes + 1)
            ]
            if names:
                edges[source, target, paid] = [NONE, *names]
    return edges


def searchable_edges(
    shape: ConvShape, config: CellConfig, operations: Sequence[str] | None
) -> dict[EdgeKey, nn.Module]:
    """Build every edge of a searchable cell with the candidates that fit there; see `candidates`."""
    return {
        key: SearchableEdge(names, edge_shape(shape, key[0]), config, key)
        for key, names in candidates(shape, config, operations).items()
    }


def searchable_cells(network: nn.Module) -> dict[str, Cell]:
    """Return the cells of a searchable network by qualified name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Cell)}


def named_edges(network: nn.Module) -> Iterator[tuple[str, EdgeKey, SearchableEdge]]:
    """Yield (cell's name, edge's key, edge) for every searchable edge of a network."""
    for name, cell in searchable_cells(network).items():
        for key in cell.edge_keys:
            edge = cell.edge(key)
            if isinstance(edge, SearchableEdge):
                yield name, key, edge
