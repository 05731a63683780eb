"""Hosts of a user's own: forms of activation and addition, biases, groups, and what is refused by name."""

import pytest
import torch
import torch.nn.functional as F
from bireal_reference import branch, norm, sign
from plain_hosts import SHAPE, Host, conv
from torch import nn

from nasb.binary import Binarize, BinaryConv2d, RPReLU
from nasb.cells import CellConfig
from nasb.cells.adapt import ConvShortcut
from nasb.cells.cell import Cell
from nasb.errors import UserError
from nasb.networks.convert import convert
from nasb.networks.plan import plan_of


def cells_of(network):
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, Cell)}


def mapped(network, x):
    """The body's value: what the classifier averages."""
    seen = []
    network.get_submodule("fc").register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(x)
    return seen[0]


ACTIVATIONS = {
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "torch.relu": torch.relu,
    "method": lambda x: x.relu(),
    "method in place": lambda x: x.relu_(),
    "ReLU": nn.ReLU(),
    "ReLU in place": nn.ReLU(inplace=True),
    "hardtanh": F.hardtanh,
    "silu": nn.SiLU(),
    "relu6": F.relu6,
}
ADDITIONS = {
    "+": lambda x, y: x + y,
    "torch.add": torch.add,
    "method": lambda x, y: y.add(x),
    "method in place": lambda x, y: y.add_(x),
}


def add_in_place(x, y):
    y += x
    return y


ADDITIONS["+="] = add_in_place


def basic_block_host(activate, add):
    def body(self, x):
        act = self.act if isinstance(activate, nn.Module) else activate
        x = act(self.bn0(x))
        y = self.bn2(self.conv2(act(self.bn1(self.conv1(x)))))
        return act(add(x, y))

    layers = {f"bn{i}": nn.BatchNorm2d(8) for i in range(3)}
    if isinstance(activate, nn.Module):
        layers["act"] = activate
    return Host(body, conv1=conv(), conv2=conv(), **layers)


FORMS = [
    *((activate, add, "none") for activate in ACTIVATIONS for add in ADDITIONS),
    *(("F.relu", add, activation) for add in ADDITIONS for activation in ("prelu", "rprelu")),
    *((activate, "+", "prelu") for activate in ACTIVATIONS if activate != "F.relu"),
]


@pytest.mark.parametrize(("activate", "add", "activation"), FORMS)
def test_every_form_of_activation_and_addition_gives_the_same_network(activate, add, activation, randomize):
    host = basic_block_host(ACTIVATIONS[activate], ADDITIONS[add])
    network = randomize(convert(host, SHAPE, cell=CellConfig(activation=activation))).eval()
    calls = [node for node in network.graph.nodes if node.op not in ("placeholder", "output")]
    assert all(node.op == "call_module" for node in calls[:-2]), "an addition or activation of the host is left"
    kinds = [type(network.get_submodule(node.target)).__name__ for node in calls[:-2]]
    between = {"none": [], "prelu": ["PReLU"], "rprelu": ["RPReLU"]}[activation]
    assert kinds == ["Conv2d", "BatchNorm2d", *between, "Cell", "Cell"]
    assert all(type(cell.activation).__name__ == (between or ["Identity"])[0] for cell in cells_of(network).values())
    if activation == "none":
        state = network.state_dict()
        x = torch.randn(2, *SHAPE)
        y = norm(F.conv2d(x, state["stem.weight"], None, 1, 1), state, "bn0", False)
        for cell in ("conv1", "conv2"):
            y = y + branch(y, state, cell, False)
        torch.testing.assert_close(mapped(network, x), y.mean((2, 3)), rtol=1e-4, atol=1e-4)


