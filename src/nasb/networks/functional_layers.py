"""Layers in place of the functional calls of a host's forward that have weights or draw at random.

``F.conv2d(x, self.conv.weight, stride=2)`` becomes a call of an nn.Conv2d that has the same parameter under the same
name. Where the module that owns the parameter has other uses, the layer stands in it, e.g. ``bn1.norm`` in timm's
BatchNormAct2d, whose activation stays ``bn1.act``. Calls that share weights and settings share the layer.

Dropout and stochastic depth become layers, since tracing has fixed whether they draw.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth, stochastic_depth

from nasb.networks.known import DROP_PATH

Arguments = dict[str, Any]
CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def _conv2d(weight: Tensor, bias: Tensor | None, a: Arguments) -> nn.Module:
    geometry = {key: _plain(a[key]) for key in ("stride", "padding", "dilation") if key in a}
    groups = a.get("groups", 1)
    height, width = weight.shape[2:]
    channels = (groups * weight.shape[1], weight.shape[0])
    layer = nn.Conv2d(*channels, (height, width), **geometry, groups=groups, bias=bias is not None)
    return _with(layer, weight=weight, bias=bias)


def _linear(weight: Tensor, bias: Tensor | None, a: Arguments) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    return _with(layer, weight=weight, bias=bias)


def _batch_norm(weight: Tensor | None, bias: Tensor | None, a: Arguments) -> nn.Module:
    mean, variance = a["running_mean"], a["running_var"]
    layer = nn.BatchNorm2d(len(mean), a.get("eps", 1e-5), a.get("momentum", 0.1), affine=weight is not None)
    _with(layer, weight=weight, bias=bias)
    layer.running_mean, layer.running_var = mean, variance
    return layer


def _prelu(weight: Tensor, bias: Tensor | None, a: Arguments) -> nn.Module:
    return _with(nn.PReLU(weight.numel()), weight=weight)


KINDS: dict[Any, tuple[str, tuple[str, ...], Callable[..., nn.Module]]] = {
    **dict.fromkeys((F.conv2d, torch.conv2d), ("conv", CONV, _conv2d)),
    F.linear: ("linear", ("input", "weight", "bias"), _linear),
    F.batch_norm: (
        "norm",
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        _batch_norm,
    ),
    **dict.fromkeys((F.prelu, torch.prelu), ("prelu", ("input", "weight"), _prelu)),
}
"""The name of the layer, the function's arguments, and how the layer is made."""
RANDOM: dict[Any, Callable[..., nn.Module]] = {
    F.dropout: lambda p=0.5, training=True, inplace=False: nn.Dropout(p),
    torch.dropout: lambda p, train: nn.Dropout(p),
    F.dropout2d: lambda p=0.5, training=True, inplace=False: nn.Dropout2d(p),
    stochastic_depth: lambda p, mode, training=True: StochasticDepth(p, mode),
}


def functions_to_layers(traced: torch.fx.GraphModule) -> None:
    """Put layers in place of functional calls with weights, of functional dropout and of stochastic depth.

    A call whose weight is computed (e.g. standardized) stays as it is, and is refused by its name.
    """
    made: dict[tuple[Any, ...], str] = {}
    _drop_unread(traced)
    read = {str(node.target) for node in traced.graph.nodes if node.op == "get_attr"}
    tensors = {target: _tensor(traced, target) for target in read}  # before layers take their owners' places
    for node in list(traced.graph.nodes):
        if node.op == "call_function" and node.target in KINDS:
            _layer_with_weights(traced, node, tensors, made)
        elif node.op == "call_function" and node.target in RANDOM:
            (x,) = node.all_input_nodes
            options = {key: value for key, value in node.kwargs.items() if value is not x}
            layer = RANDOM[node.target](*[argument for argument in node.args if argument is not x], **options)
            _call(traced, node, _enter(traced, f"{node.name}_layer", layer), x)
        elif node.op == "call_module" and type(traced.get_submodule(str(node.target))).__name__ == DROP_PATH:
            probability = getattr(traced.get_submodule(str(node.target)), "drop_prob", None) or 0.0
            traced.set_submodule(str(node.target), StochasticDepth(float(probability), "row"))
    _drop_unread(traced)
    traced.eval()  # as the host is now; new layers are made in training mode


