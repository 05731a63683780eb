"""Packing against an oracle that is written as the layout is told: one weight after the other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasb.deploy._interpreter import _accumulate
from nasb.deploy.packing import pack_signs, unpack_signs

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 4), st.integers(1, 4))


def packed_by_hand(weight):
    outputs, channels, height, width = weight.shape
    packed = np.zeros((outputs, height, width, -(-channels // 8)), dtype=np.uint8)
    for o in range(outputs):
        for c in range(channels):
            for y in range(height):
                for x in range(width):
                    if not weight[o, c, y, x] >= 0:
                        packed[o, y, x, c // 8] |= 1 << (c % 8)
    return packed


def drawn(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 2**32 - 1))
def test_packing_is_the_layout(shape, seed):
    weight = drawn(shape, seed)
    packed = pack_signs(weight)
    assert packed.dtype == np.uint8
    assert packed.flags.c_contiguous
    np.testing.assert_array_equal(packed, packed_by_hand(weight))


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 2**32 - 1))
def test_unpacking_gives_the_signs_back(shape, seed):
    weight = drawn(shape, seed)
    np.testing.assert_array_equal(unpack_signs(pack_signs(weight), shape[1]), np.where(weight >= 0, 1, -1))


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.integers(0, 2**32 - 1))
def test_the_verifier_unpacks_by_code_of_its_own_and_to_the_same(shape, seed):
    weight = drawn(shape, seed)
    attributes = {"channels": shape[1], "pads": [0] * 4, "pad_value": 0.0, "strides": [1, 1], "dilations": [1, 1]}
    images = torch.eye(shape[1]).view(shape[1], shape[1], 1, 1).expand(-1, -1, *shape[2:])
    sums = _accumulate(images, torch.from_numpy(pack_signs(weight)), attributes | {"group": 1})
    np.testing.assert_array_equal(sums[:, :, 0, 0].numpy().T, np.where(weight >= 0, 1, -1).sum((2, 3)))


@pytest.mark.parametrize(
    ("value", "bit"), [(0.0, 0), (-0.0, 0), (1e-45, 0), (-1e-45, 1), (np.inf, 0), (-np.inf, 1), (np.nan, 1)]
)
def test_the_sign_is_that_of_the_contract(value, bit):
    assert pack_signs(np.full((1, 1, 1, 1), value, dtype=np.float32)).item() == bit


@pytest.mark.parametrize("channels", [1, 7, 8, 9, 63, 64, 65])
def test_bits_behind_the_last_channel_are_0(channels):
    packed = pack_signs(np.full((1, channels, 1, 1), -1, dtype=np.float32))
    assert int.from_bytes(packed.tobytes(), "little") == 2**channels - 1
