"""Group-Net against its written formulas: weights, gates, blocks, the whole network, counts."""

import pytest
import torch
import torch.nn.functional as F

from nasb.binary import Binarize, LayerScaleConv2d, SoftGate, set_phase
from nasb.cost import count
from nasb.errors import UserError
from nasb.networks import create_network, host_defaults
from nasb.networks.rivals.groupnet import BinaryLayer, GroupBlock


def sign(x):
    return torch.where(x >= 0, 1.0, -1.0)


def norm(x, s, name):
    mean, var, gamma, beta = (
        s[f"{name}.{key}"].view(1, -1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * gamma + beta


def conv(b, w, stride, padding):
    """The border is +1; one scale for all of a layer."""
    return F.conv2d(F.pad(b, (padding,) * 4, value=1.0), sign(w) * w.abs().mean(), None, stride)


def layer(x, s, name, stride):
    return norm(F.relu(conv(sign(x), s[f"{name}.conv.weight"], stride, 1)), s, f"{name}.bn")


def shortcut(x, s, name, stride):
    if f"{name}.0.weight" in s:  # binary
        return norm(conv(sign(x), s[f"{name}.0.weight"], stride, 0), s, f"{name}.1")
    if f"{name}.conv.weight" in s:  # Group-Net**
        return norm(F.conv2d(F.avg_pool2d(x, stride), s[f"{name}.conv.weight"]), s, f"{name}.bn")
    return x


def written_block(outputs, s, name, stride, bases):
    """The K outputs of a block from the K of the block before, or from one tensor."""
    inputs = outputs * (bases // len(outputs))
    if f"{name}gate.gate" in s:
        g = torch.sigmoid(s[f"{name}gate.gate"])
        mean = torch.stack(outputs).mean(0)
        inputs = [g * o + (1 - g) * mean for o in outputs]
    results = []
    for k, x in enumerate(inputs):
        branch = f"{name}branches.{k}."
        u = layer(x, s, f"{branch}layer1", stride) + shortcut(x, s, f"{name}shortcut", stride)
        results.append(layer(u, s, f"{branch}layer2", 1) + u)
    return results


@pytest.mark.parametrize("kind", ["binary", "conv"])
@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(8, 8, 1), (8, 16, 2), (8, 16, 1)])
def test_a_block_is_its_written_form(inputs, outputs, stride, kind, randomize):
    block = randomize(GroupBlock(inputs, outputs, stride, bases=3, kind=kind, first=False)).eval()
    before = [torch.randn(2, inputs, 6, 10) for _ in range(3)]
    with torch.no_grad():
        found, expected = block(before), written_block(before, block.state_dict(), "", stride, 3)
    assert len(found) == 3
    for one, other in zip(found, expected, strict=True):
        assert one.shape == (2, outputs, 6 // stride, 10 // stride)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"bases": 1}, {"shortcut": "conv", "bases": 2}])
def test_the_network_is_its_written_form(options, randomize):
    network = randomize(create_network("groupnet_resnet20", width=4, num_classes=5, **options)).eval()
    s, bases = network.state_dict(), options.get("bases", 3)
    x = torch.randn(2, 3, 16, 16)
    outputs = [norm(F.conv2d(x, s["stem.0.weight"], None, 1, 1), s, "stem.1")]
    for number in range(9):
        outputs = written_block(outputs, s, f"blocks.{number}.", 2 if number in (3, 6) else 1, bases)
        assert (f"blocks.{number}.gate.gate" in s) == (number > 0)
    pooled = torch.stack(outputs).mean(0).mean((2, 3))
    with torch.no_grad():
        torch.testing.assert_close(network(x), pooled @ s["head.2.weight"].T + s["head.2.bias"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gate", [-3.0, 0.0, 5.0])
def test_one_branch_is_a_plain_block_whatever_the_gate(gate, randomize):
    block = randomize(GroupBlock(8, 16, 2, bases=1, kind="conv", first=False)).eval()
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        block.gate.gate.fill_(gate)
        (found,) = block([x])
        branch = block.branches[0]
        u = branch.layer1(sign(x)) + block.shortcut(x)
        torch.testing.assert_close(found, branch.layer2(sign(u)) + u, rtol=1e-5, atol=1e-5)


def test_no_branch_is_changed_by_the_sum_of_all():
    """In the published code the sum is made in place, and the first branch hands on the sum of all."""
    gate = SoftGate()
    outputs = [torch.randn(2, 3, 4, 4) for _ in range(3)]
    before = [output.clone() for output in outputs]
    with torch.no_grad():
        gate.gate.fill_(100.0)
        for found, output, kept in zip(gate(outputs), outputs, before, strict=True):
            assert torch.equal(output, kept)
            torch.testing.assert_close(found, kept)
        gate.gate.fill_(-100.0)
        for found in gate(outputs):
            torch.testing.assert_close(found, (before[0] + before[1] + before[2]) / 3)


def test_gates_start_uniformly_and_learn():
    starts = torch.tensor([SoftGate().gate.item() for _ in range(500)])
    assert 0 <= starts.min() < 0.02
    assert 0.98 < starts.max() < 1
    gate, outputs = SoftGate(), [torch.randn(2, 3, 4, 4) for _ in range(2)]
    first, second = gate(outputs)
    (first.sum() + 2 * second.sum()).backward()
    g = torch.sigmoid(gate.gate.detach())
    half = (outputs[0] - outputs[1]).sum() / 2  # dx_1/dg = (o_1 - o_2) / 2 = -dx_2/dg
    torch.testing.assert_close(gate.gate.grad, (g * (1 - g) * (half - 2 * half)).view(1))


def test_the_gradient_of_the_weights_is_an_identity_times_the_scale():
    layer = LayerScaleConv2d(3, 2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([-2.0, 0.0, 0.5, 3.0, -0.0, -0.5]).view(2, 3, 1, 1))
    values = layer(torch.eye(3).view(3, 3, 1, 1))
    assert values.flatten().tolist() == [-1.0, 1.0, 1.0, 1.0, 1.0, -1.0]  # taps by filters; mean |w| = 1
    upstream = torch.arange(1.0, 7).view(3, 2)
    (values.view(3, 2) * upstream).sum().backward()
    assert torch.equal(layer.weight.grad.view(2, 3), upstream.T)
    with torch.no_grad():
        layer.weight.mul_(3)
    layer.weight.grad = None
    (layer(torch.eye(3).view(3, 3, 1, 1)).view(3, 2) * upstream).sum().backward()
    assert torch.equal(layer.weight.grad.view(2, 3), 3 * upstream.T)


def test_a_sign_is_taken_once():
    network = create_network("groupnet_resnet20", width=4, bases=3)
    calls = {}
    for key, part in network.named_modules():
        if isinstance(part, Binarize):
            part.register_forward_hook(lambda *_, key=key: calls.__setitem__(key, calls.get(key, 0) + 1))
    network(torch.randn(2, 3, 16, 16))
    assert calls["blocks.0.binarize.0"] == 1  # all branches read the stem's output
    assert set(calls.values()) == {1}  # the shortcut reads the same signs
    assert sum(calls.values()) == 1 + 8 * 3 + 9 * 3


def test_branches_do_not_share_what_is_their_own():
    network = create_network("groupnet_resnet20", width=4)
    block = network.blocks[3]
    assert len({id(branch.layer1.bn) for branch in block.branches}) == 3
    assert not torch.equal(block.branches[0].layer1.conv.weight, block.branches[1].layer1.conv.weight)
    assert sum(isinstance(part, SoftGate) for part in network.modules()) == 8


def test_pretraining_with_tanh_is_a_phase():
    layer = BinaryLayer(4, 3, 1).eval()
    network = torch.nn.Sequential(Binarize(), layer)
    set_phase(network, weights="real", activations="tanh")
    x = torch.randn(2, 4, 5, 5)
    expected = F.relu(F.conv2d(F.pad(torch.tanh(x), (1, 1, 1, 1), value=1.0), layer.conv.weight))
    torch.testing.assert_close(network(x), layer.bn(expected))


BINARY_18, BINARY_20 = 10_985_472, 267_264
BOPS_18, BOPS_20 = 56 * 56 * 64 * 64 * 9 * 29 // 2, 32 * 32 * 16 * 16 * 9 * 17
STEM_18, STEM_20 = 112 * 112 * 64 * 3 * 49 + 512 * 1000, 32 * 32 * 16 * 3 * 9 + 640
DOWN_18, DOWN_20 = 3 * 28 * 28 * 64 * 128, 2 * 16 * 16 * 16 * 32
WEIGHTS_18, WEIGHTS_20 = 64 * 128 + 128 * 256 + 256 * 512, 16 * 32 + 32 * 64
REAL_18 = 64 * 3 * 49 + 2 * 64 + 513_000 + 2 * (128 + 256 + 512)  # stem, classifier, the shortcuts' batch norms
REAL_20 = 16 * 3 * 9 + 2 * 16 + 650 + 2 * (32 + 64)
NORMS_18, NORMS_20 = 2 * 4 * (64 + 128 + 256 + 512), 2 * 6 * (16 + 32 + 64)  # of one branch


@pytest.mark.parametrize(
    ("name", "options", "expected", "numbers", "glance"),
    [
        (
            "groupnet_resnet18", {}, (5 * (BOPS_18 + DOWN_18), STEM_18),
            (5 * BINARY_18 + WEIGHTS_18, REAL_18 + 5 * NORMS_18, 562_728), (8.478, 1.185, 2.510, 73.1),
        ),
        (
            "groupnet2_resnet18", {}, (5 * BOPS_18, STEM_18 + 5 * DOWN_18),
            (5 * BINARY_18, REAL_18 + 5 * NORMS_18 + WEIGHTS_18, 734_760), (8.381, 2.149, 3.46, 78.4),
        ),
        (
            "groupnet_resnet20", {"bases": 5}, (5 * (BOPS_20 + DOWN_20), STEM_20),
            (5 * BINARY_20 + WEIGHTS_20, REAL_20 + 5 * NORMS_20, None), None,
        ),
    ],
)  # fmt: skip
def test_counts_are_those_of_the_structure(name, options, expected, numbers, glance):
    """`glance`: BOPs e9, FLOPs e8, OPs e8, Mbit, as a script of this project's research found them."""
    with torch.device("meta"):
        network = create_network(name, **options)
    found = count(network, host_defaults(name)[0])
    binary, real, scripted = numbers
    assert found.uncounted == ()
    assert (found.bops, found.flops) == expected
    # Group-Net**'s real 1x1 runs once for each branch, since their inputs differ. (Once in all would be 2.69e8 OPs.)
    # The script left out each gate's number, and each layer's scale: a ReLU stands between it and the batch norm.
    blocks = 8 if name.endswith("18") else 9
    assert scripted in (None, real)
    assert found.binary_parameters == binary
    assert found.parameters - found.binary_parameters == real + (blocks - 1) + 2 * blocks * 5
    if glance is not None:
        assert found.bops / 1e9 == pytest.approx(glance[0], abs=5.1e-4)
        assert found.flops / 1e8 == pytest.approx(glance[1], abs=5.1e-4)
        assert found.ops / 1e8 == pytest.approx(glance[2], abs=5.1e-3)
        assert found.memory_bits / 1e6 == pytest.approx(glance[3], abs=0.051)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bases": 0}, ["bases is 0", "from 1"]),
        ({"bases": 2.0}, ["bases is 2.0"]),
        ({"shortcut": "binry"}, ['unknown shortcut "binry"', "closest: binary"]),
        ({"width": 0}, ["width is 0"]),
        ({"stem_stride": 0}, ["stem_stride is 0"]),
        ({"weight_bases": 3}, ['unknown option "weight_bases"', "bases"]),
    ],
)
def test_wrong_options_are_refused_by_name(options, words):
    with pytest.raises(UserError) as caught:
        create_network("groupnet_resnet20", **options)
    assert all(word in str(caught.value) for word in words), caught.value


def test_training_lowers_the_loss():
    network = create_network("groupnet_resnet20", width=8, bases=2, input_shape=(3, 8, 8))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    x, target = torch.randn(16, 3, 8, 8), torch.arange(16) % 10
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3]), losses


