"""Graphs that are large, or ask for much out of little: for tests of the limits and for the fuzzing corpus."""

import numpy as np
from onnx import ModelProto

from tiny_models import Builder


def _pooled(b: Builder, x: str, shape: tuple[int, int, int] = (1, 1, 1)) -> ModelProto:
    return b.model(b.node("GlobalAveragePool", x), shape, metadata={})


def joined(parts: int, readers: int) -> ModelProto:
    """A concatenation and a chain of per-channel layers behind it: moved in front of it, they would be multiplied."""
    b = Builder()
    x = b.node("Concat", *["images"] * parts, axis=1)
    for _ in range(readers):
        x = b.node("Relu", x)
    return _pooled(b, x)


def pairs(count: int) -> ModelProto:
    """A chain of concatenations of one part, each with a layer behind it."""
    b = Builder()
    x = "images"
    for _ in range(count):
        x = b.node("Relu", b.node("Concat", x, axis=1))
    return _pooled(b, x)


def chain(count: int) -> ModelProto:
    """Layers that no step takes up."""
    b = Builder()
    x = "images"
    for _ in range(count):
        x = b.node("Sigmoid", x)
    return _pooled(b, x)


def u_shape(count: int) -> ModelProto:
    """A chain, then sums of its tensors in the opposite order, so that all of them live long."""
    b = Builder()
    tensors = ["images"]
    for _ in range(count):
        tensors.append(b.node("Sigmoid", tensors[-1]))
    x = tensors.pop()
    while tensors:
        x = b.node("Add", x, tensors.pop())
    return _pooled(b, x)


def fan(count: int, operator: str = "Sigmoid") -> ModelProto:
    """Layers side by side, concatenated; one behind that."""
    b = Builder()
    parts = [b.node(operator, "images") for _ in range(count)]
    return _pooled(b, b.node("Relu", b.node("Concat", *parts, axis=1)))


def convolutions(count: int) -> ModelProto:
    """Convolutions that write into one concatenation, which as many layers read."""
    b = Builder()
    weights = b.reals(1, 1, 1, 1)
    x = b.node("Concat", *(b.node("Conv", "images", weights) for _ in range(count)), axis=1)
    for _ in range(count):
        b.node("Sigmoid", x)
    return _pooled(b, x)


def binarizations(count: int) -> ModelProto:
    """One tensor, binarized many times."""
    b = Builder()
    threshold = b.reals(1)
    x = b.node("Relu", "images")
    for _ in range(count):
        b.node("Binarize", x, threshold, domain="nasb")
    return _pooled(b, x)


def joins_of_joins(count: int, channels: int = 32) -> ModelProto:
    """Binary convolutions of the same signs with the same residual; each is concatenated with all before it."""
    b = Builder()
    signs = b.binarize("images", channels)
    x = ""
    for _ in range(count):
        part = b.node("Add", b.binary_conv(signs, channels, channels, 1), "images")
        x = b.node("Concat", x, part, axis=1) if x else part
    return _pooled(b, x, (channels, 1, 1))


def large_map(side: int) -> ModelProto:
    """The mean of a map, as an image."""
    return _pooled(Builder(), "images", (1, side, side))


def large_maps(count: int, side: int) -> ModelProto:
    """As many maps at once, padded from one pixel."""
    b = Builder()
    maps = [b.node("Pad", "images", b.integers(0, 0, 0, 0, 0, 0, side - 1, side - 1))]
    while len(maps) < count:
        maps.append(b.node("Sigmoid", maps[-1]))
    x = maps.pop()
    while maps:
        x = b.node("Add", x, maps.pop())
    return _pooled(b, b.node("MaxPool", x, kernel_shape=[64, 64], strides=[64, 64]))


def wide_constants(count: int) -> ModelProto:
    """Sums of a single value, which the engine keeps for each of 2^20 channels."""
    b = Builder()
    value = b.constant(np.array([0.5], np.float32))
    x = b.node("Concat", *["images"] * 64, axis=1)
    for _ in range(count):
        x = b.node("Add", x, value)
    return _pooled(b, x, (1 << 14, 1, 1))
