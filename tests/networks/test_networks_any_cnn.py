"""What convert() makes of CNNs that are no ResNets: functional calls, shared layers, dense layers, what stays real."""

import copy

import pytest
import torch
import torch.nn.functional as F
from bireal_reference import branch, norm, sign
from test_networks_custom_hosts import SHAPE, Host, cells_of, conv, mapped
from torch import nn
from torchvision.models.densenet import DenseNet
from torchvision.ops import StochasticDepth

from nasb.cells import CellConfig
from nasb.cost import count
from nasb.errors import UserError
from nasb.networks.convert import convert
from nasb.networks.plan import plan_of
from nasb.search import SearchConfig
from nasb.search.searcher import Searcher


def rows(network):
    return {row.layer: (row.becomes, row.reason) for row in plan_of(network).rows}


def test_functional_calls_with_weights_become_the_layers_that_own_them(randomize):
    def body(self, x):
        x = F.conv2d(x, self.conv1.weight, self.conv1.bias, 1, 1)
        bn = self.bn1
        return F.relu(F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, self.training, 0.1, bn.eps))

    functional = randomize(Host(body, conv1=conv(bias=True), bn1=nn.BatchNorm2d(8)))
    layered = Host(lambda s, x: F.relu(s.bn1(s.conv1(x))), conv1=conv(bias=True), bn1=nn.BatchNorm2d(8))
    layered.load_state_dict(functional.state_dict())
    x = torch.randn(2, *SHAPE)
    found, expected = (convert(host, SHAPE).eval() for host in (functional, layered))
    assert found.state_dict().keys() == expected.state_dict().keys()
    assert torch.equal(found(x), expected(x))
    assert rows(found) == rows(expected)


class NormAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: batch norm by a functional call, and an activation inside."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        torch._assert(x.ndim == 4, "4 dimensions")
        return self.act(
            F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        )


def test_a_layer_that_holds_another_becomes_two():
    host = Host(lambda s, x: s.conv2(s.bn(s.conv1(x))), conv1=conv(groups=8), bn=NormAct(8), conv2=conv(groups=4))
    host.bn.running_mean.fill_(0.5)
    network = convert(host, SHAPE, cell=CellConfig(activation="prelu"))
    assert type(network.get_submodule("bn.norm")) is nn.BatchNorm2d
    assert (network.get_submodule("bn.norm").running_mean == 0.5).all()
    assert not any(isinstance(layer, nn.ReLU) for layer in network.modules()), "it stood before a sign"
    assert list(count(network, SHAPE).uncounted) == []


def test_a_parameter_of_the_host_s_own_becomes_a_layer():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.randn(8, 4, 3, 3))
            self.weight, self.bias = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(5))

        def forward(self, x):
            x = F.conv2d(F.conv2d(x, self.first, padding=1), weight=self.second, padding=1, groups=2)
            return F.linear(x.mean((2, 3)), self.weight, self.bias)

    network = convert(Own(), SHAPE)
    assert rows(network) == {
        "first_conv": ("real", "first convolution"),
        "second_conv": ("cell", "shortcut: the input itself"),
    }
    assert network(torch.randn(2, *SHAPE)).shape == (2, 5)
    assert list(count(network, SHAPE).uncounted) == [], "the host's own parameters are gone"


def test_a_layer_that_is_called_twice_is_one_cell(randomize):
    host = Host(lambda s, x: F.relu(s.bn(s.conv1(F.relu(s.bn(s.conv1(x)))))), conv1=conv(), bn=nn.BatchNorm2d(8))
    network = randomize(convert(host, SHAPE)).eval()
    state = network.state_dict()
    x = torch.randn(2, *SHAPE)
    y = F.conv2d(x, state["stem.weight"], None, 1, 1)
    for _ in range(2):
        y = y + branch(y, state, "conv1", False)
    torch.testing.assert_close(mapped(network, x), y.mean((2, 3)), rtol=1e-4, atol=1e-4)
    assert [row.kind for row in plan_of(network).rows] == ["3x3 3-8", "3x3 8-8 (2 calls)"]


def test_the_search_counts_every_call_of_a_cell():
    host = Host(lambda s, x: s.conv1(s.conv1(x)), conv1=conv())
    network = convert(host, SHAPE, search=True, operations=["bin_conv_3x3"])
    backbone = count(convert(host, SHAPE), SHAPE).ops
    searcher = Searcher(network, backbone, SearchConfig(budget=2.0))
    chosen = convert(host, SHAPE, cells={"conv1": (edge(0, 2, "bin_conv_3x3"),)})
    assert searcher.cost.of({"conv1": (edge(0, 2, "bin_conv_3x3"),)}) == count(chosen, SHAPE).ops


def edge(source, target, operation):
    from nasb.cells import Edge

    return Edge(source, target, operation)


