"""XNOR-Net's and IR-Net's weights, clipping and what is done after a step, against their written formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nasb.binary import BinaryConv2d, LibraConv2d, XnorConv2d, after_step, set_phase, set_sharpness
from nasb.errors import UserError

# -1, 0, +1, numbers beyond the clip value, and one filter of equal numbers.
FILTERS = torch.tensor([[-1.0, -0.5, 0.0, 0.25], [1.0, -1.5, 0.75, -0.0], [0.5, 0.5, 0.5, 0.5]]).view(3, 4, 1, 1)


def gradient(conv, upstream):
    """dL/dW~ and dL/dw for an input of unit vectors, by which the output is the scaled binary weight itself."""
    conv.weight.grad = None
    y = conv(torch.eye(4).view(4, 4, 1, 1))  # [tap, filter]
    (y.view(4, 3).T * upstream).sum().backward()
    return y.detach().view(4, 3).T, conv.weight.grad.view(3, 4)


def make(kind, weight=FILTERS):
    conv = kind(4, 3, 1)
    with torch.no_grad():
        conv.weight.copy_(weight)
    return conv


def test_xnor_is_the_written_formula():
    upstream = torch.arange(1.0, 13).view(3, 4)
    values, found = gradient(make(XnorConv2d), upstream)
    for row, filter_ in enumerate(FILTERS.view(3, 4).tolist()):
        scale = sum(map(abs, filter_)) / 4
        for column, w in enumerate(filter_):
            assert values[row, column] == pytest.approx(scale * (1 if w >= 0 else -1))
            expected = upstream[row, column].item() * (scale * (1 if abs(w) < 1 else 0) + 1 / 4)
            assert found[row, column].item() == pytest.approx(expected, rel=1e-6), w


def test_xnor_centres_over_input_channels_for_each_tap_then_clips():
    conv = XnorConv2d(4, 2, 3)
    with torch.no_grad():
        conv.weight.mul_(8)
    before = conv.weight.detach().clone()
    after_step(nn.Sequential(conv))
    for o in range(2):
        for y in range(3):
            for x in range(3):
                mean = sum(before[o, :, y, x].tolist()) / 4
                expected = [min(max(w - mean, -1), 1) for w in before[o, :, y, x].tolist()]
                assert conv.weight[o, :, y, x].tolist() == pytest.approx(expected, abs=1e-6)
    assert bool((conv.weight.abs() == 1).any())
    with pytest.raises(UserError, match="one input channel"):
        XnorConv2d(4, 4, 3, groups=4)


def test_libra_is_the_written_formula():
    conv = make(LibraConv2d, FILTERS + torch.tensor([0.1, -0.2, 0.3, 0.05]).view(1, 4, 1, 1))
    set_sharpness(nn.Sequential(conv), 0.25)
    upstream = torch.arange(1.0, 13).view(3, 4)
    values, found = gradient(conv, upstream)
    # The same in float64, differentiated by hand: only sign is replaced, mean and std are not detached.
    w = conv.weight.detach().double().view(3, 4).requires_grad_()
    mean = w.sum(1, keepdim=True) / 4
    std = (((w - mean) ** 2).sum(1, keepdim=True) / 3).sqrt()
    z = (w - mean) / std
    scale = torch.tensor([2.0 ** round(math.log2(sum(map(abs, row)) / 4)) for row in z.tolist()]).view(3, 1)
    t, k = 0.25, 4.0
    slopes = k * t * (1 - torch.tanh(t * z.detach()) ** 2)
    (z * (slopes * scale * upstream)).sum().backward()
    assert torch.equal(values, scale * torch.where(z >= 0, 1.0, -1.0))
    torch.testing.assert_close(found.double(), w.grad, rtol=1e-5, atol=1e-6)


def test_libra_has_a_power_of_two_as_scale_and_balanced_real_weights():
    conv = LibraConv2d(16, 8, 3)
    with torch.no_grad():
        conv.weight.mul_(3).add_(1)
        conv.weight[0] = 5 * torch.randn(16, 3, 3) ** 9  # a filter of few large weights
        conv.weight[1] = 1.0
    scale = conv.weight_scale()
    assert torch.equal(scale.log2(), scale.log2().round())
    assert scale[2:].tolist() == [1.0] * 6  # mean |w| of a normal distribution: 0.8
    assert scale[0] < 1
    real = conv.real_weight().detach()
    assert torch.isfinite(real).all()
    torch.testing.assert_close(real.mean((1, 2, 3)), torch.zeros(8), atol=1e-6, rtol=0)
    torch.testing.assert_close(real[2:].std((1, 2, 3)), torch.ones(6))
    signs = torch.where(torch.randn(2, 16, 5, 5) >= 0, 1.0, -1.0)
    network = nn.Sequential(conv)
    binary = conv(signs)
    torch.testing.assert_close(binary, F.conv2d(signs, torch.where(real >= 0, 1.0, -1.0)) * scale.view(1, -1, 1, 1))
    set_phase(network, weights="real", activations="hardtanh")
    torch.testing.assert_close(conv(signs), F.conv2d(signs, real))


def test_sharpness_reaches_the_weights():
    conv = BinaryConv2d(4, 3, 1, surrogate="tanh_annealed", scale="none")
    set_sharpness(conv, 3.0)
    _, found = gradient(make(lambda *a: conv), torch.ones(3, 4))
    expected = 3 * (1 - torch.tanh(3 * FILTERS.view(3, 4)) ** 2)
    torch.testing.assert_close(found, expected)


def test_a_limit_clips_after_each_step():
    conv = make(lambda *a: BinaryConv2d(*a, scale="none", limit=1.0))
    plain = make(BinaryConv2d)
    after_step(nn.ModuleList([conv, plain]))
    assert torch.equal(conv.weight, FILTERS.clamp(-1, 1))
    assert torch.equal(plain.weight, FILTERS)
    with pytest.raises(UserError, match="limit is 0"):
        BinaryConv2d(4, 3, 1, limit=0)


@pytest.mark.parametrize("kind", [BinaryConv2d, XnorConv2d, LibraConv2d])
@pytest.mark.parametrize(("padding", "pad_value"), [(0, 0), (1, 0), (2, 1)])
def test_sums_are_exact_integers_of_signs(kind, padding, pad_value):
    conv = kind(8, 5, 3, 2, padding, pad_value=pad_value)
    signs = torch.where(torch.randn(2, 8, 9, 7) >= 0, 1.0, -1.0)
    padded = F.pad(signs, (padding,) * 4, value=float(pad_value))
    binary = conv.signs()
    assert set(binary.flatten().tolist()) == {-1.0, 1.0}
    sums = F.conv2d(padded, binary, stride=2)
    assert torch.equal(conv.accumulate(signs), sums)
    assert torch.equal(sums, sums.round())
    assert torch.equal(conv(signs), sums * conv.weight_scale().view(1, -1, 1, 1))