def test_a_plain_chain(randomize):
    layers = [conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.Dropout(0.5), conv(16, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)]
    network = randomize(convert(nn.Sequential(*layers), SHAPE)).eval()
    assert list(cells_of(network)) == ["3", "7"]
    state = network.state_dict()
    x = torch.randn(2, *SHAPE)
    y = norm(F.conv2d(x, state["0.weight"], None, 1, 1), state, "1", False)
    pooled = F.avg_pool2d(y, 2)
    y = torch.cat([pooled, pooled], 1) + branch(y, state, "3", False, 2)
    y = y + branch(y, state, "7", False)
    expected = F.linear(y.mean((2, 3)), state["11.weight"], state["11.bias"])
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


def pre_activation_host(stride=1):
    def body(self, x):
        y = F.relu(self.bn1(x))
        shortcut = self.side(y) if hasattr(self, "side") else x
        y = self.conv2(F.relu(self.bn2(self.conv1(y))))
        return F.relu(self.bn3(shortcut + y))

    out = 8 * stride
    side = {"side": nn.Conv2d(8, out, 1, stride, bias=False)} if stride > 1 else {}
    norms = {"bn1": nn.BatchNorm2d(8), "bn2": nn.BatchNorm2d(out), "bn3": nn.BatchNorm2d(out)}
    return Host(body, out=out, conv1=conv(8, out, 3, stride), conv2=conv(out, out), **norms, **side)


