"""Every kind of CNN goes through all stages: converted, searched, trained, counted, exported, and run in the engine."""

import importlib.util
import os
import sys

import pytest
import torch
import torch.nn.functional as F
from deploy_reference import steady
from deploy_zoo import CLASSES, ZOO
from test_deploy_engine import check
from torch.utils.flop_counter import FlopCounterMode

from nasb.binary import set_phase
from nasb.cells.config import CellConfig
from nasb.cost import count
from nasb.deploy import export_onnx
from nasb.networks import create_host
from nasb.networks.convert import convert
from nasb.search import SearchConfig
from nasb.search.searcher import Searcher

SHAPE = (3, 32, 32)
OPERATIONS = ("avg_pool_3x3", "bin_conv_1x1", "bin_conv_3x3")
NARROW = {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}
TIMM = {
    "seresnet18": NARROW,
    "resnet26d": NARROW,
    "densenet121": {"growth_rate": 8, "block_config": [2, 2, 2]},
    "mobilenetv3_small_050": {},
    "regnety_002": {},
}
"""Models of timm, and the options that make them small."""
PUBLISHED = (
    *("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "vgg11_bn", "densenet121", "googlenet"),
    *("mobilenet_v2", "regnet_y_400mf", "squeezenet1_1", "efficientnet_b0"),
)
"""Models of torchvision that go through in their published widths and depths, if asked."""


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, *SHAPE, generator=generator), torch.randint(0, CLASSES, (4,), generator=generator)


def train(network, weights, steps=2):
    """Train some steps; every weight that is used gets a finite gradient, and the network changes."""
    before = torch.cat([weight.detach().flatten().clone() for weight in weights])
    optimizer = torch.optim.SGD(weights, 1e-3)  # SqueezeNet ends in a ReLU: larger steps can leave no gradient
    for step in range(steps):
        images, labels = batch(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(network.train()(images), labels)
        loss.backward()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        optimizer.step()
    assert not torch.equal(before, torch.cat([weight.detach().flatten() for weight in weights]))
    return len(gradients)


def search(host, backbone_ops):
    """Two steps of search, weights and alpha in turn; the architecture that it derives."""
    network = convert(host, SHAPE, search=True, operations=OPERATIONS)
    searcher = Searcher(network, backbone_ops, SearchConfig(strategy="gumbel", budget=1.3, operations=OPERATIONS))
    generator, before = torch.Generator().manual_seed(0), [alpha.detach().clone() for alpha in searcher.alphas()]
    for step in range(2):
        images, labels = batch(step)
        searcher.select_for_weights(generator, warmup=False)
        train(network, searcher.weights(), 1)
        loss = lambda x=images, y=labels: F.cross_entropy(network(x), y)  # noqa: E731
        searcher.alpha_step(loss, generator, progress=0.5 * step, epoch=0)
    assert any(not torch.equal(alpha, old) for alpha, old in zip(searcher.alphas(), before, strict=True))
    return searcher.derive()


def go_through(host, tmp_path, record_property):
    backbone = convert(host, SHAPE, cell=CellConfig(activation="prelu"), check=False)
    binary = count(backbone, SHAPE)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        host.eval()(torch.zeros(1, *SHAPE))
    assert binary.flops + binary.bops == counter.get_total_flops() // 2, "a cell has the MACs of its convolution"
    assert binary.bops > 0
    cells = search(host, binary.ops)
    network = convert(host, SHAPE, cells=cells)
    assert any(cells.values()), "the search chose nothing"
    assert list(count(network, SHAPE).uncounted) == []
    for phase in (("real", "hardtanh"), ("binary", "sign")):
        set_phase(network, weights=phase[0], activations=phase[1])
        weights = list(network.parameters())
        assert train(network, weights, 1) == len(weights), "a weight without gradient"
    steady(network, SHAPE)
    export_onnx(network, tmp_path / "m.onnx", SHAPE)
    check(tmp_path / "m.onnx", SHAPE, record_property)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", ZOO)
def test_every_stage(name, tmp_path, record_property):
    go_through(ZOO[name](), tmp_path, record_property)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason='timm is not installed: pip install "nasb[timm]"')
@pytest.mark.parametrize("name", TIMM)
def test_every_stage_of_timm(name, tmp_path, record_property):
    go_through(create_host(f"timm/{name}", num_classes=CLASSES, options=TIMM[name]), tmp_path, record_property)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("NASB_PUBLISHED_SIZES"), reason="NASB_PUBLISHED_SIZES is not set: 9 minutes")
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_stage_of_published_sizes(name, tmp_path, record_property, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SHAPE", (3, 64, 64))
    go_through(create_host(f"torchvision/{name}", num_classes=CLASSES), tmp_path, record_property)
