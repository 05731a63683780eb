"""count() against closed formulas, what is folded, what is reported as uncounted, and what it leaves untouched."""

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasb.binary import Binarize, BinaryConv2d, BinaryLinear, RPReLU
from nasb.cost import count, render
from nasb.errors import UserError

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def geometries(draw):
    groups = draw(st.integers(1, 3))
    return {
        "groups": groups,
        "in_channels": groups * draw(st.integers(1, 4)),
        "out_channels": groups * draw(st.integers(1, 4)),
        "kernel_size": draw(pairs),
        "stride": draw(pairs),
        "dilation": draw(pairs),
        "padding": draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
    }


def closed_formula(geometry, size):
    """MACs: output pixels x output channels x (input channels of a group) x kernel."""
    macs = geometry["out_channels"] * geometry["in_channels"] // geometry["groups"]
    for n, k, s, p, d in zip(
        size, *(geometry[key] for key in ("kernel_size", "stride", "padding", "dilation")), strict=True
    ):
        macs *= k * ((n + 2 * p - d * (k - 1) - 1) // s + 1)
    return macs


def weights_of(geometry):
    kernel = geometry["kernel_size"][0] * geometry["kernel_size"][1]
    return geometry["out_channels"] * geometry["in_channels"] // geometry["groups"] * kernel


@settings(max_examples=40, deadline=None, derandomize=True)
@given(geometries(), st.tuples(st.integers(7, 12), st.integers(7, 12)), st.booleans())
def test_a_real_convolution_costs_the_closed_formula(geometry, size, bias):
    found = count(nn.Conv2d(**geometry, bias=bias), (geometry["in_channels"], *size))
    assert (found.flops, found.bops) == (closed_formula(geometry, size), 0)
    assert found.parameters == weights_of(geometry) + bias * geometry["out_channels"]
    assert (found.memory_bits, found.binary_parameters) == (32 * found.parameters, 0)
    assert found.uncounted == ()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    geometries(),
    st.tuples(st.integers(7, 12), st.integers(7, 12)),
    st.booleans(),
    st.sampled_from([0, 1, -1]),
    st.sampled_from(["none", "mean", "learned"]),
)
def test_a_binary_convolution_costs_the_closed_formula(geometry, size, bias, pad_value, scale):
    layer = BinaryConv2d(**geometry, bias=bias, pad_value=pad_value, scale=scale)
    found = count(layer, (geometry["in_channels"], *size))
    assert (found.flops, found.bops) == (0, closed_formula(geometry, size))
    assert found.binary_parameters == weights_of(geometry)
    assert found.parameters - found.binary_parameters == (bias + (scale != "none")) * geometry["out_channels"]
    assert found.memory_bits == found.binary_parameters + 32 * (found.parameters - found.binary_parameters)
    assert found.uncounted == ()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.booleans())
def test_linear_layers_cost_inputs_times_outputs_times_positions(inputs, outputs, positions, bias):
    real = count(nn.Linear(inputs, outputs, bias), (positions, inputs))
    assert (real.flops, real.bops, real.parameters) == (positions * inputs * outputs, 0, outputs * (inputs + bias))
    binary = count(BinaryLinear(inputs, outputs, bias), (positions, inputs))
    assert (binary.flops, binary.bops) == (0, positions * inputs * outputs)
    assert binary.memory_bits == inputs * outputs + 32 * outputs * (1 + bias)
    assert real.uncounted == binary.uncounted == ()


@pytest.mark.parametrize(
    ("layer", "shape", "numbers"),
    [
        (nn.BatchNorm2d(5), (5, 4, 4), 10),
        (nn.BatchNorm2d(5, affine=False), (5, 4, 4), 10),
        (nn.BatchNorm2d(5, track_running_stats=False), (5, 4, 4), 10),
        (nn.BatchNorm1d(6), (6, 4), 12),
        (nn.PReLU(), (5, 4, 4), 1),
        (nn.PReLU(5), (5, 4, 4), 5),
        (RPReLU(5), (5, 4, 4), 15),
        (Binarize(), (5, 4, 4), 0),
        (Binarize(initial=0.5), (5, 4, 4), 1),
        (Binarize(5, learned=True), (5, 4, 4), 5),
        (nn.ReLU(), (5, 4, 4), 0),
        (nn.MaxPool2d(2), (5, 4, 4), 0),
    ],
)
def test_numbers_of_layers_without_macs(layer, shape, numbers):
    found = count(layer, shape)
    assert (found.flops, found.bops, found.parameters, found.memory_bits) == (0, 0, numbers, 32 * numbers)
    assert found.uncounted == ()
    assert [row.name for row in found.layers] == [type(layer).__name__]


class Between(nn.Module):
    """A convolution and a batch norm with something between them."""

    def __init__(self, conv, between=lambda x: x, norm=None):
        super().__init__()
        self.conv, self.between, self.norm = conv, between, norm or nn.BatchNorm2d(conv.out_channels)

    def forward(self, x):
        return self.norm(self.between(self.conv(x)))


