"""sign() and the surrogate gradients (straight-through estimators) that stand in for its derivative.

Contract (docs/contracts.md): ``sign(x) = +1`` where ``x >= 0``, else ``-1``; thus ``sign(0) = sign(-0.0) = +1`` and NaN
gives -1. A threshold is compared, ``x >= t``, and never folded into ``x - t >= 0``.

Every surrogate is a function ``derivative(z, sharpness)`` that gives d(sign)/dz as the backward pass pretends it to
be, with ``z = x - t``. Only the annealed one reads `sharpness`.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nasb.errors import UserError
from nasb.registry import Registry

SURROGATES: Registry[Callable[[Tensor, float], Tensor]] = Registry("surrogate gradient")


def _within(z: Tensor, limit: float) -> Tensor:
    size = z.abs()
    return torch.le(size, limit, out=size)  # a cast from bool costs several times as much on a CPU


@SURROGATES.register("clipped_identity")
def clipped_identity(z: Tensor, sharpness: float = 1.0) -> Tensor:
    """Return ``1`` where ``|z| <= 1``, else ``0``. Source: Courbariaux et al., BNN, arXiv 1602.02830."""
    return _within(z, 1)


@SURROGATES.register("wide_clipped_identity")
def wide_clipped_identity(z: Tensor, sharpness: float = 1.0) -> Tensor:
    """Return ``1`` where ``|z| <= 1.25``, else ``0``. Source: QuickNet, as in Larq Zoo (arXiv 2011.09398)."""
    return _within(z, 1.25)


@SURROGATES.register("half_clipped_identity")
def half_clipped_identity(z: Tensor, sharpness: float = 1.0) -> Tensor:
    """Return ``1`` where ``|z| <= 0.5``, else ``0``. Source: Lin et al., ABC-Net, NeurIPS 2017, arXiv 1711.11294.

    There the gradient of ``clip(x + v, 0, 1)``, which is +1 / -1 from ``x + v >= 0.5`` on: ``z = x + v - 0.5``.
    """
    return _within(z, 0.5)


@SURROGATES.register("polynomial")
def polynomial(z: Tensor, sharpness: float = 1.0) -> Tensor:
    """Return ``max(0, 2 - 2|z|)``. Source: Liu et al., Bi-Real Net, ECCV 2018, arXiv 1808.00278."""
    slope = z.abs()
    return torch.sub(torch.tensor(2.0), slope, alpha=2, out=slope).clamp_min_(0)


@SURROGATES.register("tanh_annealed")
def tanh_annealed(z: Tensor, sharpness: float = 1.0) -> Tensor:
    """Return ``k t (1 - tanh(t z)^2)`` with ``t = sharpness``, ``k = max(1/t, 1)``.

    `sharpness` grows during training (IR-Net: from 0.1 to 10), so that the gradient narrows from nearly an identity to
    nearly sign's own. Source: Qin et al., IR-Net (EDE), CVPR 2020, arXiv 1909.10788.
    """
    return (1 - (sharpness * z).tanh_().square_()).mul_(sharpness * max(1 / sharpness, 1.0))


@SURROGATES.register("identity")
def identity(z: Tensor, sharpness: float = 1.0) -> Tensor:
    """Return ``1`` everywhere. Source: Bengio et al., arXiv 1308.3432 (the straight-through estimator)."""
    return torch.ones_like(z)


def sign(x: Tensor, threshold: Tensor | float | None = None) -> Tensor:
    """Return +1 where ``x >= threshold`` (0 if None), else -1, in the shape and dtype of `x`; no gradient flows.

    Raises:
        UserError: the threshold does not broadcast to the shape of `x`.
    """
    x = x.detach()
    bound: Tensor | float = 0.0
    if threshold is not None:
        # With the axes of x it is compared as it is; a number without axes would be rounded to the dtype of x first.
        bound = torch.as_tensor(
            threshold, device=x.device, dtype=None if isinstance(threshold, Tensor) else torch.double
        )
        bound = bound.detach().reshape(bound.shape or (1,) * x.dim())
        if torch.broadcast_shapes(x.shape, bound.shape) != x.shape:  # type: ignore[no-untyped-call]
            raise UserError(f"a threshold of shape {tuple(bound.shape)} does not fit an input of {tuple(x.shape)}")
    # One new buffer and two passes: 1 / 0 from the comparison, then every 0 becomes -1. `torch.where` and a cast from
    # bool cost four times as much on a CPU, where a fresh buffer's page faults weigh more than arithmetic.
    signs: Tensor = F.threshold(torch.ge(x, bound, out=torch.empty_like(x)), 0.5, -1.0, inplace=True)
    return signs


class _Binarize(torch.autograd.Function):
    """sign(x, threshold) forward, a surrogate backward; one pass over the activation is saved for backward: itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor | None, surrogate: str, sharpness: float) -> Tensor:
        ctx.save_for_backward(x, threshold)
        ctx.surrogate, ctx.sharpness = surrogate, sharpness
        return sign(x, threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, threshold = ctx.saved_tensors
        z = x if threshold is None else x - threshold
        grad_x = SURROGATES[ctx.surrogate](z, ctx.sharpness).mul_(gradients[0])
        grad_threshold = None
        if threshold is not None and ctx.needs_input_grad[1]:
            grad_threshold = -grad_x.sum_to_size(threshold.shape).to(threshold.dtype)
        return grad_x.to(x.dtype), grad_threshold, None, None


def binarize(
    x: Tensor, threshold: Tensor | None = None, *, surrogate: str = "polynomial", sharpness: float = 1.0
) -> Tensor:
    """Binarize to {-1, +1} with a surrogate gradient.

    Forward: ``+1`` where ``x >= threshold`` (0 if None), else ``-1``. Backward: ``dL/dx = dL/dy * g(x - threshold)``
    with g the surrogate of that name, and ``dL/dthreshold`` the negative sum of it over the broadcast axes.

    Args:
        x: real values, any shape.
        threshold: any shape that broadcasts to that of `x`.
        surrogate: a name in `SURROGATES`.
        sharpness: read by ``tanh_annealed`` alone.

    Returns:
        Same shape and dtype as `x`.

    Raises:
        UserError: the surrogate is unknown, or the threshold does not broadcast to the shape of `x`.
    """
    SURROGATES[surrogate]
    signs: Tensor = _Binarize.apply(x, threshold, surrogate, sharpness)
    return signs
