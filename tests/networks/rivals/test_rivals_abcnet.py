"""ABC-Net against its written formulas: bases, least squares, gradients, blocks, counts."""

import pytest
import torch
import torch.nn.functional as F

from nasb.binary import AbcConv2d, Binarize, set_phase
from nasb.cost import count
from nasb.errors import UserError
from nasb.networks import create_network, host_defaults
from nasb.networks.rivals.abcnet import AbcLayer, block

BASES = [(1, 1), (1, 3), (3, 1), (2, 2), (3, 3), (5, 5)]


def sign(x):
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def bases_of(w, m):
    """[M, ...], as the paper writes them."""
    u = [-1 + 2 * i / (m - 1) for i in range(m)] if m > 1 else [0.0]
    return torch.stack([sign(w - w.mean() + shift * w.std()) for shift in u])


def layer_of(x, state, m, n):
    """``BN(sum_n beta_n sum_m alpha_m conv(B_m, A_n))`` with ``A_n = H(x + v_n)``, v_n = 0.5 - t_n; in float64."""
    state = {key: value.double() for key, value in state.items()}
    w = state["conv.weight"]
    bases = bases_of(w, m)
    alpha = torch.linalg.lstsq(bases.flatten(1).T, w.flatten()[:, None], driver="gelsd").solution.flatten()
    y = 0.0
    for i in range(n):
        v = 0.5 - state[f"binarize.{i}.threshold"]
        a = torch.where((x.double() + v).clamp(0, 1) >= 0.5, 1.0, -1.0).double()
        for j in range(m):
            y = y + state["conv.activation_scale"][i] * alpha[j] * F.conv2d(a, bases[j], None, 1, 1)
    mean, var, gamma, beta = (
        state[f"bn.{key}"].view(1, -1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
    )
    return ((y - mean) / (var + 1e-5).sqrt() * gamma + beta).float()


def make(m, n, randomize, inputs=8, outputs=6):
    return randomize(AbcLayer(inputs, outputs, 1, m, n)).eval()


@pytest.mark.parametrize(("m", "n"), BASES)
def test_a_layer_is_its_written_form(m, n, randomize):
    layer = make(m, n, randomize)
    x = torch.randn(2, 8, 6, 5)
    with torch.no_grad():
        expected = layer_of(x, layer.state_dict(), m, n)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
        layer.conv.train()  # both arguments summed up before one convolution
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_alpha_is_the_least_squares_solution(m):
    conv = AbcConv2d(7, 5, 3, weight_bases=m)
    bases = bases_of(conv.weight.detach(), m)
    assert torch.equal(conv.signs().detach(), bases)
    expected = torch.linalg.lstsq(bases.flatten(1).T.double(), conv.weight.detach().double().flatten()).solution
    torch.testing.assert_close(conv.basis_scale(conv.signs()).double(), expected, rtol=1e-5, atol=1e-6)
    weight = conv.weight.detach()
    left = [weight - (share * expected.float().view(-1, 1, 1, 1, 1) * bases).sum(0) for share in (1.0, 1.01)]
    assert left[0].square().sum() < left[1].square().sum()


def test_bases_that_coincide_share_their_scale():
    conv = AbcConv2d(2, 2, 1, weight_bases=3)
    with torch.no_grad():  # std 2 / sqrt(3): no shift by it changes a sign
        conv.weight.copy_(torch.tensor([3.0, -3.0, 3.0, -3.0]).view(2, 2, 1, 1))
        conv.shifts = [-0.1, 0.0, 0.1]
    torch.testing.assert_close(conv.basis_scale(conv.signs()), torch.ones(3))


def test_one_base_is_a_plain_layer():
    """M = N = 1, u = 0, v = 0.5, beta = 1: sign(W - mean W) alpha on sign(x)."""
    layer = AbcLayer(8, 6, 1, 1, 1).eval()
    x = torch.randn(2, 8, 5, 5)
    x[:, :, 0] = 0.0
    w = layer.conv.weight.detach()
    centred = w - w.mean()
    alpha = float((sign(centred) * w).mean())
    assert layer.binarize[0].threshold.tolist() == [0.0]
    assert layer.conv.activation_scale.tolist() == [1.0]
    with torch.no_grad():
        expected = F.conv2d(sign(x), sign(centred), None, 1, 1) * alpha
        torch.testing.assert_close(layer.conv(layer.binarize[0](x)), expected)


@pytest.mark.parametrize("training", [False, True])
def test_gradient_of_the_weights_is_that_of_each_base_times_its_alpha(training):
    conv = AbcConv2d(4, 3, 3, padding=1, weight_bases=3, activation_bases=2).train(training)
    signs = [sign(torch.randn(2, 4, 6, 6)) for _ in range(2)]
    upstream = torch.randn(2, 3, 6, 6)
    conv(*signs).backward(upstream)
    alpha = conv.basis_scale(conv.signs())
    expected = torch.zeros_like(conv.weight)
    for m, basis in enumerate(conv.signs().detach()):
        basis.requires_grad_()
        total = sum(beta.detach() * a for beta, a in zip(conv.activation_scale, signs, strict=True))
        (of_basis,) = torch.autograd.grad(F.conv2d(total, basis, None, 1, 1), basis, upstream)
        expected += alpha[m] * of_basis
    torch.testing.assert_close(conv.weight.grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_the_activations_are_the_written_ones(training):
    layer = AbcLayer(2, 3, 1, 2, 3)
    layer.bn = torch.nn.Identity()
    layer.train(training)
    v = [0.0, 0.5, 1.0]
    with torch.no_grad():
        layer.conv.activation_scale.copy_(torch.tensor([0.3, 0.5, 0.7]))
    assert [0.5 - b.threshold.item() for b in layer.binarize] == [1.0, 0.5, 0.0]
    # The corners of clip(x + v, 0, 1) for each v, and points between.
    x = torch.tensor([-1.5, -1.0, -0.75, -0.5, 0.0, 0.25, 0.5, 1.0, 1.25]).repeat(2).view(1, 2, 3, 3).requires_grad_()
    upstream = torch.randn(1, 3, 3, 3)
    layer(x).backward(upstream)
    conv, detached = layer.conv, x.detach()
    bases, alpha = conv.signs().detach(), conv.basis_scale(conv.signs())
    weight = (alpha.view(-1, 1, 1, 1, 1) * bases).sum(0)
    to_input = torch.nn.grad.conv2d_input((1, 2, 3, 3), weight, upstream, padding=1)
    for_x = torch.zeros_like(x)
    for index, shift in enumerate(reversed(v)):
        beta = conv.activation_scale[index].item()
        inside = (detached + shift >= 0) & (detached + shift <= 1)
        a = sign(detached + shift - 0.5)
        for_x += beta * to_input * inside
        for_v = float((beta * to_input * inside).sum())
        assert layer.binarize[index].threshold.grad.item() == pytest.approx(-for_v, abs=1e-5)  # t = 0.5 - v
        assert conv.activation_scale.grad[index].item() == pytest.approx(float((to_input * a).sum()), abs=1e-5)
    torch.testing.assert_close(x.grad, for_x, rtol=1e-4, atol=1e-5)


def test_activations_start_evenly_spread_and_split_a_normal_distribution():
    layer = AbcLayer(4, 4, 1, 3, 5)
    assert [b.threshold.item() for b in layer.binarize] == [-0.5, -0.25, 0.0, 0.25, 0.5]
    x = torch.randn(4, 4, 16, 16)
    values = sum(beta * b(x) for beta, b in zip(layer.conv.activation_scale, layer.binarize, strict=True))
    shares = [
        float((values.detach() - level).abs().lt(1e-3).double().mean()) for level in (-1, -0.6, -0.2, 0.2, 0.6, 1)
    ]
    assert sum(shares) == pytest.approx(1.0)
    assert min(shares) > 0.05


def test_sums_of_every_pair_are_exact_integers():
    conv = AbcConv2d(8, 5, 3, 2, 1, weight_bases=3, activation_bases=2)
    signs = [sign(torch.randn(2, 8, 9, 7)) for _ in range(2)]
    found = conv.accumulators(*signs)
    assert len(found) == len(conv.pair_scale()) == 6
    for index, acc in enumerate(found):
        n, m = divmod(index, 3)
        assert torch.equal(acc, acc.round())
        assert torch.equal(acc, F.conv2d(signs[n], bases_of(conv.weight.detach(), 3)[m], None, 2, 1))
    torch.testing.assert_close(
        conv.pair_scale(), torch.outer(conv.activation_scale, conv.basis_scale(conv.signs())).flatten()
    )


def test_the_real_phase_convolves_the_real_weight_with_bounded_activations():
    layer = AbcLayer(4, 3, 1, 2, 3).eval()
    layer.bn = torch.nn.Identity()
    x = torch.randn(2, 4, 5, 5)
    set_phase(layer, weights="real", activations="tanh")
    expected = F.conv2d(sum(torch.tanh(x - t) / 3 for t in (-0.5, 0.0, 0.5)), layer.conv.weight, None, 1, 1)
    torch.testing.assert_close(layer(x), expected)


def test_a_block_has_one_shortcut_around_two_layers(randomize):
    for inputs, outputs, stride in ((8, 8, 1), (8, 16, 2)):
        unit = randomize(block("strided", 2, 2)(inputs, outputs, stride)).eval()
        x = torch.randn(2, inputs, 6, 6)
        with torch.no_grad():
            torch.testing.assert_close(unit(x), unit.layer2(unit.layer1(x)) + unit.shortcut(x))
        assert sum(isinstance(part, Binarize) for part in unit.modules()) == 4


FLOPS_18 = 112 * 112 * 64 * 3 * 49 + 3 * 28 * 28 * 64 * 128 + 512 * 1000
FLOPS_20 = 32 * 32 * 16 * 3 * 9 + 64 * 10
BOPS_18, BOPS_34, BOPS_20 = 56 * 56 * 64 * 64 * 9 * 29 // 2, 56 * 56 * 64 * 64 * 9 * 61 // 2, 32 * 32 * 16 * 16 * 9 * 17
BINARY_18, BINARY_34, BINARY_20 = 10_985_472, 21_086_208, 267_264
REAL_18, REAL_34, REAL_20 = 704_040, 711_464, 2_458  # of Bi-Real Net (tests/cost)


@pytest.mark.parametrize(
    ("name", "bases", "layers", "plain", "glance"),
    [
        ("abcnet_resnet18", 3, 16, (BOPS_18, FLOPS_18, BINARY_18, REAL_18), (15.09, 1.378, 3.74, 55.5)),
        ("abcnet_resnet18", 5, 16, (BOPS_18, FLOPS_18, BINARY_18, REAL_18), (41.91, 1.378, 7.93, 77.5)),
        ("abcnet_resnet34", 5, 32, (BOPS_34, FLOPS_18, BINARY_34, REAL_34), None),
        ("abcnet_resnet20", 3, 18, (BOPS_20, FLOPS_20, BINARY_20, REAL_20), (0.361, 0.0044, 0.061, None)),
    ],
)
def test_counts_are_those_of_the_structure(name, bases, layers, plain, glance):
    """`glance`: BOPs e9, FLOPs e8, OPs e8, Mbit, as a script of this project's research found them."""
    with torch.device("meta"):
        network = create_network(name, weight_bases=bases, activation_bases=bases)
    found = count(network, host_defaults(name)[0])
    bops, flops, binary, real = plain
    assert found.uncounted == ()
    assert (found.bops, found.flops) == (bases**2 * bops, flops)
    # The script left out each layer's numbers alpha, beta and thresholds: 240 in all for 5 x 5 bases of a ResNet-18.
    assert (found.binary_parameters, found.parameters) == (
        bases * binary, bases * binary + real + 3 * bases * layers
    )  # fmt: skip
    assert found.memory_bits == found.binary_parameters + 32 * (found.parameters - found.binary_parameters)
    if glance is not None:
        assert found.bops / 1e9 == pytest.approx(glance[0], abs=0.0051 if glance[0] > 1 else 0.00051)
        assert found.flops / 1e8 == pytest.approx(glance[1], abs=5.1e-4)
        assert found.ops / 1e8 == pytest.approx(glance[2], abs=0.0051)
        assert glance[3] is None or found.memory_bits / 1e6 == pytest.approx(glance[3], abs=0.051)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight_bases": 0}, ["weight_bases is 0", "from 1"]),
        ({"activation_bases": 1.5}, ["activation_bases is 1.5"]),
        ({"weight_bases": True}, ["weight_bases is True"]),
        ({"bases": 3}, ['unknown option "bases"']),
        ({"shortcut": "binary"}, ['unknown shortcut "binary"']),
    ],
)
def test_wrong_options_are_refused_by_name(options, words):
    with pytest.raises(UserError) as caught:
        create_network("abcnet_resnet20", **options)
    assert all(word in str(caught.value) for word in words), caught.value
    with pytest.raises(UserError, match="pad_value is 1"):
        AbcConv2d(4, 4, 3, pad_value=1)


def test_training_lowers_the_loss():
    network = create_network("abcnet_resnet20", width=4, weight_bases=2, activation_bases=2, input_shape=(3, 8, 8))
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    x, target = torch.randn(32, 3, 8, 8), torch.arange(32) % 10
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3]), losses
