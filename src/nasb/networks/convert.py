"""convert(): a plain real CNN in, a hand-made binary, a searchable or a derived network out.

Every convolution of the host becomes a NASB cell, with the batch norm and the activation behind it, except: the first
one, the classifier, depthwise ones, and the 1x1 of a residual block's shortcut. What stood around the cells changes so:

- A residual block whose branch consists of cells loses its addition, since each cell has a shortcut of its own; the
  1x1 of its shortcut becomes the shortcut of the cell that changes the shape.
- A bottleneck (a branch that narrows the channels) keeps its addition: the narrow cells could not carry the
  real-valued stream. The addition is then the shortcut of the branch's last cell, and a strided 1x1 becomes average
  pooling and 1x1.
- Activations of the host in front of a cell go (`activation: none`) or become PReLU / RPReLU: behind a ReLU every
  sign is +1.

The host's weights are taken over. Batch norms of branches start with the host's gamma times `branch_gain`.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch import nn

from nasb.binary import Binarize
from nasb.cells.adapt import Adapt, ConvShape, ConvShortcut
from nasb.cells.architecture import Edge
from nasb.cells.cell import Cell, activation, derived_edges
from nasb.cells.config import CellConfig
from nasb.cells.searchable import searchable_edges
from nasb.errors import UserError
from nasb.networks import analysis
from nasb.networks.analysis import Residual, Unit
from nasb.networks.plan import Plan


def convert(
    host: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    cell: CellConfig | None = None,
    cells: Mapping[str, Sequence[Edge]] | None = None,
    search: bool = False,
    operations: Sequence[str] | None = None,
    check: bool = True,
) -> torch.fx.GraphModule:
    """Make a binary network of a real one.

    Args:
        host: any chain of convolutions, batch norms, activations, pooling and residual additions; it is not changed.
        input_shape: [channels, height, width] of one image.
        cell: options of all cells.
        cells: the edges of each cell by its qualified name; None: every edge "none", which is the hand-made network.
        search: make the searchable network instead, with every candidate present.
        operations: the candidates of the search (None: all).
        check: run the network once, and refuse it if a sign sees an input of one side only.

    Returns:
        The network, a module whose cells have the qualified names of the host's convolutions. `network.meta["plan"]`
        is the `Plan`: what became of every convolution, and why.

    Raises:
        UserError: the host has a layer or operation that is not known, has no convolution to binarize, or `cells` names
            others than the network has.
    """
    conversion = _Conversion(copy.deepcopy(host), input_shape, cell or CellConfig())
    conversion.check_names(cells)
    conversion.rewrite(cells or {}, search, operations)
    network = conversion.traced
    network.meta["plan"] = conversion.plan
    if check:
        _refuse_one_sided(network, input_shape)
    return network


class _Conversion:
    """One conversion: first every convolution is given its role, then the graph is rewritten."""

    def __init__(self, host: nn.Module, input_shape: tuple[int, int, int], config: CellConfig) -> None:
        self.config, self.plan = config, Plan()
        self.traced = analysis.trace(host, input_shape)
        self.convs = [node for node in self.traced.graph.nodes if analysis.is_conv(self.traced, node)]
        self.residuals = analysis.residuals(self.traced)
        self.real = self._real_convs()
        self.units = {c: analysis.unit_of(self.traced, c) for c in self.convs if c not in self.real}
        targets = [str(conv.target) for conv in self.units]
        for target in targets:
            if targets.count(target) > 1:
                raise UserError(f"convert: layer {target} is called more than once; give each call a layer of its own")
        if not self.units:
            raise UserError(f"convert: {type(host).__name__} has no convolution that could be binarized")

    def _real_convs(self) -> dict[torch.fx.Node, str]:
        """Return the convolutions that stay real, with the reason."""
        reasons: dict[torch.fx.Node, str] = {}
        with_conv_before: set[torch.fx.Node] = set()
        for node in self.traced.graph.nodes:
            if any(p in with_conv_before or analysis.is_conv(self.traced, p) for p in node.all_input_nodes):
                with_conv_before.add(node)
        with_weights_after: set[torch.fx.Node] = set()
        for node in reversed(self.traced.graph.nodes):
            for user in node.users:
                weighted = isinstance(analysis.module_of(self.traced, user), nn.Conv2d | nn.Linear)
                if weighted or user in with_weights_after:
                    with_weights_after.add(node)
        shortcut_convs = {c for r in self.residuals for c in r.shortcut if analysis.is_conv(self.traced, c)}
        for conv in self.convs:
            layer = analysis.module_of(self.traced, conv)
            assert isinstance(layer, nn.Conv2d)
            if conv not in with_conv_before:
                reasons[conv] = "first convolution"
            elif conv not in with_weights_after:
                reasons[conv] = "classifier"
            elif layer.groups == layer.in_channels > 1:
                reasons[conv] = "depthwise"
            elif conv in shortcut_convs:
                reasons[conv] = "1x1 shortcut"
        return reasons

    def check_names(self, cells: Mapping[str, Sequence[Edge]] | None) -> None:
        """Refuse an architecture whose cells are not this host's."""
        if cells is None:
            return
        own = {str(conv.target) for conv in self.units}
        for name in cells:
            if name not in own:
                raise UserError(f'architecture: the cell "{name}" is not in this host; it is of another network')
        for name in sorted(own):
            if name not in cells:
                raise UserError(f'architecture: the cell "{name}" of the host is missing; it is of another network')

    def rewrite(self, cells: Mapping[str, Sequence[Edge]], search: bool, operations: Sequence[str] | None) -> None:
        """Put the cells in, take out what they replace."""
        shortcuts: dict[torch.fx.Node, nn.Module | None] = {}
        gains: dict[torch.fx.Node, float] = {}
        kept: list[Residual] = []
        for residual in self.residuals:
            self._plan_residual(residual, shortcuts, kept)
        for conv, unit in self.units.items():
            shape = analysis.conv_shape(self.traced, conv)
            if conv not in shortcuts:
                shortcuts[conv] = self._own_shortcut(shape)
                if shortcuts[conv] is None:
                    gains[conv] = 1.0
            self._insert(unit, shape, shortcuts[conv], gains.get(conv), cells, search, operations)
        for residual in kept:
            self._keep_addition(residual)
        for conv, reason in self.real.items():
            if not any(row.layer == str(conv.target) for row in self.plan.rows):
                self.plan.add(str(conv.target), self._kind(conv), "real", reason)
        order = {str(node.target): index for index, node in enumerate(self.convs)}
        self.plan.rows.sort(key=lambda row: order.get(row.layer, len(order)))
        self._remove_activations()
        self.traced.graph.eliminate_dead_code()
        self.traced.delete_all_unused_submodules()
        self.traced.recompile()

    def _kind(self, conv: torch.fx.Node) -> str:
        layer = analysis.module_of(self.traced, conv)
        assert isinstance(layer, nn.Conv2d)
        stride = f" /{layer.stride[0]}" if layer.stride[0] > 1 else ""
        return f"{layer.kernel_size[0]}x{layer.kernel_size[1]} {layer.in_channels}-{layer.out_channels}{stride}"

    def _own_shortcut(self, shape: ConvShape) -> nn.Module | None:
        if self.config.shortcut == "conv" and not shape.keeps_shape:
            return ConvShortcut(shape)
        return Adapt(shape) if Adapt.possible(shape.in_channels, shape.out_channels) else None

    def _plan_residual(
        self, residual: Residual, shortcuts: dict[torch.fx.Node, nn.Module | None], kept: list[Residual]
    ) -> None:
        """Decide whether the addition goes, and give the cells of the branch their shortcuts."""
        units = [self.units[node] for node in residual.branch if node in self.units]
        pure = bool(units) and {n for unit in units for n in unit.nodes} == set(residual.branch)
        shapes = [analysis.conv_shape(self.traced, unit.conv) for unit in units]
        narrows = any(shape.out_channels < shape.in_channels for shape in shapes)
        changing = [unit for unit, shape in zip(units, shapes, strict=True) if not shape.keeps_shape]
        side = next((node for node in residual.shortcut if node in self.real), None)
        if pure and not narrows and len(changing) <= 1 and (side is None or changing):
            if changing and side is not None and self.config.shortcut != "adapt":
                conv = changing[0].conv
                shortcuts[conv] = self._conv_shortcut(analysis.conv_shape(self.traced, conv), side)
            if side is not None:
                reason = "average pooling, real 1x1, batch norm" if self.config.shortcut != "adapt" else "asked: adapt"
                become = f"shortcut of {changing[0].conv.target}" if self.config.shortcut != "adapt" else "removed"
                self.plan.add(str(side.target), self._kind(side), become, reason)
            residual.addition.replace_all_uses_with(units[-1].end)
            self._absorb_activation(residual.addition, units[-1])
        else:
            if units and pure:
                shortcuts[units[-1].conv] = None
            kept.append(residual)

    def _absorb_activation(self, addition: torch.fx.Node, unit: Unit) -> None:
        """Let the activation behind a removed addition go: it is the last cell's own now."""
        after = analysis.sole_user(unit.end)
        # The addition still reads the unit's end until it is erased.
        readers = [user for user in unit.end.users if user is not addition]
        if len(readers) == 1:
            after = readers[0]
        if after is not None and analysis.is_activation(self.traced, after):
            after.replace_all_uses_with(unit.end)
            self.traced.graph.erase_node(after)
        self.traced.graph.erase_node(addition)

    def _conv_shortcut(self, shape: ConvShape, side: torch.fx.Node) -> ConvShortcut:
        """Make the host's 1x1 and its batch norm the shortcut of a cell, weights included."""
        shortcut = ConvShortcut(shape)
        unit = analysis.unit_of(self.traced, side)
        conv = analysis.module_of(self.traced, side)
        assert isinstance(conv, nn.Conv2d)
        if conv.weight.shape == shortcut.conv.weight.shape:
            shortcut.conv.load_state_dict({"weight": conv.weight})
            if unit.bn is not None:
                _take_over_bn(shortcut.bn, self.traced.get_submodule(str(unit.bn.target)), conv, 1.0)
        return shortcut

    def _insert(
        self,
        unit: Unit,
        shape: ConvShape,
        shortcut: nn.Module | None,
        gain: float | None,
        cells: Mapping[str, Sequence[Edge]],
        search: bool,
        operations: Sequence[str] | None,
    ) -> None:
        name = str(unit.conv.target)
        conv = analysis.module_of(self.traced, unit.conv)
        assert isinstance(conv, nn.Conv2d)
        if search:
            edges = searchable_edges(shape, self.config, operations)
        else:
            edges = derived_edges(shape, self.config, cells.get(name, ()), f"architecture: cells.{name}")
        cell = Cell(shape, self.config, edges, shortcut, gain=gain)
        bn = None if unit.bn is None else self.traced.get_submodule(str(unit.bn.target))
        for base in cell.bases():
            base.conv.take_weight(conv.weight)
            _take_over_bn(base.bn, bn, conv, float(base.bn.weight.data[0]))
        self.traced.add_submodule(name, cell)
        for node in (unit.activation, unit.bn):
            if node is not None:
                node.replace_all_uses_with(unit.conv)
                self.traced.graph.erase_node(node)
        kind = "none, the block's addition stays" if shortcut is None else type(shortcut).__name__
        self.plan.add(name, _describe(shape), "cell", f"shortcut: {kind}")

    def _keep_addition(self, residual: Residual) -> None:
        """Give a kept addition its strided shortcut in Bi-Real Net's form, and put the cell's activation behind it."""
        side = next((node for node in residual.shortcut if node in self.real), None)
        if side is not None:
            shape = analysis.conv_shape(self.traced, side)
            unit = analysis.unit_of(self.traced, side)
            if shape.stride != (1, 1):
                self.traced.add_submodule(str(side.target), self._conv_shortcut(shape, side))
                for node in (unit.bn,):
                    if node is not None:
                        node.replace_all_uses_with(side)
                        self.traced.graph.erase_node(node)
                self.plan.add(str(side.target), _describe(shape), "shortcut", "average pooling, real 1x1, batch norm")
        last = next((node for node in reversed(residual.branch) if node in self.units), None)
        after = analysis.sole_user(residual.addition)
        if last is None or after is None or not analysis.is_activation(self.traced, after):
            return
        cell = self.traced.get_submodule(str(last.target))
        if isinstance(cell, Cell) and cell.shortcut is None:
            cell.activation = nn.Identity()
            self._replace_activation(after, cell.shape.out_channels)

    def _replace_activation(self, node: torch.fx.Node, channels: int) -> None:
        """Take an activation of the host out, or put the network's kind in its place."""
        if self.config.activation == "none":
            node.replace_all_uses_with(node.all_input_nodes[0])
        else:
            name = f"activation_{node.name}"
            self.traced.add_submodule(name, activation(self.config.activation, channels))
            with self.traced.graph.inserting_after(node):
                new = self.traced.graph.call_module(name, (node.all_input_nodes[0],))
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            new.replace_input_with(new, node.all_input_nodes[0])
        self.traced.graph.erase_node(node)

    def _remove_activations(self) -> None:
        """Take out the host's activations from which a sign would read without a batch norm or convolution between."""
        for node in list(self.traced.graph.nodes):
            if not analysis.is_activation(self.traced, node) or str(node.target).startswith("activation_"):
                continue
            reached, front = {node}, [node]
            while front:
                for user in front.pop().users:
                    if user not in reached and (user in self.units or analysis.keeps_signs(self.traced, user)):
                        reached.add(user)
                        if user not in self.units:
                            front.append(user)
            if any(n in self.units for n in reached):
                self._replace_activation(node, analysis.shape_of(node)[1])


