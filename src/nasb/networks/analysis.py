"""What convert() sees in a host: the traced graph, its convolutions, units and residual additions.

A unit is a convolution with the batch norm and the activation that follow it and read nothing else. A residual
addition joins a branch (the side with the k x k convolutions) and a shortcut (nothing, padding, pooling, or one 1x1
convolution) that fork from one node.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn
from torch.fx.passes.shape_prop import ShapeProp

from nasb.cells.adapt import ConvShape
from nasb.errors import UserError
from nasb.networks.resnet_cifar import OptionAShortcut

ACTIVATION_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.Hardswish, nn.SiLU, nn.GELU, nn.ELU, nn.Tanh,
)  # fmt: skip
ACTIVATION_FUNCTIONS = {
    F.relu, torch.relu, F.relu6, F.leaky_relu, F.hardtanh, F.hardswish, F.silu, F.gelu, F.elu, torch.tanh, F.relu_,
    torch.relu_,
}  # fmt: skip
ADDITIONS = {operator.add, operator.iadd, torch.add}
PASSING_MODULES = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Dropout2d, nn.Identity,
    nn.Flatten, OptionAShortcut,
)  # fmt: skip
PASSING_FUNCTIONS = {
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.dropout, F.pad, torch.flatten,
    torch.mean, torch.cat, operator.getitem, operator.mul, torch.mul, torch.sigmoid, F.hardsigmoid, F.softmax,
    F.log_softmax, getattr,
    torch.max_pool2d, torch.adaptive_avg_pool1d,
}  # fmt: skip
SHAPING_FUNCTIONS = {F.pad, F.avg_pool2d, F.max_pool2d, torch.max_pool2d, operator.getitem}
MAX_POOLING = (F.max_pool2d, F.adaptive_max_pool2d, torch.max_pool2d)
OTHER_MODULES = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.LogSoftmax)
METHODS = {
    "relu",
    "relu_",
    "add",
    "add_",
    "flatten",
    "view",
    "reshape",
    "mean",
    "size",
    "contiguous",
    "squeeze",
    "tanh",
}


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, OptionAShortcut) or super().is_leaf_module(m, module_qualified_name)


def trace(host: nn.Module, input_shape: tuple[int, int, int]) -> torch.fx.GraphModule:
    """Trace a host and write every node's shape into it.

    Raises:
        UserError: the host's forward cannot be traced or run at that input shape, or has something that is not known.
    """
    kind = type(host).__name__
    try:
        graph = _Tracer().trace(host)
    except Exception as error:
        raise UserError(f"convert: {kind} cannot be traced by torch.fx: {_first_line(error)}") from None
    traced = torch.fx.GraphModule(host, graph)
    refuse_unknown(traced)
    _dropout_as_layers(traced)
    training = traced.training
    traced.eval()
    try:
        with torch.no_grad():
            ShapeProp(traced).propagate(torch.zeros(1, *input_shape))
    except Exception as error:
        raise UserError(
            f"convert: {kind} does not run on an input of shape {input_shape}: {_first_line(error)}"
        ) from None
    finally:
        traced.train(training)
    return traced


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def refuse_unknown(traced: torch.fx.GraphModule) -> None:
    """Refuse, by name, every layer and operation that convert() does not know.

    Raises:
        UserError: names the layer.
    """
    known_modules = (*ACTIVATION_MODULES, *PASSING_MODULES, *OTHER_MODULES)
    known_functions = ACTIVATION_FUNCTIONS | ADDITIONS | PASSING_FUNCTIONS
    for node in traced.graph.nodes:
        if node.op == "call_module":
            layer = traced.get_submodule(str(node.target))
            if not isinstance(layer, known_modules):
                names = ", ".join(sorted(module.__name__ for module in known_modules))
                raise UserError(
                    f"convert: layer {node.target} is a {type(layer).__name__}, which is not known; known: {names}"
                )
        elif (node.op == "call_function" and node.target not in known_functions) or (
            node.op == "call_method" and node.target not in METHODS
        ):
            name = getattr(node.target, "__name__", str(node.target))
            raise UserError(f"convert: the operation {name} (node {node.name}) of the host's forward is not known")
        elif node.op in ("call_function", "call_method") and not node.users:
            raise UserError(
                f"convert: the result of {node.name} is not used; where it works in place, write x = {node.name}(x)"
            )
        elif node.target in ADDITIONS and node.kwargs:
            raise UserError(
                f"convert: the addition {node.name} has the arguments {dict(node.kwargs)}; only x + y is known"
            )
        elif node.op == "get_attr":
            raise UserError(
                f"convert: the host's forward reads the tensor {node.target}, which is not in a known layer"
            )


def _dropout_as_layers(traced: torch.fx.GraphModule) -> None:
    """Make a layer of each functional dropout: tracing has fixed its `training` to what it was at that moment."""
    for node in list(traced.graph.nodes):
        if node.op == "call_function" and node.target is F.dropout:
            probability = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
            name = f"{node.name}_layer"
            while hasattr(traced, name):
                name += "_"
            traced.add_submodule(name, nn.Dropout(float(probability)))
            with traced.graph.inserting_after(node):
                layer = traced.graph.call_module(name, (node.all_input_nodes[0],))
            node.replace_all_uses_with(layer)
            traced.graph.erase_node(node)
    traced.recompile()


def module_of(traced: torch.fx.GraphModule, node: torch.fx.Node) -> nn.Module | None:
    """Return the layer that a node calls, if it calls one."""
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_conv(traced: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    """Whether the node is a convolution."""
    return isinstance(module_of(traced, node), nn.Conv2d)


def is_activation(traced: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    """Whether the node is an activation of the host."""
    if node.op == "call_function":
        return node.target in ACTIVATION_FUNCTIONS
    if node.op == "call_method":
        return node.target in {"relu", "relu_", "tanh"}
    return isinstance(module_of(traced, node), ACTIVATION_MODULES)


def is_max_pooling(traced: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    """Whether the node is max pooling."""
    return (node.op == "call_function" and node.target in MAX_POOLING) or isinstance(
        module_of(traced, node), nn.MaxPool2d | nn.AdaptiveMaxPool2d
    )


def is_addition(node: torch.fx.Node) -> bool:
    """Whether the node adds two tensors."""
    named = (node.op == "call_function" and node.target in ADDITIONS) or (
        node.op == "call_method" and node.target in {"add", "add_"}
    )
    return (
        named
        and not node.kwargs
        and len(node.args) == 2
        and all(isinstance(argument, torch.fx.Node) for argument in node.args)
    )


def keeps_signs(traced: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    """Whether a one-sided input gives a one-sided output (pooling, dropout, ..., but no batch norm or convolution)."""
    if node.op == "call_module":
        return isinstance(module_of(traced, node), PASSING_MODULES)
    if node.op == "call_method":
        return True
    return is_addition(node) or node.target in PASSING_FUNCTIONS


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
        UserError: padding that is no number of pixels, or is not zeros.
    """
    layer = module_of(traced, conv)
    assert isinstance(layer, nn.Conv2d)
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise UserError(
            f"convert: layer {conv.target} pads by {layer.padding!r} ({layer.padding_mode}); give pixels of zeros"
        )
    height, width = shape_of(conv.all_input_nodes[0])[-2:]
    return ConvShape(
        in_channels=layer.in_channels,
        out_channels=layer.out_channels,
        kernel_size=(layer.kernel_size[0], layer.kernel_size[1]),
        stride=(layer.stride[0], layer.stride[1]),
        padding=(layer.padding[0], layer.padding[1]),
        dilation=(layer.dilation[0], layer.dilation[1]),
        groups=layer.groups,
        in_size=(height, width),
    )


def shape_of(node: torch.fx.Node) -> tuple[int, ...]:
    """Return the shape [N, C, H, W] that a node had when it was traced."""
    return tuple(node.meta["tensor_meta"].shape)


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
    shaping = (nn.Identity, nn.AvgPool2d, nn.MaxPool2d, OptionAShortcut)
    return all(
        node in allowed
        or isinstance(module_of(traced, node), shaping)
        or (node.op == "call_function" and node.target in SHAPING_FUNCTIONS)
        for node in side
    )
