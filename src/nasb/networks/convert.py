"""convert(): a plain real CNN in, a hand-made binary, a searchable or a derived network out.

A NASB cell takes the place of a convolution with the batch norm and the activation behind it (which ones:
nasb.networks.roles). What stood around the cells changes so:

- A residual block whose branch is a chain of cells loses its addition, since each cell has a shortcut of its own; the
  1x1 of its shortcut becomes the shortcut of the cell that changes the shape.
- Every other addition stays, as the shortcut of its branch's last cell; a strided 1x1 beside it becomes average
  pooling and 1x1.
- Activations of the host in front of a cell go (`activation: none`) or become PReLU / RPReLU: behind a ReLU every
  sign is +1.
- Max pooling in front of a cell gets a batch norm, since it lifts the stream above every threshold; the stem's does
  not where it has one in front of it, as in Bi-Real Net.

The host's weights are taken over. Batch norms of branches start with the host's gamma and beta times `branch_gain`.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.fx
from torch import Tensor, nn

from nasb.binary import Binarize
from nasb.cells.adapt import Adapt, AvgMaxShortcut, ConvShape, ConvShortcut
from nasb.cells.architecture import Edge
from nasb.cells.cell import Cell, EdgeKey, activation, derived_edges
from nasb.cells.config import CellConfig
from nasb.cells.searchable import searchable_edges
from nasb.errors import UserError
from nasb.networks import analysis
from nasb.networks.analysis import Residual, Unit
from nasb.networks.known import matches, place_of
from nasb.networks.plan import Plan, fingerprint
from nasb.networks.roles import (
    ADAPT,
    ADDITION,
    ASKED,
    AVGMAX,
    CONCATENATION,
    CONV,
    NOTHING,
    Shortcut,
    assign_roles,
    side_conv,
)  # fmt: skip
from nasb.networks.tracing import trace, unknown_nodes

EdgeBuilder = Callable[[str, ConvShape], dict[EdgeKey, nn.Module]]


def convert(
    host: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    cell: CellConfig | None = None,
    cells: Mapping[str, Sequence[Edge]] | None = None,
    search: bool = False,
    operations: Sequence[str] | None = None,
    keep_real: Sequence[str] = (),
    check: bool = True,
) -> torch.fx.GraphModule:
    """Make a binary network of a real one.

    Args:
        host: any CNN of layers and operations that are known (nasb.networks.known); it is not changed.
        input_shape: [channels, height, width] of one image.
        cell: options of all cells.
        cells: the edges of each cell by its qualified name; None: every edge "none", which is the hand-made network.
        search: make the searchable network instead, with every candidate present.
        operations: the candidates of the search (None: all).
        keep_real: shell wildcards of qualified names, e.g. ``["layer4.*"]``: convolutions that stay real, and layers
            and operations that are not known and are left as they are.
        check: run the network once, and refuse it if a sign sees an input of one side only.

    Returns:
        The network, a module whose cells have the qualified names of the host's convolutions, in the host's mode
        (training or evaluation). `nasb.networks.plan.plan_of` tells what became of every convolution, and why.

    Raises:
        UserError: the host has a layer or operation that is not known and not kept, has no convolution to binarize,
            `cells` names others than the network has, or `keep_real` matches nothing.
    """
    config = cell or CellConfig()

    def edges(name: str, shape: ConvShape) -> dict[EdgeKey, nn.Module]:
        if search:
            return searchable_edges(shape, config, operations)
        return derived_edges(shape, config, (cells or {}).get(name, ()), f"architecture: cells.{name}")

    conversion = _Conversion(_copied(host), input_shape, config, tuple(keep_real))
    if cells is not None:
        conversion.check_names(cells)
    host_of = fingerprint(conversion.traced)
    conversion.rewrite(edges)
    network = conversion.traced.train(host.training)
    network.meta["plan"], network.meta["host"] = conversion.plan, host_of
    if check:
        _refuse_one_sided(network, input_shape)
    return network


def _copied(host: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(host)
    except (RuntimeError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"convert: {type(host).__name__} cannot be copied: {reason}; of a layer with "
            "torch.nn.utils.weight_norm or spectral_norm take that off first (remove_weight_norm, remove_spectral_norm)"
        ) from None


class _Conversion:
    """One conversion: the graph of the host is rewritten by the roles of its convolutions and additions."""

    def __init__(
        self, host: nn.Module, input_shape: tuple[int, int, int], config: CellConfig, keep_real: tuple[str, ...]
    ) -> None:
        self.config = config
        self.convolutions = {
            name: _describe(layer) for name, layer in host.named_modules() if isinstance(layer, nn.Conv2d)
        }
        self.traced = trace(host, input_shape, keep_real)
        self.plan = Plan(outputs=self.traced.meta["shape"][1])
        self.roles = assign_roles(self.traced, config, keep_real)
        self.shapes = {conv: analysis.conv_shape(self.traced, conv) for conv in self.roles.units}
        self.order = [n for n in self.traced.graph.nodes if analysis.is_conv(self.traced, n)]
        self.unknown = unknown_nodes(self.traced)
        self.placed: set[torch.fx.Node] = set()

    def check_names(self, cells: Mapping[str, Sequence[Edge]]) -> None:
        """Refuse an architecture whose cells are not this host's."""
        own = {str(conv.target) for conv in self.roles.units}
        for name in cells:
            if name not in own:
                raise UserError(f'architecture: the cell "{name}" is not in this host; it is of another network')
        for name in sorted(own):
            if name not in cells:
                raise UserError(f'architecture: the cell "{name}" of the host is missing; it is of another network')

    def rewrite(self, edges: EdgeBuilder) -> None:
        """Put the cells in, take out what they replace."""
        kinds = {conv: _describe(self._conv(conv)) for conv in self.order}
        for conv, unit in self.roles.units.items():
            self._insert(unit, self.shapes[conv], self.roles.shortcuts[conv], edges)
        for residual, last in self.roles.removed:
            self._remove_addition(residual, last)
        for residual in self.roles.kept:
            self._keep_addition(residual)
        self._clear_the_way_to_signs()
        self._fill_plan(kinds)
        self.traced.graph.eliminate_dead_code()
        self.traced.delete_all_unused_submodules()
        self.traced.recompile()

    def _fill_plan(self, kinds: Mapping[torch.fx.Node, str]) -> None:
        """Tell what became of each convolution, of what is kept without being known, and what training alone used."""
        told = set()
        for node in self.traced.graph.nodes:
            name = place_of(node)
            if node in kinds and name not in told:
                calls = sum(other.target == node.target for other in kinds)
                times = f" ({calls} calls)" if calls > 1 else ""
                self.plan.add(name, kinds[node] + times, *self._becomes(node))
            elif node in self.unknown and name not in told:
                self.plan.add(name, self.unknown[node], "real", ASKED)
            told.add(name)
        for conv in self.order:  # a shortcut's, which has no node any more
            if str(conv.target) not in told:
                self.plan.add(str(conv.target), kinds[conv], *self._becomes(conv))
                told.add(str(conv.target))
        kept = tuple(place_of(node) for node in self.unknown)
        for name, kind in self.convolutions.items():
            if name not in told and not matches(name, kept):
                self.plan.add(name, kind, "left out", "not used in evaluation")

    def _becomes(self, conv: torch.fx.Node) -> tuple[str, str]:
        """Return what the plan says of a convolution: (what it becomes, why)."""
        pooled = "average pooling, real 1x1, batch norm"
        if conv in self.roles.units:
            texts = {
                ADAPT: "adapt",
                AVGMAX: "average pooling, added channels max-pooled",
                CONV: pooled,
                ADDITION: "the block's addition",
                CONCATENATION: "the concatenation",
                NOTHING: "none is possible",
            }
            kind = self.roles.shortcuts[conv].kind
            unchanged = kind in (ADAPT, AVGMAX) and self.shapes[conv].keeps_shape
            return "cell", f"shortcut: {'the input itself' if unchanged else texts[kind]}"
        for cell, shortcut in self.roles.shortcuts.items():
            if shortcut.side is conv:
                return f"shortcut of {cell.target}", pooled
        if any(conv in residual.shortcut for residual, _ in self.roles.removed):
            return "removed", f"asked: shortcut {self.config.shortcut}"
        if isinstance(self.traced.get_submodule(str(conv.target)), ConvShortcut):
            return "shortcut", pooled
        return "real", self.roles.real[conv]

    def _insert(self, unit: Unit, shape: ConvShape, shortcut: Shortcut, edges: EdgeBuilder) -> None:
        """Put a cell in the place of a unit; all calls of one convolution get one cell."""
        name = str(unit.conv.target)
        placed = self.traced.get_submodule(name)
        if isinstance(placed, Cell):
            placed.calls += 1
        else:
            self._refuse_hooks(unit)
            self.traced.add_submodule(name, self._cell(unit, shape, shortcut, edges(name, shape)))
        for node in (unit.activation, unit.bn):
            if node is not None:
                node.replace_all_uses_with(unit.conv)
                self.traced.graph.erase_node(node)

    def _refuse_hooks(self, unit: Unit) -> None:
        """Refuse to lose what forward hooks do: layers that a cell replaces are not called any more."""
        for node in unit.nodes:
            layer = analysis.module_of(self.traced, node)
            if layer is not None and (layer._forward_hooks or layer._forward_pre_hooks):
                raise UserError(
                    f"convert: {node.target} has forward hooks, which are lost where a cell takes its place; remove "
                    f"them, or leave the convolution {unit.conv.target} real (keep_real)"
                )

    def _cell(self, unit: Unit, shape: ConvShape, shortcut: Shortcut, edges: Mapping[EdgeKey, nn.Module]) -> Cell:
        """Make a cell with the host's weights."""
        conv = self._conv(unit.conv)
        module: nn.Module | None = None
        if shortcut.kind == CONV:
            module = ConvShortcut(shape) if shortcut.side is None else self._conv_shortcut(shape, shortcut.side)
        elif shortcut.kind == ADAPT:
            module = Adapt(shape)
        elif shortcut.kind == AVGMAX:
            module = AvgMaxShortcut(shape)
        gain = 1.0 if shortcut.kind in (CONCATENATION, NOTHING) else None
        passed_by = shortcut.kind if shortcut.kind in (ADDITION, CONCATENATION) else ""
        cell = Cell(shape, self.config, edges, module, gain=gain, passed_by=passed_by)
        bn = None if unit.bn is None else self.traced.get_submodule(str(unit.bn.target))
        for base in cell.bases():
            base.conv.take_weight(conv.weight)
            _take_over_bn(base.bn, bn, conv.bias, float(base.bn.weight[0].detach()))
        return cell

    def _conv(self, node: torch.fx.Node) -> nn.Conv2d:
        layer = analysis.module_of(self.traced, node)
        assert isinstance(layer, nn.Conv2d)
        return layer

    def _conv_shortcut(self, shape: ConvShape, side: torch.fx.Node) -> ConvShortcut:
        """Make the host's 1x1 and its batch norm a shortcut, weights included."""
        shortcut = ConvShortcut(shape)
        conv, bn = self._conv(side), analysis.unit_of(self.traced, side).bn
        shortcut.conv.load_state_dict({"weight": conv.weight})
        _take_over_bn(shortcut.bn, None if bn is None else self.traced.get_submodule(str(bn.target)), conv.bias, 1.0)
        return shortcut

    def _remove_addition(self, residual: Residual, last: Unit) -> None:
        """Take out an addition and the activation behind it: the last cell has its own of both."""
        residual.addition.replace_all_uses_with(last.conv)
        self.traced.graph.erase_node(residual.addition)
        after = analysis.sole_user(last.conv)
        if after is not None and analysis.is_activation(self.traced, after):
            after.replace_all_uses_with(last.conv)
            self.traced.graph.erase_node(after)

    def _keep_addition(self, residual: Residual) -> None:
        """Give a kept addition its strided shortcut in Bi-Real Net's form.

        Its activation is dealt with like any other in front of a sign.
        """
        if not any(node in self.roles.units for node in residual.branch):
            return
        side = side_conv(residual, self.roles)
        if side is not None and not self._is_placed(side) and self._conv(side).stride != (1, 1):
            calls = [node for node in self.roles.real if node.target == side.target]
            norms = [analysis.unit_of(self.traced, call).bn for call in calls]
            if len({None if norm is None else norm.target for norm in norms}) > 1:
                raise UserError(f"convert: the calls of {side.target} have different batch norms behind them")
            shape = analysis.conv_shape(self.traced, side)
            self.traced.add_submodule(str(side.target), self._conv_shortcut(shape, side))
            for call, bn in zip(calls, norms, strict=True):
                if bn is not None:
                    bn.replace_all_uses_with(call)
                    self.traced.graph.erase_node(bn)

    def _is_placed(self, node: torch.fx.Node) -> bool:
        """Whether an earlier call of the same convolution has been given its shortcut already."""
        return isinstance(self.traced.get_submodule(str(node.target)), ConvShortcut)

    def _replace_activation(self, node: torch.fx.Node, channels: int) -> None:
        """Take an activation of the host out, or put the network's kind in its place."""
        before = node.all_input_nodes[0]
        if self.config.activation == "none":
            node.replace_all_uses_with(before)
        else:
            node.replace_all_uses_with(self._add_after(before, activation(self.config, channels)))
        self.traced.graph.erase_node(node)

    def _add_after(self, node: torch.fx.Node, module: nn.Module) -> torch.fx.Node:
        """Add a layer that reads a node, under a name that the host does not have; its readers are not changed."""
        name = f"{node.name}_{type(module).__name__.lower()}"
        while hasattr(self.traced, name):
            name += "_"
        self.traced.add_submodule(name, module)
        with self.traced.graph.inserting_after(node):
            added = self.traced.graph.call_module(name, (node,))
        added.meta = dict(node.meta)
        self.placed.add(added)
        return added

    def _clear_the_way_to_signs(self) -> None:
        """Replace the host's activations in front of signs, and put a batch norm behind max pooling there."""
        for node in list(self.traced.graph.nodes):
            if node in self.placed or not self._reaches_a_sign(node):
                continue
            if analysis.is_activation(self.traced, node):
                self._replace_activation(node, analysis.shape_of(node)[1])
            elif analysis.is_max_pooling(self.traced, node):
                before = node.all_input_nodes[0]
                if (
                    not isinstance(analysis.module_of(self.traced, before), nn.BatchNorm2d)
                    and before not in self.placed
                ):
                    users = list(node.users)
                    norm = self._add_after(node, nn.BatchNorm2d(analysis.shape_of(node)[1]))
                    for user in users:
                        user.replace_input_with(node, norm)

    def _reaches_a_sign(self, node: torch.fx.Node) -> bool:
        """Whether a sign reads the node with nothing between that would make a one-sided input two-sided.

        A gate, a factor of what does not come from it, is no way there: ``x * relu6(x + 3) / 6`` stays as it is.
        """
        below = analysis.descendants(node)
        reached, front = {node}, [node]
        while front:
            for user in front.pop().users:
                if user in self.roles.units:
                    return True
                if analysis.is_product(user) and not below.issuperset(filter(analysis.is_tensor, user.all_input_nodes)):
                    continue
                if user not in reached and analysis.keeps_signs(self.traced, user):
                    reached.add(user)
                    front.append(user)
        return False


