"""Counts of whole networks: Bi-Real Net's published ones, derived by hand here, and those of torch's FLOP counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nasb.binary import set_phase
from nasb.cells import Architecture, CellConfig, Edge
from nasb.cells.searchable import named_edges, searchable_cells
from nasb.cost import count
from nasb.networks import create_network, host_defaults
from nasb.networks.convert import convert
from nasb.networks.resnet_cifar import ResNetCifar

# ImageNet: stem 7x7 at 112 x 112, three 1x1 shortcuts of equal cost, classifier; all that is real.
FLOPS_224 = 112 * 112 * 64 * 3 * 49 + 3 * 28 * 28 * 64 * 128 + 512 * 1000
# One binary 3x3 that keeps its shape costs the same in each stage; one that strides half of it.
BOPS_224 = 56 * 56 * 64 * 64 * 9
BOPS_32 = 32 * 32 * 16 * 16 * 9
FLOPS_32 = 32 * 32 * 16 * 3 * 9 + 64 * 10
REAL_32 = 16 * 3 * 9 + 2 * 16 + 2 * 6 * (16 + 32 + 64) + 650
OUTPUTS_32 = 6 * (16 + 32 + 64)
INPUTS_32 = OUTPUTS_32 - 16 - 32  # the cell that begins stage 2 (3) has 16 (32) input channels less than outputs

# name, options, (BOPs, FLOPs, binary numbers, real numbers), Mbit
PUBLISHED = [
    ("bireal_resnet18", {}, (BOPS_224 * 29 // 2, FLOPS_224, 10_985_472, 704_040), 33.515),
    ("bireal_resnet34", {}, (BOPS_224 * 61 // 2, FLOPS_224, 21_086_208, 711_464), 43.853),
    ("bireal_resnet20", {}, (BOPS_32 * 17, FLOPS_32, 267_264, 2_458), 0.346),
]
OPTIONS = [
    # Each further base has weights, a batch norm and thresholds of its own; base 0 gets thresholds, too.
    ({"bases": 3}, (3 * BOPS_32 * 17, 3 * 267_264, REAL_32 + 2 * 2 * OUTPUTS_32 + 3 * INPUTS_32)),
    ({"learned_threshold": True}, (BOPS_32 * 17, 267_264, REAL_32 + INPUTS_32)),
    # The batch norms take up the scales of the weights.
    ({"weight_scale": "learned"}, (BOPS_32 * 17, 267_264, REAL_32)),
    ({"weight_scale": "mean"}, (BOPS_32 * 17, 267_264, REAL_32)),
    # One slope (and two shifts) per channel, behind the stem as well.
    ({"activation": "prelu"}, (BOPS_32 * 17, 267_264, REAL_32 + OUTPUTS_32 + 16)),
    ({"activation": "rprelu"}, (BOPS_32 * 17, 267_264, REAL_32 + 3 * (OUTPUTS_32 + 16))),
]


@pytest.mark.parametrize(("name", "options", "numbers", "mbit"), PUBLISHED)
def test_hand_made_networks_have_the_published_counts(name, options, numbers, mbit):
    bops, flops, binary, real = numbers
    found = count(create_network(name, **options), host_defaults(name)[0])
    assert (found.bops, found.flops) == (bops, flops)
    assert (found.binary_parameters, found.parameters) == (binary, binary + real)
    assert found.memory_bits == binary + 32 * real
    assert found.memory_bits / 1e6 == pytest.approx(mbit, abs=5e-4)
    assert found.ops == flops + bops / 64
    assert found.uncounted == ()
    if name == "bireal_resnet18":
        assert (found.ops, found.bops, found.flops) == pytest.approx((1.640e8, 1.676e9, 1.378e8), rel=5e-4)


@pytest.mark.parametrize(("options", "numbers"), OPTIONS)
def test_options_of_cells_cost_what_they_add(options, numbers):
    bops, binary, real = numbers
    found = count(create_network("bireal_resnet20", **options), (3, 32, 32))
    assert (found.bops, found.flops) == (bops, FLOPS_32)
    assert (found.binary_parameters, found.parameters - found.binary_parameters) == (binary, real)
    assert found.uncounted == ()


@pytest.mark.parametrize(
    ("name", "flops", "mbit"),
    [
        ("resnet18", 1.814e9, 374.1),
        ("resnet34", 3.664e9, 697.5),
        ("resnet50", 4.089e9, 817.8),
        ("resnet20", 4.055e7, 8.6),
    ],
)
def test_real_networks_agree_with_torchs_flop_counter(name, flops, mbit):
    network, shape = create_network(name).eval(), host_defaults(name)[0]
    found = count(network, shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *shape))
    assert 2 * found.flops == counter.get_total_flops()
    assert found.bops == 0
    assert found.flops == pytest.approx(flops, rel=5e-4)
    assert found.memory_bits == 32 * sum(parameter.numel() for parameter in network.parameters())
    assert found.memory_bits / 1e6 == pytest.approx(mbit, abs=0.05)
    assert found.uncounted == ()


def small(config=None, **options):
    return convert(ResNetCifar(8, width=8), (3, 16, 16), cell=config, **options)


@pytest.mark.parametrize("config", [CellConfig(), CellConfig(nodes=2, bases=2, activation="rprelu")])
def test_a_fresh_searchable_network_counts_its_full_mixture(config):
    network = small(config, search=True)
    hand_made = count(small(config), (3, 16, 16))
    found = count(network, (3, 16, 16))
    candidates = sum(bops for _, _, edge in named_edges(network) for bops in edge.bops)
    assert candidates > 0
    assert found.bops == hand_made.bops + candidates
    assert found.flops == hand_made.flops
    assert found.uncounted == ()


def test_a_searchable_network_counts_the_path_that_is_selected():
    network = small(search=True)
    for _, _, edge in named_edges(network):
        edge.select((0,))
    found = count(network, (3, 16, 16))
    hand_made = count(small(), (3, 16, 16))
    assert (found.bops, found.memory_bits) == (hand_made.bops, hand_made.memory_bits)
    assert len(found.uncounted) > 0
    assert all("never called" in line for line in found.uncounted)


def test_a_derived_network_counts_its_operations():
    edges = dict.fromkeys(searchable_cells(create_network("bireal_resnet20")), ())
    edges["layer1.0.conv1"] = (
        Edge(0, 2, "bin_conv_3x3"),
        Edge(0, 1, "max_pool_3x3"),
        Edge(1, 2, "dil_bin_conv_5x5"),
    )
    network = Architecture(host="resnet20", num_classes=10, input_shape=(3, 32, 32), cells=edges).build()
    found = count(network, (3, 32, 32))
    assert found.bops == BOPS_32 * 17 + 32 * 32 * 16 * 16 * (9 + 25)
    assert found.binary_parameters == 267_264 + 16 * 16 * (9 + 25)
    assert found.parameters - found.binary_parameters == REAL_32 + 3 * 2 * 16
    assert found.uncounted == ()


def test_binary_layers_count_as_binary_in_their_real_phase():
    network = small()
    before = count(network, (3, 16, 16))
    set_phase(network, weights="real", activations="tanh")
    assert count(network, (3, 16, 16)) == before