@pytest.mark.parametrize("activation", ["none", "prelu"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_pre_activation_block_keeps_its_stream_and_its_last_activation(stride, activation):
    network = convert(pre_activation_host(stride), SHAPE, cell=CellConfig(activation=activation))
    assert list(cells_of(network)) == ["conv1", "conv2"]
    functions = [node.target for node in network.graph.nodes if node.op == "call_function"]
    assert functions.count(F.relu) == 1, "only the activation before the classifier is the host's"
    assert isinstance(network.get_submodule("bn1"), nn.BatchNorm2d)
    assert network(torch.randn(2, *SHAPE)).shape == (2, 5)


def test_a_pre_activation_block_passes_its_stream_once():
    # Branches of weight 0 (gamma, beta of the cells) leave the stream as it is, as in the host.
    network = convert(pre_activation_host(), SHAPE).eval()
    for cell in cells_of(network).values():
        nn.init.zeros_(cell.backbone[0].bn.weight)
        nn.init.zeros_(cell.backbone[0].bn.bias)
    x = torch.randn(2, *SHAPE)
    stem = F.conv2d(x, network.get_submodule("stem").weight, None, 1, 1)
    expected = F.relu(stem / (1 + 1e-5) ** 0.5).mean((2, 3))
    torch.testing.assert_close(mapped(network, x), expected, rtol=1e-4, atol=1e-4)


def test_the_bias_of_a_convolution_without_batch_norm_is_kept(randomize):
    host = Host(lambda self, x: F.relu(self.conv1(x)), conv1=conv(bias=True))
    host = randomize(host)
    network = convert(host, SHAPE).eval()
    x = torch.randn(2, *SHAPE)
    stem = F.conv2d(x, host.stem.weight, None, 1, 1)
    y = F.conv2d(sign(stem), sign(host.conv1.weight), host.conv1.bias, 1, 1)
    expected = stem + y / 3 / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(mapped(network, x), expected.mean((2, 3)), rtol=1e-4, atol=1e-4)


def test_the_bias_of_a_convolution_without_batch_norm_is_there_in_training_too(randomize):
    # In training a batch norm subtracts the batch's mean: only its own beta can carry the bias.
    host = randomize(Host(lambda self, x: F.relu(self.conv1(x)), conv1=conv(bias=True)))
    network = convert(host, SHAPE).train()
    branch_ = network.get_submodule("conv1").backbone[0]
    y = branch_(torch.randn(4, 8, 8, 8).sign())
    torch.testing.assert_close(y.mean((0, 2, 3)), host.conv1.bias / 3, rtol=1e-4, atol=1e-4)


def test_the_bias_of_a_convolution_with_batch_norm_is_folded(randomize):
    host = randomize(Host(lambda self, x: self.bn1(self.conv1(x)), conv1=conv(bias=True), bn1=nn.BatchNorm2d(8)))
    network = convert(host, SHAPE).eval()
    x = torch.randn(2, *SHAPE)
    stem = F.conv2d(x, host.stem.weight, None, 1, 1)
    y = F.conv2d(sign(stem), sign(host.conv1.weight), host.conv1.bias, 1, 1)
    expected = stem + norm(y, host.state_dict(), "bn1", False) / 3
    torch.testing.assert_close(mapped(network, x), expected.mean((2, 3)), rtol=1e-4, atol=1e-4)


def residual_host(narrow=16, norm=True, **options):
    """A block with a strided 1x1 shortcut; `narrow` < 8: a bottleneck, which keeps its addition."""

    def body(self, x):
        side = self.side(x)
        return self.conv2(self.conv1(x)) + (self.bn(side) if norm else side)

    side = nn.Conv2d(8, 16, 1, 2, **options)
    bn = {"bn": nn.BatchNorm2d(16)} if norm else {}
    return Host(body, out=16, conv1=conv(8, narrow, 3, 2), conv2=conv(narrow, 16), side=side, **bn)


@pytest.mark.parametrize("narrow", [16, 4])
@pytest.mark.parametrize("norm_behind", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_strided_1x1_is_taken_over_with_bias_and_batch_norm(narrow, norm_behind, bias, randomize):
    host = randomize(residual_host(narrow, norm=norm_behind, bias=bias)).eval()
    network = convert(host, SHAPE).eval()
    where = "side" if narrow < 8 else "conv1.shortcut"
    shortcut = network.get_submodule(where)
    assert isinstance(shortcut, ConvShortcut)
    x = torch.randn(2, 8, 8, 8)
    expected = F.conv2d(F.avg_pool2d(x, 2), host.side.weight, host.side.bias)
    if norm_behind:
        expected = norm(expected, host.state_dict(), "bn", False)
    torch.testing.assert_close(shortcut(x), expected, rtol=1e-4, atol=1e-4)


def test_a_grouped_convolution_keeps_its_groups(randomize):
    host = Host(lambda self, x: self.conv1(x), conv1=conv(groups=4))
    network = randomize(convert(host, SHAPE)).eval()
    state = network.state_dict()
    assert state["conv1.backbone.0.conv.weight"].shape == (8, 2, 3, 3)
    x = torch.randn(2, *SHAPE)
    stem = F.conv2d(x, state["stem.weight"], None, 1, 1)
    y = F.conv2d(sign(stem), sign(state["conv1.backbone.0.conv.weight"]), None, 1, 1, 1, 4)
    expected = stem + norm(y, state, "conv1.backbone.0.bn", False)
    torch.testing.assert_close(mapped(network, x), expected.mean((2, 3)), rtol=1e-4, atol=1e-4)


def test_a_depthwise_convolution_stays_real_and_so_does_the_activation_before_it():
    host = Host(
        lambda self, x: self.point(F.relu(self.bn(self.depth(F.relu(x))))),
        depth=conv(groups=8),
        bn=nn.BatchNorm2d(8),
        point=conv(8, 8, 1),
    )
    network = convert(host, SHAPE)
    assert plan_of(network).becoming("real") == ["stem", "depth"]
    assert type(network.get_submodule("depth")) is nn.Conv2d
    assert [node.target for node in network.graph.nodes].count(F.relu) == 1


def test_an_activation_reaches_a_sign_through_pooling_and_is_taken_out():
    host = Host(lambda self, x: self.conv1(F.max_pool2d(self.drop(F.relu(x)), 2)), conv1=conv(), drop=nn.Dropout(0.1))
    for activation, kinds in (("none", 0), ("prelu", 1)):
        network = convert(host, SHAPE, cell=CellConfig(activation=activation))
        assert sum(isinstance(layer, nn.PReLU) for name, layer in network.named_children()) == kinds
        assert F.relu not in [node.target for node in network.graph.nodes]


def test_an_activation_before_a_batch_norm_may_stay():
    host = Host(lambda self, x: self.conv1(self.bn(F.relu(x))), conv1=conv(), bn=nn.BatchNorm2d(8))
    assert F.relu in [node.target for node in convert(host, SHAPE).graph.nodes]


def test_a_host_s_layer_may_have_any_name():
    host = Host(lambda self, x: self.conv1(F.max_pool2d(self.activation_1(x), 2)), conv1=conv(), activation_1=nn.ReLU())
    network = convert(host, SHAPE)
    assert not any(isinstance(layer, nn.ReLU) for layer in network.modules())


def test_an_activation_of_the_host_does_not_lose_its_name_to_one_of_ours():
    # The host's own activation_relu stands before a real layer and stays; ours takes the place of F.relu.
    host = Host(
        lambda self, x: self.depth(self.activation_relu(F.max_pool2d(self.conv1(F.max_pool2d(F.relu(x), 2)), 2))),
        conv1=conv(8, 8),
        depth=conv(8, 8, groups=8),
        activation_relu=nn.Hardtanh(),
    )
    network = convert(host, SHAPE, cell=CellConfig(activation="prelu"))
    kinds = [type(network.get_submodule(n.target)) for n in network.graph.nodes if n.op == "call_module"]
    assert kinds == [nn.Conv2d, nn.PReLU, Cell, nn.Hardtanh, nn.Conv2d, nn.Linear]


def test_concatenation_is_no_residual_block():
    host = Host(lambda self, x: torch.cat([x, self.conv1(x)], 1), out=16, conv1=conv())
    network = convert(host, SHAPE)
    assert torch.cat in [node.target for node in network.graph.nodes]


def test_a_scaled_addition_is_refused_by_name():
    host = Host(lambda self, x: torch.add(x, self.conv1(x), alpha=0.25), conv1=conv())
    with pytest.raises(UserError, match=r"the addition add has the arguments \{'alpha': 0.25\}; only x \+ y is known"):
        convert(host, SHAPE)


def test_a_scaled_shortcut_keeps_its_scale(randomize):
    host = Host(lambda self, x: 0.5 * x + self.conv1(x), conv1=conv())
    network = randomize(convert(host, SHAPE)).eval()
    state = network.state_dict()
    x = torch.randn(2, *SHAPE)
    stem = F.conv2d(x, state["stem.weight"], None, 1, 1)
    expected = 0.5 * stem + branch(stem, state, "conv1", False)
    torch.testing.assert_close(mapped(network, x), expected.mean((2, 3)), rtol=1e-4, atol=1e-4)


def test_functional_dropout_is_off_in_evaluation():
    host = Host(lambda self, x: F.dropout(self.conv1(x), 0.5, self.training), conv1=conv())
    network = convert(host, SHAPE).eval()
    x = torch.randn(2, *SHAPE)
    assert torch.equal(network(x), network(x))


def test_an_in_place_call_whose_result_is_not_read_is_not_lost():
    def body(self, x):
        y = F.max_pool2d(self.conv1(x), 2)
        F.relu_(y)
        return self.depth(y)

    host = Host(body, conv1=conv(), depth=conv(groups=8))
    try:
        network = convert(host, SHAPE)
    except UserError as error:
        assert "relu_" in str(error)  # noqa: PT017 - to refuse it by name would be as good
    else:
        assert F.relu_ in [node.target for node in network.graph.nodes]


def test_no_binary_layer_is_made_of_stem_and_classifier():
    network = convert(basic_block_host(F.relu, torch.add), SHAPE, cell=CellConfig(bases=2, activation="rprelu"))
    assert type(network.get_submodule("stem")) is nn.Conv2d
    assert type(network.get_submodule("fc")) is nn.Linear
    assert sum(isinstance(layer, BinaryConv2d) for layer in network.modules()) == 4
    assert sum(isinstance(layer, Binarize) for layer in network.modules()) == 4
    assert sum(isinstance(layer, RPReLU) for layer in network.modules()) == 3
