"""Our counts against Larq Zoo's own summary of its networks, recorded in tests/golden/larq-zoo-counts.json.

Where the structures are one, numbers, MACs and bits are equal. What differs is stated, and exact too.
"""

import json
from pathlib import Path

import pytest
import torch

from nasb.cost import count
from nasb.networks import create_network, is_rival

RECORD = json.loads((Path(__file__).parents[2] / "golden" / "larq-zoo-counts.json").read_text())["networks"]
BLUR_PIXELS = (28 * 28, 14 * 14, 7 * 7)


def blur(*widths):
    """(real numbers, real MACs) of QuickNet's fixed blurs, a convolution there and two poolings here."""
    return 9 * sum(widths), sum(9 * pixels * width for pixels, width in zip(BLUR_PIXELS, widths, strict=True))


# Theirs, ours, and what they count more than we do: binary numbers, real numbers, binary MACs, real MACs.
FIRST_LAYER = 64 * 3 * 11 * 11  # binary weights on the image there, real ones here; of 56x56 pixels there, 55x55 here
PAIRS = [
    ("BiRealNet", "bireal_resnet18", (0, 0, 0, 0)),
    ("QuickNetSmall", "quicknet_small", (0, blur(32, 64, 256)[0], 0, blur(32, 64, 256)[1])),
    ("QuickNet", "quicknet", (0, blur(64, 128, 256)[0], 0, blur(64, 128, 256)[1])),
    ("QuickNetLarge", "quicknet_large", (0, blur(64, 128, 256)[0], 0, blur(64, 128, 256)[1])),
    ("BinaryAlexNet", "bnn_alexnet", (FIRST_LAYER, -FIRST_LAYER, 0, (56 * 56 - 55 * 55) * FIRST_LAYER)),
]


@pytest.mark.parametrize(("theirs", "ours", "more"), PAIRS)
def test_counts_are_larq_zoo_s(theirs, ours, more):
    with torch.device("meta" if is_rival(ours) else "cpu"):
        network = create_network(ours)
    found, record = count(network, (3, 224, 224)), RECORD[theirs]
    mine = (found.binary_parameters, found.parameters - found.binary_parameters, found.bops, found.flops)
    larq = (*(record["numbers"][bits] for bits in ("1", "32")), *(record["macs"][bits] for bits in ("1", "32")))
    assert tuple(a + b for a, b in zip(mine, more, strict=True)) == larq
    assert found.memory_bits + more[0] + 32 * more[1] == record["memory_bits"]


def test_every_recorded_network_is_compared():
    assert {theirs for theirs, *_ in PAIRS} == set(RECORD)
