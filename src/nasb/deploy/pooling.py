"""Lowering of pooling layers.

Torch's ceil_mode lets the last window reach over the border; runtimes differ there. All shapes are static, so the file
says the same by a longer padding at the end, and never uses ceil_mode.
"""

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
    """GlobalAveragePool to 1x1; AveragePool where the output divides the input; Pad(edge) of a 1x1 map."""
    if step.out_shape == step.in_shape:
        return step.x
    if step.out_shape[2:] == (1, 1):
        return step.emit("GlobalAveragePool", step.x)
    if step.in_shape[2:] == (1, 1):
        height, width = step.out_shape[2:]
        return step.emit("Pad", step.x, step.graph.integers(0, 0, 0, 0, 0, 0, height - 1, width - 1), mode="edge")
    window = _adaptive_window(step)
    return average_pool(step, step.x, window, window)


@layer(nn.AdaptiveMaxPool2d)
def adaptive_max_pool(step: Step) -> str:
    """MaxPool where the output divides the input."""
    if step.out_shape == step.in_shape:
        return step.x
    window = list(_adaptive_window(step))
    return step.emit(
        "MaxPool", step.x, kernel_shape=window, strides=window, pads=[0] * 4, dilations=[1, 1], ceil_mode=0
    )


def _adaptive_window(step: Step) -> tuple[int, int]:
    given, wanted = step.in_shape[2:], step.out_shape[2:]
    if any(g % w for g, w in zip(given, wanted, strict=True)):
        raise step.refusal(
            f"pools {given[0]}x{given[1]} pixels to {wanted[0]}x{wanted[1]}; the file holds this where the output "
            "divides the input: choose another size of images"
        )
    return given[0] // wanted[0], given[1] // wanted[1]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