def real_numbers(module, shape=(3, 8, 8)):
    found = count(module, shape)
    assert found.uncounted == ()
    return found.parameters - found.binary_parameters


@pytest.mark.parametrize("scale", ["none", "mean", "learned"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_batch_norm_takes_up_scale_and_bias_of_the_convolution_before(scale, bias):
    conv = BinaryConv2d(3, 4, 3, bias=bias, scale=scale)
    assert real_numbers(Between(conv)) == 8
    assert real_numbers(Between(conv, norm=nn.BatchNorm2d(4, affine=False))) == 8
    assert real_numbers(Between(conv, between=nn.Identity())) == 8
    alone = 4 * bias + 4 * (scale != "none")
    assert real_numbers(conv) == alone
    for between in (nn.ReLU(), nn.ReLU(inplace=True), F.relu_, lambda x: x + 0, lambda x: x.mul_(2)):
        assert real_numbers(Between(conv, between)) == alone + 8


def test_a_batch_norm_takes_up_the_bias_of_a_real_layer_before():
    assert real_numbers(Between(nn.Conv2d(3, 4, 3))) == 4 * 27 + 8
    assert real_numbers(Between(nn.Conv2d(3, 4, 3), nn.ReLU())) == 4 * 27 + 4 + 8
    assert real_numbers(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), (3,)) == 12 + 8


def test_a_batch_norm_over_another_axis_takes_up_nothing():
    # On [N, 5, 4] the batch norm's channels are the 5 positions, not the layer's 4 outputs.
    assert real_numbers(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(5)), (5, 3)) == 12 + 4 + 10


class Twice(nn.Module):
    def __init__(self, norm_both):
        super().__init__()
        self.conv, self.norm, self.norm_both = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), norm_both

    def forward(self, x):
        x = self.norm(self.conv(x))
        return self.norm(self.conv(x)) if self.norm_both else self.conv(x)


@pytest.mark.parametrize("norm_both", [False, True])
def test_a_layer_that_is_called_twice_has_its_macs_twice_and_its_parameters_once(norm_both):
    found = count(Twice(norm_both), (3, 8, 8))
    assert found.flops == 2 * 64 * 81
    assert found.parameters == 81 + 6 + (0 if norm_both else 3)
    assert {row.name: row.calls for row in found.layers} == {"conv": 2, "norm": 1 + norm_both}


def test_the_output_shape_is_that_of_the_first_call():
    layer = nn.Conv2d(3, 3, 3)
    assert [row.output_shape for row in count(nn.Sequential(layer, layer), (3, 8, 9)).layers] == [(3, 6, 7)]


def test_one_layer_under_two_names_counts_once_in_memory():
    layer = nn.Linear(4, 4)
    found = count(nn.Sequential(layer, nn.ReLU(), layer), (4,))
    assert (found.flops, found.parameters) == (32, 20)


def test_a_weight_that_two_layers_share_counts_once_in_memory():
    network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    network[1].weight = network[0].weight
    found = count(network, (4,))
    assert (found.flops, found.parameters) == (32, 16)


def test_a_parametrized_layer_counts_as_its_kind():
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    found = count(nn.Sequential(layer), (3, 8, 8))
    assert (found.flops, found.parameters, found.uncounted) == (36 * 108, 112, ())


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("kernel", torch.ones(2, 4, 1, 1))

    def forward(self, x):
        y = F.conv2d(self.conv(x), self.kernel)
        return y.flatten(2) @ y.flatten(2).transpose(1, 2)


def test_macs_of_functional_calls_are_reported_with_the_module_that_makes_them():
    found = count(nn.Sequential(Functional(), nn.Flatten()), (3, 8, 8))
    assert found.flops == 36 * 108
    assert found.uncounted == (f"0 (Functional): {36 * 8 + 2 * 2 * 36} MACs in functional calls",)


class Doubling(nn.Linear):
    def forward(self, x):
        return super().forward(x) + super().forward(x)


def test_a_subclass_of_a_known_layer_that_does_more_is_reported():
    found = count(Doubling(3, 4), (3,))
    assert found.flops == 12
    assert found.uncounted == ("Doubling (Doubling): 12 MACs in functional calls",)


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3, 1, 1))
        self.up = nn.ConvTranspose2d(3, 2, 2)
        self.norm = nn.LayerNorm(9)
        self.unused = nn.Conv2d(3, 3, 3)
        self.unused_free = nn.ReLU()

    def forward(self, x):
        return self.norm(self.up(x * self.gain))


def test_what_cannot_be_counted_is_named():
    found = count(Odd(), (3, 8, 8))
    assert set(found.uncounted) == {
        "Odd (Odd): 3 parameters of its own",
        f"up (ConvTranspose2d): {3 * 2 * 4 + 2} parameters of a layer that is not known, "
        f"{64 * 3 * 2 * 4} MACs in functional calls",
        "norm (LayerNorm): 18 parameters of a layer that is not known",
        "unused (Conv2d): never called, 84 parameters",
    }
    assert (found.flops, found.parameters, found.layers) == (0, 0, ())