def _describe(conv: nn.Conv2d) -> str:
    stride = f" /{conv.stride[0]}" if conv.stride[0] > 1 else ""
    groups = f" in {conv.groups} groups" if conv.groups > 1 else ""
    return f"{conv.kernel_size[0]}x{conv.kernel_size[1]} {conv.in_channels}-{conv.out_channels}{stride}{groups}"


@torch.no_grad()
def _take_over_bn(target: nn.BatchNorm2d, source: nn.Module | None, bias: Tensor | None, gain: float) -> None:
    """Copy a batch norm's state, gamma and beta times `gain`.

    The convolution's own bias goes into the running mean, where the host's batch norm subtracts it; without one, into
    beta.
    """
    if isinstance(source, nn.BatchNorm2d) and source.affine and source.track_running_stats:
        target.load_state_dict(source.state_dict())
        target.eps, target.momentum = source.eps, source.momentum
        target.weight.mul_(gain)
        target.bias.mul_(gain)
        if bias is not None and target.running_mean is not None:
            target.running_mean.sub_(bias)
    elif bias is not None:
        target.bias.copy_(gain * bias)


def _refuse_one_sided(network: nn.Module, input_shape: tuple[int, int, int]) -> None:
    """Run the network once on noise and refuse it if a sign sees an input of one side only.

    Raises:
        UserError: names the layer.
    """
    seen: dict[str, tuple[bool, bool]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = (bool((inputs[0] >= 0).any()), bool((inputs[0] < 0).any()))

        return hook

    handles = [
        module.register_forward_pre_hook(watch(name))
        for name, module in network.named_modules()
        if isinstance(module, Binarize)
    ]
    images = min(
        max(2**17 // (input_shape[1] * input_shape[2] * 64), 2), 64
    )  # small images need more of them to judge by
    noise = torch.randn(images, *input_shape, generator=torch.Generator().manual_seed(0))
    training = network.training
    statistics = [(buffer, buffer.clone()) for buffer in network.buffers()]
    with torch.no_grad():
        try:
            network.train()(noise)  # batch statistics, as in training; the network's own stay as they are
        finally:
            network.train(training)
            for buffer, before in statistics:
                buffer.copy_(before)
            for handle in handles:
                handle.remove()
    for name, sides in seen.items():
        if not all(sides):
            raise UserError(
                f"convert: the sign in {name} sees an input of one side only; something in front of it (an activation "
                "like ReLU, or pooling) lifts all of it above 0"
            )
