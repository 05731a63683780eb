"""What each convolution and each addition of a host becomes, decided before anything is rewritten.

Every convolution becomes a cell, except: the first one, the classifier, depthwise ones, those that act on a 1x1 map
(linear layers, such as squeeze-and-excitation's), the 1x1 of a residual block's shortcut, and what the user keeps.

The last cell before an addition that stays, or before a concatenation that holds what its branch has read (DenseNet's
layers), has no shortcut of its own: what it would add is there already.

A convolution that is called several times becomes one cell that is called as often.
"""

from dataclasses import dataclass, field

import torch.fx
from torch import nn

from nasb.cells.adapt import Adapt, AvgMaxShortcut, ConvShape
from nasb.cells.config import CellConfig
from nasb.errors import UserError
from nasb.networks import analysis
from nasb.networks.analysis import Residual, Unit
from nasb.networks.known import matches

ASKED = "asked: keep_real"
"""Why a convolution that the user named stays real."""
ADAPT, AVGMAX, CONV, ADDITION, CONCATENATION, NOTHING = (
    "adapt", "avgmax", "conv", "addition", "concatenation", "nothing"
)  # fmt: skip


@dataclass(frozen=True)
class Shortcut:
    """The shortcut of a cell.

    `kind` is adapt, avgmax (added channels are max-pooled), conv (average pooling, real 1x1, batch norm; `side` is the
    host's 1x1 whose weights it takes over), addition (the host's own addition around the cell), concatenation (the
    host concatenates the cell's value with what its branch has read) or nothing (there is none, and none is possible).
    """

    kind: str
    side: torch.fx.Node | None = None


@dataclass
class Roles:
    """The roles of a traced host's convolutions and additions."""

    units: dict[torch.fx.Node, Unit] = field(default_factory=dict)
    """The convolutions that become cells, with what belongs to them."""
    real: dict[torch.fx.Node, str] = field(default_factory=dict)
    """The convolutions that stay real, and why."""
    shortcuts: dict[torch.fx.Node, Shortcut] = field(default_factory=dict)
    """The shortcut of each cell, by its convolution."""
    removed: list[tuple[Residual, Unit]] = field(default_factory=list)
    """The additions that go, each with the last cell of its branch."""
    kept: list[Residual] = field(default_factory=list)
    """The additions that stay."""


def assign_roles(traced: torch.fx.GraphModule, config: CellConfig, keep_real: tuple[str, ...] = ()) -> Roles:
    """Decide what becomes of every convolution and addition of a host.

    Args:
        traced: the host.
        config: options of the cells.
        keep_real: shell wildcards of the names of convolutions that stay real.

    Raises:
        UserError: no convolution could be binarized, or one is called more than once in different ways.
    """
    residuals = analysis.residuals(traced)
    roles = Roles(real=_real_convs(traced, residuals, keep_real))
    convs = [node for node in traced.graph.nodes if analysis.is_conv(traced, node)]
    roles.units = {conv: analysis.unit_of(traced, conv) for conv in convs if conv not in roles.real}
    if not roles.units:
        raise UserError("convert: the host has no convolution that could be binarized")
    for residual in residuals:
        _decide_residual(traced, residual, roles, config)
    dense = analysis.dense_branches(traced)
    for conv, unit in roles.units.items():
        if conv not in roles.shortcuts and _end(traced, unit) in dense:
            roles.shortcuts[conv] = Shortcut(CONCATENATION)
        elif conv not in roles.shortcuts:
            roles.shortcuts[conv] = _own_shortcut(analysis.conv_shape(traced, conv), config)
    _check_calls(traced, roles)
    return roles


def _end(traced: torch.fx.GraphModule, unit: Unit) -> torch.fx.Node:
    """Return the last value behind a unit that has it alone, e.g. behind dropout."""
    end = unit.end
    while (user := analysis.sole_user(end)) is not None and isinstance(
        analysis.module_of(traced, user), nn.Dropout | nn.Dropout2d | nn.Identity
    ):
        end = user
    return end


def _check_calls(traced: torch.fx.GraphModule, roles: Roles) -> None:
    """Refuse a convolution that is called more than once, unless one cell can serve every call."""
    calls: dict[str, list[torch.fx.Node]] = {}
    for conv in (*roles.units, *roles.real):
        calls.setdefault(str(conv.target), []).append(conv)
    for name, nodes in calls.items():
        forms = {_form(traced, roles, node) for node in nodes}
        if len(forms) > 1:
            raise UserError(
                f"convert: layer {name} is called {len(nodes)} times, each time otherwise (in size, batch norm, or "
                f"shortcut), so that one cell cannot serve all; give each call a layer of its own, or keep it as it "
                f'is: keep_real: ["{name}"]'
            )


