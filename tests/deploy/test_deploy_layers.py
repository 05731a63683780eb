"""Every layer and operation that the file can hold, against torch; and what is refused, by name."""

import operator

import pytest
import torch
import torch.nn.functional as F
from deploy_reference import agree, export, steady
from torch import nn
from torchvision.ops import StochasticDepth

from nasb.binary import (
    AbcConv2d,
    Binarize,
    BinaryConv2d,
    BinaryLinear,
    LayerScaleConv2d,
    LibraConv2d,
    RPReLU,
    XnorConv2d,
)
from nasb.cells.adapt import Adapt, ConvShape
from nasb.deploy.step import LAYERS, OPERATIONS
from nasb.errors import UserError
from nasb.networks.resnet_cifar import OptionAShortcut

SHAPE = (3, 8, 6)


class Body(nn.Module):
    """A convolution, what is tested, and the mean over all pixels: [N, classes]."""

    def __init__(self, body, flat=False, **layers):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.body = body
        self.layer, self.flat = isinstance(body, nn.Module), flat
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        y = self.body(self.stem(x)) if self.layer else self.body(self, self.stem(x))
        return y if self.flat else y.mean((2, 3))


def adapt(inputs, outputs, stride=(1, 1), size=(8, 6), kernel=3, padding=1):
    shape = ConvShape(
        in_channels=inputs,
        out_channels=outputs,
        kernel_size=(kernel, kernel),
        stride=stride,
        padding=(padding, padding),
        in_size=size,
    )
    return Adapt(shape)


def learned(channels):
    layer = Binarize(channels, learned=True)
    nn.init.normal_(layer.threshold, std=0.3)
    return layer


class Abc(nn.Module):
    """ABC-Net's convolution of two binarizations with three bases."""

    def __init__(self, *, norm: bool, bias: bool) -> None:
        super().__init__()
        self.binarize = nn.ModuleList(Binarize(initial=bound) for bound in (-0.5, 0.5))
        self.conv = AbcConv2d(6, 8, 3, 2, 1, bias=bias, weight_bases=3, activation_bases=2)
        self.after = nn.BatchNorm2d(8) if norm else nn.ReLU()

    def forward(self, x):
        return self.after(self.conv(*[binarize(x) for binarize in self.binarize]))


