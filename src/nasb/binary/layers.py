"""Binarize, BinaryConv2d, BinaryLinear: the layers that every binary network here is made of.

Binarization stands apart from convolution, so that several convolutions can read one binarized tensor, as the
exported file and the engine do. A binary convolution is ``y = scale * acc + bias`` with ``acc`` an exact integer: the
scale never enters before the sum. Each layer also has a real phase for pretraining (design: real weights, bounded
activations).
"""

from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasb.binary.surrogate import SURROGATES, binarize
from nasb.errors import UserError, unknown_name

WEIGHT_SCALES = ("mean", "learned", "none")
ACTIVATION_PHASES = ("sign", "hardtanh", "tanh")


class Binarize(nn.Module):
    """Binarize activations, ``x >= t``, with fixed or learned thresholds (learned, per channel: ReActNet's RSign).

    In a real phase (`set_phase`) it is ``hardtanh(x - t)`` or ``tanh(x - t)`` instead.

    Args:
        channels: the channels of the input [N, C, ...]; needed for learned thresholds only.
        learned: give each channel a threshold of its own that is trained.
        initial: where the thresholds start (or stay, if not learned).
        surrogate: a name in `nasb.binary.SURROGATES`.

    Raises:
        UserError: the surrogate is unknown; `learned` without `channels`.

    Source: Liu et al., ReActNet, ECCV 2020, arXiv 2003.03488 (there ``sign(x + b)``, here ``t = -b``).
    """

    sharpness: float

    def __init__(
        self,
        channels: int | None = None,
        *,
        learned: bool = False,
        initial: float = 0.0,
        surrogate: str = "polynomial",
    ) -> None:
        super().__init__()
        if surrogate not in SURROGATES:
            raise UserError(unknown_name("surrogate gradient", surrogate, SURROGATES))
        if learned and not channels:
            raise UserError("Binarize: learned thresholds need `channels`")
        self.channels, self.surrogate = channels, surrogate
        self.sharpness = 1.0
        self.phase: str = "sign"
        self.threshold: Tensor | None
        if learned and channels:
            self.threshold = nn.Parameter(torch.full((channels,), float(initial)))
        elif initial:
            self.register_buffer("threshold", torch.tensor([float(initial)]))
        else:
            self.threshold = None

    def forward(self, x: Tensor) -> Tensor:
        """Map real [N, C, ...] to {-1, +1} (phase "sign") or to [-1, 1], same shape."""
        threshold = self.threshold
        if threshold is not None:
            threshold = threshold.view(1, -1, *(1,) * (x.dim() - 2))
        if self.phase == "sign":
            return binarize(x, threshold, surrogate=self.surrogate, sharpness=self.sharpness)
        z = x if threshold is None else x - threshold
        return F.hardtanh(z) if self.phase == "hardtanh" else torch.tanh(z)

    def extra_repr(self) -> str:
        kind = "learned" if isinstance(self.threshold, nn.Parameter) else "fixed"
        return f"threshold={kind}, surrogate={self.surrogate}, phase={self.phase}"


def _check_scale(where: str, scale: str) -> None:
    if scale not in WEIGHT_SCALES:
        raise UserError(f"{where}: {unknown_name('weight scale', scale, WEIGHT_SCALES)}")