def _drop_unread(traced: torch.fx.GraphModule) -> None:
    for node in list(traced.graph.nodes):
        if node.op == "get_attr" and not node.users:
            traced.graph.erase_node(node)


def _layer_with_weights(
    traced: torch.fx.GraphModule, node: torch.fx.Node, known: Mapping[str, Any], made: dict[tuple[Any, ...], str]
) -> None:
    kind, names, build = KINDS[node.target]
    arguments = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    tensors = {key: value for key, value in arguments.items() if isinstance(value, torch.fx.Node) and key != "input"}
    weight = tensors.get("weight", tensors.get("running_mean"))
    if weight is None or any(tensor.op != "get_attr" for tensor in tensors.values()):
        return
    settings = {key: value for key, value in arguments.items() if key not in ("input", "training", *tensors)}
    targets = {key: str(tensor.target) for key, tensor in tensors.items()}
    signature = (kind, repr(sorted(targets.items())), repr(sorted(settings.items(), key=str)))
    if signature not in made:
        values = {key: known[target] for key, target in targets.items()}
        layer = build(values.pop("weight", None), values.pop("bias", None), {**settings, **values})
        made[signature] = _place(
            traced, targets["weight" if "weight" in targets else "running_mean"], kind, layer, set(targets.values())
        )
    x = arguments["input"]
    assert isinstance(x, torch.fx.Node)
    _call(traced, node, made[signature], x)


def _place(traced: torch.fx.GraphModule, weight: str, kind: str, layer: nn.Module, own: set[str]) -> str:
    """Put a layer where its weights are: in the place of the module that owns them, or in it; return its name."""
    owner, _, parameter = weight.rpartition(".")
    alone = owner and next(traced.get_submodule(owner).children(), None) is None
    read = {str(n.target) for n in traced.graph.nodes if n.op == "get_attr" and str(n.target).startswith(f"{owner}.")}
    called = any(n.op == "call_module" and str(n.target) == owner for n in traced.graph.nodes)
    if alone and read <= own and not called:
        traced.set_submodule(owner, layer)
        return owner
    if owner and called and _same(traced.get_submodule(owner), layer):
        return owner
    if owner and read <= own and not called:  # a container of its other layers, without the weights
        container = nn.Module()
        for name, child in traced.get_submodule(owner).named_children():
            container.add_module(name, child)
        traced.set_submodule(owner, container)
        return _enter(traced, f"{owner}.{kind}", layer)
    if owner and called:  # a layer is no place for another one, since it may become a cell
        return _enter(traced, f"{owner}_{parameter}_{kind}", layer)
    return _enter(traced, f"{owner}.{parameter}_{kind}" if owner else f"{parameter}_{kind}", layer)


def _same(module: nn.Module, layer: nn.Module) -> bool:
    """Whether a layer of the host is what a functional call with its weights makes."""
    return type(module) is type(layer) and repr(module) == repr(layer)


def _enter(traced: torch.fx.GraphModule, name: str, layer: nn.Module) -> str:
    owner, _, own = name.rpartition(".")
    parent = traced.get_submodule(owner)
    while hasattr(parent, own):
        own += "_"
    parent.add_module(own, layer)
    return f"{owner}.{own}" if owner else own


def _call(traced: torch.fx.GraphModule, node: torch.fx.Node, layer: str, x: torch.fx.Node) -> None:
    with traced.graph.inserting_after(node):
        call = traced.graph.call_module(layer, (x,))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    traced.graph.erase_node(node)


def _tensor(traced: torch.fx.GraphModule, target: str) -> Any:
    owner, _, name = target.rpartition(".")
    return getattr(traced.get_submodule(owner), name)


def _with(layer: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """Give a layer its tensors: the host's parameters themselves, and fixed filters as what is not trained."""
    for name, tensor in tensors.items():
        if tensor is not None:
            fixed = not isinstance(tensor, nn.Parameter)
            setattr(layer, name, nn.Parameter(tensor, requires_grad=False) if fixed else tensor)
    return layer


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