def test_candidates_have_the_groups_of_the_convolution():
    host = Host(lambda s, x: s.conv1(x), conv1=conv(groups=4))
    cells = {"conv1": (edge(0, 1, "bin_conv_3x3"), edge(1, 2, "bin_conv_1x1"))}
    network = convert(host, SHAPE, cells=cells)
    shapes = {name: tuple(w.shape) for name, w in network.named_parameters() if name.endswith("operation.conv.weight")}
    assert sorted(shapes.values()) == [(8, 2, 1, 1), (8, 2, 3, 3)]


class Dense(nn.Module):
    """DenseNet's layer as others write it: x = cat([x, layer(x)])."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1, self.conv1 = nn.BatchNorm2d(8), conv(8, 16, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(16), conv(16, 4)
        self.drop, self.fc = nn.Dropout(0.1), nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return self.fc(torch.cat([x, self.drop(y)], 1).mean((2, 3)))


def test_a_dense_layer_adds_nothing_to_its_new_channels(randomize):
    network = randomize(convert(Dense(), SHAPE)).eval()
    assert rows(network) == {
        "stem": ("real", "first convolution"),
        "conv1": ("cell", "shortcut: adapt"),
        "conv2": ("cell", "shortcut: the concatenation"),
    }
    state, x = network.state_dict(), torch.randn(2, *SHAPE)
    stream = F.conv2d(x, state["stem.weight"], None, 1, 1)
    y = norm(stream, state, "bn1", False)  # in front of the sign, as in the host; the ReLU behind it goes
    inner = F.conv2d(sign(y), sign(state["conv1.backbone.0.conv.weight"]))
    inner = torch.cat([y, y], 1) + norm(inner, state, "conv1.backbone.0.bn", False)
    new = F.conv2d(sign(inner), sign(state["conv2.backbone.0.conv.weight"]), None, 1, 1)
    new = norm(new, state, "conv2.backbone.0.bn", False)
    expected = torch.cat([stream, new], 1).mean((2, 3))
    torch.testing.assert_close(mapped(network, x), expected, rtol=1e-4, atol=1e-4)


def test_a_dense_layer_starts_at_full_size():
    cells = cells_of(convert(Dense(), SHAPE))
    gains = {name: cell.backbone[0].bn.weight[0].item() for name, cell in cells.items()}
    assert gains == {"conv1": pytest.approx(1 / 3), "conv2": 1.0}


def test_every_layer_of_a_densenet_is_passed_by_its_concatenation():
    host = DenseNet(4, (3, 2), 8, bn_size=2, num_classes=5)
    found = rows(convert(host, (3, 64, 64)))
    last = [name for name, row in found.items() if row[1] == "shortcut: the concatenation"]
    assert last == [f"features.denseblock{b}.denselayer{n}.conv2" for b, n in ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2))]


def test_parallel_convolutions_keep_shortcuts_of_their_own():
    # SqueezeNet's expansions are concatenated with each other, not with what they read.
    host = Host(lambda s, x: torch.cat([s.a(x), s.b(x)], 1), out=32, a=conv(8, 16, 1), b=conv(8, 16))
    assert [row[1] for row in rows(convert(host, SHAPE)).values()][1:] == ["shortcut: adapt"] * 2


def test_a_classifier_of_training_alone_is_left_out():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv1, self.aux, self.fc = conv(3, 8), conv(), conv(8, 5, 1), nn.Linear(8, 5)

        def forward(self, x):
            x = self.conv1(self.stem(x))
            logits = self.fc(x.mean((2, 3)))
            return (logits, self.aux(x).mean((2, 3))) if self.training else logits

    host = Auxiliary()
    network = convert(host, SHAPE)
    assert host.training
    assert network.training
    assert rows(network)["aux"] == ("left out", "not used in evaluation")
    assert network(torch.randn(2, *SHAPE)).shape == (2, 5)


class DropPath(nn.Module):
    """As timm's."""

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        if self.drop_prob == 0 or not self.training:
            return x
        return x * x.new_empty(len(x), 1, 1, 1).bernoulli_(1 - self.drop_prob) / (1 - self.drop_prob)


@pytest.mark.parametrize("layer", [DropPath(0.5), StochasticDepth(0.5, "row")])
def test_stochastic_depth_still_draws_in_training(layer):
    host = Host(lambda s, x: x + s.drop(s.conv1(x)), conv1=conv(), drop=layer)
    network = convert(host, SHAPE)
    (drop,) = (part for part in network.modules() if isinstance(part, StochasticDepth))
    assert (drop.p, drop.mode) == (0.5, "row")
    x = torch.randn(2, *SHAPE)
    assert torch.equal(network.eval()(x), network(x))
    assert any(not torch.equal(network.train()(x), network.eval()(x)) for _ in range(8))


