"""Lowering of functions and methods on tensors (``x + y``, ``F.relu``, ``x.view``), as they stand between layers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch.fx
from torch import Tensor, nn

from nasb.deploy import layers, pooling  # noqa: F401 - pooling registers its layers
from nasb.deploy.step import LAYERS, Step, operation


def _hardtanh(min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> nn.Module:
    return nn.Hardtanh(min_val, max_val, inplace)


def _max_pool2d(
    kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> nn.Module:  # fmt: skip
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


AS_LAYER: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "hardtanh": _hardtanh,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": nn.AvgPool2d,
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d,
}
"""Functions that are a layer without weights: they take the layer's arguments behind their input."""


@operation(*AS_LAYER)
def layer_function(step: Step) -> str:
    """Return what the layer gives."""
    name = str(getattr(step.node.target, "__name__", step.node.target)).strip("_")
    options = {key: value for key, value in step.node.kwargs.items() if key != "input"}
    step.module = AS_LAYER[name](*step.node.args[1:], **options)
    return LAYERS[type(step.module).__name__].lower(step)


@operation("contiguous", "clone", "detach")
def unchanged(step: Step) -> str:
    """Nothing."""
    return step.x


@operation("dropout", "dropout2d")
def dropout(step: Step) -> str:
    """Nothing, in evaluation."""
    if step.node.kwargs.get("training", False):
        raise step.refusal("is a dropout that is always on; give it training=self.training")
    return step.x


@operation("flatten", "view", "reshape", "squeeze", "unsqueeze")
def reshape(step: Step) -> str:
    """Flatten to [N, features], else Reshape [0, ...]."""
    return layers.reshape(step)


@operation("add", "iadd")
def add(step: Step) -> str:
    """Add of two tensors, or of a tensor and a constant."""
    return _with_two(step, "Add")


@operation("mul", "imul")
def multiply(step: Step) -> str:
    """Mul of two tensors, or of a tensor and a constant."""
    return _with_two(step, "Mul")


@operation("sub")
def subtract(step: Step) -> str:
    """Add of the negative, which Mul makes of a tensor."""
    operands = step.node.args
    if len(operands) == 2 and isinstance(operands[1], int | float):
        return _with_two(step, "Add", (operands[0], -operands[1]))
    if len(operands) != 2 or any(step.trace.shapes.get(x) != step.out_shape for x in operands):  # type: ignore[arg-type]
        raise step.refusal("subtracts; the file holds this for two values of one shape, or a value and a number")
    negative = step.emit("Mul", _operand(step, operands[1]), step.graph.number(-1.0))
    return step.emit("Add", _operand(step, operands[0]), negative)


@operation("truediv", "div")
def divide(step: Step) -> str:
    """Mul by the inverse of a number."""
    operands = step.node.args
    if len(operands) != 2 or step.node.kwargs or not isinstance(operands[1], int | float) or operands[1] == 0:
        raise step.refusal("divides; the file holds this for a value and a number")
    return _with_two(step, "Mul", (operands[0], 1 / operands[1]))


def _with_two(step: Step, operator: str, operands: Sequence[Any] = ()) -> str:
    operands = operands or step.node.args
    if len(operands) != 2 or step.node.kwargs:
        raise step.refusal(f"has other arguments than two operands: {dict(step.node.kwargs)}")
    # The operand of the result's shape stands first; the other one may be [N, C, 1, 1], or a constant.
    shapes = [step.trace.shapes.get(operand) if isinstance(operand, torch.fx.Node) else None for operand in operands]
    first = 0 if shapes[0] == step.out_shape else 1
    per_channel = (*step.out_shape[:2], *(1,) * (len(step.out_shape) - 2))
    if shapes[first] != step.out_shape or shapes[1 - first] not in (None, step.out_shape, per_channel):
        raise step.refusal(f"joins values of shapes {shapes}; the file holds equal ones, and one value per channel")
    return step.emit(operator, _operand(step, operands[first]), _operand(step, operands[1 - first]))


def _operand(step: Step, operand: Any) -> str:
    """Return the name of an operand: a tensor of the graph, or a constant of one element or [C, 1, 1]."""
    if isinstance(operand, int | float):
        return step.graph.number(float(operand))
    if isinstance(operand, torch.fx.Node) and operand in step.trace.shapes:
        return step.inputs[[node for node in step.node.all_input_nodes if node in step.trace.shapes].index(operand)]
    if isinstance(operand, torch.fx.Node) and operand in step.trace.constants:
        return _constant(step, operand, step.trace.constants[operand])
    raise step.refusal(f"has the operand {operand}, which is neither a tensor nor a number")