def _form(traced: torch.fx.GraphModule, roles: Roles, conv: torch.fx.Node) -> object:
    """Return what must be equal in all calls of one cell."""
    if conv in roles.real:
        return "real"
    bn = roles.units[conv].bn
    shortcut = roles.shortcuts[conv]
    side = None if shortcut.side is None else shortcut.side.target
    return analysis.conv_shape(traced, conv), None if bn is None else bn.target, shortcut.kind, side


def _real_convs(
    traced: torch.fx.GraphModule, residuals: list[Residual], keep_real: tuple[str, ...]
) -> dict[torch.fx.Node, str]:
    """Return the convolutions that stay real, with the reason."""
    nodes = list(traced.graph.nodes)
    conv_above: set[torch.fx.Node] = set()
    for node in nodes:
        if any(parent in conv_above or analysis.holds_weights(traced, parent) for parent in node.all_input_nodes):
            conv_above.add(node)
    weights_below: set[torch.fx.Node] = set()
    for node in reversed(nodes):
        for user in node.users:
            if user in weights_below or analysis.holds_weights(traced, user):
                weights_below.add(node)
    sides = {node for residual in residuals for node in residual.shortcut}
    reasons: dict[torch.fx.Node, str] = {}
    for conv in nodes:
        layer = analysis.module_of(traced, conv)
        if not isinstance(layer, nn.Conv2d):
            continue
        conditions = {
            "first convolution": conv not in conv_above,
            "classifier": conv not in weights_below,
            ASKED: matches(str(conv.target), keep_real),
            "depthwise": layer.groups == layer.in_channels > 1,
            "1x1 shortcut": conv in sides,
            "acts on a 1x1 map": analysis.shape_of(conv.all_input_nodes[0])[2:] == layer.kernel_size == (1, 1),
        }
        found = [reason for reason, holds in conditions.items() if holds]
        if found:
            reasons[conv] = found[0]
    return reasons


def _decide_residual(traced: torch.fx.GraphModule, residual: Residual, roles: Roles, config: CellConfig) -> None:
    """Decide whether an addition goes, and which shortcuts that gives to the cells of its branch.

    It goes where the branch is a chain of cells of which at most one changes the shape, as in a basic block: each
    cell has a shortcut of its own. It stays, as the shortcut of the last cell, where the branch has other layers too,
    or is a bottleneck (1x1 convolutions, or fewer channels inside): the narrow cells could not carry the real-valued
    stream.
    """
    units = [roles.units[node] for node in residual.branch if node in roles.units]
    if not units:
        roles.kept.append(residual)
        return
    chain = {node for unit in units for node in unit.nodes} == set(residual.branch)
    shapes = {unit.conv: analysis.conv_shape(traced, unit.conv) for unit in units}
    bottleneck = any(s.kernel_size == (1, 1) or s.out_channels < s.in_channels for s in shapes.values())
    changing = [conv for conv, shape in shapes.items() if not shape.keeps_shape]
    side = side_conv(residual, roles)
    asked = any(roles.real.get(node) == ASKED for node in residual.shortcut)
    if asked or not (chain and residual.plain and not bottleneck and len(changing) <= 1 and (side is None or changing)):
        roles.kept.append(residual)
        roles.shortcuts[units[-1].conv] = Shortcut(ADDITION)
        return
    roles.removed.append((residual, units[-1]))
    if side is not None and config.shortcut not in (ADAPT, AVGMAX):
        roles.shortcuts[changing[0]] = Shortcut(CONV, side)


def side_conv(residual: Residual, roles: Roles) -> torch.fx.Node | None:
    """Return the real 1x1 on an addition's shortcut, if there is one that need not stay as it is."""
    return next((node for node in residual.shortcut if roles.real.get(node, ASKED) != ASKED), None)


def _own_shortcut(shape: ConvShape, config: CellConfig) -> Shortcut:
    if config.shortcut == CONV and not shape.keeps_shape:
        return Shortcut(CONV)
    if config.shortcut == AVGMAX and AvgMaxShortcut.possible(shape):
        return Shortcut(AVGMAX)
    return Shortcut(ADAPT if Adapt.possible(shape.in_channels, shape.out_channels) else NOTHING)
