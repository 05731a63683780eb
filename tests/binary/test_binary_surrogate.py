"""sign's contract and every surrogate's gradient against its written formula."""

import math

import pytest
import torch
import torch.nn.functional as F

from nasb.binary import SURROGATES, binarize, sign
from nasb.errors import UserError

POINTS = (
    *(-1e30, -7.3, -1.5, -1.25 - 2**-22, -1.25, -1.0 - 2**-23, -1.0, -0.75, -0.5, -1e-40, -0.0, 0.0, 1e-40, 0.5, 0.75),
    *(1.0, 1.25, 1.25 + 2**-22, 1.5, 7.3, 1e30),
)
TINY = 2.0**-149  # the smallest denormal of fp32
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Written anew, in Python's own floats.
FORMULAS = {
    "clipped_identity": lambda z, t: 1.0 if abs(z) <= 1 else 0.0,
    "half_clipped_identity": lambda z, t: 1.0 if abs(z) <= 0.5 else 0.0,
    "wide_clipped_identity": lambda z, t: 1.0 if abs(z) <= 1.25 else 0.0,
    "polynomial": lambda z, t: max(0.0, 2 - 2 * abs(z)),
    "tanh_annealed": lambda z, t: max(1 / t, 1.0) * t * (1 - math.tanh(t * z) ** 2),
    "identity": lambda z, t: 1.0,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (0.0, 1), (-0.0, 1), (math.nan, -1), (-math.nan, -1), (math.inf, 1), (-math.inf, -1), (1.0, 1), (-1.0, -1),
        (1e-30, 1), (-1e-4, -1), (3.0, 1), (-3.0, -1),
    ],
)  # fmt: skip
def test_sign_is_the_contract(x, expected, dtype):
    values = torch.tensor([x, x], dtype=dtype)
    for result in (sign(values), binarize(values), binarize(values, torch.tensor([0.0], dtype=dtype))):
        assert result.dtype == dtype
        assert result.tolist() == [expected, expected]


def test_sign_of_the_smallest_numbers():
    assert sign(torch.tensor([TINY, -TINY, 2**-126, -(2**-126)])).tolist() == [1, -1, 1, -1]


@pytest.mark.parametrize(
    ("x", "threshold", "expected"),
    [
        (math.nan, 0.5, -1), (1.0, math.nan, -1), (math.inf, math.inf, 1), (-math.inf, -math.inf, 1),
        (0.0, -0.0, 1), (-0.0, 0.0, 1), (0.5, 0.5, 1), (0.5 - 2**-25, 0.5, -1), (-0.5, -0.5, 1),
        (-0.5 - 2**-24, -0.5, -1), (TINY, 2 * TINY, -1), (0.0, TINY, -1), (-0.0, -TINY, 1),
    ],
)  # fmt: skip
def test_thresholds_are_compared(x, threshold, expected):
    values, thresholds = torch.tensor([[x]]), torch.tensor([[threshold]])
    assert binarize(values, thresholds).item() == expected
    assert sign(values, thresholds).item() == expected
    assert sign(values, threshold).item() == expected


def test_infinite_thresholds_are_not_subtracted():
    # inf - inf is NaN, of which the sign would be -1; inf >= inf holds.
    x = torch.tensor([math.inf])
    assert not (x - x >= 0).item()
    assert binarize(x, x).item() == 1


def test_thresholds_are_not_rounded_and_subtracted_in_low_precision():
    # bf16 values against an fp32 threshold: subtracting in bf16 gives 0, comparing sees that 1.0 < 1.001.
    x, threshold = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.001])
    assert (x - threshold.to(torch.bfloat16) >= 0).item()
    assert binarize(x, threshold).item() == -1
    assert binarize(x, threshold).dtype == torch.bfloat16


def test_thresholds_are_not_subtracted_where_denormals_are_flushed():
    # With denormals flushed to zero (as inference engines run) 2**-126 - 1.5 * 2**-126 is 0, and x - t >= 0 would hold.
    x, threshold = torch.tensor([2.0**-126] * 16), torch.tensor([1.5 * 2.0**-126] * 16)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        assert (x - threshold >= 0).all()
        assert (binarize(x, threshold) == -1).all()
    finally:
        torch.set_flush_denormal(False)


def test_sign_equals_its_definition_on_random_bit_patterns():
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (2, 100_000), generator=generator, dtype=torch.int64).to(torch.int32)
    x, threshold = bits.view(torch.float32)
    assert torch.equal(sign(x), torch.where(x >= 0, 1.0, -1.0))
    assert torch.equal(sign(x, threshold), torch.where(x >= threshold, 1.0, -1.0))


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced", "expanded", "empty"])
def test_sign_takes_any_layout(layout):
    x = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    x = {
        "channels_last": x.to(memory_format=torch.channels_last),
        "transposed": x.transpose(1, 3),
        "sliced": x[:, ::2, 1:, ::3],
        "expanded": x[:, :1].expand(2, 6, 4, 4),
        "empty": x[:0],
    }[layout]
    threshold = torch.zeros(1, x.shape[1], 1, 1)
    before = x.clone()
    for result in (sign(x), binarize(x), binarize(x, threshold)):
        assert torch.equal(result, torch.where(x >= 0, 1.0, -1.0))
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 2.5, 10.0])
@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_gradient_is_the_written_formula(name, sharpness, dtype):
    assert set(SURROGATES) == set(FORMULAS)
    x = torch.tensor(POINTS, dtype=dtype, requires_grad=True)
    upstream = torch.arange(1, len(POINTS) + 1, dtype=dtype)
    binarize(x, surrogate=name, sharpness=sharpness).backward(upstream)
    expected = [u * FORMULAS[name](z, sharpness) for u, z in zip(upstream.tolist(), x.tolist(), strict=True)]
    assert x.grad.dtype == dtype
    assert x.grad.tolist() == pytest.approx(expected, rel=2e-6, abs=2e-5)


