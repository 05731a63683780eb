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


def _readers(count: int, shape: tuple[int, int, int], outputs: int, **attributes: object) -> ModelProto:
    """Binary convolutions that share signs of one channel, and their weights; the last one's mean is the output."""
    b = Builder()
    kernel = attributes["kernel_shape"]
    weights = b.constant(np.zeros((outputs, *kernel, 1), np.uint8))  # type: ignore[misc]
    scale, bias = b.constant(np.ones(outputs, np.float32)), b.constant(np.zeros(outputs, np.float32))
    signs = b.binarize("images", 1)
    options = {key: value for key, value in attributes.items() if key != "kernel_shape"}
    options |= {"strides": [1, 1], "group": 1, "channels": 1, "pad_value": 0.0, "domain": "nasb"}
    for _ in range(count):
        x = b.node("BinaryConv2d", signs, weights, scale, bias, **options)  # type: ignore[arg-type]
    return _pooled(b, x, shape)


def far_taps(count: int) -> ModelProto:
    """Rows of taps as long as the image, of which look-up keeps every column."""
    return _readers(count, (1, 1, 1 << 20), 1, kernel_shape=(1, 17), dilations=[1, 65535], pads=[0] * 4)


def tall_kernel(width: int) -> ModelProto:
    """A kernel taller than the image, nearly all of which lies in the border."""
    return _readers(1, (1, 1, width), 1, kernel_shape=(4096, 1), dilations=[1, 1], pads=[6000, 0, 6000, 0])


def many_corrections(count: int) -> ModelProto:
    """Small maps that are border alone, of many channels: words keep what each kind of border takes off each."""
    return _readers(count, (1, 3, 3), 1 << 16, kernel_shape=(2, 2), dilations=[1, 1], pads=[1] * 4)