def _constant(step: Step, operand: torch.fx.Node, values: Tensor) -> str:
    if values.numel() == 1:
        return step.weight(operand.name, values.reshape(1))
    per_channel = (step.out_shape[1], *(1,) * (len(step.out_shape) - 2))
    if tuple(values.shape) not in (per_channel, (1, *per_channel)):
        raise step.refusal(
            f"has the constant {operand.name} of shape {tuple(values.shape)}; the file holds one number, or one per "
            f"channel {per_channel}"
        )
    return step.per_channel(operand.name, values)


@operation("cat", "concat")
def concatenate(step: Step) -> str:
    """Concat of channels."""
    tensors = step.node.args[0] if step.node.args else step.node.kwargs.get("tensors", ())
    axis = (
        step.node.args[1] if len(step.node.args) > 1 else step.node.kwargs.get("dim", step.node.kwargs.get("axis", 0))
    )
    if axis not in (1, 1 - len(step.out_shape)):
        raise step.refusal(f"concatenates along axis {axis}; the file holds axis 1")
    if not isinstance(tensors, list | tuple):
        raise step.refusal("concatenates what is not written as a list of tensors")
    return step.emit("Concat", *(_operand(step, tensor) for tensor in tensors), axis=1)


@operation("mean")
def mean(step: Step) -> str:
    """GlobalAveragePool, and Flatten unless the axes are kept."""
    axes = step.node.args[1] if len(step.node.args) > 1 else step.node.kwargs.get("dim", step.node.kwargs.get("axis"))
    rank = len(step.in_shape)
    if rank != 4 or not isinstance(axes, list | tuple) or {int(a) % rank for a in axes} != {2, 3}:
        raise step.refusal(f"is a mean over {axes}; the file holds the mean over both axes of the image")
    pooled = step.emit("GlobalAveragePool", step.x)
    return pooled if len(step.out_shape) == 4 else step.emit("Flatten", pooled, axis=1)


@operation("getitem")
def item(step: Step) -> str:
    """Slice of channels, rows and columns."""
    index = step.node.args[1]
    index = index if isinstance(index, tuple) else (index,)
    if index.count(...) == 1:
        at, missing = index.index(...), len(step.in_shape) - len(index) + 1
        index = (*index[:at], *missing * (slice(None),), *index[at + 1 :])
    if not all(isinstance(part, slice) for part in index) or len(index) > len(step.in_shape):
        raise step.refusal(f"takes {index} of a tensor; the file holds slices")
    axes, bounds = [], []
    for axis, (part, size) in enumerate(zip(index, step.in_shape, strict=False)):
        if part == slice(None):
            continue
        if axis == 0 or not all(
            value is None or isinstance(value, int) for value in (part.start, part.stop, part.step)
        ):
            raise step.refusal(f"takes {index} of a tensor; the file holds slices of channels, rows and columns")
        axes.append(axis)
        bounds.append(part.indices(size))
    if not axes:
        return step.x
    starts, ends, steps = zip(*bounds, strict=True)
    return layers.slice_axes(step, step.x, starts, ends, axes, steps)


@operation("pad")
def pad(step: Step) -> str:
    """Pad by a constant, or by the edge."""
    arguments = dict(zip(("pad", "mode", "value"), step.node.args[1:], strict=False)) | dict(step.node.kwargs)
    mode = arguments.get("mode", "constant")
    widths: Any = arguments["pad"]
    modes = {"constant": "constant", "replicate": "edge"}
    if mode not in modes or len(widths) % 2 or len(widths) > 2 * (len(step.in_shape) - 1) or min(widths) < 0:
        raise step.refusal(f"pads by {mode} {widths}; the file holds constant and replicate of channels and pixels")
    begin, end = [0] * len(step.in_shape), [0] * len(step.in_shape)
    for number in range(len(widths) // 2):  # torch names the last axis first
        begin[-1 - number], end[-1 - number] = widths[2 * number], widths[2 * number + 1]
    value = arguments.get("value") or 0.0
    inputs = [step.x, step.graph.integers(*begin, *end)]
    if value:
        inputs.append(step.graph.number(float(value), ()))  # type: ignore[arg-type]
    return step.emit("Pad", *inputs, mode=modes[str(mode)])
