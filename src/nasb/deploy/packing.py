"""Binary weights as bits: layout version 1 of docs/onnx-file.md.

A stored bit is 1 for -1 and 0 for +1. Channels lie innermost, so that a kernel reads the channels of one pixel as
whole words: bit ``c % 8`` of byte ``c // 8`` (least significant first) is channel ``c`` of the group's own input
channels, and the bits behind the last channel are 0.
"""

import numpy as np
import numpy.typing as npt

Packed = npt.NDArray[np.uint8]
"""[C_out, kH, kW, ceil(C_in / groups / 8)]."""
Weights = npt.NDArray[np.float32]
"""[C_out, C_in / groups, kH, kW]."""


def pack_signs(weight_OIHW: Weights) -> Packed:  # noqa: N803
    """Return the signs of a weight [C_out, C_in / groups, kH, kW] as bits [C_out, kH, kW, ceil(C_in / groups / 8)].

    The sign is that of docs/contracts.md: +1 (bit 0) where ``w >= 0``, -0.0 included, else -1 (bit 1), NaN included.
    """
    negative_OIHW = ~(weight_OIHW >= 0)
    return np.ascontiguousarray(np.packbits(negative_OIHW.transpose(0, 2, 3, 1), axis=-1, bitorder="little"))


def unpack_signs(packed_OHWB: Packed, channels: int) -> Weights:  # noqa: N803
    """Return the weight [C_out, channels, kH, kW], values in {-1, +1}, that `pack_signs` packed."""
    bits_OHWI = np.unpackbits(packed_OHWB, axis=-1, count=channels, bitorder="little")
    return np.ascontiguousarray(1 - 2 * bits_OHWI.transpose(0, 3, 1, 2).astype(np.float32))