def test_sizes_that_are_read_become_numbers_but_the_number_of_images_does_not():
    def body(self, x):
        n, c, h, w = x.shape
        x = F.max_pool2d(x, h // w * 2)
        return self.conv1(x.view(n, c, h // 2, -1))

    host = Host(body, conv1=conv())
    network = convert(host, SHAPE)
    for images in (1, 5):
        assert network(torch.randn(images, *SHAPE)).shape == (images, 5)


def test_torch_export_takes_over_where_fx_cannot_follow(randomize):
    def deciding(self, x):
        if x.shape[-1] > 4:
            x = F.relu_(self.bn(self.conv1(x)))
        return self.conv2(F.relu6(x))

    def plain(self, x):
        return self.conv2(F.relu6(F.relu_(self.bn(self.conv1(x)))))

    layers = {"conv1": conv(groups=2), "bn": nn.BatchNorm2d(8), "conv2": conv(8, 8, 3, 2)}
    host = randomize(Host(deciding, **layers))
    twin = Host(plain, **copy.deepcopy(layers))
    twin.load_state_dict(host.state_dict())
    x = torch.randn(3, *SHAPE)
    found, expected = (convert(each, SHAPE).eval() for each in (host, twin))
    torch.testing.assert_close(found(x), expected(x))
    assert rows(found) == rows(expected)
    assert found.state_dict().keys() == expected.state_dict().keys()


def test_keep_real_keeps_convolutions_by_wildcard():
    host = Host(lambda s, x: s.b1(s.a2(s.a1(x))), a1=conv(), a2=conv(), b1=conv())
    network = convert(host, SHAPE, keep_real=["a*"])
    assert rows(network) == {
        "stem": ("real", "first convolution"),
        "a1": ("real", "asked: keep_real"),
        "a2": ("real", "asked: keep_real"),
        "b1": ("cell", "shortcut: the input itself"),
    }
    assert type(network.get_submodule("a1")) is nn.Conv2d


KEPT = {
    "a layer": (Host(lambda s, x: s.conv1(s.norm(x)), conv1=conv(), norm=nn.GroupNorm(2, 8)), "norm", "GroupNorm"),
    "an operation": (Host(lambda s, x: s.conv1(torch.sin(x)), conv1=conv()), "sin", "sin"),
    "a scaled addition": (Host(lambda s, x: s.conv1(torch.add(x, x, alpha=2)), conv1=conv()), "add", "add"),
    "padding by reflection": (
        Host(lambda s, x: s.conv1(s.odd(x)), conv1=conv(), odd=conv(padding_mode="reflect")), "odd", "3x3 8-8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_what_is_refused_can_be_kept(case):
    host, name, kind = KEPT[case]
    with pytest.raises(UserError, match=rf'keep_real: \["{name}"\]'):
        convert(host, SHAPE)
    network = convert(host, SHAPE, keep_real=[name])
    (row,) = (row for row in plan_of(network).rows if row.layer == name)
    assert (row.kind, row.becomes, row.reason) == (kind, "real", "asked: keep_real")
    assert "conv1" in cells_of(network)


class Fickle(nn.Module):
    """Neither torch.fx nor torch.export can follow it."""

    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        return self.conv(x) if float(x.sum()) > 0 else self.conv(-x)


def test_a_module_that_cannot_be_traced_can_be_kept():
    host = Host(lambda s, x: s.conv1(s.odd(x)), conv1=conv(), odd=Fickle())
    with pytest.raises(UserError, match=r"neither by torch.fx .* nor by torch.export .*; keep_real leaves"):
        convert(host, SHAPE)
    network = convert(host, SHAPE, keep_real=["odd"])
    assert rows(network)["odd"] == ("real", "asked: keep_real")
    assert type(network.get_submodule("odd")) is Fickle
    assert list(rows(network)) == ["stem", "odd", "conv1"]


def test_a_pattern_that_matches_nothing_is_refused():
    host = Host(lambda s, x: s.conv1(x), conv1=conv())
    with pytest.raises(UserError, match='keep_real: "layer9" matches no layer and no operation of Host'):
        convert(host, SHAPE, keep_real=["layer9"])


def test_a_weight_that_is_computed_is_refused_by_name():
    host = Host(lambda s, x: F.conv2d(x, s.conv1.weight - s.conv1.weight.mean(), padding=1), conv1=conv())
    with pytest.raises(UserError, match=r"reads the tensor conv1.weight"):
        convert(host, SHAPE)


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (lambda y: (y, y), "returns a tuple"),
        (lambda y: {"out": y}, "returns a dict"),
        (lambda y: y[:, :, None, None], r"returns values of shape \(2, 5, 1, 1\)"),
    ],
)
def test_a_network_that_returns_something_else_is_refused(result, says):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv1, self.fc = conv(3, 8), conv(), nn.Linear(8, 5)

        def forward(self, x):
            return result(self.fc(self.conv1(self.stem(x)).mean((2, 3))))

    with pytest.raises(UserError, match=f"Other ({says}); it must return one tensor"):
        convert(Other(), SHAPE)


def test_a_forward_that_keeps_a_state_is_refused():
    def body(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return self.conv1(x) if self.calls % 2 else x

    with pytest.raises(UserError, match="Host computes something else than what was traced of it"):
        convert(Host(body, conv1=conv()), SHAPE)
