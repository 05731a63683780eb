"""sign and its surrogate gradients, weight scaling, and the binary layers."""

from nasb.binary.layers import Binarize, BinaryConv2d, BinaryLinear, RPReLU, set_phase, set_sharpness
from nasb.binary.surrogate import SURROGATES, binarize, sign

__all__ = [
    "SURROGATES",
    "Binarize",
    "BinaryConv2d",
    "BinaryLinear",
    "RPReLU",
    "binarize",
    "set_phase",
    "set_sharpness",
    "sign",
]
