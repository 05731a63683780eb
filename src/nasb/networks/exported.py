"""The graph of a host by torch.export, in the words of torch.fx: functions of torch in place of ATen's operators."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn


def _batch_norm(x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: Any, *rest: Any) -> tuple[Any, ...]:
    return (x, mean, variance, weight, bias, training, *rest[:2])


def _slice(x: Any, axis: int = 0, start: Any = None, end: Any = None, step: int = 1) -> tuple[Any, ...]:
    end = None if isinstance(end, int) and end >= torch.iinfo(torch.int64).max else end
    return (x, (*(slice(None),) * axis, slice(start, end, step)))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "conv2d.default": F.conv2d, "conv2d.padding": F.conv2d, "linear.default": F.linear, "prelu.default": F.prelu,
    "batch_norm.default": F.batch_norm, "relu.default": F.relu, "relu_.default": F.relu_, "hardtanh.default":
    F.hardtanh, "relu6.default": F.relu6, "silu.default": F.silu, "hardswish.default": F.hardswish, "gelu.default":
    F.gelu, "elu.default": F.elu, "mish.default": F.mish, "leaky_relu.default": F.leaky_relu, "tanh.default":
    torch.tanh, "sigmoid.default": torch.sigmoid, "hardsigmoid.default": F.hardsigmoid, "softmax.int": torch.softmax,
    "add.Tensor": operator.add, "mul.Tensor": operator.mul, "sub.Tensor": operator.sub, "div.Tensor":
    operator.truediv, "add_.Tensor": operator.iadd, "mul_.Tensor": operator.imul, "cat.default": torch.cat,
    "max_pool2d.default": F.max_pool2d, "avg_pool2d.default": F.avg_pool2d, "adaptive_avg_pool2d.default":
    F.adaptive_avg_pool2d, "mean.dim": torch.mean, "flatten.using_ints": torch.flatten, "view.default":
    torch.reshape, "reshape.default": torch.reshape, "squeeze.dim": torch.squeeze, "pad.default": F.pad,
    "dropout.default": torch.dropout, "chunk.default": torch.chunk, "split.Tensor": torch.split,
    "split_with_sizes.default": torch.split, "slice.Tensor": operator.getitem,
}  # fmt: skip
IN_PLACE: dict[str, Callable[..., Any]] = {
    "hardtanh_.default": F.hardtanh, "silu_.default": F.silu, "hardswish_.default": F.hardswish, "elu_.default": F.elu,
    "leaky_relu_.default": F.leaky_relu, "hardsigmoid_.default": F.hardsigmoid, "mish_.default": F.mish,
}  # fmt: skip
ARGUMENTS: dict[str, Callable[..., tuple[Any, ...]]] = {"batch_norm.default": _batch_norm, "slice.Tensor": _slice}
UNCHANGED = (
    "contiguous.default",
    "clone.default",
    "detach.default",
    "alias.default",
    "_assert_tensor_metadata.default",
)


def exported(host: nn.Module, input_shape: tuple[int, int, int]) -> torch.fx.GraphModule:
    """Return the graph of a host in evaluation mode; its weights are read as tensors, not in layers.

    Operators that have no function here stay, and are refused by their names later.

    Args:
        host: any module of images [N, C, H, W].
        input_shape: [channels, height, width] of one image.

    Raises:
        Exception: torch.export cannot follow the host's forward (whatever torch.export raises).
    """
    images = (torch.zeros(2, *input_shape),)
    free = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(host, images, dynamic_shapes=free, strict=False)
    source = program.module(check_guards=False)
    graph = torch.fx.Graph()
    copies: dict[torch.fx.Node, Any] = {}
    for node in source.graph.nodes:
        if node.op == "output":
            graph.output(torch.fx.node.map_arg(node.args[0][0], copies.__getitem__))
        elif node.op == "call_function":
            copies[node] = _copy(graph, node, copies)
        elif node.op == "call_module":
            raise NotImplementedError(f"{node.target}: a part with control flow of its own")
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return torch.fx.GraphModule(source, graph, class_name=type(host).__name__)


def _copy(graph: torch.fx.Graph, node: torch.fx.Node, copies: dict[torch.fx.Node, Any]) -> Any:
    name = str(node.target).removeprefix("aten.")
    if name in UNCHANGED:
        return copies[node.all_input_nodes[0]]
    args: Any = torch.fx.node.map_arg(node.args, copies.__getitem__)
    kwargs: Any = torch.fx.node.map_arg(node.kwargs, copies.__getitem__)
    target: Any = node.target
    if name in ARGUMENTS:
        args = ARGUMENTS[name](*args)
    if name == "sym_size.int":
        copy = graph.call_method("size", args)
    elif name in IN_PLACE:
        copy = graph.call_function(IN_PLACE[name], args, {**kwargs, "inplace": True})
    else:
        copy = graph.call_function(FUNCTIONS.get(name, target), args, kwargs)
    copy.meta = {key: node.meta[key] for key in ("nn_module_stack",) if key in node.meta}
    return copy
