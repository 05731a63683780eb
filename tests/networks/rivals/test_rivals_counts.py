"""What hand-made networks cost, derived by hand from their structure; each difference to other counts is explained.

The numbers that they are compared with were counted by a script of this project's research, which reproduces the totals
of parameters that Larq Zoo prints. It counts batch norms as Larq Zoo stores them, and QuickNet's blur as a convolution.
"""

import pytest
import torch

from nasb.cost import count
from nasb.networks import create_network, host_defaults

BINARY_18, BINARY_34 = 10_985_472, 21_086_208
BOPS_18, BOPS_34 = 56 * 56 * 64 * 64 * 9 * 29 // 2, 56 * 56 * 64 * 64 * 9 * 61 // 2
FLOPS_18 = 112 * 112 * 64 * 3 * 49 + 3 * 28 * 28 * 64 * 128 + 512 * 1000
BIREAL_18, BIREAL_34 = 704_040, 711_464  # real numbers of Bi-Real Net (tests/cost)
WIDTHS = (64, 128, 256, 512)
OUTPUTS_18 = 4 * sum(WIDTHS)
INPUTS_18 = OUTPUTS_18 - 64 - 128 - 256  # a convolution that begins a stage has fewer inputs than outputs
BOPS_20, BINARY_20 = 32 * 32 * 16 * 16 * 9 * 17, 267_264
FLOPS_20 = 32 * 32 * 16 * 3 * 9 + 64 * 10
REAL_20 = 2_458  # with parameter-free shortcuts
FLOPS_1X1, REAL_1X1 = 2 * 16 * 16 * 16 * 32, 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
OUTPUTS_20 = 6 * (16 + 32 + 64)
INPUTS_20 = OUTPUTS_20 - 16 - 32
STEM_ALEX = 55 * 55 * 11 * 11 * 3


def quicknet(flops, real, widths):
    """Take the blur's MACs and numbers away, and add the folded batch norm of the stem that has no gamma and beta."""
    pixels = (28 * 28, 14 * 14, 7 * 7)
    blur = sum(9 * n * width for n, width in zip(pixels, widths[:3], strict=True))
    return flops - blur, real - 9 * sum(widths[:3]) + 2 * widths[0] // 4


# name: BOPs, FLOPs, binary numbers, real numbers
EXPECTED = {
    "reactnet_resnet18": (BOPS_18, FLOPS_18, BINARY_18, BIREAL_18 + INPUTS_18 + 3 * OUTPUTS_18),
    "reactnet_a": (4_816_896_000, 11_862_016, 28_253_184, 1_090_408),
    "irnet_resnet18": (BOPS_18, FLOPS_18, BINARY_18, BIREAL_18 + 2 * 512),
    "irnet_resnet34": (BOPS_34, FLOPS_18, BINARY_34, BIREAL_34 + 2 * 512),
    "bnn_resnet18": (BOPS_18, FLOPS_18, BINARY_18, BIREAL_18),
    # Batch norms stand before the convolutions, one more at the end; a scale of weights that no batch norm follows is
    # stored, which is each block's second.
    "xnor_resnet18": (
        BOPS_18, FLOPS_18, BINARY_18, BIREAL_18 - 2 * (OUTPUTS_18 - INPUTS_18) + 2 * 512 + OUTPUTS_18 // 2
    ),
    "quicknet_small": (1_156_055_040, *quicknet(15_941_120, 674_872, (32, 64, 256, 512)), 11_980_800),
    "quicknet": (1_849_688_064, *quicknet(29_651_712, 700_296, WIDTHS), 12_533_760),
    "quicknet_large": (3_699_376_128, *quicknet(29_651_712, 707_720, WIDTHS), 22_634_496),
    "reactnet_resnet20": (BOPS_20, FLOPS_20 + FLOPS_1X1, BINARY_20, REAL_20 + REAL_1X1 + INPUTS_20 + 3 * OUTPUTS_20),
    "irnet_resnet20": (BOPS_20, FLOPS_20, BINARY_20, REAL_20 + 2 * 64),
    "bnn_resnet20": (BOPS_20, FLOPS_20, BINARY_20, REAL_20),
    "xnor_resnet20": (
        BOPS_20, FLOPS_20 + FLOPS_1X1, BINARY_20,
        REAL_20 + REAL_1X1 - 2 * (OUTPUTS_20 - INPUTS_20) + 2 * 64 + OUTPUTS_20 // 2,
    ),
    # Larq Zoo's total of real numbers, 31,416, is 3 for each channel of a batch norm (beta, statistics), 2 as folded.
    # Our first layer is real, and of 55x55 pixels for 56x56.
    "bnn_alexnet": (
        841_367_552 - 56 * 56 * 11 * 11 * 3 * 64, STEM_ALEX * 64, 61_827_776 - 11 * 11 * 3 * 64,
        31_416 // 3 * 2 + 11 * 11 * 3 * 64,
    ),
    # The same; and the classifier has a bias here, and two convolutions are pooled before their batch norm, so that
    # their scale is stored.
    "xnor_alexnet": (
        1_025_744_896, STEM_ALEX * 96 + 4096 * 1000, 58_236_928, 4_159_840 - 9_664 + 1000 + 2 * 256
    ),
}  # fmt: skip