def test_attention_is_reported_not_passed_over():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    assert any(line.startswith("attention (MultiheadAttention)") for line in count(Attends(), (5, 8)).uncounted)


class Stateful(nn.Module):
    """Changes buffers in evaluation mode, too: one in place, one by a new tensor."""

    def __init__(self, fails):
        super().__init__()
        self.fails = fails
        self.conv, self.norm, self.frozen = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("more", torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1)
        self.more = self.more + 1
        x = self.frozen(self.norm(self.conv(x)))
        if self.fails:
            raise RuntimeError("no such thing\nand more lines")
        return x


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_network_is_left_as_it_was(fails, training):
    network = Stateful(fails).train(training)
    network.frozen.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    buffers = dict(network.named_buffers())
    if fails:
        with pytest.raises(UserError, match=r"Stateful does not run on an input of shape \(3, 8, 8\): no such thing$"):
            count(network, (3, 8, 8))
    else:
        count(network, (3, 8, 8))
    assert [part.training for part in network.modules()] == [training, training, training, False]
    for part in network.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(value is buffers[key] for key, value in network.named_buffers())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_counting_between_forward_and_backward_does_not_disturb():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    loss = network(torch.ones(1, 3, 8, 8)).sum()
    count(network, (3, 8, 8))
    loss.backward()
    assert network[0].weight.grad is not None


def test_counting_in_inference_mode_and_in_other_precisions_gives_the_same():
    network = Between(BinaryConv2d(3, 4, 3))
    expected = count(network, (3, 8, 8))
    with torch.inference_mode():
        assert count(network, (3, 8, 8)) == expected
    assert count(network.to(torch.float64), (3, 8, 8)) == expected
    assert count(network.to(torch.bfloat16), (3, 8, 8)) == expected
    assert count(network.to("meta"), (3, 8, 8)) == expected


@pytest.mark.parametrize("shape", [(), (3, 0, 8), (3, -1, 8), (3, 8.0, 8), (True, 8, 8), ("3", 8, 8)])
def test_a_wrong_input_shape_is_refused(shape):
    with pytest.raises(UserError, match=r"count: input_shape is .* give whole numbers above 0"):
        count(nn.ReLU(), shape)


@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 2, 2), (3,)])
def test_an_input_that_the_network_does_not_take_is_refused(shape):
    with pytest.raises(UserError, match="count: Sequential does not run on an input of shape"):
        count(nn.Sequential(nn.Conv2d(3, 4, 3)), shape)


def test_a_lazy_module_is_refused():
    with pytest.raises(UserError, match=r"count: 0\.weight has no shape yet"):
        count(nn.Sequential(nn.LazyConv2d(4, 3)), (3, 8, 8))


class SelfProduct(nn.Module):
    def forward(self, x):
        return x @ x.T


def mixed_network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Binarize(), BinaryConv2d(4, 8, 3), nn.Flatten(), SelfProduct())


def test_layers_add_up_and_the_dictionary_is_json():
    found = count(mixed_network(), (3, 8, 8))
    values = json.loads(json.dumps(found.to_dict()))
    assert list(values) == [
        "flops", "bops", "ops", "memory_bits", "parameters", "binary_parameters", "layers", "uncounted",
    ]  # fmt: skip
    for key in ("flops", "bops", "memory_bits", "parameters", "binary_parameters"):
        assert values[key] == getattr(found, key) == sum(row[key] for row in values["layers"])
    assert values["layers"][0] == {
        "name": "0",
        "kind": "Conv2d",
        "output_shape": [4, 6, 6],
        "flops": 36 * 108,
        "bops": 0,
        "parameters": 112,
        "binary_parameters": 0,
        "memory_bits": 32 * 112,
        "calls": 1,
    }
    assert values["uncounted"] == list(found.uncounted) != []


def test_the_table_has_the_rows_the_totals_and_the_uncounted():
    assert render(count(mixed_network(), (3, 8, 8))) == TABLE


TABLE = """\
layer  kind          output  FLOPs   BOPs  parameters    kB
-----------------------------------------------------------
0      Conv2d        4x6x6   3,888      0         112  0.45
3      BinaryConv2d  8x4x4       0  4,608         296  0.07
-----------------------------------------------------------
total                        3,888  4,608         408  0.52

and 4 layers without MACs or parameters
OPs: 3960 (FLOPs + BOPs / 64)
parameters: 288 of 1 bit, 120 of 32 bits
memory: 0.5 kB = 0.004 Mbit
not counted:
  5 (SelfProduct): 128 MACs in functional calls"""


def test_the_table_says_how_often_a_layer_is_called():
    assert "conv (2 calls)" in render(count(Twice(True), (3, 8, 8)))
