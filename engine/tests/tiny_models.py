"""Small ONNX models for tests and for the fuzzing corpus: all operators that the engine knows, in a few kB each."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]

PREPROCESSING = {"channels": 3, "size": 8, "resize": 10, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}
CLASSES = ("cat", "dog", "horse", "émeu")


class Builder:
    """Collects nodes and constants; each method returns the name of a value."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, values: Array) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def reals(self, *shape: int) -> str:
        return self.constant(self.random.standard_normal(shape).astype(np.float32))

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def node(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        name = f"layer{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, group: int = 1) -> str:
        pad = kernel // 2
        weights = (self.reals(outputs, inputs // group, kernel, kernel), self.reals(outputs))
        return self.node("Conv", x, *weights, strides=[stride] * 2, pads=[pad] * 4, group=group)

    def binary_conv(
        self,
        x: str,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        group: int = 1,
        pad: int | None = None,
        pad_value: float = 0.0,
    ) -> str:
        channels = inputs // group
        pad = dilation * (kernel // 2) if pad is None else pad
        bits_OHWI = self.random.integers(0, 2, (outputs, kernel, kernel, channels), np.uint8)
        packed = self.constant(np.packbits(bits_OHWI, axis=-1, bitorder="little"))
        scale = self.constant(self.random.uniform(0.05, 0.2, outputs).astype(np.float32))
        return self.node(
            *("BinaryConv2d", x, packed, scale, self.reals(outputs)),
            domain="nasb",
            strides=[stride] * 2,
            pads=[pad] * 4,
            dilations=[dilation] * 2,
            group=group,
            channels=channels,
            pad_value=pad_value,
        )

    def binarize(self, x: str, channels: int) -> str:
        threshold = self.constant((0.1 * self.random.standard_normal((1, channels, 1, 1))).astype(np.float32))
        return self.node("Binarize", x, threshold, domain="nasb")

    def model(
        self,
        logits: str,
        shape: Sequence[int] = (3, 8, 8),
        classes: int = 4,
        metadata: dict[str, str] | None = None,
    ) -> ModelProto:
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *shape])
        output = helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["batch", classes])
        graph = helper.make_graph(self.nodes, "network", [images], [output], self.constants)
        domains = {"": 18, "nasb": 1}
        opsets = [helper.make_opsetid(name, domains[name]) for name in sorted({node.domain for node in self.nodes})]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        if metadata is None:
            metadata = {
                "nasb.layout_version": "1",
                "nasb.class_names": json.dumps(CLASSES[:classes]),
                "nasb.preprocessing": json.dumps(PREPROCESSING),
            }
        helper.set_model_props(model, metadata)
        return model

    def head(self, x: str, channels: int, classes: int = 4) -> str:
        pooled = self.node("Flatten", self.node("GlobalAveragePool", x))
        return self.node("Gemm", pooled, self.reals(classes, channels), self.reals(classes), transB=1)


def classifier(seed: int = 0) -> ModelProto:
    """A stem, a binary convolution with a shortcut, a head: 4 classes of 8x8 images."""
    b = Builder(seed)
    x = b.conv("images", 3, 8)
    y = b.binary_conv(b.binarize(x, 8), 8, 8)
    return b.model(b.head(b.node("Add", y, x), 8))


def binary_zoo() -> ModelProto:
    """Binary convolutions with strides, dilations, groups, ragged channels and both values of the border."""
    b = Builder(1)
    x = b.conv("images", 3, 12)
    shared = b.binarize(x, 12)
    parts = [
        b.binary_conv(shared, 12, 6, 3, stride=2),
        b.binary_conv(shared, 12, 5, 1, stride=2),
        b.binary_conv(shared, 12, 4, 3, stride=2, dilation=2),
        b.binary_conv(shared, 12, 8, 5, stride=2, group=4),
        b.binary_conv(shared, 12, 6, 3, stride=2, pad_value=1.0),
        b.binary_conv(shared, 12, 6, 3, stride=2, group=2, pad_value=-1.0),
    ]
    y = b.node("Concat", *parts, axis=1)
    y = b.node("PRelu", y, b.reals(35, 1, 1))
    return b.model(b.head(y, 35))


def operators() -> ModelProto:
    """Every real-valued operator that the engine knows."""
    b = Builder(2)
    x = b.conv("images", 3, 8, 3, stride=1)
    y = b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    z = b.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=0, count_include_pad=1)
    y = b.node("Add", b.node("Relu", y), b.node("HardSwish", z))
    y = b.node("Mul", y, b.constant(np.array([0.5], np.float32)))
    y = b.node("Add", y, b.reals(1, 8, 1, 1))
    y = b.node("Clip", y, b.constant(np.array(-1, np.float32)), b.constant(np.array(4, np.float32)))
    gate = b.node("HardSigmoid", b.conv(b.node("GlobalAveragePool", y), 8, 8, 1), alpha=0.2, beta=0.5)
    y = b.node("Mul", y, gate)
    y = b.conv(b.node("Sigmoid", y), 8, 8, 3, group=8)
    y = b.node("Slice", y, b.integers(1, 0), b.integers(7, 9), b.integers(1, 2), b.integers(1, 2))
    y = b.node("Pad", y, b.integers(0, 1, 1, 0, 2, 1), b.constant(np.array(0.5, np.float32)), b.integers(1, 2, 3))
    pooled = b.node("Reshape", b.node("GlobalAveragePool", y), b.integers(0, -1))
    return b.model(b.node("Gemm", pooled, b.reals(4, 6), transB=1))


def linear() -> ModelProto:
    """The smallest model: one matrix on flattened 1x2x2 images; no metadata."""
    b = Builder(3)
    flat = b.node("Flatten", "images")
    return b.model(b.node("Gemm", flat, b.reals(2, 4), b.reals(2), transB=1), (1, 2, 2), 2, {})


def stem() -> ModelProto:
    """A convolution by Winograd's method, with the pooling behind it, and one without: rows of 21 outputs."""
    b = Builder(4)
    wide = b.node("Pad", "images", b.integers(0, 0, 0, 17, 0, 0, 0, 17))
    x = b.node("Relu", b.conv(wide, 3, 5, 7, stride=2))
    x = b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = b.node("GlobalAveragePool", b.conv(wide, 3, 5, 7, stride=2))
    return b.model(b.head(b.node("Mul", x, y), 5))


MODELS: dict[str, Callable[[], ModelProto]] = {
    "binary_zoo": binary_zoo,
    "classifier": classifier,
    "linear": linear,
    "operators": operators,
    "stem": stem,
}