def test_learned_thresholds_shift_what_each_branch_binarizes(randomize):
    network = create_network("groupnet_resnet20", width=4, bases=2, learned_threshold=True).eval()
    plain = create_network("groupnet_resnet20", width=4, bases=2).eval()
    thresholds = {name: p for name, p in network.named_parameters() if name.endswith("threshold")}
    # One for each tensor that is binarized: the first block reads one, each other K, and each branch has one inside.
    assert len(thresholds) == 1 + 8 * 2 + 9 * 2
    plain.load_state_dict({key: value for key, value in network.state_dict().items() if key not in thresholds})
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(network(x), plain(x))
    block = randomize(GroupBlock(8, 8, 1, bases=2, kind="binary", first=True, learned_threshold=True)).eval()
    y, t = torch.randn(2, 8, 6, 6), block.binarize[0].threshold.detach().view(1, -1, 1, 1)
    s = block.state_dict()
    with torch.no_grad():
        for k, found in enumerate(block([y])):
            u = layer(y - t, s, f"branches.{k}.layer1", 1) + y
            inside = s[f"branches.{k}.binarize.threshold"].view(1, -1, 1, 1)
            torch.testing.assert_close(found, layer(u - inside, s, f"branches.{k}.layer2", 1) + u, rtol=1e-5, atol=1e-5)