class BinaryConv2d(nn.Conv2d):
    """Convolution of an already binarized input with the signs of its weights.

    ``y = scale * conv(b, sign(w)) + bias``; gradient of ``sign(w)`` by a surrogate (clipped identity: Bi-Real Net's
    code). Other published forms of the weights are subclasses (nasb.binary.weight_forms).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in `torch.nn.Conv2d`.
        pad_value: what the border contributes: 0 (as Conv and ONNX do it), or +1 / -1 where a network was published so.
        scale: ``mean`` (mean \\|w\\| per output channel, detached: XNOR-Net, Bi-Real Net), ``learned`` (one parameter
            per output channel, started at the mean) or ``none``.
        surrogate: of the weights' sign.
        limit: clip the weights to [-limit, limit] after each step of the optimizer (BNN: 1), so that none goes where
            its surrogate gradient is 0; None: no clipping.

    Raises:
        UserError: unknown `scale` or `surrogate`, a `pad_value` other than -1, 0, 1, channels that `groups` does not
            divide, or a `limit` that is not above 0.

    Source: Rastegari et al., XNOR-Net, ECCV 2016, arXiv 1603.05279; Liu et al., Bi-Real Net, arXiv 1808.00278.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        pad_value: Literal[-1, 0, 1] = 0,
        scale: str = "mean",
        surrogate: str = "clipped_identity",
        limit: float | None = None,
    ) -> None:
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise UserError(
                f"BinaryConv2d: in_channels (={in_channels}) and out_channels (={out_channels}) must be divisible by "
                f"groups (={groups})"
            )
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        _check_scale("BinaryConv2d", scale)
        if pad_value not in (-1, 0, 1):
            raise UserError(f"BinaryConv2d: pad_value is {pad_value}; accepted: -1, 0, 1")
        if surrogate not in SURROGATES:
            raise UserError(unknown_name("surrogate gradient", surrogate, SURROGATES))
        if limit is not None and not limit > 0:
            raise UserError(f"BinaryConv2d: limit is {limit}; it must be above 0")
        self.pad_value, self.scale_kind, self.surrogate, self.limit = pad_value, scale, surrogate, limit
        self.sharpness = 1.0
        self.phase: str = "binary"
        self.learned_scale = nn.Parameter(_mean_scale(self.weight)) if scale == "learned" else None

    def real_weight(self) -> Tensor:
        """Return what is binarized, [C_out, C_in / groups, kH, kW]; the weights themselves in the phase ``real``."""
        return self.weight

    def signs(self) -> Tensor:
        """Return the binary weights, -1 / +1 [C_out, C_in / groups, kH, kW], with their surrogate gradient."""
        return binarize(self.real_weight(), surrogate=self.surrogate, sharpness=self.sharpness)

    def weight_scale(self) -> Tensor | None:
        """Return the scale [C_out], or None for ``scale="none"``."""
        if self.scale_kind == "none":
            return None
        return _mean_scale(self.weight) if self.learned_scale is None else self.learned_scale

    @torch.no_grad()
    def after_step(self) -> None:
        """Clip the weights to the limit, if there is one."""
        if self.limit is not None:
            self.weight.clamp_(-self.limit, self.limit)

    @torch.no_grad()
    def take_weight(self, weight: Tensor) -> None:
        """Copy a weight [C_out, C_in / groups, kH, kW], and start a learned scale at its mean."""
        self.weight.copy_(weight)
        if self.learned_scale is not None:
            self.learned_scale.copy_(_mean_scale(self.weight))

    def accumulate(self, b_NCHW: Tensor, weight: Tensor | None = None) -> Tensor:  # noqa: N803
        """Return the accumulators [N, C_out, H', W']: exact integers in fp32 if the input is -1 / +1."""
        if weight is None:
            weight = self.signs()
        padding = self.padding
        if self.pad_value and any(self._reversed_padding_repeated_twice):
            b_NCHW = F.pad(b_NCHW, self._reversed_padding_repeated_twice, value=float(self.pad_value))
            padding = (0, 0)
        stride = self.stride
        if self.kernel_size == (1, 1) and stride != (1, 1) and padding == (0, 0):
            # The same sum on every stride-th pixel. oneDNN's strided 1x1 writes past its buffer in the backward pass
            # where channels_last has fewer than 8 input channels (oneDNN issue 6035, seen with torch 2.14.1).
            b_NCHW, stride = b_NCHW[:, :, :: stride[0], :: stride[1]], (1, 1)
        return F.conv2d(b_NCHW, weight, None, stride, padding, self.dilation, self.groups)

    def forward(self, b_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Map -1 / +1 [N, C_in, H, W] to real [N, C_out, H', W']."""
        if self.phase == "real":
            y = self.accumulate(b_NCHW, self.real_weight())
        else:
            y = self.accumulate(b_NCHW)
            scale = self.weight_scale()
            if scale is not None:
                y = y.mul_(scale.view(1, -1, 1, 1).to(y.dtype))
        return y if self.bias is None else y + self.bias.view(1, -1, 1, 1).to(y.dtype)

    def extra_repr(self) -> str:
        base = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{base}, pad_value={self.pad_value}, scale={self.scale_kind}, phase={self.phase}"


