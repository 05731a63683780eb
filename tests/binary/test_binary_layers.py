"""The binary layers: against an integer oracle, the formulas of scale and bias, their phases and their errors."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nasb.binary import Binarize, BinaryConv2d, BinaryLinear, RPReLU, set_phase, set_sharpness
from nasb.errors import UserError


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def signs(*shape, seed=0):
    return torch.where(seeded(*shape, seed=seed) >= 0, 1.0, -1.0)


def reset(layer, seed=0):
    """Give a layer reproducible weights, with a few zeros of both signs among them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        layer.weight.flatten()[:2] = torch.tensor([0.0, -0.0])[: layer.weight.numel()]
    return layer


def oracle_accumulators(b, weight, *, stride, padding, dilation, groups, pad_value):
    """Sum products of signs in int64, output pixel by output pixel: plain loops over numpy arrays."""
    b, weight = b.numpy().astype(np.int64), np.where(weight.detach().numpy() >= 0, 1, -1).astype(np.int64)
    pixels = ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2)
    b = np.pad(b, pixels, constant_values=pad_value)
    reach_h, reach_w = (d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True))
    height, width = (b.shape[2] - reach_h) // stride[0] + 1, (b.shape[3] - reach_w) // stride[1] + 1
    out = np.zeros((b.shape[0], weight.shape[0], height, width), np.int64)
    per_group_in, per_group_out = weight.shape[1], weight.shape[0] // groups
    for i, j in itertools.product(range(height), range(width)):
        top, left = i * stride[0], j * stride[1]
        window = b[:, :, top : top + reach_h : dilation[0], left : left + reach_w : dilation[1]]
        for group in range(groups):
            inputs = window[:, group * per_group_in : (group + 1) * per_group_in]
            outputs = slice(group * per_group_out, (group + 1) * per_group_out)
            out[:, outputs, i, j] = np.einsum("nchw,ochw->no", inputs, weight[outputs])
    return out


CHANNELS = [(1, 1, 1), (5, 3, 1), (6, 4, 2), (4, 8, 4), (70, 2, 1)]
STRIDES, PADDINGS, DILATIONS = [(1, 1), (2, 2), (1, 3)], [(0, 0), (1, 1), (2, 0)], [(1, 1), (2, 2)]


@pytest.mark.parametrize("pad_value", [0, 1, -1])
@pytest.mark.parametrize("channels_and_groups", CHANNELS)
@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 3), (5, 5), (2, 3)])
def test_accumulators_are_the_oracles_integers(channels_and_groups, kernel_size, pad_value):
    in_channels, out_channels, groups = channels_and_groups
    b = signs(2, in_channels, 11, 10)
    for stride, padding, dilation in itertools.product(STRIDES, PADDINGS, DILATIONS):
        geometry = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "pad_value": pad_value,
        }
        layer = reset(BinaryConv2d(in_channels, out_channels, kernel_size, **geometry))
        found = layer.accumulate(b).detach()
        assert torch.equal(found, found.round())
        assert np.array_equal(found.numpy().astype(np.int64), oracle_accumulators(b, layer.weight, **geometry))


def test_integers_for_sizes_are_taken_as_pairs():
    b = signs(2, 4, 9, 9)
    pairs = reset(BinaryConv2d(4, 6, (3, 3), (2, 2), (1, 1), (2, 2), pad_value=1))
    single = reset(BinaryConv2d(4, 6, 3, 2, 1, 2, pad_value=1))
    assert torch.equal(pairs(b), single(b))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", ["none", "mean", "learned"])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_output_is_scale_times_accumulator_plus_bias(kind, scale, bias):
    if kind == "conv":
        layer, b, axes = BinaryConv2d(4, 6, 3, padding=1, bias=bias, scale=scale), signs(2, 4, 5, 5), (-1, 1, 1)
    else:
        layer, b, axes = BinaryLinear(7, 6, bias, scale=scale), signs(2, 7), (-1,)
    reset(layer)
    expected_scale = {
        "none": torch.ones(6),
        "mean": layer.weight.abs().flatten(1).mean(1),
        "learned": layer.learned_scale,
    }[scale]
    expected = layer.accumulate(b).clone() * expected_scale.view(axes)
    if bias:
        expected = expected + layer.bias.view(axes)
    assert torch.equal(layer(b), expected)
    assert (layer.weight_scale() is None) == (scale == "none")