MODULES = {
    "AbcConv2d": Abc(norm=True, bias=False),
    "AbcConv2d: alone": Abc(norm=False, bias=True),
    "Adapt: stride": adapt(6, 6, (2, 2)),
    "Adapt: odd size": adapt(6, 6, (2, 2), kernel=2),
    "Adapt: longer": adapt(6, 6, padding=2),
    "Adapt: cut": adapt(6, 6, padding=0),
    "Adapt: more channels": adapt(6, 12, (2, 1)),
    "Adapt: more channels, cut": adapt(6, 16),
    "Adapt: fewer channels": adapt(6, 2, (2, 2)),
    "Adapt: nothing": adapt(6, 6),
    "AdaptiveAvgPool2d": nn.AdaptiveAvgPool2d((4, 3)),
    "AdaptiveAvgPool2d: 1": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((2, 3))),
    "AdaptiveAvgPool2d: same": nn.AdaptiveAvgPool2d((None, 6)),
    "AdaptiveAvgPool2d: overlapping": nn.AdaptiveAvgPool2d((7, 5)),
    "AdaptiveAvgPool2d: one and two pixels to more": nn.Sequential(
        nn.AdaptiveAvgPool2d((1, 2)), nn.AdaptiveAvgPool2d(7)
    ),
    "AdaptiveAvgPool2d: two pixels to more": nn.Sequential(nn.AdaptiveAvgPool2d((2, 2)), nn.AdaptiveAvgPool2d((3, 4))),
    "AdaptiveMaxPool2d": nn.AdaptiveMaxPool2d((2, 3)),
    "AdaptiveMaxPool2d: more": nn.Sequential(nn.AdaptiveMaxPool2d((2, 1)), nn.AdaptiveMaxPool2d((5, 2))),
    "AdaptiveMaxPool2d: repeated": nn.Sequential(nn.AdaptiveMaxPool2d((2, 1)), nn.AdaptiveMaxPool2d((4, 3))),
    "AvgPool2d": nn.AvgPool2d(3, 2, 1),
    "AvgPool2d: without border": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "AvgPool2d: ceil": nn.AvgPool2d(3, 2, ceil_mode=True),
    "AvgPool2d: ceil, border": nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "AvgPool2d: ceil, without border": nn.AvgPool2d((2, 3), (3, 2), 1, ceil_mode=True, count_include_pad=False),
    "BatchNorm2d": nn.Sequential(nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)),
    "BatchNorm2d: alone": nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(6)),
    "BatchNorm2d: plain": nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4, affine=False, eps=0.1)),
    "BatchNorm1d": nn.Sequential(nn.Flatten(), nn.Linear(288, 5), nn.BatchNorm1d(5)),
    "BatchNorm1d: alone": nn.Sequential(nn.Flatten(), nn.ReLU(), nn.BatchNorm1d(288)),
    "Binarize": nn.Sequential(Binarize(), nn.Conv2d(6, 3, 3)),
    "Binarize: fixed": nn.Sequential(Binarize(initial=0.1), nn.Conv2d(6, 3, 3)),
    "Binarize: learned": nn.Sequential(learned(6), nn.Conv2d(6, 3, 3)),
    "Binarize: flat": nn.Sequential(nn.Flatten(), learned(288), nn.Linear(288, 3)),
    "BinaryConv2d": nn.Sequential(Binarize(), BinaryConv2d(6, 8, 3, 2, 1, bias=True)),
    "BinaryConv2d: batch norm": nn.Sequential(Binarize(), BinaryConv2d(6, 8, 3, bias=True), nn.BatchNorm2d(8)),
    "BinaryConv2d: no scale": nn.Sequential(Binarize(), BinaryConv2d(6, 8, (3, 1), scale="none")),
    "BinaryConv2d: learned scale": nn.Sequential(Binarize(), BinaryConv2d(6, 8, 1, 2, scale="learned")),
    "BinaryConv2d: groups, -1": nn.Sequential(Binarize(), BinaryConv2d(6, 8, 3, 1, 2, 2, 2, pad_value=-1)),
    "BinaryConv2d: +1": nn.Sequential(Binarize(), BinaryConv2d(6, 8, 5, 1, (2, 1), pad_value=1)),
    "BinaryLinear": nn.Sequential(nn.Flatten(), Binarize(), BinaryLinear(288, 7, bias=True), nn.BatchNorm1d(7)),
    "BinaryLinear: two": nn.Sequential(nn.Flatten(), Binarize(), BinaryLinear(288, 9), Binarize(), BinaryLinear(9, 4)),
    "Conv2d: groups": nn.Conv2d(6, 4, (3, 2), (1, 2), (2, 0), (2, 1), 2),
    "Conv2d: same": nn.Sequential(nn.Conv2d(6, 4, 4, padding="same"), nn.Conv2d(4, 4, 3, padding="valid")),
    "Conv2d: replicate": nn.Conv2d(6, 4, 3, padding=(1, 2), padding_mode="replicate"),
    "Dropout": nn.Sequential(nn.Dropout(), nn.Dropout2d(), nn.Identity()),
    "Dropout1d": nn.Sequential(nn.Flatten(), nn.Dropout1d()),
    "Flatten": nn.Flatten(),
    "Hardsigmoid": nn.Hardsigmoid(),
    "Hardswish": nn.Hardswish(),
    "Hardtanh": nn.Hardtanh(-0.3, 0.5),
    "LibraConv2d": nn.Sequential(Binarize(), LibraConv2d(6, 8, 3, 1, 1), nn.BatchNorm2d(8)),
    "LibraConv2d: alone": nn.Sequential(Binarize(), LibraConv2d(6, 8, 3, 2, 1, pad_value=1), nn.Hardtanh()),
    "LayerScaleConv2d": nn.Sequential(Binarize(), LayerScaleConv2d(6, 8, 3, 1, 1), nn.ReLU()),
    "LeakyReLU": nn.LeakyReLU(0.2),
    "Linear": nn.Sequential(nn.Flatten(), nn.Linear(288, 5, bias=False)),
    "MaxPool2d": nn.MaxPool2d(3, 2, 1, dilation=2),
    "MaxPool2d: ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "MaxPool2d: ceil, border": nn.MaxPool2d((3, 2), (2, 3), 1, ceil_mode=True),
    "PReLU": nn.PReLU(6),
    "PReLU: one": nn.Sequential(nn.Flatten(), nn.PReLU()),
    "RPReLU": RPReLU(6),
    "ReLU": nn.ReLU(),
    "ReLU6": nn.ReLU6(),
    "SiLU": nn.SiLU(),
    "Sigmoid": nn.Sigmoid(),
    "StochasticDepth": StochasticDepth(0.5, "row"),
    "Tanh": nn.Tanh(),
    "XnorConv2d": nn.Sequential(nn.BatchNorm2d(6), Binarize(), XnorConv2d(6, 8, 3, 1, 1), nn.MaxPool2d(2)),
    "ZeroPad2d": nn.ZeroPad2d((1, 0, 2, 3)),
    "Unflatten": nn.Sequential(nn.Flatten(), nn.Unflatten(1, (12, 6, 4)), nn.ReLU()),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", MODULES)
