"""A slow rewrite of the cell from the formulas of design.md 4; it reads a state dict and knows no class of nasb."""

import torch
import torch.nn.functional as F

KERNELS = {
    "bin_conv_1x1": (1, 1),
    "bin_conv_3x3": (3, 1),
    "bin_conv_5x5": (5, 1),
    "dil_bin_conv_3x3": (3, 2),
    "dil_bin_conv_5x5": (5, 2),
}


def sign(x, threshold=0.0):
    return torch.where(x >= threshold, 1.0, -1.0).to(x.dtype)


def norm(x, state, name, training):
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    if training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    view = (1, -1, 1, 1)
    scaled = (x - mean.view(view)) / (var.view(view) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"].view(view) + state[f"{name}.bias"].view(view)


def binary(b, state, name, stride, padding, training, dilation=1):
    """Batch norm of the convolution of signs."""
    y = F.conv2d(b, sign(state[f"{name}.conv.weight"]), None, stride, padding, dilation)
    return norm(y, state, f"{name}.bn", training)


def pool(x, stride, out_channels):
    """adapt(x) at even sizes, more channels."""
    x = F.avg_pool2d(x, stride) if stride > 1 else x
    return torch.cat([x] * 4, 1)[:, :out_channels]


def operation(name, value, signs, state, where, stride, training):
    """One operation on an edge with padding that keeps the size."""
    if name in KERNELS:
        kernel, dilation = KERNELS[name]
        return binary(signs, state, where, stride, dilation * (kernel - 1) // 2, training, dilation)
    if name == "avg_pool_3x3":
        value = F.avg_pool2d(value, 3, 1, 1, count_include_pad=False)
    elif name == "max_pool_3x3":
        value = F.max_pool2d(value, 3, 1, 1)
    return norm(value, state, f"{where}.bn", training)


def mixture_cell(x, state, nodes, out_channels, stride, factors, training):
    """A cell 3x3 with shortcut adapt, one base, no activation, whose edges are weighted sums.

    `factors`: (source, target) -> [(operation, name of its module, factor)].
    """
    values = {0: pool(x, stride, out_channels)}
    signs = {0: sign(x)}
    for target in range(1, nodes + 2):
        total = torch.zeros_like(values[0])
        for source in range(target):
            for name, where, factor in factors.get((source, target), ()):
                own_stride = stride if source == 0 else 1
                total = total + factor * operation(
                    name, values[source], signs[source], state, where, own_stride, training
                )
        values[target], signs[target] = total, sign(total)
    return pool(x, stride, out_channels) + binary(sign(x), state, "backbone.0", stride, 1, training) + values[nodes + 1]