@pytest.mark.parametrize("scale", ["none", "mean", "learned"])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_gradients_are_the_written_ones(kind, scale):
    """dL/dw = 1[|w| <= 1] * dL/dsign(w), none through the mean; dL/dscale = sum of dL/dy * acc, if it is learned."""
    if kind == "conv":
        layer, b = BinaryConv2d(4, 6, 3, padding=1, bias=True, scale=scale), signs(2, 4, 5, 5)
        axes, sum_over = (1, -1, 1, 1), (0, 2, 3)
    else:
        layer, b, axes, sum_over = BinaryLinear(7, 6, True, scale=scale), signs(2, 7), (1, -1), (0,)
    reset(layer)
    b.requires_grad_()
    y = layer(b)
    upstream = seeded(*y.shape, seed=3)
    y.backward(upstream)
    signed = torch.where(layer.weight >= 0, 1.0, -1.0).requires_grad_()
    reference = b.detach().clone().requires_grad_()
    acc = F.conv2d(reference, signed, padding=1) if kind == "conv" else F.linear(reference, signed)
    factor = layer.weight_scale()
    factor = torch.ones(6) if factor is None else factor.detach()
    acc.backward(upstream * factor.view(axes))
    mask = layer.weight.abs() <= 1
    assert mask.any()
    assert not mask.all()
    torch.testing.assert_close(layer.weight.grad, signed.grad * mask)
    torch.testing.assert_close(b.grad, reference.grad)
    torch.testing.assert_close(layer.bias.grad, upstream.sum(sum_over))
    if scale == "learned":
        torch.testing.assert_close(layer.learned_scale.grad, (upstream * acc).sum(sum_over))


def test_a_learned_scale_starts_at_the_mean():
    for layer in (BinaryConv2d(4, 6, 3, scale="learned"), BinaryLinear(4, 6, scale="learned")):
        assert torch.equal(layer.learned_scale, layer.weight.abs().flatten(1).mean(1))


def test_weights_have_the_surrogate_that_is_asked():
    b = signs(1, 2, 3, 3)
    for surrogate, slope in (("identity", lambda w: 1.0), ("polynomial", lambda w: max(0.0, 2 - 2 * abs(w)))):
        layer = BinaryConv2d(2, 1, 3, scale="none", surrogate=surrogate)
        reset(layer)
        layer(b).sum().backward()
        weights = layer.weight.flatten().tolist()
        expected = [value * slope(w) for value, w in zip(b.flatten().tolist(), weights, strict=True)]
        assert layer.weight.grad.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_linear_accumulators_are_the_oracles_integers():
    for inputs, outputs, lead in itertools.product([1, 7, 64, 200], [1, 5], [(2,), (2, 3), ()]):
        layer, b = reset(BinaryLinear(inputs, outputs)), signs(*lead, inputs)
        weight = np.where(layer.weight.detach().numpy() >= 0, 1, -1).astype(np.int64)
        assert np.array_equal(layer.accumulate(b).detach().numpy(), b.numpy().astype(np.int64) @ weight.T)


def test_real_phase_is_the_plain_layer():
    for bias, pad_value in itertools.product([False, True], [0, 1, -1]):
        conv = reset(BinaryConv2d(4, 6, 3, 2, 1, bias=bias, pad_value=pad_value, scale="learned"))
        set_phase(conv, weights="real", activations="tanh")
        x = seeded(2, 4, 7, 7)
        expected = F.conv2d(F.pad(x, (1, 1, 1, 1), value=pad_value), conv.weight, conv.bias, 2)
        torch.testing.assert_close(conv(x), expected)
        linear = reset(BinaryLinear(7, 6, bias, scale="learned"))
        set_phase(linear, weights="real", activations="tanh")
        torch.testing.assert_close(linear(x), F.linear(x, linear.weight, linear.bias))