def test_every_layer(name, tmp_path):
    network = steady(Body(MODULES[name], MODULES[name](torch.zeros(2, 6, 8, 6)).dim() == 2), SHAPE)
    export(network, tmp_path / "m.onnx", SHAPE)
    agree(network, tmp_path / "m.onnx", SHAPE)


def test_every_layer_is_tried():
    tried = {name.partition(":")[0] for name in MODULES}
    assert {name.removesuffix("1d").removesuffix("2d") for name in LAYERS} == {
        name.removesuffix("1d").removesuffix("2d") for name in tried
    }


def augmented(self, x):
    y = self.stem2(x)
    y += x
    y *= 2
    return y


def clones(self, x):
    kept = x.clone().relu_() + 2 * x
    x, before = self.stem2(kept), kept.clone()
    kept.mul_(0.5)
    return kept + before + torch.clone(x).add_(1) + x


def squeeze_and_excite(self, x):
    weight = torch.sigmoid(self.fc(F.adaptive_avg_pool2d(x, 1)))
    return weight * x


FUNCTIONS = {
    "adaptive_avg_pool2d": lambda self, x: F.adaptive_avg_pool2d(x, (2, 3)),
    "adaptive_max_pool2d": lambda self, x: F.adaptive_max_pool2d(x, 1),
    "add": lambda self, x: torch.add(x, F.relu(x)) + 1.5,
    "add: constant": lambda self, x: 1 + (self.constant.view(1, -1, 1, 1) + x.add(x)),
    "avg_pool2d": lambda self, x: F.avg_pool2d(x, 3, 2, 1, True, False),
    "cat": lambda self, x: torch.cat([x, F.relu(x), x], 1),
    "clone": lambda self, x: x.clone(),
    "clone: overwritten": clones,
    "concat": lambda self, x: torch.concat((x, x), dim=-3),
    "contiguous": lambda self, x: x.contiguous(),
    "detach": lambda self, x: x.detach(),
    "dropout": lambda self, x: F.dropout(x, 0.5, self.training),
    "dropout2d": lambda self, x: F.dropout2d(x, 0.5, training=self.training),
    "flatten": lambda self, x: torch.flatten(x, 1),
    "getitem": lambda self, x: x[:, 1:5, ::2, -4:],
    "hardsigmoid": lambda self, x: F.hardsigmoid(x),
    "hardswish": lambda self, x: F.hardswish(x),
    "hardtanh": lambda self, x: F.hardtanh(x, -1, 0.5),
    "iadd": augmented,
    "imul": augmented,
    "leaky_relu": lambda self, x: F.leaky_relu(x, negative_slope=0.3),
    "max_pool2d": lambda self, x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "mean": lambda self, x: torch.mean(x, dim=(-1, -2), keepdim=True),
    "mul": squeeze_and_excite,
    "mul: constant": lambda self, x: torch.mul(x, self.constant[:, None, None]) * self.one,
    "pad": lambda self, x: F.pad(F.pad(x, (1, 0, 2, 1, 1, 2), value=0.5), (1, 1, 0, 2), mode="replicate"),
    "relu": lambda self, x: x.relu(),
    "relu6": lambda self, x: F.relu6(x),
    "reshape": lambda self, x: x.reshape(x.size(0), 12, -1, 3).relu(),
    "sigmoid": lambda self, x: x.sigmoid(),
    "silu": lambda self, x: F.silu(x),
    "squeeze": lambda self, x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
    "sub": lambda self, x: (x - F.relu(x)) - 0.5,
    "div": lambda self, x: x.div(3),
    "truediv": lambda self, x: x / 3,
    "tanh": lambda self, x: torch.tanh(x),
    "unsqueeze": lambda self, x: x.mean((2, 3)).unsqueeze(-1).unsqueeze(-1),
    "view": lambda self, x: x.view(len(self.constant) * 0 - 1, 288),
}


