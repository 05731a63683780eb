"""Lowering of pooling layers.

Torch's ceil_mode lets the last window reach over the border; runtimes differ there. All shapes are static, so the file
says the same by a longer padding at the end, and never uses ceil_mode.
"""

from itertools import pairwise
from typing import Any

from torch import nn

from nasb.deploy.layers import average_pool
from nasb.deploy.step import Step, layer


@layer(nn.MaxPool2d)
def max_pool(step: Step) -> str:
    """MaxPool; padded pixels never win."""
    if step.module.return_indices:
        raise step.refusal("returns indices, which the file cannot hold")
    kernel, strides, padding, dilation = (
        _pair(value)
        for value in (step.module.kernel_size, step.module.stride, step.module.padding, step.module.dilation)
    )
    begin, end = padding, _padding_at_end(step, kernel, strides, padding, dilation)
    return step.emit(
        "MaxPool",
        step.x,
        kernel_shape=list(kernel),
        strides=list(strides),
        pads=[*begin, *end],
        dilations=list(dilation),
        ceil_mode=0,
    )


@layer(nn.AvgPool2d)
def avg_pool(step: Step) -> str:
    """AveragePool.

    Where padded pixels count, but those that ceil_mode adds at the end do not, the former are made by a Pad.
    """
    if step.module.divisor_override is not None:
        raise step.refusal("overrides its divisor, which the file cannot hold")
    kernel, strides, padding = (
        _pair(value) for value in (step.module.kernel_size, step.module.stride, step.module.padding)
    )
    end = _padding_at_end(step, kernel, strides, padding, (1, 1))
    include = bool(step.module.count_include_pad) and any(padding)
    x, begin = step.x, padding
    if include and end != padding:
        x = step.emit("Pad", x, step.graph.integers(0, 0, *padding, 0, 0, *padding), mode="constant")
        end = (end[0] - padding[0], end[1] - padding[1])
        begin, include = (0, 0), False
    return average_pool(step, x, kernel, strides, [*begin, *end], include)


def _padding_at_end(
    step: Step, kernel: tuple[int, int], strides: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int]:
    """Return the padding at bottom and right: as given, or longer where ceil_mode lets a window reach over it."""
    reach = []
    for axis in (0, 1):
        covered = (step.out_shape[axis + 2] - 1) * strides[axis] + dilation[axis] * (kernel[axis] - 1) + 1
        over = covered - step.in_shape[axis + 2] - padding[axis]
        reach.append(max(over, padding[axis]))
    return reach[0], reach[1]


@layer(nn.AdaptiveAvgPool2d)
def adaptive_avg_pool(step: Step) -> str:
    """GlobalAveragePool to 1x1; else AveragePool, and Pad(edge) in front of it where one or two pixels become more."""
    if step.out_shape != step.in_shape and step.out_shape[2:] == (1, 1):
        return step.emit("GlobalAveragePool", step.x)
    x, kernel, strides = _adaptive_window(step)
    return x if max(*kernel, *strides) == 1 else average_pool(step, x, kernel, strides)


@layer(nn.AdaptiveMaxPool2d)
def adaptive_max_pool(step: Step) -> str:
    """MaxPool, and Pad(edge) in front of it where one or two pixels become more."""
    x, kernel, strides = _adaptive_window(step)
    if max(*kernel, *strides) == 1:
        return x
    geometry: dict[str, Any] = {"kernel_shape": list(kernel), "strides": list(strides), "pads": [0] * 4}
    return step.emit("MaxPool", x, **geometry, dilations=[1, 1], ceil_mode=0)


def _adaptive_window(step: Step) -> tuple[str, tuple[int, int], tuple[int, int]]:
    """Pad where that is needed; return the tensor to pool, the kernel and the strides."""
    given, wanted = step.in_shape[2:], step.out_shape[2:]
    windows = [_axis_window(g, w) for g, w in zip(given, wanted, strict=True)]
    if windows[0] is None or windows[1] is None:
        raise step.refusal(
            f"pools {given[0]}x{given[1]} pixels to {wanted[0]}x{wanted[1]}; the file holds this where the windows are "
            "all equally large and equally far apart: choose another size of images"
        )
    (top, height, down), (left, width, along) = windows[0], windows[1]
    x = step.x
    if top or left:
        bottom, right = (
            (wanted[axis] - 1) * stride + kernel - given[axis] - before
            for axis, (before, kernel, stride) in enumerate((windows[0], windows[1]))
        )
        x = step.emit("Pad", x, step.graph.integers(0, 0, top, left, 0, 0, max(bottom, 0), max(right, 0)), mode="edge")
    return x, (height, width), (down, along)


def _axis_window(given: int, wanted: int) -> tuple[int, int, int] | None:
    """Return (padding in front, kernel, stride) that pool one axis as torch does; None where its windows differ.

    Output i reads the pixels from ``floor(i given / wanted)`` to below ``ceil((i + 1) given / wanted)``. One pixel is
    repeated. Two are, too; where `wanted` is odd, the middle one of the windows holds both.
    """
    if given == 1:
        return wanted // 2, 1, 1
    if given == 2 and wanted > 2:
        return (wanted - 1) // 2, 2 - (wanted + 1) % 2, 1
    begins = [i * given // wanted for i in range(wanted)]
    ends = [-(-(i + 1) * given // wanted) for i in range(wanted)]
    strides = {after - before for before, after in pairwise(begins)}
    kernels = {end - begin for begin, end in zip(begins, ends, strict=True)}
    if len(kernels) > 1 or len(strides) > 1:
        return None
    return 0, kernels.pop(), strides.pop() if strides else 1


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
