"""Folding: a batch norm in evaluation mode is one scale and one shift per channel, which the layer before takes up.

All of it is computed in float64 from the network's float32 numbers and rounded to float32 once. Torch itself rounds
after each step (convolution, scaling, shifting), so the two differ by a few units of float32's last place of the
largest term; nasb.deploy.verify derives what is allowed.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nasb.binary import BinaryConv2d, BinaryLinear

Double = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """``y = scale * x + shift`` per channel; both [C], float64."""

    scale: Double
    shift: Double

    def then(self, other: "Affine") -> "Affine":
        """Return this map followed by another one."""
        with np.errstate(invalid="ignore", over="ignore"):
            return Affine(self.scale * other.scale, self.shift * other.scale + other.shift)


def double(tensor: Tensor) -> Double:
    """Return a tensor's values as float64, exactly."""
    return tensor.detach().cpu().double().numpy()


def affine_of_batch_norm(norm: _BatchNorm) -> Affine:
    """Return what a batch norm with running statistics does: ``(x - mean) / sqrt(var + eps) * gamma + beta``."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused where it would be stored
        scale = 1 / np.sqrt(double(variance) + norm.eps)
        if norm.weight is not None:
            scale = scale * double(norm.weight)
        shift = -double(mean) * scale
        if norm.bias is not None:
            shift = shift + double(norm.bias)
    return Affine(scale, shift)


def affine_of_layer(layer: nn.Conv2d | nn.Linear) -> Affine:
    """Return what follows a layer's sum of products: its bias, and a binary layer's weight scale.

    The scales of a layer of several bases (AbcConv2d) are not in it.
    """
    outputs = layer.weight.shape[0]
    scale = layer.weight_scale() if isinstance(layer, BinaryConv2d | BinaryLinear) else None
    return Affine(
        np.ones(outputs) if scale is None else np.broadcast_to(double(scale), outputs),
        np.zeros(outputs) if layer.bias is None else double(layer.bias),
    )
