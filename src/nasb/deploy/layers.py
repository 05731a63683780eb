"""Lowering of layers: torch.nn's and nasb's own. What each becomes is the table in docs/onnx-file.md."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn
from torchvision.ops import StochasticDepth

from nasb.binary import (
    AbcConv2d,
    Binarize,
    BinaryConv2d,
    BinaryLinear,
    LayerScaleConv2d,
    LibraConv2d,
    RPReLU,
    XnorConv2d,
)
from nasb.cells.adapt import Adapt
from nasb.deploy.folding import Affine, affine_of_batch_norm, affine_of_layer, double
from nasb.deploy.functions import BINARIZE, BINARY_CONV, DOMAIN
from nasb.deploy.packing import pack_signs
from nasb.deploy.step import Step, layer


@layer(nn.Dropout, nn.Dropout1d, nn.Dropout2d, StochasticDepth)
def dropout(step: Step) -> str:
    """Nothing, in evaluation."""
    return step.x


@layer(Binarize)
def binarize(step: Step) -> str:
    """nasb.Binarize; one node for all equal binarizations of one tensor."""
    if step.module.phase != "sign":
        raise step.refusal(f"is in its phase of pretraining ({step.module.phase}); finetune the network first")
    if len(step.in_shape) not in (2, 4):
        raise step.refusal(f"binarizes a value of shape {step.in_shape}; the file holds [N, C] and [N, C, H, W]")
    threshold = step.module.threshold
    if threshold is None:
        bound = step.graph.number(0.0)
    elif threshold.numel() == 1:
        bound = step.weight("threshold", threshold.reshape(1))
    else:
        bound = step.per_channel("threshold", threshold)
    return step.emit(BINARIZE, step.x, bound, domain=DOMAIN)


@layer(BinaryConv2d, LayerScaleConv2d, LibraConv2d, XnorConv2d)
def binary_conv2d(step: Step) -> str:
    """nasb.BinaryConv2d with the batch norm behind it folded."""
    conv: BinaryConv2d = step.module
    return _binary(step, step.x, conv.signs().detach().numpy(), **_geometry(conv))


def _geometry(conv: BinaryConv2d) -> dict[str, Any]:
    left, right, top, bottom = conv._reversed_padding_repeated_twice
    return {
        "strides": list(conv.stride),
        "pads": [top, left, bottom, right],
        "dilations": list(conv.dilation),
        "group": conv.groups,
        "pad_value": float(conv.pad_value),
    }


@layer(AbcConv2d)
def abc_conv2d(step: Step) -> str:
    """A nasb.BinaryConv2d for each binarization and base, and the Adds of their sum; the batch norm behind it folded.

    ``bn(sum of s_nm acc_nm + b)`` is ``sum of (g s_nm) acc_nm + bn(b)``, g the batch norm's scale: the first one of the
    nodes has the whole bias.
    """
    conv: AbcConv2d = step.module
    affine = _affine(step)
    bases, channels = conv.signs().detach().numpy(), conv.in_channels // conv.groups
    packed = [step.weight(f"{number}.W", pack_signs(basis)) for number, basis in enumerate(bases)]
    pairs = [(signs, weight) for signs in step.inputs for weight in packed]
    total, bias = "", affine.shift
    for number, ((signs, weight), scale) in enumerate(zip(pairs, double(conv.pair_scale()), strict=True)):
        constants = step.weight(f"{number}.scale", affine.scale * scale), step.weight(f"{number}.bias", bias)
        y = step.emit(BINARY_CONV, signs, weight, *constants, domain=DOMAIN, channels=channels, **_geometry(conv))
        total = step.emit("Add", y, total) if total else y
        bias = np.zeros_like(bias)
    return total


@layer(BinaryLinear)
def binary_linear(step: Step) -> str:
    """nasb.BinaryConv2d 1x1 on [N, C, 1, 1]."""
    if len(step.in_shape) != 2:
        raise step.refusal(f"reads a value of shape {step.in_shape}; the file holds linear layers on [N, features]")
    x_NC11 = step.emit("Reshape", step.x, step.graph.integers(0, step.in_shape[1], 1, 1))
    geometry: dict[str, Any] = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "group": 1, "pad_value": 0.0}
    y_NC11 = _binary(step, x_NC11, step.module.weight.detach().numpy()[:, :, None, None], **geometry)
    return step.emit("Flatten", y_NC11, axis=1)


def _binary(step: Step, x: str, weight_OIHW: Any, **geometry: Any) -> str:  # noqa: N803
    affine = _affine(step)
    packed, scale = step.weight("W", pack_signs(weight_OIHW)), step.weight("scale", affine.scale)
    channels = weight_OIHW.shape[1]
    return step.emit(
        BINARY_CONV, x, packed, scale, step.weight("bias", affine.shift), domain=DOMAIN, channels=channels, **geometry
    )


def _affine(step: Step) -> Affine:
    """Return what follows the sums of a binary layer: its scale and bias, then a batch norm that it takes up."""
    if step.module.phase != "binary":
        raise step.refusal("is in its phase of pretraining (real weights); finetune the network first")
    affine, norm = affine_of_layer(step.module), step.take_batch_norm()
    return affine if norm is None else affine.then(norm)


@layer(nn.Conv2d)
def conv2d(step: Step) -> str:
    """Conv with the batch norm behind it folded into weight and bias."""
    conv: nn.Conv2d = step.module
    x = step.x
    left, right, top, bottom = conv._reversed_padding_repeated_twice
    pads = [top, left, bottom, right]
    if conv.padding_mode == "replicate":
        x = step.emit("Pad", x, step.graph.integers(0, 0, top, left, 0, 0, bottom, right), mode="edge")
        pads = [0] * 4
    elif conv.padding_mode != "zeros":
        raise step.refusal(f"pads by {conv.padding_mode}; the file holds zeros and replicate")
    geometry: dict[str, Any] = {
        "kernel_shape": list(conv.kernel_size),
        "strides": list(conv.stride),
        "pads": pads,
        "dilations": list(conv.dilation),
        "group": conv.groups,
    }
    return step.emit("Conv", x, *_real_weights(step), **geometry)


@layer(nn.Linear)
def linear(step: Step) -> str:
    """Gemm with the batch norm behind it folded into weight and bias."""
    if len(step.in_shape) != 2:
        raise step.refusal(f"reads a value of shape {step.in_shape}; the file holds linear layers on [N, features]")
    return step.emit("Gemm", step.x, *_real_weights(step), transB=1)


def _real_weights(step: Step) -> list[str]:
    """Add the weight and, where there is one or a batch norm gives one, the bias."""
    weight = double(step.module.weight)
    affine, norm = affine_of_layer(step.module), step.take_batch_norm()
    if norm is not None:
        affine = affine.then(norm)
    scaled = weight * affine.scale.reshape(-1, *(1,) * (weight.ndim - 1))
    names = [step.weight("weight", scaled)]
    if norm is not None or step.module.bias is not None:
        names.append(step.weight("bias", affine.shift))
    return names


@layer(nn.BatchNorm2d, nn.BatchNorm1d)
def batch_norm(step: Step) -> str:
    """Mul and Add: a batch norm that no convolution precedes."""
    if step.module.running_mean is None:
        raise step.refusal("has no running statistics: it computes across the images of a batch")
    affine = affine_of_batch_norm(step.module)
    scaled = step.emit("Mul", step.x, step.per_channel("scale", affine.scale))
    return step.emit("Add", scaled, step.per_channel("bias", affine.shift))


@layer(RPReLU)
def rprelu(step: Step) -> str:
    """Add, PRelu, Add."""
    shifted = step.emit("Add", step.x, step.per_channel("shift_in", step.module.shift_in))
    bent = step.emit("PRelu", shifted, step.per_channel("slope", step.module.slope))
    return step.emit("Add", bent, step.per_channel("shift_out", step.module.shift_out))


@layer(nn.PReLU)
def prelu(step: Step) -> str:
    """PRelu with one slope per channel."""
    slope = step.module.weight.detach().numpy()
    return _prelu(step, slope)


@layer(nn.LeakyReLU)
def leaky_relu(step: Step) -> str:
    """PRelu with equal slopes."""
    return _prelu(step, np.array([step.module.negative_slope]))


def _prelu(step: Step, slope: Any) -> str:
    return step.emit("PRelu", step.x, step.per_channel("slope", np.broadcast_to(slope, step.out_shape[1])))


@layer(nn.ReLU)
def relu(step: Step) -> str:
    """Relu."""
    return step.emit("Relu", step.x)


@layer(nn.ReLU6, nn.Hardtanh)
def clip(step: Step) -> str:
    """Clip."""
    bounds = (step.graph.number(float(bound), ()) for bound in (step.module.min_val, step.module.max_val))
    return step.emit("Clip", step.x, *bounds)


@layer(nn.Sigmoid)
def sigmoid(step: Step) -> str:
    """Sigmoid."""
    return step.emit("Sigmoid", step.x)


@layer(nn.Tanh)
def tanh(step: Step) -> str:
    """Of Sigmoid: ``tanh(x) = 2 sigmoid(2 x) - 1``."""
    doubled = step.emit("Mul", step.x, step.graph.number(2.0))
    twice = step.emit("Mul", step.emit("Sigmoid", doubled), step.graph.number(2.0))
    return step.emit("Add", twice, step.graph.number(-1.0))


@layer(nn.SiLU)
def silu(step: Step) -> str:
    """Sigmoid and Mul."""
    return step.emit("Mul", step.x, step.emit("Sigmoid", step.x))


@layer(nn.Hardsigmoid)
def hardsigmoid(step: Step) -> str:
    """HardSigmoid, ``clip(x / 6 + 1 / 2, 0, 1)``."""
    return step.emit("HardSigmoid", step.x, alpha=1 / 6, beta=0.5)


@layer(nn.Hardswish)
def hardswish(step: Step) -> str:
    """HardSwish."""
    return step.emit("HardSwish", step.x)


@layer(nn.Flatten, nn.Unflatten)
def reshape(step: Step) -> str:
    """Flatten to [N, features], else Reshape [0, ...]; nothing where the shape stays."""
    if step.out_shape == step.in_shape:
        return step.x
    if len(step.out_shape) == 2:
        return step.emit("Flatten", step.x, axis=1)
    return step.emit("Reshape", step.x, step.graph.integers(0, *step.out_shape[1:]))


@layer(nn.ZeroPad2d)
def zero_pad(step: Step) -> str:
    """Pad."""
    left, right, top, bottom = step.module.padding
    if min(step.module.padding) < 0:
        raise step.refusal(f"pads by {step.module.padding}; the file holds no cropping by it")
    return step.emit("Pad", step.x, step.graph.integers(0, 0, top, left, 0, 0, bottom, right), mode="constant")


@layer(Adapt)
def adapt(step: Step) -> str:
    """Slice, Pad(edge) to the size; AveragePool or MaxPool by the stride; Concat, Slice or Slice, Add, Mul on C."""
    shape = step.module.shape
    x = step.x
    if shape.keeps_shape:
        return x
    wanted = [n * s for n, s in zip(step.out_shape[2:], shape.stride, strict=True)]
    given = step.in_shape[2:]
    first = [max(g - w, 0) // 2 for g, w in zip(given, wanted, strict=True)]
    if any(g > w for g, w in zip(given, wanted, strict=True)):
        last = [f + min(g, w) for f, g, w in zip(first, given, wanted, strict=True)]
        x = slice_axes(step, x, first, last, [2, 3])
    missing = [max(w - g, 0) for g, w in zip(given, wanted, strict=True)]
    if any(missing):
        x = step.emit("Pad", x, step.graph.integers(0, 0, 0, 0, 0, 0, *missing), mode="edge")
    if shape.stride != (1, 1):
        x = (_max_pool if step.module.maximum else average_pool)(step, x, shape.stride, shape.stride)
    return _adapt_channels(step, x, shape.in_channels, shape.out_channels)


def _adapt_channels(step: Step, x: str, before: int, after: int) -> str:
    if after > before:
        copies = -(-after // before)
        x = step.emit("Concat", *[x] * copies, axis=1)
        return x if copies * before == after else slice_axes(step, x, [0], [after], [1])
    if after < before:
        parts = [slice_axes(step, x, [start], [start + after], [1]) for start in range(0, before, after)]
        total = parts[0]
        for part in parts[1:]:
            total = step.emit("Add", total, part)
        return step.emit("Mul", total, step.graph.number(1 / len(parts)))
    return x


def slice_axes(
    step: Step, x: str, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int] = ()
) -> str:
    """Slice; the steps are 1 unless given."""
    bounds = (starts, ends, axes, steps or [1] * len(axes))
    return step.emit("Slice", x, *(step.graph.integers(*values) for values in bounds))


def average_pool(
    step: Step, x: str, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int] = (0, 0, 0, 0),
    include_pad: bool = False,
) -> str:  # fmt: skip
    """AveragePool without ceil_mode."""
    return step.emit(
        "AveragePool",
        x,
        kernel_shape=list(kernel),
        strides=list(strides),
        pads=list(pads),
        count_include_pad=int(include_pad),
        ceil_mode=0,
    )


def _max_pool(step: Step, x: str, kernel: Sequence[int], strides: Sequence[int]) -> str:
    window: dict[str, Any] = {"kernel_shape": list(kernel), "strides": list(strides), "pads": [0] * 4}
    return step.emit("MaxPool", x, **window, dilations=[1, 1], ceil_mode=0)
