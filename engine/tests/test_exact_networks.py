"""Random networks: each node is right for the engine's own inputs, and fusing never changes a bit."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import ModelProto, numpy_helper

import nasb_engine
from random_graphs import SPECIAL, Network, expected, networks

KERNELS = [kernel.name for kernel in nasb_engine.kernels() if kernel.compiled and kernel.supported]
SMALLEST = 1e-44
"""Some steps of the denormal numbers, which are rounded by more than their share."""
WITH_NUMPY = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def same(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> bool:
    """Equal to the bit, the sign of zero included; one NaN is as good as another."""
    bits = (np.where(np.isnan(x), np.float32(np.nan), x).view(np.uint32) for x in (a, b))
    return a.shape == b.shape and np.array_equal(*bits)


def check_nodes(model: ModelProto, values: dict[str, npt.NDArray[np.float32]], where: str) -> None:
    """Each node against NumPy, on the engine's own inputs of that node."""
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer} | values
    with np.errstate(all="ignore"):
        for node in model.graph.node:
            found = known[node.output[0]]
            wanted, bound = expected(node, [known[name] for name in node.input])
            label = f"{where}: {node.name} of {list(node.input)}"
            assert found.shape == wanted.shape, label
            assert np.array_equal(np.isnan(found), np.isnan(wanted)), f"{label}: NaN"
            if bound is None:
                assert np.array_equal(found, wanted, equal_nan=True), label
                continue
            finite = np.isfinite(wanted) & np.isfinite(bound)
            assert np.array_equal(found[~finite], wanted[~finite], equal_nan=True), label
            assert (np.abs(found - wanted)[finite] <= bound[finite] + SMALLEST).all(), label


@pytest.mark.parametrize("kernel", KERNELS)
@WITH_NUMPY
@given(networks())
def test_fusing_never_changes_a_bit(kernel: str, case: tuple[ModelProto, npt.NDArray[np.float32]]) -> None:
    model, images = case
    data, output = model.SerializeToString(), model.graph.output[0].name
    session = nasb_engine.Session(data, 1, kernel)
    names = [name for name in session.tensor_names if not name.endswith(":accumulators")]
    apart = session.run(images, names)  # everything is kept, so nothing is fused
    check_nodes(model, {**apart, "images": images}, kernel)
    assert same(session.run(images), apart[output]), "all fused"
    for begin in range(3):  # fused in other ways
        some = names[begin::3]
        for name, value in session.run(images, some).items():
            assert same(value, apart[name]), f"{name} with {some}"
    for threads in (2, 3):
        assert same(nasb_engine.Session(data, threads, kernel).run(images), apart[output]), f"{threads} threads"


