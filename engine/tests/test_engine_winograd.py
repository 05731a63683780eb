"""Convolutions of 7 columns with stride 2 are made by Winograd's method: the same values, at every size."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import ModelProto

from nasb_engine import Session, kernels
from random_graphs import correlate, pooled
from tiny_models import Builder

POOL: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}


def drawn(seed: int) -> tuple[ModelProto, npt.NDArray[np.float32], npt.NDArray[np.float64], float]:
    """A network, images, what they give in double precision, and the largest error that rounding may bring."""
    b = Builder(seed)
    pick = b.random.integers
    inputs, outputs = int(pick(1, 6)), int(b.random.choice([1, 16, 33, 70, 130]))
    kernel, height, width = int(b.random.choice([1, 3, 7])), int(pick(7, 30)), int(pick(32, 230))
    attributes: dict[str, Any] = {
        "strides": [int(pick(1, 3)), 2],
        "pads": [*map(int, pick(0, 4, 4))],
        "dilations": [1, 1],
        "group": 1,
    }
    images = b.random.standard_normal((2, inputs, height, width)).astype(np.float32)
    weights = b.random.standard_normal((outputs, inputs, kernel, 7)).astype(np.float32)
    first_inner = seed % 2 == 1  # read from a map instead of from the image
    x = b.node("Relu", "images") if first_inner else "images"
    read = np.maximum(images, 0) if first_inner else images
    y = b.node("Relu", b.node("Conv", x, b.constant(weights), **attributes))
    expected = np.maximum(correlate(read, weights, attributes, 0.0), 0)
    if seed % 3 > 0:
        y = b.node("MaxPool", y, **POOL)
        expected = pooled(expected, POOL, largest=True)
    bound = 4 * np.finfo(np.float32).eps * np.abs(weights).sum((1, 2, 3)).max() * np.abs(read).max()
    return b.model(y, images.shape[1:], outputs, {}), images, expected, float(bound)


@pytest.mark.parametrize("seed", range(12))
def test_values_are_those_of_the_definition(seed: int) -> None:
    model, images, expected, bound = drawn(seed)
    data = model.SerializeToString()
    session = Session(data)
    found = session.run(images)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= bound
    assert any(step.kernel.startswith("winograd_") for step in session.profile(1))
    assert np.array_equal(Session(data, 3).run(images), found)
    for kernel in kernels():
        if kernel.verified:
            assert np.abs(Session(data, 2, kernel.name).run(images) - expected).max() <= bound, kernel.name
    name = model.graph.node[-1].input[0]
    assert np.array_equal(session.run(images, [model.graph.output[0].name, name])[model.graph.output[0].name], found)


def test_a_part_of_a_row_behind_the_tiles_is_zeros() -> None:
    """What the last tile makes for columns that are not there is left out."""
    b = Builder()
    y = b.node("Conv", "images", b.reals(8, 3, 7, 7), strides=[2, 2], pads=[3, 3, 3, 3])
    model = b.model(y, (3, 16, 33), 8, {})
    images = b.random.standard_normal((1, 3, 16, 33)).astype(np.float32)
    found = Session(model.SerializeToString()).run(images)
    wider = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, 60)))
    whole = Session(b.model(y, (3, 16, 93), 8, {}).SerializeToString()).run(wider)
    assert found.shape[-1] == 17
    np.testing.assert_array_equal(found, whole[..., :17])


def test_whole_numbers_are_summed_exactly() -> None:
    """A stem of signs on bytes: what is exactly at a threshold stays there."""
    b = Builder()
    weights = b.random.choice(np.array([-1.0, 1.0], np.float32), (16, 3, 7, 7))
    model = b.model(b.node("Conv", "images", b.constant(weights), strides=[2, 2], pads=[3] * 4), (3, 40, 40), 16, {})
    images = b.random.integers(0, 256, (1, 3, 40, 40)).astype(np.float32)
    attributes = {"strides": [2, 2], "pads": [3] * 4, "dilations": [1, 1], "group": 1}
    np.testing.assert_array_equal(
        Session(model.SerializeToString()).run(images), correlate(images, weights, attributes, 0.0)
    )


def test_what_no_output_reads_changes_nothing() -> None:
    b = Builder()
    model = b.model(b.node("Conv", "images", b.reals(8, 3, 7, 7), strides=[2, 2]), (3, 16, 40), 8, {})
    session = Session(model.SerializeToString())
    images = b.random.standard_normal((1, 3, 16, 40)).astype(np.float32)
    found = session.run(images)
    images[..., 39] = np.nan
    np.testing.assert_array_equal(session.run(images), found)