def test_binarize_thresholds_are_per_channel_for_any_number_of_axes():
    for shape in [(4, 3), (4, 3, 5), (4, 3, 5, 6)]:
        layer, x = Binarize(3, learned=True, initial=0.25), seeded(*shape)
        with torch.no_grad():
            layer.threshold.copy_(torch.tensor([-0.5, 0.0, 0.5]))
        t = layer.threshold.view(1, 3, *(1,) * (len(shape) - 2))
        assert torch.equal(layer(x), torch.where(x >= t, 1.0, -1.0))


def test_binarize_starts_where_it_is_told():
    assert Binarize(3, learned=True, initial=0.25).threshold.tolist() == [0.25] * 3
    fixed = Binarize(initial=0.25)
    assert fixed.threshold.tolist() == [0.25]
    assert not list(fixed.parameters())
    assert fixed(torch.tensor([[0.25, 0.2]])).tolist() == [[1, -1]]
    assert Binarize().threshold is None


@pytest.mark.parametrize("options", [{}, {"initial": 0.3}, {"channels": 3, "learned": True, "initial": 0.3}])
@pytest.mark.parametrize(("phase", "function"), [("hardtanh", F.hardtanh), ("tanh", torch.tanh)])
def test_real_phases_of_binarize(phase, function, options):
    layer, x = Binarize(**options), 2 * seeded(2, 3, 4, 4)
    set_phase(layer, weights="real", activations=phase)
    torch.testing.assert_close(layer(x), function(x - options.get("initial", 0.0)))
    set_phase(layer, weights="binary", activations="sign")
    assert set(layer(x).unique().tolist()) == {-1.0, 1.0}


def test_set_phase_reaches_binary_layers_and_no_others():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Binarize(), BinaryConv2d(4, 4, 3), nn.Sequential(BinaryLinear(2, 2)))
    set_phase(network, weights="real", activations="hardtanh")
    assert [layer.phase for layer in (network[1], network[2], network[3][0])] == ["hardtanh", "real", "real"]
    assert not hasattr(network[0], "phase")


@pytest.mark.parametrize(
    ("weights", "activations", "message"),
    [
        ("reel", "sign", r'unknown phase of weights "reel"; known: binary, real \(closest: real\)'),
        ("sign", "sign", 'unknown phase of weights "sign"; known: binary, real'),
        ("real", "hard_tanh", r'unknown phase of activations "hard_tanh"; .*\(closest: hardtanh, tanh\)'),
        ("real", "binary", 'unknown phase of activations "binary"; known: hardtanh, sign, tanh'),
    ],
)
def test_an_unknown_phase_is_refused_and_changes_nothing(weights, activations, message):
    network = nn.Sequential(Binarize(), BinaryConv2d(4, 4, 3))
    with pytest.raises(UserError, match=message):
        set_phase(network, weights=weights, activations=activations)
    assert (network[0].phase, network[1].phase) == ("sign", "binary")


def test_set_sharpness_reaches_the_annealed_gradient():
    network = nn.Sequential(Binarize(surrogate="tanh_annealed"))
    x = torch.tensor([[0.3, -0.3]], requires_grad=True)
    for t in (0.5, 4.0):
        set_sharpness(network, t)
        (gradient,) = torch.autograd.grad(network(x).sum(), x)
        expected = max(1 / t, 1) * t * (1 - np.tanh(t * 0.3) ** 2)
        assert gradient.flatten().tolist() == pytest.approx([expected] * 2)


def test_set_sharpness_leaves_alone_what_does_not_read_it():
    network = nn.Sequential(Binarize(), Binarize(surrogate="tanh_annealed"), BinaryConv2d(4, 4, 3))
    set_sharpness(network, 0.5)
    assert [layer.sharpness for layer in network] == [1.0, 0.5, 1.0]