def run_all(model: ModelProto, images: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
    """The output fused, and every value apart; the same for each kernel."""
    results = []
    for kernel in KERNELS:
        session = nasb_engine.Session(model.SerializeToString(), 1, kernel)
        results.append({**session.run(images, session.tensor_names), "": session.run(images)})
    for other in results[1:]:
        assert all(same(value, results[0][name]) for name, value in other.items())
    return results[0]


def network(channels: int, height: int = 1, width: int = 1) -> Network:
    """An empty network whose nodes are not drawn."""
    net = Network(lambda strategy: pytest.fail("drawn"), np.random.default_rng(0), (channels, height, width))
    net.values["images"] = net.input_shape
    return net


def test_signs_at_their_thresholds() -> None:
    """x >= t compares: ties, zeros of both signs, denormal numbers, infinities; NaN gives -1."""
    x = np.array([*SPECIAL, np.nextafter(np.float32(1), np.float32(0)), np.float32(1) + np.float32(2**-23)], np.float32)
    t = np.array([0.0, -0.0, 1.0, -1.0, 1e-40, np.float32(0.1), -3e38], np.float32)
    net = network(len(t), 1, len(x))
    shape = (len(t), 1, len(x))
    # A 1x1 convolution of a single channel and weight -1 hands each sign on, negated.
    signs = net.node("Binarize", "images", net.constant(t[:, None, None]), shape=None, domain="nasb")
    ones, zeros = net.constant(np.ones(len(t), np.float32)), net.constant(np.zeros(len(t), np.float32))
    net.node(
        *("BinaryConv2d", signs, net.constant(np.ones((len(t), 1, 1, 1), np.uint8)), ones, zeros),
        **{"shape": shape, "domain": "nasb", "group": len(t), "channels": 1, "pad_value": 0.0},
        **{"strides": [1, 1], "dilations": [1, 1], "pads": [0] * 4},
    )
    images = np.broadcast_to(x, (1, *shape)).copy()
    results = run_all(net.model(), images)
    wanted = np.where(x[None, :] >= t[:, None], np.float32(1), np.float32(-1))
    assert np.array_equal(results[signs][0, :, 0], wanted)
    assert np.array_equal(results[""][0, :, 0], -wanted)
    assert (results[signs][0, :, 0, np.isnan(x)] == -1).all()


def test_a_shift_that_is_not_there_changes_no_zero() -> None:
    """PRelu and one Add, before or behind; a Mul alone: -0 stays -0 as it would apart."""
    images = np.array([0.0, -0.0, 1.0, -1.0], np.float32).reshape(1, 1, 2, 2)
    for kinds in (("PRelu", "Add"), ("Add", "PRelu"), ("Mul",), ("Mul", "Relu"), ("Add", "PRelu", "Add")):
        for value in (0.0, -0.0, 1.0):
            net, x = network(1, 2, 2), "images"
            for kind in kinds:
                x = net.node(
                    kind, x, *[net.constant(np.full((1, 1, 1), value, np.float32))][: kind != "Relu"], shape=(1, 2, 2)
                )
            results = run_all(net.model(), images)
            assert same(results[""], results[x]), (kinds, value)
            check_nodes(net.model(), {**results, "images": images}, str(kinds))


@pytest.mark.parametrize("readers", [1, 3, 9, 20])
def test_everything_behind_a_convolution(readers: int) -> None:
    """Scale, bias, shortcut, RPReLU and the thresholds of all readers, at ties of the result: one step, and its parts.

    More readers than one step can write signs for get steps of their own.
    """
    channels, size = 70, 6
    shape = (channels, size, size)
    net = network(*shape)
    window = {
        "strides": [1, 1],
        "dilations": [1, 1],
        "pads": [1] * 4,
        "group": 1,
        "channels": channels,
        "pad_value": 0.0,
    }

    def convolve(signs: str, halves: bool) -> str:
        bits = net.random.integers(0, 2, (channels, 3, 3, channels), np.uint8)
        packed = net.constant(np.packbits(bits, axis=-1, bitorder="little"))
        scale = net.constant(np.full(channels, 0.5, np.float32)) if halves else net.reals(channels)
        bias = net.constant(np.zeros(channels, np.float32)) if halves else net.reals(channels)
        return net.node("BinaryConv2d", signs, packed, scale, bias, shape=shape, domain="nasb", **window)

    y = convolve(net.node("Binarize", "images", net.reals(channels, 1, 1), shape=None, domain="nasb"), True)
    y = net.node("Add", y, "images", shape=shape)
    y = net.node("Add", y, net.constant(net.random.integers(-2, 3, (channels, 1, 1)).astype(np.float32)), shape=shape)
    y = net.node("PRelu", y, net.constant(np.full((channels, 1, 1), 0.25, np.float32)), shape=shape)
    y = net.node("Add", y, net.constant(net.random.integers(-2, 3, (channels, 1, 1)).astype(np.float32)), shape=shape)
    parts = []
    for _ in range(readers):  # multiples of a half: many ties
        threshold = net.constant((net.random.integers(-4, 5, (channels, 1, 1)) / 2).astype(np.float32))
        parts.append(convolve(net.node("Binarize", y, threshold, shape=None, domain="nasb"), False))
    net.node("Concat", *parts, y, shape=((readers + 1) * channels, size, size), axis=1)
    model = net.model()
    images = np.random.default_rng(1).integers(-9, 10, (2, *shape)).astype(np.float32) / 2
    results = run_all(model, images)
    assert same(results[""], results[model.graph.output[0].name])
    check_nodes(model, {**results, "images": images}, "fused")
    profile = nasb_engine.Session(model.SerializeToString(), 1).profile(1)
    first = next(step for step in profile if step.binary)
    assert "Add + Shift + PRelu + Shift + Binarize" in first.operation