FLAT = ("flatten", "squeeze", "view")


def body_of(name):
    network = Body(FUNCTIONS[name], name in FLAT, stem2=nn.Conv2d(6, 6, 1), fc=nn.Conv2d(6, 6, 1))
    network.register_buffer("constant", torch.randn(6))
    network.register_buffer("one", torch.randn(1))
    return steady(network, SHAPE)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_operation(name, tmp_path):
    network = body_of(name)
    export(network, tmp_path / "m.onnx", SHAPE)
    agree(network, tmp_path / "m.onnx", SHAPE)


def test_every_operation_is_tried():
    assert {name.partition(":")[0] for name in FUNCTIONS} == set(OPERATIONS)


def test_augmented_assignment_in_a_converted_graph(tmp_path):
    graph = torch.fx.symbolic_trace(body_of("iadd"))
    for node in graph.graph.nodes:
        node.target = {operator.add: operator.iadd, operator.mul: operator.imul}.get(node.target, node.target)
    graph.recompile()
    export(graph, tmp_path / "m.onnx", SHAPE)
    agree(graph, tmp_path / "m.onnx", SHAPE)


def overwritten_by_a_method(self, x):
    y = x.relu_()
    return x + 2 * y


def overwritten_by_an_unused_result(self, x):
    F.relu(x, inplace=True)
    return x * 2


def overwritten_by_a_layer(self, x):
    y = self.act(x)
    return torch.cat([x, y], 1)


@pytest.mark.parametrize(
    "body", [overwritten_by_a_method, overwritten_by_an_unused_result, overwritten_by_a_layer], ids=lambda b: b.__name__
)
def test_who_reads_an_overwritten_tensor_reads_what_was_written(body, tmp_path):
    network = steady(Body(body, act=nn.ReLU(inplace=True)), SHAPE)
    export(network, tmp_path / "m.onnx", SHAPE)
    agree(network, tmp_path / "m.onnx", SHAPE)


def test_the_shortcut_without_parameters_of_the_cifar_resnets(tmp_path):
    network = steady(Body(OptionAShortcut(6, 13, 2)), SHAPE)
    _, model = export(network, tmp_path / "m.onnx", SHAPE)
    agree(network, tmp_path / "m.onnx", SHAPE)
    assert [node.op_type for node in model.graph.node] == ["Conv", "Slice", "Pad", "GlobalAveragePool", "Flatten"]


class Own(nn.Module):
    def forward(self, x):
        return torch.cumsum(x, 1)


class OwnConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(2 * x)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


