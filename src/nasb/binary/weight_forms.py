"""Binary convolutions whose weights are binarized in other published ways than Bi-Real Net's.

All of them compute ``y = scale * acc + bias`` with exact integers `acc`, as `BinaryConv2d` does; what differs is which
real numbers the signs are taken of, their gradient, the scale, and what is done after each step of the optimizer.
"""

from typing import Any

import torch
from torch import Tensor

from nasb.binary.layers import BinaryConv2d
from nasb.binary.surrogate import binarize
from nasb.errors import UserError

TINY = 1e-12
"""Keeps a constant or dead filter from a division by 0."""


class XnorConv2d(BinaryConv2d):
    """XNOR-Net's weights: scaled by their mean size, centred and clipped.

    Forward: ``W~ = a sign(W)``, ``a = mean |W|`` over each filter's n weights. Backward: ``dL/dW = dL/dW~ * (a 1[|W| <
    1] + 1/n)``; the second term is what `a` itself depends on. After each step, ``W <- clip(W - mean_c W, -1, 1)`` with
    the mean over input channels, for each filter and tap.

    Departures: the released code multiplies the gradient by ``n (1 - 1/C_in)`` as well, a constant that Adam divides
    out; it centres and clips before each step, which is the same from the second step on. The scale K of the
    activations is left out, as in the released AlexNet.

    Args: as `BinaryConv2d`, without `scale`, `surrogate` and `limit`.

    Raises:
        UserError: one input channel for each filter, of which centring would leave nothing.

    Source: Rastegari et al., XNOR-Net, ECCV 2016, arXiv 1603.05279.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, scale="mean", surrogate="identity", limit=1.0)
        if self.weight.shape[1] < 2:
            raise UserError("XnorConv2d: filters of one input channel cannot be centred over the input channels")

    def signs(self) -> Tensor:
        """Return the signs; their gradient leaves the factor `a` to the scale: ``1[|W| < 1] + 1 / (n a)``."""
        weight = self.weight
        sizes = weight.detach().abs()
        norms = sizes.sum((1, 2, 3), keepdim=True).clamp_min(TINY)  # n a
        inside = torch.where(sizes < 1, weight, weight.detach())
        return binarize(inside, surrogate="identity") + (weight - weight.detach()) / norms  # the second term is 0

    @torch.no_grad()
    def after_step(self) -> None:
        """Centre over the input channels, then clip."""
        self.weight.sub_(self.weight.mean(1, keepdim=True))
        super().after_step()


class LibraConv2d(BinaryConv2d):
    """IR-Net's weights (Libra Parameter Binarization): standardized, scaled by a power of two.

    Forward: ``w^ = (w - mean) / std`` over each filter (n - 1 in the variance, both differentiated), ``q = sign(w^)
    2^s``, ``s = round(log2(mean |w^|))``, the scale without gradient. Backward through sign: EDE, ``k t (1 - tanh^2(t
    w^))`` (`nasb.binary.surrogate.tanh_annealed`). In the phase ``real`` it convolves with ``w^``.

    Departure: a constant filter, whose std is 0, gives w^ = 0, not NaN.

    Args: as `BinaryConv2d`, without `scale`, `surrogate` and `limit`.

    Source: Qin et al., IR-Net, CVPR 2020, arXiv 1909.10788.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, scale="mean", surrogate="tanh_annealed")

    def real_weight(self) -> Tensor:
        """Return the standardized weights w^, [C_out, C_in / groups, kH, kW]."""
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return centred / centred.std((1, 2, 3), keepdim=True).clamp_min(TINY)

    def weight_scale(self) -> Tensor:
        """Return ``2^s`` [C_out]."""
        return self.real_weight().detach().abs().mean((1, 2, 3)).clamp_min(TINY).log2().round().exp2()
