"""sign and its surrogate gradients, weight scaling, and the binary layers."""

from nasb.binary.layers import BinaryConv2d, BinaryLinear, Binarize, RPReLU, set_phase, set_sharpness
from nasb.binary.surrogate import SURROGATES, binarize, sign

__all__ = [
    "SURROGATES",
    "BinaryConv2d",
    "BinaryLinear",
    "Binarize",
    "RPReLU",
    "binarize",
    "set_phase",
    "set_sharpness",
    "sign",
]
