"""What convert() sees in a traced host: its convolutions, units, residual additions and dense concatenations.

A unit is a convolution with the batch norm and the activation that follow it and read nothing else. A residual
addition joins a branch (the side with the k x k convolutions) and a shortcut (nothing, padding, pooling, or one 1x1
convolution) that fork from one node. A concatenation is dense where it holds what a branch of it has read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch.fx
from torch import nn

from nasb.cells.adapt import ConvShape
from nasb.errors import UserError
from nasb.networks import known


def module_of(traced: torch.fx.GraphModule, node: torch.fx.Node) -> nn.Module | None:
    """Return the layer that a node calls, if it calls one."""
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_conv(traced: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    """Whether the node is a convolution."""
    return isinstance(module_of(traced, node), nn.Conv2d)


def holds_weights(traced: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    """Whether the node is a convolution or a linear layer, or a layer that is kept as it is and has some inside."""
    layer = module_of(traced, node)
    return layer is not None and any(isinstance(part, nn.Conv2d | nn.Linear) for part in layer.modules())


def is_activation(traced: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    """Whether the node is an activation of the host."""
    if node.op == "call_function":
        return node.target in known.ACTIVATION_FUNCTIONS
    if node.op == "call_method":
        return node.target in known.ACTIVATION_METHODS
    return isinstance(module_of(traced, node), known.ACTIVATION_MODULES)


def is_max_pooling(traced: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    """Whether the node is max pooling."""
    return (node.op == "call_function" and node.target in known.MAX_POOLING) or isinstance(
        module_of(traced, node), nn.MaxPool2d | nn.AdaptiveMaxPool2d
    )


def is_addition(node: torch.fx.Node) -> bool:
    """Whether the node adds two tensors."""
    named = (node.op == "call_function" and node.target in known.ADDITIONS) or (
        node.op == "call_method" and node.target in known.ADDITION_METHODS
    )
    return named and not node.kwargs and len(node.args) == 2 and all(map(is_tensor, node.args))


def is_tensor(argument: object) -> bool:
    """Whether an argument of a node is a tensor of the graph."""
    return isinstance(argument, torch.fx.Node) and "shape" in argument.meta


def keeps_signs(traced: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    """Whether a one-sided input gives a one-sided output (pooling, dropout, ..., but no batch norm or convolution)."""
    if node.op == "call_module":
        return isinstance(module_of(traced, node), known.PASSING_MODULES)
    if node.op == "call_method":
        return node.target in known.PASSING_METHODS
    return is_addition(node) or node.target in known.PASSING_FUNCTIONS


def is_product(node: torch.fx.Node) -> bool:
    """Whether the node multiplies."""
    return node.op in ("call_function", "call_method") and node.target in known.PRODUCTS


def descendants(node: torch.fx.Node) -> set[torch.fx.Node]:
    """Return the node and all that follows from it."""
    found, front = {node}, [node]
    while front:
        for user in front.pop().users:
            if user not in found:
                found.add(user)
                front.append(user)
    return found


def sole_user(node: torch.fx.Node) -> torch.fx.Node | None:
    """Return the one node that reads this one, None if there are several."""
    return next(iter(node.users)) if len(node.users) == 1 else None


@dataclass
class Unit:
    """A convolution with the batch norm and the activation that belong to it."""

    conv: torch.fx.Node
    bn: torch.fx.Node | None
    activation: torch.fx.Node | None

    @property
    def end(self) -> torch.fx.Node:
        """The node whose value the unit gives."""
        return self.activation or self.bn or self.conv

    @property
    def nodes(self) -> list[torch.fx.Node]:
        """Its nodes, in order."""
        return [node for node in (self.conv, self.bn, self.activation) if node is not None]


def unit_of(traced: torch.fx.GraphModule, conv: torch.fx.Node) -> Unit:
    """Return the unit that a convolution begins."""
    bn = sole_user(conv)
    if bn is None or not isinstance(module_of(traced, bn), nn.BatchNorm2d):
        bn = None
    after = sole_user(bn or conv)
    return Unit(conv, bn, after if after is not None and is_activation(traced, after) else None)


def conv_shape(traced: torch.fx.GraphModule, conv: torch.fx.Node) -> ConvShape:
    """Return the shape of a convolution node.

    Raises:
        UserError: padding that differs between the two sides, or is not zeros.
    """
    layer = module_of(traced, conv)
    assert isinstance(layer, nn.Conv2d)
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    if left != right or top != bottom or layer.padding_mode != "zeros":
        raise UserError(
            f"convert: layer {conv.target} pads by {layer.padding!r} ({layer.padding_mode}); give pixels of zeros, as "
            f'many on both sides, or keep it as it is: keep_real: ["{conv.target}"]'
        )
    height, width = shape_of(conv.all_input_nodes[0])[-2:]
    return ConvShape(
        in_channels=layer.in_channels,
        out_channels=layer.out_channels,
        kernel_size=(layer.kernel_size[0], layer.kernel_size[1]),
        stride=(layer.stride[0], layer.stride[1]),
        padding=(top, left),
        dilation=(layer.dilation[0], layer.dilation[1]),
        groups=layer.groups,
        in_size=(height, width),
    )


def shape_of(node: torch.fx.Node) -> tuple[int, ...]:
    """Return the shape [N, C, H, W] that a node had when it was traced."""
    return tuple(node.meta["shape"])


@dataclass
class Residual:
    """A residual addition: its node, the nodes of its branch and of its shortcut, both without the fork."""

    addition: torch.fx.Node
    branch: list[torch.fx.Node]
    shortcut: list[torch.fx.Node]
    plain: bool
    """Whether the shortcut passes its input on, but for a change of shape (pooling, padding, slicing, a 1x1)."""


def residuals(traced: torch.fx.GraphModule) -> list[Residual]:
    """Return the additions of which one side has all the k x k convolutions, and the other at most one 1x1."""
    order = {node: index for index, node in enumerate(traced.graph.nodes)}
    above: dict[torch.fx.Node, set[torch.fx.Node]] = {}
    for node in traced.graph.nodes:
        above[node] = {node}.union(*(above[parent] for parent in node.all_input_nodes))
    found = []
    for node in traced.graph.nodes:
        if not is_addition(node) or len(node.all_input_nodes) != 2:
            continue
        left, right = node.all_input_nodes
        common = above[left] & above[right]
        if not common:
            continue
        fork = max(common, key=order.__getitem__)
        sides = [sorted(above[side] - above[fork], key=order.__getitem__) for side in (left, right)]
        convs = [[n for n in side if is_conv(traced, n)] for side in sides]
        for main, other in ((0, 1), (1, 0)):
            more = len(convs[main]) > len(convs[other]) or not _at_most_a_1x1(traced, convs[main])
            if convs[main] and more and _at_most_a_1x1(traced, convs[other]):
                found.append(Residual(node, sides[main], sides[other], _passes_on(traced, sides[other])))
                break
    return found


def _at_most_a_1x1(traced: torch.fx.GraphModule, convs: Sequence[torch.fx.Node]) -> bool:
    layers = [module_of(traced, conv) for conv in convs]
    return len(layers) <= 1 and all(
        isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1 for layer in layers
    )


def _passes_on(traced: torch.fx.GraphModule, side: Sequence[torch.fx.Node]) -> bool:
    """Whether a shortcut does nothing to its input but change its shape."""
    unit = next((unit_of(traced, node) for node in side if is_conv(traced, node)), None)
    allowed = set() if unit is None else {unit.conv, unit.bn}
    return all(
        node in allowed
        or isinstance(module_of(traced, node), known.SHAPING_MODULES)
        or (node.op == "call_function" and node.target in known.SHAPING_FUNCTIONS)
        or (node.op == "call_method" and node.target in known.SHAPING_METHODS)
        for node in side
    )


def dense_branches(traced: torch.fx.GraphModule) -> set[torch.fx.Node]:
    """Return the values that are concatenated with all that their branches have read, as in DenseNet.

    A branch is followed up to where it begins, as far as each of its nodes reads one tensor: at a value of the
    concatenation, or at an earlier concatenation of such values.
    """
    found = set()
    for node in traced.graph.nodes:
        if node.op == "call_function" and node.target in known.CONCATENATIONS:
            joined = set(node.all_input_nodes)
            for value in joined:
                begin = value
                while begin is value or begin not in joined:
                    sources = [source for source in begin.all_input_nodes if is_tensor(source)]
                    if len(sources) != 1:
                        break
                    (begin,) = sources
                if begin is not value and (begin in joined or _is_part(begin, joined)):
                    found.add(value)
    return found


def _is_part(node: torch.fx.Node, joined: Iterable[torch.fx.Node]) -> bool:
    """Whether a node concatenates some of those values."""
    return node.target in known.CONCATENATIONS and set(node.all_input_nodes) <= set(joined)