REFUSED = {
    "layer": (nn.Sequential(nn.ReLU(), nn.GELU()), "body.1 is a GELU", "ReLU"),
    "operation": (nn.Sequential(nn.ReLU(), Own()), "body.1 is the operation cumsum (in a Own)", "relu"),
    "subclass": (OwnConv(6, 6, 1), "body is the operation conv2d (in a OwnConv)", "adaptive_avg_pool2d"),
    "softmax": (nn.Softmax(1), "body is a Softmax", "ReLU"),
    "control flow": (Branching(), "body (a Branching) cannot be traced by torch.fx", "control flow"),
    "control flow inside": (nn.Sequential(nn.ReLU(), nn.Sequential(Branching())), "body.1.0 (a Branching) cannot", ""),
    "control flow on top": (lambda self, x: x if x.sum() > 0 else -x, "Body cannot be traced", "control flow"),
    "across images": (lambda self, x: x - x.mean(0, keepdim=True), "mean computes across the images", "(1, 6, 8, 6)"),
    "first image": (lambda self, x: x[:1] + x, "getitem computes across the images", ""),
    "batch statistics": (nn.BatchNorm2d(6, track_running_stats=False), "body has no running statistics", ""),
    "circular": (nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular"), "body pads by circular", "replicate"),
    "adaptive": (nn.AdaptiveAvgPool2d(5), "body pools 8x6 pixels to 5x5", "another size of images"),
    "negative padding": (nn.ZeroPad2d((-1, 0, 0, 0)), "body pads by (-1, 0, 0, 0)", "no cropping"),
    "quotient": (lambda self, x: x / (x * x + 1), "truediv divides", "a value and a number"),
    "difference": (lambda self, x: x - x[:, :1], "sub subtracts", "two values of one shape"),
    "divisor": (nn.AvgPool2d(2, divisor_override=3), "body overrides its divisor", ""),
    "indices": (nn.MaxPool2d(2, return_indices=True), "", ""),
    "chunk": (lambda self, x: x.chunk(2, 1)[0] + 1, "getitem", ""),
    "flip": (lambda self, x: x + x.flip(3), "is the operation flip", ""),
    "broadcast": (lambda self, x: x + x.mean((2,), keepdim=True), "mean is a mean over (2,)", ""),
    "joins": (lambda self, x: x * x[:, :1], "mul joins values of shapes", "one value per channel"),
    "constant": (lambda self, x: x + torch.ones(8, 6), "add has the constant", "per channel (6, 1, 1)"),
    "gap": (lambda self, x: torch.cat([x, x], 2), "cat concatenates along axis 2", "axis 1"),
    "reflect": (lambda self, x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "pad pads by reflect", "replicate"),
    "dropout": (lambda self, x: F.dropout(x), "dropout is a dropout that is always on", "self.training"),
    "index": (lambda self, x: x[:, 0, :, :].unsqueeze(1), "getitem takes", "slices"),
    "alpha": (lambda self, x: torch.add(x, x, alpha=2), "add has other arguments", "alpha"),
    "binary linear": (nn.Sequential(Binarize(), BinaryLinear(6, 6)), "body.1 reads a value of shape", "[N, features]"),
    "tuple": (lambda self, x: (x.mean((2, 3)), x), "", ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_file_cannot_hold_is_refused_by_name(name, tmp_path):
    body, *says = REFUSED[name]
    with pytest.raises(UserError) as caught:
        export(Body(body).eval(), tmp_path / "m.onnx", SHAPE)
    assert str(caught.value).startswith("export: ")
    assert "\n" not in str(caught.value)
    for part in says:
        assert part in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (nn.Sequential(BinaryConv2d(3, 4, (8, 6)), nn.Flatten()), "0"),
        (nn.Sequential(Binarize(), nn.ZeroPad2d(1), BinaryConv2d(3, 4, (10, 8)), nn.Flatten()), "2"),
        (nn.Sequential(nn.Flatten(), BinaryLinear(144, 4)), "1"),
        (nn.Sequential(AbcConv2d(3, 4, (8, 6)), nn.Flatten()), "0"),
    ],
    ids=["real", "padded by 0", "linear", "abc"],
)
def test_a_binary_layer_that_reads_no_signs_is_refused(network, name, tmp_path):
    with pytest.raises(UserError) as caught:
        export(network.eval(), tmp_path / "m.onnx", SHAPE)
    assert str(caught.value).startswith(f"export: {name}: its input is not signs (-1 and +1)")
    assert str(caught.value).endswith("put a Binarize in front of it")


def test_one_layer_is_a_network(tmp_path):
    _, model = export(nn.Flatten().eval(), tmp_path / "m.onnx", SHAPE)
    assert [node.op_type for node in model.graph.node] == ["Flatten"]


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (nn.Identity(), "must return one tensor [N, classes]"),
        (nn.Sequential(nn.Conv2d(3, 4, 1)), "must return one tensor [N, classes]"),
        (nn.Conv2d(3, 4, 1), "must return one tensor [N, classes]"),
        (nn.Linear(6, 4), "0 reads a value of shape (3, 3, 8, 6); the file holds linear layers on [N, features]"),
        (nn.GELU(), "is the operation gelu (in a GELU), which the file cannot hold"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3, 3)), "does not run on images of shape (3, 8, 6)"),
    ],
)
def test_networks_of_another_form_are_refused(network, says, tmp_path):
    with pytest.raises(UserError, match="export: ") as caught:
        export(network.eval(), tmp_path / "m.onnx", SHAPE)
    assert says in str(caught.value)