@pytest.mark.parametrize(
    ("name", "slopes"),
    [
        ("clipped_identity", (0, 1, 1, 1, 1, 1, 0)),
        ("half_clipped_identity", (0, 0, 1, 1, 1, 0, 0)),
        ("polynomial", (0, 0, 1, 2, 1, 0, 0)),
        ("identity", (1, 1, 1, 1, 1, 1, 1)),
    ],
)
def test_gradient_at_the_corners_is_exact(name, slopes):
    x = torch.tensor([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5], requires_grad=True)
    binarize(x, surrogate=name).sum().backward()
    assert x.grad.tolist() == list(slopes)


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_gradient_neither_changes_its_inputs_nor_accumulates_wrongly(name):
    x = torch.tensor(POINTS, requires_grad=True)
    upstream = torch.full_like(x, 3.0)
    before = x.detach().clone()
    y = binarize(x, surrogate=name)
    y.backward(upstream, retain_graph=True)
    once = x.grad.clone()
    y.backward(upstream)
    assert torch.equal(x.grad, 2 * once)
    assert torch.equal(x.detach(), before)
    assert torch.equal(upstream, torch.full_like(x, 3.0))


@pytest.mark.parametrize("name", sorted(FORMULAS))
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (3, 1, 1), (1,), (1, 1, 1, 5), (2, 3, 4, 5), (1, 3, 4, 1), ()])
def test_threshold_gradient_is_the_negative_sum_over_broadcast_axes(shape, name):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    threshold = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    y = binarize(x, threshold, surrogate=name, sharpness=1.7)
    assert torch.equal(y, torch.where(x >= threshold, 1.0, -1.0).double())
    y.backward(upstream)
    z = (x - threshold).detach()
    expected = upstream * z.clone().apply_(lambda value: FORMULAS[name](value, 1.7))
    torch.testing.assert_close(x.grad, expected)
    # The broadcast axes: those that the threshold lacks or has with size 1.
    full = (1,) * (4 - len(shape)) + shape
    axes = [axis for axis in range(4) if full[axis] == 1]
    summed = (expected.sum(axes, keepdim=True) if axes else expected).reshape(shape)
    torch.testing.assert_close(threshold.grad, -summed)


def test_a_fixed_threshold_and_a_fixed_input_get_no_gradient():
    x, threshold = torch.zeros(3, requires_grad=True), torch.full((3,), 0.5)
    binarize(x, threshold).sum().backward()
    assert x.grad.tolist() == [1, 1, 1]
    threshold.requires_grad_()
    binarize(x.detach(), threshold).sum().backward()
    assert threshold.grad.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_low_precision_input_with_full_precision_threshold(name):
    x = torch.linspace(-2, 2, 33, dtype=torch.bfloat16).reshape(1, 1, 33).requires_grad_()
    threshold = torch.zeros(1, 1, 1, requires_grad=True)
    y = binarize(x, threshold, surrogate=name)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert threshold.grad.dtype == torch.float32
    expected = [FORMULAS[name](z, 1.0) for z in x.flatten().tolist()]
    assert x.grad.flatten().tolist() == pytest.approx(expected, abs=2**-7)
    assert threshold.grad.item() == pytest.approx(-sum(expected), rel=1e-2)


def test_sign_is_detached():
    assert not sign(torch.zeros(3, requires_grad=True)).requires_grad
    assert not binarize(torch.zeros(3)).requires_grad


def test_an_unknown_surrogate_is_refused():
    x = torch.zeros(3, requires_grad=True)
    with pytest.raises(UserError, match=r'unknown surrogate gradient "polynom"; .*\(closest: polynomial\)'):
        binarize(x, surrogate="polynom").sum().backward()


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_area_under_a_surrogate(name):
    """Over [-1, 1] a surrogate rises by 2, as sign does; EDE over all of the real line, ABC-Net's by half of it."""
    z = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    inside = z if name == "tanh_annealed" else z[z.abs() <= 1]
    area = torch.trapezoid(SURROGATES[name](inside.clone(), 1.0), inside).item()
    assert area == pytest.approx(1.0 if name == "half_clipped_identity" else 2.0, rel=1e-3)


def test_clipped_identity_is_hardtanhs_gradient():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (expected,) = torch.autograd.grad(F.hardtanh(x).sum(), x)
    (found,) = torch.autograd.grad(binarize(x, surrogate="clipped_identity").sum(), x)
    assert torch.equal(found, expected)
