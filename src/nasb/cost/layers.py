"""What each known layer costs: the MACs of one call, and the numbers that its deployed form stores.

A number is 1 bit wide (a binary weight) or 32 bits (any other). The deployed form has its batch norms folded to one
scale and one bias per channel, so a bias or a weight scale right before a batch norm is stored in it ("foldable").
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nasb.binary import AbcConv2d, Binarize, BinaryConv2d, BinaryLinear, RPReLU, SoftGate

REAL_BITS = 32
BINARY_BITS = 1
KNOWN = (nn.Conv2d, nn.Linear, _BatchNorm, nn.PReLU, RPReLU, Binarize)


@dataclass(frozen=True)
class Stored:
    """Numbers of one kind that a layer stores; `source` is their tensor, where it may be shared with another layer."""

    numbers: int
    bits_each: int
    foldable: bool = False
    source: nn.Parameter | None = None


def is_layer(module: nn.Module) -> bool:
    """Whether a module is counted as one layer: a known one, or any that holds no other modules."""
    return isinstance(module, KNOWN) or next(module.children(), None) is None


def is_binary(layer: nn.Module) -> bool:
    """Whether the layer's MACs are binary; it counts so in its real phase of training, too."""
    return isinstance(layer, BinaryConv2d | BinaryLinear)


def stored(layer: nn.Module) -> tuple[Stored, ...] | None:
    """Return what a layer stores; None if its parameters are of an unknown layer."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        found = [_of(layer.weight, BINARY_BITS if is_binary(layer) else REAL_BITS)]
        if isinstance(layer, AbcConv2d):  # M bases of one weight, and their M + N scales
            found = [_of(layer.weight, BINARY_BITS, copies=layer.weight_bases)]
            found += [Stored(layer.weight_bases, REAL_BITS), _of(layer.activation_scale, REAL_BITS)]
        scale = layer.weight_scale() if isinstance(layer, BinaryConv2d | BinaryLinear) else None
        if scale is not None:
            found.append(_of(scale, REAL_BITS, foldable=True))
        if layer.bias is not None:
            found.append(_of(layer.bias, REAL_BITS, foldable=True))
        return tuple(found)
    if isinstance(layer, _BatchNorm):
        return (Stored(2 * layer.num_features, REAL_BITS),)
    if isinstance(layer, Binarize):
        return () if layer.threshold is None else (_of(layer.threshold, REAL_BITS),)
    parameters = list(layer.parameters())
    if parameters and not isinstance(layer, nn.PReLU | RPReLU | SoftGate):
        return None
    return tuple(_of(parameter, REAL_BITS) for parameter in parameters)


def _of(tensor: Tensor, bits_each: int, *, foldable: bool = False, copies: int = 1) -> Stored:
    return Stored(copies * tensor.numel(), bits_each, foldable, tensor if isinstance(tensor, nn.Parameter) else None)


def macs(layer: nn.Module, output: Tensor) -> int:
    """Return the MACs of one call: each output value of a convolution sums (C_in / groups) * kH * kW products.

    A convolution of M x N bases is as many convolutions.
    """
    if isinstance(layer, nn.Conv2d | nn.Linear):
        bases = layer.weight_bases * layer.activation_bases if isinstance(layer, AbcConv2d) else 1
        return bases * output.numel() * (layer.weight.numel() // layer.weight.shape[0])
    return 0


def can_fold(layer: nn.Module, output: Tensor) -> bool:
    """Whether axis 1, the channels of a batch norm behind the layer, is the axis of the layer's own outputs."""
    return output.dim() == (4 if isinstance(layer, nn.Conv2d) else 2) and isinstance(layer, nn.Conv2d | nn.Linear)