def _describe(shape: ConvShape) -> str:
    stride = f" /{shape.stride[0]}" if shape.stride[0] > 1 else ""
    return f"{shape.kernel_size[0]}x{shape.kernel_size[1]} {shape.in_channels}-{shape.out_channels}{stride}"


def _take_over_bn(target: nn.BatchNorm2d, source: nn.Module | None, conv: nn.Conv2d, gain: float) -> None:
    """Copy a batch norm's state, gamma and beta times `gain`; the convolution's own bias goes into the running mean."""
    if isinstance(source, nn.BatchNorm2d) and source.affine and source.track_running_stats:
        target.load_state_dict(source.state_dict())
        target.eps, target.momentum = source.eps, source.momentum
        target.weight.data.mul_(gain)
        target.bias.data.mul_(gain)
    if conv.bias is not None and target.running_mean is not None:
        target.running_mean.data.sub_(conv.bias.data)


def _refuse_one_sided(network: nn.Module, input_shape: tuple[int, int, int]) -> None:
    """Run the network once on noise and refuse it if a sign sees an input of one side only.

    Raises:
        UserError: names the layer.
    """
    seen: dict[str, tuple[bool, bool]] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[name] = (bool((inputs[0] >= 0).any()), bool((inputs[0] < 0).any()))

        return hook

    trial = copy.deepcopy(network).train()  # batch statistics, as in training; the network's own stay untouched
    for name, module in trial.named_modules():
        if isinstance(module, Binarize):
            module.register_forward_pre_hook(watch(name))
    with torch.no_grad():
        trial(torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0)))
    for name, sides in seen.items():
        if not all(sides):
            raise UserError(
                f"convert: the sign in {name} sees an input of one side only: an activation like ReLU stands before it"
            )
