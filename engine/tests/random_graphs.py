"""Random networks of everything that a file may hold, and NumPy's word on each of their nodes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Real = npt.NDArray[np.float32]
Shape = tuple[int, int, int]
SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -2.0, np.nan, np.inf, -np.inf, 1e-40, -1e-40], np.float32)
"""Ties with thresholds, zeros of both signs, denormal numbers, and what is not finite."""


@dataclass
class Network:
    """A random network while it is drawn."""

    draw: Callable[..., Any]
    random: np.random.Generator
    input_shape: Shape
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    values: dict[str, Shape] = field(default_factory=dict)
    """All real-valued images of features so far: name and [C, H, W]."""
    signs: dict[str, Shape] = field(default_factory=dict)

    def pick(self, *choices: Any) -> Any:
        """Draw one of some choices; hypothesis shrinks towards the first."""
        return self.draw(st.sampled_from(choices))

    def value(self, same_as: Shape | None = None) -> tuple[str, Shape]:
        """Draw a value, the latest first, so that long chains are likely."""
        names = [name for name, shape in self.values.items() if same_as in (None, shape)]
        # Twice the latest one: what follows something directly is what a fused step takes up.
        name = self.pick(names[-1], *reversed(names))
        return name, self.values[name]

    def constant(self, values: npt.NDArray[Any]) -> str:
        name = f"constant{len(self.constants)}"
        self.constants[name] = values
        return name

    def reals(self, *shape: int) -> str:
        """A constant with some special values; finite, as in a file."""
        values = self.random.standard_normal(shape).astype(np.float32)
        pool = SPECIAL[np.isfinite(SPECIAL)]
        mask = self.random.random(shape) < 0.2
        values[mask] = self.random.choice(pool, int(mask.sum()))
        return self.constant(values)

    def node(self, operator: str, *inputs: str, shape: Shape | None, domain: str = "", **attributes: Any) -> str:
        name = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name, domain=domain, **attributes))
        if shape is not None:
            self.values[name] = shape
        return name

    def model(self) -> ModelProto:
        output = next(reversed(self.values))
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *self.input_shape])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", *self.values[output]])],
            [numpy_helper.from_array(values, name) for name, values in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nasb", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def window(
    net: Network, shape: Shape, kernels: Sequence[int] = (1, 2, 3, 5, 7)
) -> tuple[dict[str, Any], tuple[int, int]]:
    """Attributes of a convolution or pooling that fits the image, and the size of its output."""
    kernel = [net.pick(*kernels), net.pick(*kernels)]
    strides, dilations = [net.pick(1, 2, 3), net.pick(1, 2)], [net.pick(1, 2), net.pick(1, 1, 2)]
    pads = [net.pick(*range(k // 2, -1, -1)) for k in (*kernel, *kernel)]
    size = []
    for axis in range(2):
        n = shape[1 + axis]
        while n + pads[axis] + pads[axis + 2] < dilations[axis] * (kernel[axis] - 1) + 1:
            kernel[axis], dilations[axis], pads[axis], pads[axis + 2] = 1, 1, 0, 0
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        size.append((n + pads[axis] + pads[axis + 2] - reach) // strides[axis] + 1)
    return {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads}, (size[0], size[1])


def conv(net: Network) -> None:
    x, shape = net.value()
    attributes, size = window(net, shape)
    group = net.pick(*(g for g in (1, 2, 3, shape[0]) if shape[0] % g == 0))
    outputs = group * net.pick(1, 2, 3, 33)
    weight = net.constant(
        net.random.standard_normal((outputs, shape[0] // group, *attributes["kernel_shape"])).astype(np.float32)
    )
    bias = (net.reals(outputs),) if net.pick(True, False) else ()
    net.node("Conv", x, weight, *bias, shape=(outputs, *size), group=group, **attributes)


def binarize(net: Network) -> None:
    x, shape = net.value()
    threshold = net.reals(shape[0], 1, 1) if net.pick(True, False) else net.reals(1)
    name = net.node("Binarize", x, threshold, shape=None, domain="nasb")
    net.signs[name] = shape
    if net.pick(False, False, True):  # read as -1 and +1
        net.values[name] = shape


def binary_conv(net: Network) -> None:
    if not net.signs or net.pick(False, False, True):
        binarize(net)
    b = net.pick(*reversed(net.signs))
    shape = net.signs[b]
    attributes, size = window(net, shape)
    kernel = attributes.pop("kernel_shape")
    group = net.pick(*(g for g in (1, 2, 3, shape[0]) if shape[0] % g == 0))
    outputs, channels = group * net.pick(1, 2, 3, 32, 33), shape[0] // group
    if net.pick(False, True):  # so that an addition may follow
        size, kernel = shape[1:], [3, 3]
        attributes = {"strides": [1, 1], "dilations": [1, 1], "pads": [1, 1, 1, 1]}
        outputs = shape[0]
    bits = net.random.integers(0, 2, (outputs, *kernel, channels), np.uint8)
    packed = net.constant(np.packbits(bits, axis=-1, bitorder="little"))
    plain = net.pick(False, True)
    scale = net.constant(np.ones(outputs, np.float32)) if plain else net.reals(outputs)
    bias = net.constant(np.zeros(outputs, np.float32)) if plain else net.reals(outputs)
    net.node(
        *("BinaryConv2d", b, packed, scale, bias),
        shape=(outputs, *size),
        domain="nasb",
        group=group,
        channels=channels,
        pad_value=float(net.pick(0, 1, -1)),
        **attributes,
    )


def _sees_nothing(a: dict[str, Any], shape: Shape, size: tuple[int, int], axis: int) -> bool:
    """Whether a window of pooling lies outside of the image."""
    starts = (position * a["strides"][axis] - a["pads"][axis] for position in range(size[axis]))
    reach = a["kernel_shape"][axis] * a["dilations"][axis]
    return any(
        not any(0 <= start + tap < shape[1 + axis] for tap in range(0, reach, a["dilations"][axis])) for start in starts
    )


def pool(net: Network) -> None:
    x, shape = net.value()
    kind = net.pick("MaxPool", "AveragePool", "GlobalAveragePool")
    if kind == "GlobalAveragePool":
        net.node(kind, x, shape=(shape[0], 1, 1))
        return
    attributes, size = window(net, shape, (2, 3))
    if any(_sees_nothing(attributes, shape, size, axis) for axis in range(2)):  # which is refused
        attributes |= {"kernel_shape": [1, 1], "dilations": [1, 1], "pads": [0] * 4}
        size = tuple((shape[1 + a] - 1) // attributes["strides"][a] + 1 for a in range(2))
    if kind == "AveragePool":
        kernel, pads, strides = attributes["kernel_shape"], attributes["pads"], attributes["strides"]
        size = tuple(
            (shape[1 + a] + pads[a] + pads[a + 2] - kernel[a]) // strides[a] + 1 for a in range(2)
        )  # it has no dilation
        del attributes["dilations"]
        attributes["count_include_pad"] = net.pick(0, 1)
    net.node(kind, x, shape=(shape[0], *size), ceil_mode=0, **attributes)


def add(net: Network) -> None:
    x, shape = net.value()
    y, _ = net.value(same_as=shape)
    if shape[1:] != (1, 1) and (gates := [n for n, s in net.values.items() if s == (shape[0], 1, 1)]):
        y = net.pick(y, *gates)
        net.node(net.pick("Mul", "Add"), x, y, shape=shape)
        return
    net.node(net.pick("Add", "Add", "Mul"), *net.pick((x, y), (y, x)), shape=shape)


def with_constant(net: Network) -> None:
    x, shape = net.value()
    net.node(net.pick("Add", "Mul"), x, net.reals(*net.pick((shape[0], 1, 1), (1,))), shape=shape)


def activation(net: Network) -> None:
    x, shape = net.value()
    kind = net.pick("PRelu", "Relu", "RPReLU", "Clip", "HardSwish", "Sigmoid", "HardSigmoid")
    if kind == "RPReLU":
        y = net.node("Add", x, net.reals(shape[0], 1, 1), shape=shape)
        y = net.node("PRelu", y, net.reals(shape[0], 1, 1), shape=shape)
        net.node("Add", y, net.reals(shape[0], 1, 1), shape=shape)
    elif kind == "PRelu":
        net.node(kind, x, net.reals(shape[0], 1, 1), shape=shape)
    elif kind == "Clip":
        low, high = (net.constant(np.array(v, np.float32)) for v in (-0.75, 1.5))
        net.node(kind, x, low, high, shape=shape)
    elif kind == "HardSigmoid":
        net.node(kind, x, shape=shape, alpha=float(np.float32(1 / 6)), beta=0.5)
    else:
        net.node(kind, x, shape=shape)


def concat(net: Network) -> None:
    x, shape = net.value()
    others = [name for name, other in net.values.items() if other[1:] == shape[1:]]
    parts = [x, *(net.pick(*others) for _ in range(net.pick(1, 2)))]
    net.node("Concat", *parts, shape=(sum(net.values[name][0] for name in parts), *shape[1:]), axis=1)


def slice_(net: Network) -> None:
    x, shape = net.value()
    axis = net.pick(0, 1, 2)
    start = net.pick(*range(shape[axis]))
    end, step = net.pick(*range(shape[axis], start, -1)), net.pick(1, 2)
    sizes = list(shape)
    sizes[axis] = len(range(start, end, step))
    bounds = (net.constant(np.array([v], np.int64)) for v in (start, end, axis + 1, step))
    net.node("Slice", x, *bounds, shape=(sizes[0], sizes[1], sizes[2]))


def pad(net: Network) -> None:
    x, shape = net.value()
    amounts = [net.pick(0, 1, 2) for _ in range(6)]
    pads = net.constant(np.array([0, *amounts[:3], 0, *amounts[3:]], np.int64))
    constant = net.pick(False, True)
    fill = (net.constant(np.array(0.5, np.float32)),) if constant and net.pick(False, True) else ()
    sizes = [n + amounts[i] + amounts[3 + i] for i, n in enumerate(shape)]
    net.node("Pad", x, pads, *fill, shape=(sizes[0], sizes[1], sizes[2]), mode="constant" if constant else "edge")


MAKERS = (binary_conv, add, binarize, activation, with_constant, binary_conv, pool, concat, conv, slice_, pad)
LARGEST = 4000
"""Elements of a value; what becomes larger is not read any more."""


@st.composite
def networks(draw: Callable[..., Any]) -> tuple[ModelProto, Real]:
    """A network, and two images for it, which hold special values."""
    seed = draw(st.integers(0, 2**16))
    channels = draw(st.sampled_from((3, 1, 5, 8, 32, 33, 40)))
    shape = (channels, draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    net = Network(draw, np.random.default_rng(seed), shape)
    net.values["images"] = shape
    for _ in range(draw(st.integers(1, 12))):
        draw(st.sampled_from(MAKERS))(net)
        for name in [name for name, (c, h, w) in net.values.items() if c * h * w > LARGEST]:
            if len(net.values) > 1:
                del net.values[name]
    if next(reversed(net.values)) == "images" or next(reversed(net.values)) not in {n.output[0] for n in net.nodes}:
        net.node("Relu", "images", shape=shape)
    images = net.random.standard_normal((2, *shape)).astype(np.float32)
    mask = net.random.random(images.shape) < net.pick(0.0, 0.02, 0.5)
    images[mask] = net.random.choice(SPECIAL, int(mask.sum()))
    return net.model(), images


def correlate(
    x: npt.NDArray[Any], weight: npt.NDArray[Any], a: dict[str, Any], border: float
) -> npt.NDArray[np.float64]:
    """A convolution in double precision, tap by tap."""
    top, left, bottom, right = a["pads"]
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=border)
    (sy, sx), (dy, dx), group = a["strides"], a["dilations"], a["group"]
    height, width = (
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(padded.shape[2:], weight.shape[2:], (sy, sx), (dy, dx), strict=True)
    )
    y = np.zeros((len(x), len(weight), height, width))
    reads, writes = weight.shape[1], len(weight) // group
    for g, ky, kx in np.ndindex(group, *weight.shape[2:]):
        rows, columns = (
            slice(ky * dy, ky * dy + (height - 1) * sy + 1, sy),
            slice(kx * dx, kx * dx + (width - 1) * sx + 1, sx),
        )
        taps, own = padded[:, g * reads : (g + 1) * reads, rows, columns], slice(g * writes, (g + 1) * writes)
        y[:, own] += np.einsum("nchw,oc->nohw", taps, weight[own, :, ky, kx].astype(np.float64))
    return y


def pooled(x: Real, a: dict[str, Any], largest: bool) -> npt.NDArray[np.float64]:
    """Pooling in double precision: what lies outside is left out, or counted where the attribute says so."""
    (ky, kx), (sy, sx), (dy, dx) = a["kernel_shape"], a["strides"], a.get("dilations", (1, 1))
    top, left, bottom, right = a["pads"]
    border = ((0, 0), (0, 0), (top, bottom), (left, right))
    values = np.pad(x.astype(np.float64), border, constant_values=-np.inf if largest else 0.0)
    inside = np.pad(np.ones_like(x, np.float64), border, constant_values=float(a.get("count_include_pad", 0)))
    height = (values.shape[2] - dy * (ky - 1) - 1) // sy + 1
    width = (values.shape[3] - dx * (kx - 1) - 1) // sx + 1

    def taps(of: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
        return [
            of[:, :, y * dy :, z * dx :][:, :, : (height - 1) * sy + 1 : sy, : (width - 1) * sx + 1 : sx]
            for y, z in np.ndindex(ky, kx)
        ]

    if largest:
        return np.maximum.reduce(taps(values))  # type: ignore[no-any-return]
    return np.add.reduce(taps(values)) / np.add.reduce(taps(inside))  # type: ignore[no-any-return]


def _binary_conv(a: dict[str, Any], b: Real, packed: npt.NDArray[np.uint8], scale: Real, bias: Real) -> Real:
    bits = np.unpackbits(packed, axis=-1, count=a["channels"], bitorder="little")
    sums = correlate(b, 1.0 - 2.0 * bits.transpose(0, 3, 1, 2), a, a["pad_value"]).astype(np.float32)
    return sums * scale[:, None, None] + bias[:, None, None]


def _slice(a: dict[str, Any], x: Real, *bounds: npt.NDArray[np.int64]) -> Real:
    start, end, axis, step = (int(values[0]) for values in bounds)
    return x[(slice(None),) * axis + (slice(start, end, step),)]


def _pad(a: dict[str, Any], x: Real, pads: npt.NDArray[np.int64], fill: float = 0.0) -> Real:
    amounts = pads.reshape(2, -1).T
    return np.pad(x, amounts, mode="edge") if a["mode"] == b"edge" else np.pad(x, amounts, constant_values=fill)


EXACT: dict[str, Callable[..., npt.NDArray[Any]]] = {
    "Add": lambda a, x, y: x + y,
    "BinaryConv2d": _binary_conv,
    "Binarize": lambda a, x, threshold: np.where(x >= threshold, np.float32(1), np.float32(-1)),
    "Clip": lambda a, x, low, high: np.minimum(np.maximum(x, low), high),
    "Concat": lambda a, *parts: np.concatenate(parts, 1),
    "MaxPool": lambda a, x: pooled(x, a, True).astype(np.float32),
    "Mul": lambda a, x, y: x * y,
    "PRelu": lambda a, x, slope: np.where(x < 0, x * slope, x),
    "Pad": _pad,
    "Relu": lambda a, x: np.maximum(x, np.float32(0)),
    "Slice": _slice,
}
"""Operators of which no bit may differ: from their attributes and inputs."""


def expected(node: NodeProto, inputs: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """What a node has to give for its inputs, and how far off it may be: None where not a bit may differ."""
    a = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    x = inputs[0]
    if node.op_type in EXACT:
        return EXACT[node.op_type](a, *inputs), None
    if node.op_type == "Conv":
        bias = inputs[2] if len(inputs) > 2 else np.zeros(len(inputs[1]), np.float32)
        y = correlate(x, inputs[1], a, 0.0) + bias[:, None, None].astype(np.float64)
        return y, 1e-6 * (correlate(np.abs(x), np.abs(inputs[1]), a, 0.0) + np.abs(bias[:, None, None]))
    if node.op_type == "GlobalAveragePool":
        whole = x.astype(np.float64).mean((2, 3), keepdims=True)
        return whole, 1e-5 * np.abs(x).astype(np.float64).mean((2, 3), keepdims=True)
    if node.op_type == "AveragePool":
        return pooled(x, a, False), 1e-6 * pooled(np.abs(x), a, False)
    x = x.astype(np.float64)
    if node.op_type == "Sigmoid":
        y = 1 / (1 + np.exp(-x))
    else:
        gate = np.clip(x / 6 + 0.5, 0, 1)
        y = gate if node.op_type == "HardSigmoid" else x * gate
    return y, 1e-6 * (1 + np.abs(y))
