"""Every layer and operation that the file can hold runs in the engine, too: signs as in torch, logits to 1e-4."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from deploy_reference import export, steady
from test_deploy_layers import FUNCTIONS, MODULES, SHAPE, Body, body_of
from torch import nn

from nasb.binary import Binarize, BinaryConv2d, BinaryLinear
from nasb.deploy._interpreter import Interpreter

nasb_engine = pytest.importorskip("nasb_engine")


def signs_of(features: int) -> list[nn.Module]:
    return [nn.Linear(features, 64), nn.BatchNorm1d(64), Binarize()]


class Joined(nn.Module):
    """Two binarizations, joined, and a binary convolution of both."""

    def __init__(self):
        super().__init__()
        self.binarize = nn.ModuleList([Binarize(), Binarize(initial=0.3)])
        self.conv = BinaryConv2d(12, 5, 3, 1, 1)

    def forward(self, x):
        return self.conv(torch.cat([binarize(x) for binarize in self.binarize], 1))


SIGNS = {
    "binary linear behind a real one": nn.Sequential(nn.Flatten(), *signs_of(288), BinaryLinear(64, 10)),
    "signs of a map, flat": nn.Sequential(Binarize(), nn.Flatten(), BinaryLinear(288, 10)),
    "signs of a map, flat, real": nn.Sequential(Binarize(), nn.Flatten(), nn.Linear(288, 10)),
    "max pooling": nn.Sequential(Binarize(), nn.MaxPool2d(3, 2, 1), BinaryConv2d(6, 9, 3)),
    "average pooling": nn.Sequential(Binarize(), nn.AvgPool2d(2), nn.Conv2d(6, 9, 3)),
    "concatenation": Joined(),
    "padding": lambda self, x: self.layers[1](F.pad(self.layers[0](x), (1, 0, 2, 1), mode="replicate")),
    "binary and real readers": lambda self, x: self.layers[1](self.layers[0](x)) + self.layers[2](self.layers[0](x)),
    "signs as the result": nn.Sequential(nn.Flatten(), *signs_of(288)),
    "signs in a sum": nn.Sequential(Binarize(), nn.ReLU(), nn.BatchNorm2d(6), Binarize(), BinaryConv2d(6, 9, 1)),
    "unflattened": nn.Sequential(nn.Flatten(), Binarize(), nn.Unflatten(1, (9, 4, 8)), BinaryConv2d(9, 70, 3)),
}


def signs_body(name):
    body = SIGNS[name]
    layers = nn.ModuleList([Binarize(), BinaryConv2d(6, 4, 3), nn.Conv2d(6, 4, 3)])
    flat = isinstance(body, nn.Module) and body(torch.zeros(2, 6, 8, 6)).dim() == 2
    return steady(Body(body, flat, layers=layers), SHAPE)


def check(network, path):
    export(network, path, SHAPE)
    interpreter = Interpreter(path.read_bytes())
    images = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(3))
    values = interpreter.run(images).tensors
    with torch.no_grad():
        expected = network(images).numpy()
    for kernel in ("reference", ""):
        session = nasb_engine.Session(path, threads=2, kernel=kernel)
        found = session.run(images)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
        inner = session.run(images, outputs=session.tensor_names)
        assert np.array_equal(inner["logits"], found)
        for node in interpreter.graph.node:
            if node.op_type in ("Binarize", "BinaryConv2d"):
                wanted = values[node.output[0]].numpy()
                assert np.abs(inner[node.output[0]] - wanted).max() <= 1e-4 * np.abs(wanted).max(), node.name


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", MODULES)
def test_every_layer(name, tmp_path):
    check(steady(Body(MODULES[name], MODULES[name](torch.zeros(2, 6, 8, 6)).dim() == 2), SHAPE), tmp_path / "m.onnx")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_operation(name, tmp_path):
    check(body_of(name), tmp_path / "m.onnx")


@pytest.mark.parametrize("name", SIGNS)
def test_whatever_reads_signs(name, tmp_path):
    check(signs_body(name), tmp_path / "m.onnx")