def test_rprelu_is_the_formula():
    layer, x = RPReLU(3), seeded(2, 3, 4, 4)
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(seeded(3, seed=seed + 5))
    b1, slope, b2 = (p.view(1, 3, 1, 1) for p in (layer.shift_in, layer.slope, layer.shift_out))
    z = x + b1
    torch.testing.assert_close(layer(x), torch.where(z > 0, z, slope * z) + b2)
    layer(x).sum().backward()
    assert layer.shift_out.grad.tolist() == pytest.approx([32.0] * 3)
    slopes = torch.where(z > 0, 1.0, slope.detach())
    torch.testing.assert_close(layer.shift_in.grad, slopes.sum((0, 2, 3)).detach())
    torch.testing.assert_close(layer.slope.grad, torch.where(z > 0, 0.0, z).sum((0, 2, 3)).detach())


def test_rprelu_without_shifts_is_prelu():
    x = seeded(2, 3, 4, 4)
    assert torch.equal(RPReLU(3)(x), nn.PReLU(3)(x))
    assert torch.equal(RPReLU(3, slope=0.1)(x), nn.PReLU(3, 0.1)(x))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Binarize(learned=True), "Binarize: learned thresholds need `channels`"),
        (lambda: Binarize(surrogate="ste"), 'unknown surrogate gradient "ste"; known: clipped_identity, half_clipped'),
        (lambda: BinaryConv2d(2, 2, 3, surrogate="ste"), 'unknown surrogate gradient "ste"'),
        (lambda: BinaryLinear(2, 2, surrogate="ste"), 'unknown surrogate gradient "ste"'),
        (lambda: BinaryConv2d(2, 2, 3, pad_value=2), "BinaryConv2d: pad_value is 2; accepted: -1, 0, 1"),
        (lambda: BinaryConv2d(2, 2, 3, pad_value=0.5), "BinaryConv2d: pad_value is 0.5; accepted"),
        (lambda: BinaryConv2d(2, 2, 3, scale="max"), 'BinaryConv2d: unknown weight scale "max"; known: learned, mean'),
        (lambda: BinaryLinear(2, 2, scale="lerned"), r'BinaryLinear: unknown weight scale "lerned".*closest: learned'),
    ],
)
def test_wrong_options_are_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()


@pytest.mark.parametrize("scale", ["none", "mean", "learned"])
def test_bf16_autocast_runs_with_exact_signs_and_finite_gradients(scale):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        Binarize(8, learned=True),
        BinaryConv2d(8, 8, 3, padding=1, scale=scale),
        nn.BatchNorm2d(8),
        RPReLU(8),
        Binarize(),
        BinaryConv2d(8, 4, 3, scale=scale),
    )
    seen = []
    for layer in network:
        if isinstance(layer, Binarize | BinaryConv2d):
            layer.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs[0], output)))
    with torch.autocast("cpu", torch.bfloat16):
        y = network(seeded(2, 3, 8, 8))
    assert y.dtype == torch.bfloat16
    for module, x, output in seen:
        if isinstance(module, Binarize):
            assert output.dtype == x.dtype
            assert set(output.unique().tolist()) == {-1.0, 1.0}
        else:
            assert output.dtype == torch.bfloat16
    y.float().square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.dtype == torch.float32


def test_bf16_autocast_keeps_small_accumulators_exact():
    """Up to 256 products bf16 holds every sum: 8 significant bits."""
    layer, b = reset(BinaryConv2d(28, 4, 3, padding=1, scale="none")), signs(2, 28, 6, 6)
    exact = layer(b)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(b).float(), exact)


def test_a_learned_scale_learns_where_weights_are_binary():
    network = nn.Sequential(BinaryConv2d(2, 2, 1, scale="learned"), nn.Flatten(), BinaryLinear(2, 2, scale="learned"))
    for weights, learns in (("real", False), ("binary", True)):
        set_phase(network, weights=weights, activations="sign")
        assert [network[0].learned_scale.requires_grad, network[2].learned_scale.requires_grad] == [learns] * 2


def test_the_sharpness_of_a_linear_layer_is_set():
    layer = BinaryLinear(3, 2, surrogate="tanh_annealed")
    b, slopes = torch.ones(1, 3), []
    for sharpness in (1.0, 3.0):
        set_sharpness(layer, sharpness)
        layer.weight.grad = None
        layer(b).sum().backward()
        slopes.append(layer.weight.grad.clone())
    assert not torch.equal(*slopes)
