"""Names, options and errors of the registry; the hosts and their published weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from nasb.cells import Architecture, CellConfig
from nasb.cells.cell import Cell
from nasb.cells.searchable import SearchableEdge
from nasb.errors import UserError
from nasb.files import load_safetensors
from nasb.networks import (
    HOSTS,
    create_host,
    create_network,
    describe_network,
    host_defaults,
    list_networks,
    register_host,
)

OWN = ["resnet18", "resnet20", "resnet32", "resnet34", "resnet44", "resnet50", "resnet56"]
SMALL = {"num_classes": 5, "input_shape": (3, 8, 8), "width": 4}


def own_networks(pattern="*"):
    """The names of the hosts that come with nasb; other tests may register more."""
    return [name for name in list_networks(pattern) if name.removeprefix("bireal_").removeprefix("nasb_") in OWN]


def test_a_wildcard_lists_names():
    assert own_networks("resnet*") == OWN
    assert own_networks("nasb_*") == [f"nasb_{name}" for name in OWN]
    assert own_networks("bireal_resnet?4") == ["bireal_resnet34", "bireal_resnet44"]
    assert own_networks() == sorted([*OWN, *(f"bireal_{n}" for n in OWN), *(f"nasb_{n}" for n in OWN)])
    assert list_networks("vgg*") == []


def test_every_name_is_described_and_has_defaults():
    for name in own_networks():
        assert len(describe_network(name).splitlines()) == 1
        shape, classes = host_defaults(name)
        imagenet = name.endswith(("18", "34", "50"))
        assert (shape, classes) == (((3, 224, 224), 1000) if imagenet else ((3, 32, 32), 10))
    assert "hand-made" in describe_network("bireal_resnet20")
    assert "searchable" in describe_network("nasb_resnet20")


@pytest.mark.parametrize("name", ["resnet20", "resnet32", "resnet44", "resnet56"])
@pytest.mark.parametrize("prefix", ["", "bireal_", "nasb_"])
def test_every_small_network_runs(name, prefix):
    options = {"activation": "none", "nodes": 0} if prefix else {}
    network = create_network(prefix + name, **SMALL, **options).eval()
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 5)
    cells = sum(isinstance(layer, Cell) for layer in network.modules())
    assert cells == (int(name[-2:]) - 2 if prefix else 0)
    assert any(isinstance(layer, SearchableEdge) for layer in network.modules()) is (prefix == "nasb_")


def test_a_deep_network_with_prelu_is_accepted_whatever_the_seed():
    # PReLU lifts the stream in each cell; whether not one of few pixels is left below 0 is then a matter of luck.
    refused = []
    for seed in range(6):
        torch.manual_seed(seed)
        try:
            create_network("bireal_resnet44", **SMALL, activation="prelu")
        except UserError as error:
            refused.append((seed, str(error)))
    assert refused == []


def test_options_reach_host_and_cells():
    network = create_network(
        "bireal_resnet20", num_classes=5, input_shape=(1, 16, 16), width=4, stem_stride=2, bases=2, activation="rprelu"
    )
    assert network.get_submodule("conv1").weight.shape == (4, 1, 3, 3)
    assert network.get_submodule("conv1").stride == (2, 2)
    assert network.get_submodule("layer3.2.conv2").config == CellConfig(bases=2, activation="rprelu")
    assert create_network("resnet18", num_classes=3, input_shape=(1, 64, 64)).conv1.weight.shape == (64, 1, 7, 7)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet2000", {}, r'unknown network "resnet2000"; known: .*closest: .*resnet20'),
        ("nasb_resnet19", {}, "closest: nasb_resnet18"),
        ("bireal_", {}, 'unknown network "bireal_"'),
        ("resnet20", {"widht": 4}, r'resnet20: unknown option "widht"; known: .*\(closest: width\)'),
        ("resnet18", {"width": 4}, 'resnet18: unknown option "width"'),
        ("resnet20", {"bases": 2}, "resnet20: bases are options of binary networks; try bireal_resnet20"),
        ("bireal_resnet20", {"base": 2}, r'bireal_resnet20: unknown option "base"; known: .*closest: bases'),
        ("bireal_resnet20", {"bases": 0}, "cell.bases is 0"),
        ("bireal_resnet20", {"activation": "relu"}, "cell.activation"),
        ("resnet20", {"width": 0}, "width is 0; it must be at least 1"),
        ("resnet20", {"width": "wide"}, "resnet20: cannot be built with {'width': 'wide'}"),
        ("resnet20", {"width": 4.5}, "resnet20: cannot be built"),
        ("resnet20", {"stem_stride": 0}, "stem_stride is 0"),
        ("bireal_resnet20", {"input_shape": (3, 0, 0)}, "does not run on an input of shape"),
    ],
)
def test_errors_name_network_and_option(name, options, message):
    with pytest.raises(UserError, match=message):
        create_network(name, **options)


@pytest.mark.parametrize("classes", [0, -1])
def test_a_number_of_classes_that_is_none_is_refused(classes):
    with pytest.raises(UserError, match="num_classes"):
        create_network("resnet20", num_classes=classes, width=4)


def tiny(**changes):
    names = [f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in range(3) for c in (1, 2)]
    values = {
        "host": "resnet20",
        "options": {"width": 4},
        "num_classes": 5,
        "input_shape": (3, 8, 8),
        "cells": dict.fromkeys(names, ()),
    }
    return Architecture(**{**values, **changes})


@pytest.mark.parametrize(
    ("name", "architecture", "options", "message"),
    [
        ("bireal_resnet20", tiny(), {}, "an architecture is for nasb_resnet20"),
        ("resnet20", tiny(), {}, "an architecture is for nasb_resnet20"),
        ("nasb_resnet32", tiny(), {}, 'the architecture is of the host "resnet20", not of "resnet32"'),
        ("nasb_resnet20", tiny(), {"width": 4}, "width are in the architecture already"),
        ("nasb_resnet20", tiny(), {"num_classes": 6}, "num_classes is 6, the architecture's is 5"),
        ("nasb_resnet20", tiny(), {"input_shape": (3, 9, 9)}, r"input_shape is \(3, 9, 9\), the architecture's is"),
        ("nasb_resnet20", tiny(options={"depth": 3}), {}, 'resnet20: unknown option "depth"'),
        ("nasb_resnet20", "missing.json", {}, "missing.json: cannot be read"),
    ],
)
def test_errors_of_architectures(name, architecture, options, message):
    with pytest.raises(UserError, match=message):
        create_network(name, architecture=architecture, **options)


def test_an_architecture_of_a_host_that_is_not_registered():
    with pytest.raises(UserError, match='unknown host network "resnet21"'):
        tiny(host="resnet21").build()


def test_what_the_architecture_says_may_be_said_again():
    network = create_network("nasb_resnet20", architecture=tiny(), num_classes=5, input_shape=(3, 8, 8))
    assert network.eval()(torch.randn(1, 3, 8, 8)).shape == (1, 5)
    create_network("nasb_resnet20", architecture=tiny(), input_shape=[3, 8, 8])  # as read from a YAML file


def test_a_host_is_registered_once_under_a_name_of_its_own():
    def chain(num_classes, in_channels, width=4):
        """Return a short chain.

        More text.
        """
        layers = [nn.Conv2d(in_channels, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))

    name = "test_registry_chain"
    register = register_host(name, input_shape=(1, 6, 6), num_classes=2)
    try:
        assert register(chain) is chain
        assert list_networks(f"*{name}") == [f"bireal_{name}", f"nasb_{name}", name]
        assert HOSTS[name].options() == ["width"]
        assert describe_network(name) == "Return a short chain"
        assert create_network(f"bireal_{name}", width=6).eval()(torch.randn(1, 1, 6, 6)).shape == (1, 2)
        with pytest.raises(ValueError, match=f'"{name}" is registered twice'):
            register(chain)
    finally:
        HOSTS._entries.pop(name)
    for wrong in ("bireal_mine", "nasb_mine"):
        with pytest.raises(ValueError, match="cannot be called"):
            register_host(wrong, input_shape=(3, 8, 8), num_classes=2)


def test_the_name_of_one_of_nasb_s_own_hosts_is_taken_from_the_start():
    script = (
        "from nasb import register_host\n"
        "try:\n"
        "    register_host('resnet18', input_shape=(3, 8, 8), num_classes=2)(lambda num_classes, in_channels: None)\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == 'host network "resnet18" is registered twice'


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_imagenet_hosts_take_torchvision_s_weights_unchanged(name):
    with torch.device("meta"):
        own, theirs = create_host(name), torchvision.models.get_model(name, weights=None)
    assert [(k, v.shape) for k, v in own.state_dict().items()] == [(k, v.shape) for k, v in theirs.state_dict().items()]


PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018}
"""Option A, by hand: 9 n (n-th stage) convolutions, batch norms, classifier (He et al., table 6: 0.27M to 0.85M)."""


@pytest.mark.parametrize("depth", PARAMETERS)
def test_cifar_hosts_have_the_published_size(depth):
    host = create_host(f"resnet{depth}")
    assert sum(p.numel() for p in host.parameters()) == PARAMETERS[depth]
    assert host.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_cifar_hosts_take_published_weights_unchanged(depth):
    folder = os.environ.get("NASB_SHARED_DATA")
    if not folder:
        pytest.skip("NASB_SHARED_DATA is not set: no published weights at hand")
    path = Path(folder) / "cifar10-resnets" / f"resnet{depth}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    tensors, metadata = load_safetensors(path)
    host = create_host(f"resnet{depth}")
    host.load_state_dict(tensors)
    assert metadata
    logits = host.eval()(torch.randn(8, 3, 32, 32))
    assert logits.isfinite().all()
    assert logits.std() > 0.5  # trained weights are far from indifferent
