"""What multiple binary networks are made of: ABC-Net's convolution, Group-Net's weights and its soft gate."""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from nasb.binary.layers import BinaryConv2d
from nasb.binary.surrogate import sign
from nasb.errors import UserError


def spread(count: int, limit: float) -> list[float]:
    """Return `count` numbers evenly spread over [-limit, limit]; 0 where it is one."""
    return [limit * (2 * number / (count - 1) - 1) for number in range(count)] if count > 1 else [0.0]


class AbcConv2d(BinaryConv2d):
    """ABC-Net's convolution: N binarizations of the input with M binary bases of one real weight.

    Forward: ``y = sum_n beta_n sum_m alpha_m conv(B_m, A_n)``, ``B_m = sign(W - mean(W) + u_m std(W))``, ``u_m = -1 + 2
    (m - 1) / (M - 1)`` (0 if M = 1), ``alpha = argmin |W - sum_m alpha_m B_m|^2``; mean, std and alpha are those of the
    whole layer. beta is trained. Backward: ``dL/dW = sum_m alpha_m dL/dB_m``, where ``dL/dB_m`` is that of
    ``conv(B_m, .)`` alone; alpha, mean and std count as constants.

    Convolution is linear in both arguments, so in training it is computed at once: ``y = conv(sum_m alpha_m B_m, sum_n
    beta_n A_n)``. In evaluation every pair is a sum of exact integers, as in the exported file. In the phase ``real``
    it convolves with W.

    Departure: bases that coincide, of which the equation has no single solution, get equal alphas (the smallest
    solution).

    Args: as `BinaryConv2d`, without `pad_value` (0), `scale`, `surrogate` and `limit`, and:
        weight_bases: M.
        activation_bases: N.

    Raises:
        UserError: a number of bases below 1, or another `pad_value`.

    Source: Lin et al., ABC-Net, NeurIPS 2017, arXiv 1711.11294.
    """

    def __init__(self, *arguments: Any, weight_bases: int = 1, activation_bases: int = 1, **options: Any) -> None:
        super().__init__(*arguments, **options, scale="none", surrogate="identity")
        for name, value in (("weight_bases", weight_bases), ("activation_bases", activation_bases)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"AbcConv2d: {name} is {value!r}; it must be a whole number from 1")
        if self.pad_value:
            raise UserError(f"AbcConv2d: pad_value is {self.pad_value}; accepted: 0")
        self.weight_bases, self.activation_bases = weight_bases, activation_bases
        self.shifts = spread(weight_bases, 1.0)
        self.activation_scale = nn.Parameter(torch.full((activation_bases,), 1 / activation_bases))

    def signs(self) -> Tensor:
        """Return the bases B_m, -1 / +1 [M, C_out, C_in / groups, kH, kW], each with the gradient of the identity."""
        weight = self.weight.detach()
        bounds = weight.mean() - weight.new_tensor(self.shifts) * (weight.std() if weight.numel() > 1 else 0.0)
        bases = sign(weight.expand(self.weight_bases, *weight.shape), bounds.view(-1, 1, 1, 1, 1))
        return bases + (self.weight - weight)  # the second term is 0

    @torch.no_grad()
    def basis_scale(self, signs: Tensor) -> Tensor:
        """Return alpha [M] of the bases `signs`, by the normal equations ``(B^T B) alpha = B^T W``.

        The bases are nested: where the lower of two is +1, so is the higher. Thus they differ in half of |sum(B_m) -
        sum(B_l)| places, and ``B_m . B_l = numel(W) - |sum(B_m) - sum(B_l)|``.
        """
        bases = signs.detach().flatten(1)
        sums = bases.sum(1).double()
        products = bases.shape[1] - (sums[:, None] - sums).abs()
        projections = (bases * self.weight.flatten()).sum(1).double()
        alpha: Tensor = torch.linalg.pinv(products, hermitian=True) @ projections
        return alpha.to(self.weight.dtype)

    def accumulators(self, *signs: Tensor) -> list[Tensor]:
        """Return ``conv(B_m, A_n)`` for each n and, within, each m: N M exact sums [N, C_out, H', W']."""
        bases = self.signs()
        return [self.accumulate(b_NCHW, basis) for b_NCHW in signs for basis in bases]

    def pair_scale(self) -> Tensor:
        """Return ``beta_n alpha_m`` [N M], in the order of the accumulators."""
        return torch.outer(self.activation_scale, self.basis_scale(self.signs())).flatten()

    def forward(self, *signs: Tensor) -> Tensor:
        """Map N binarizations A_n, -1 / +1 [N, C_in, H, W] each, to real [N, C_out, H', W']."""
        if self.phase == "binary" and not self.training:
            terms = zip(self.pair_scale(), self.accumulators(*signs), strict=True)
            y: Tensor = reduce(add, (scale * acc for scale, acc in terms))
        else:
            weight: Tensor = self.weight
            if self.phase == "binary":
                bases = self.signs()
                weight = torch.sum(self.basis_scale(bases).view(-1, 1, 1, 1, 1) * bases, 0)
            total = reduce(add, (beta * a for beta, a in zip(self.activation_scale, signs, strict=True)))
            y = self.accumulate(total, weight)
        return y if self.bias is None else y + self.bias.view(1, -1, 1, 1).to(y.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight_bases={self.weight_bases}, activation_bases={self.activation_bases}"


class LayerScaleConv2d(BinaryConv2d):
    """Group-Net's convolution: one scale for the whole layer, and an identity as gradient.

    Forward: ``W~ = E sign(W)``, ``E = mean |W|`` over all weights of the layer, without gradient. Backward: ``dL/dW =
    E dL/dW~``. The border contributes +1 unless `pad_value` says otherwise.

    Departure: the authors' code leaves out the factor E in the gradient, which Adam divides out.

    Args: as `BinaryConv2d`, without `scale` and `surrogate`.

    Source: Zhuang et al., Group-Net, CVPR 2019, arXiv 1811.10413.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"pad_value": 1, **options}, scale="mean", surrogate="identity")

    def weight_scale(self) -> Tensor:
        """Return E [1]."""
        return self.weight.detach().abs().mean().view(1)


class SoftGate(nn.Module):
    """Group-Net's soft gate between two blocks: each branch reads its own branch and the mean of all.

    ``x_k = sigmoid(g) o_k + (1 - sigmoid(g)) mean_j(o_j)``, g one trained number, started uniformly in [0, 1).

    Source: Zhuang et al., Group-Net, CVPR 2019, arXiv 1811.10413.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.rand(1))

    def forward(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Map the K branches' outputs to their next inputs, all of one shape."""
        own = torch.sigmoid(self.gate)
        common = reduce(add, outputs) * ((1 - own) / len(outputs))
        return [output * own + common for output in outputs]
