"""sign and its surrogate gradients, weight scaling, and the binary layers."""

from nasb.binary.layers import (
    Binarize,
    BinaryConv2d,
    BinaryLinear,
    RPReLU,
    after_step,
    set_phase,
    set_sharpness,
    start_scales,
)
from nasb.binary.multiple import AbcConv2d, LayerScaleConv2d, SoftGate
from nasb.binary.surrogate import SURROGATES, binarize, sign
from nasb.binary.weight_forms import LibraConv2d, XnorConv2d

__all__ = [
    "SURROGATES",
    "AbcConv2d",
    "Binarize",
    "BinaryConv2d",
    "BinaryLinear",
    "LayerScaleConv2d",
    "LibraConv2d",
    "RPReLU",
    "SoftGate",
    "XnorConv2d",
    "after_step",
    "binarize",
    "set_phase",
    "set_sharpness",
    "sign",
    "start_scales",
]