class BinaryLinear(nn.Linear):
    """Linear layer on an already binarized input: ``y = scale * (b @ sign(w).T) + bias``.

    Args:
        in_features, out_features, bias: as in `torch.nn.Linear`.
        scale, surrogate: as in `BinaryConv2d`.

    Raises:
        UserError: unknown `scale` or `surrogate`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        scale: str = "mean",
        surrogate: str = "clipped_identity",
    ) -> None:
        super().__init__(in_features, out_features, bias)
        _check_scale("BinaryLinear", scale)
        if surrogate not in SURROGATES:
            raise UserError(unknown_name("surrogate gradient", surrogate, SURROGATES))
        self.scale_kind, self.surrogate = scale, surrogate
        self.sharpness = 1.0
        self.phase: str = "binary"
        self.learned_scale = nn.Parameter(_mean_scale(self.weight)) if scale == "learned" else None

    def weight_scale(self) -> Tensor | None:
        """Return the scale [out_features], or None for ``scale="none"``."""
        if self.scale_kind == "none":
            return None
        return _mean_scale(self.weight) if self.learned_scale is None else self.learned_scale

    def accumulate(self, b: Tensor) -> Tensor:
        """Return the accumulators [..., out_features]: exact integers in fp32 if the input is -1 / +1."""
        return F.linear(b, binarize(self.weight, surrogate=self.surrogate, sharpness=self.sharpness))

    def forward(self, b: Tensor) -> Tensor:
        """Map -1 / +1 [..., in_features] to real [..., out_features]."""
        if self.phase == "real":
            return F.linear(b, self.weight, self.bias)
        y = self.accumulate(b)
        scale = self.weight_scale()
        if scale is not None:
            y = y * scale.to(y.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale_kind}, phase={self.phase}"


def _mean_scale(weight: Tensor) -> Tensor:
    return weight.detach().abs().flatten(1).mean(1)


class RPReLU(nn.Module):
    """PReLU between two learned shifts: ``y = prelu(x + b1) + b2``, all per channel.

    Args:
        channels: C of the input [N, C, H, W].
        slope: start of the slopes for negative values.

    Source: Liu et al., ReActNet, ECCV 2020, arXiv 2003.03488.
    """

    def __init__(self, channels: int, slope: float = 0.25) -> None:
        super().__init__()
        self.shift_in = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), float(slope)))
        self.shift_out = nn.Parameter(torch.zeros(channels))

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803
        """Map [N, C, H, W] to the same shape."""
        shape = (1, -1, 1, 1)
        return F.prelu(x_NCHW + self.shift_in.view(shape), self.slope) + self.shift_out.view(shape)


@torch.no_grad()
def start_scales(module: nn.Module) -> None:
    """Start learned scales at the mean of the weights as they are, moved by a pretraining without scales."""
    for layer in module.modules():
        if isinstance(layer, BinaryConv2d | BinaryLinear) and layer.learned_scale is not None:
            layer.learned_scale.copy_(_mean_scale(layer.weight))


def set_phase(module: nn.Module, *, weights: str, activations: str) -> None:
    """Set every binary layer of a network to a phase of training.

    Args:
        module: any network; layers that are not binary are left alone.
        weights: ``binary`` or ``real``.
        activations: ``sign``, ``hardtanh`` or ``tanh`` (what stands in for sign before binarization).

    Raises:
        UserError: another word.
    """
    if weights not in ("binary", "real"):
        raise UserError(unknown_name("phase of weights", weights, ("binary", "real")))
    if activations not in ACTIVATION_PHASES:
        raise UserError(unknown_name("phase of activations", activations, ACTIVATION_PHASES))
    for layer in module.modules():
        if isinstance(layer, BinaryConv2d | BinaryLinear):
            layer.phase = weights
            if layer.learned_scale is not None:  # real weights go without it, and it without a gradient
                layer.learned_scale.requires_grad_(weights == "binary")
        elif isinstance(layer, Binarize):
            layer.phase = activations


def set_sharpness(module: nn.Module, sharpness: float) -> None:
    """Set what the ``tanh_annealed`` surrogates of activations and weights read (IR-Net: once per epoch).

    Other layers keep theirs: torch.compile would compile a network anew, and slowly, for a number that changes.

    Raises:
        UserError: it is not above 0.
    """
    if not sharpness > 0:
        raise UserError(f"sharpness is {sharpness}; it must be above 0")
    for layer in module.modules():
        if isinstance(layer, Binarize | BinaryConv2d | BinaryLinear) and layer.surrogate == "tanh_annealed":
            layer.sharpness = sharpness


@runtime_checkable
class SteppedLayer(Protocol):
    """A layer that has something to do after each step of the optimizer, such as clipping its weights."""

    def after_step(self) -> None:
        """Do it, without gradients."""


def after_step(module: nn.Module) -> None:
    """Let every layer of a network do what it has to do after a step of the optimizer."""
    for layer in module.modules():
        if isinstance(layer, SteppedLayer):
            layer.after_step()