# As the research's script found: BOPs e9, FLOPs e8, OPs e8.
GLANCE = {
    "reactnet_resnet18": (1.676, 1.378, 1.640),
    "reactnet_a": (4.817, 0.119, 0.871),
    "irnet_resnet18": (1.676, 1.378, 1.640),
    "irnet_resnet34": (3.526, 1.378, 1.929),
    "bnn_resnet20": (0.0401, 0.0044, 0.0107),
    "reactnet_resnet20": (0.0401, 0.0071, 0.0133),
    "quicknet_small": (1.156, 0.159, 0.340),
    "quicknet": (1.850, 0.297, 0.586),
    "quicknet_large": (3.699, 0.297, 0.875),
    "xnor_alexnet": (1.026, 1.134, 1.294),
}


def counted(name, **options):
    """Count without numbers: shapes are enough."""
    with torch.device("meta"):
        network = create_network(name, **options)
    return count(network, host_defaults(name)[0])


@pytest.mark.parametrize("name", EXPECTED)
def test_counts_are_those_of_the_structure(name):
    bops, flops, *numbers = EXPECTED[name]
    binary, real = reversed(numbers) if name.startswith("quicknet") else numbers
    found = counted(name)
    assert found.uncounted == ()
    assert (found.bops, found.flops) == (bops, flops)
    assert (found.binary_parameters, found.parameters - found.binary_parameters) == (binary, real)
    assert found.memory_bits == binary + 32 * real
    if name in GLANCE:
        more = {"quicknet_small": 451_584, "quicknet": 790_272, "quicknet_large": 790_272, "xnor_alexnet": 3_868_128}
        flops += more.get(name, 0)  # the blur; a first layer of 56x56 pixels
        rounded = (bops / 1e9, flops / 1e8, (flops + bops / 64) / 1e8)
        for value, written in zip(rounded, GLANCE[name], strict=True):
            assert value == pytest.approx(written, abs=5.01e-5 if name.endswith("20") else 5.01e-4)


@pytest.mark.parametrize("name", ["reactnet", "irnet", "bnn", "xnor"])
def test_options_are_those_of_the_host(name):
    """With parameter-free shortcuts a rival costs what Bi-Real Net's form of the host does (tests/cost)."""
    for options, stem in (({}, 32 * 32 * 16), ({"stem_stride": 2}, 16 * 16 * 16), ({"width": 8}, 32 * 32 * 8)):
        part = stem / (32 * 32 * 16)
        width = options.get("width", 16)
        found = counted(f"{name}_resnet20", shortcut="adapt", **options)
        assert found.flops == stem * 3 * 9 + 4 * width * 10
        assert found.bops == BOPS_20 * (part**2 if "width" in options else part)
        assert found.binary_parameters == BINARY_20 * (width / 16) ** 2
