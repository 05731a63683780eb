"""Fusing changes no value: graphs that were wrong once, fused and with all inner tensors kept; pooling; refusals."""

import os
import signal
import threading

import numpy as np
import pytest
from onnx import ModelProto

from nasb_engine import EngineError, Session, kernels
from random_graphs import pooled
from tiny_models import Builder


def residual_in_front_of_pooling() -> ModelProto:
    b = Builder(1)
    added = b.node("Add", b.conv("images", 3, 16), b.conv("images", 3, 16))
    return b.model(b.head(b.node("MaxPool", added, kernel_shape=[2, 2], strides=[2, 2]), 16))


def ragged_parts_of_a_concatenation() -> ModelProto:
    b = Builder(2)
    x = b.conv("images", 3, 16)
    first = b.node("Relu", b.conv(x, 16, 32))
    second = b.node("Relu", b.conv(x, 16, 8, group=2))
    joined = b.node("PRelu", b.node("Concat", first, second, axis=1), b.reals(40, 1, 1))
    y = b.binary_conv(b.binarize(joined, 40), 40, 40)
    return b.model(b.head(b.node("Add", y, joined), 40))


def convolutions_side_by_side(residuals: int = 1, channels: int = 32, seed: int = 3) -> ModelProto:
    """Two convolutions of the same signs, a residual each or one for both, concatenated."""
    b = Builder(seed)
    values = [b.conv("images", 3, channels) for _ in range(residuals)]
    signs = b.binarize(values[0], channels)
    parts = [b.node("Add", b.binary_conv(signs, channels, channels, 1), values[i % residuals]) for i in range(2)]
    joined = b.node("Concat", *parts, axis=1)
    both = 2 * channels
    y = b.node("PRelu", b.node("Add", joined, b.reals(both, 1, 1)), b.reals(both, 1, 1))
    y = b.node("Add", y, b.reals(both, 1, 1))
    z = b.binary_conv(b.binarize(y, both), both, both)
    return b.model(b.head(b.node("Add", z, y), both))


def parts_written_where_they_belong() -> ModelProto:
    return convolutions_side_by_side(residuals=2)


def a_residual_that_is_ready_last() -> ModelProto:
    """The joined convolutions are computed before the step that makes their residual."""
    b = Builder(4)
    x = b.conv("images", 3, 32)
    signs = b.binarize(x, 32)
    sums = [b.binary_conv(signs, 32, 32, 1) for _ in range(2)]
    residual = b.node("Relu", b.conv(x, 32, 32))
    return b.model(b.head(b.node("Concat", *(b.node("Add", residual, y) for y in sums), axis=1), 64))


def hard_tanh(b: Builder, x: str, low: float = -1) -> str:
    return b.node("Clip", x, b.constant(np.array(low, np.float32)), b.constant(np.array(1, np.float32)))


def clips() -> ModelProto:
    """As BNN and IR-Net have them: behind a sum, a residual, a pooling and a concatenation; one opens with 0."""
    b = Builder(5)
    x = b.node("MaxPool", hard_tanh(b, b.conv("images", 3, 40), low=0), kernel_shape=[2, 2], strides=[2, 2])
    y = hard_tanh(b, b.binary_conv(b.binarize(x, 40), 40, 40, 1))
    z = hard_tanh(b, b.node("Add", b.binary_conv(b.binarize(y, 40), 40, 40, 1), x))
    parts = [b.conv(z, 40, channels, 1) for channels in (40, 24)]
    joined = hard_tanh(b, b.node("Concat", *parts, axis=1))
    return b.model(b.head(joined, 64))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "make",
    [
        residual_in_front_of_pooling,
        ragged_parts_of_a_concatenation,
        parts_written_where_they_belong,
        convolutions_side_by_side,
        a_residual_that_is_ready_last,
        clips,
    ],
)
def test_fused_equals_one_layer_after_the_other(make, threads):
    model = make()
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    names = [node.output[0] for node in model.graph.node]
    for kernel in [kernel.name for kernel in kernels() if kernel.verified]:
        session = Session(model.SerializeToString(), threads=threads, kernel=kernel)
        kept = session.run(images, outputs=names)
        np.testing.assert_array_equal(session.run(images), kept[names[-1]], kernel)


def test_no_clip_is_a_step_of_its_own():
    operations = [step.operation for step in Session(clips().SerializeToString()).profile(1)]
    assert sum(operation.count("Clip") for operation in operations) == 5, operations  # the joined one in either part
    assert not any(operation.startswith("Clip") for operation in operations), operations


@pytest.mark.parametrize("kernel", [kernel.name for kernel in kernels() if kernel.verified])
def test_a_clip_leaves_nan(kernel):
    b = Builder(6)
    model = b.model(hard_tanh(b, b.node("Add", "images", "images")))
    images = np.full((1, 3, 8, 8), np.nan, np.float32)
    images[0, 0, 0, :3] = (-7, 7, -0.25)
    found = Session(model.SerializeToString(), kernel=kernel).run(images)
    assert found[0, 0, 0, :3].tolist() == [-1, 1, -0.5]
    assert np.isnan(found[0, 1]).all()


@pytest.mark.parametrize(
    ("residuals", "channels", "joins"),
    [(1, 32, True), (1, 64, True), (2, 32, False), (1, 16, False)],
)
def test_convolutions_side_by_side_run_as_one(residuals, channels, joins):
    model = convolutions_side_by_side(residuals, channels)
    session = Session(model.SerializeToString())
    steps = [step for step in session.profile(1) if step.operation.startswith("BinaryConv2d")]
    assert len(steps) == (2 if joins else 3)
    names = [node.name for node in model.graph.node if node.op_type == "BinaryConv2d"][:2]
    if joins:
        assert steps[0].layer == " + ".join(names)
    else:
        assert [step.layer for step in steps[:2]] == names


def test_an_image_too_large_is_refused():
    b = Builder()
    model = b.model(b.head(b.node("Relu", "images"), 3), (3, 20000, 20000))
    with pytest.raises(EngineError, match=r'input "images": .* 20000'):
        Session(model.SerializeToString())


@pytest.mark.parametrize("channels", [1, 16, 45, 700])  # rows of a few values, and rows that are made in parts
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "pads"),
    [
        ([3, 3], [1, 1], [1, 1], [1, 1, 1, 1]),
        ([3, 3], [2, 2], [1, 1], [1, 1, 1, 1]),
        ([3, 3], [1, 2], [1, 2], [1, 2, 1, 0]),
        ([5, 2], [1, 1], [2, 3], [3, 1, 4, 2]),
        ([1, 4], [3, 1], [1, 1], [0, 3, 0, 3]),
        ([2, 2], [2, 2], [1, 1], [0, 0, 0, 0]),
    ],
)
def test_pooling_by_itself_and_with_what_follows(
    channels: int, kernel: list[int], stride: list[int], dilation: list[int], pads: list[int]
) -> None:
    images = np.random.default_rng(0).standard_normal((2, channels, 11, 13)).astype(np.float32)
    images[0, 0, 5, 5:8] = (np.inf, np.nan, -np.inf)
    window = {"kernel_shape": kernel, "strides": stride}
    inside = [min(pad, size - 1) for pad, size in zip(pads, kernel * 2, strict=True)]  # without dilation
    for operator, given in (
        ("MaxPool", window | {"pads": pads, "dilations": dilation}),
        ("AveragePool", window | {"pads": inside}),
        ("AveragePool", window | {"pads": inside, "count_include_pad": 1}),
    ):
        b = Builder()
        by_itself = b.node(operator, "images", **given)
        follows = b.node("Relu", by_itself)
        model = b.model(b.head(follows, channels), (channels, 11, 13)).SerializeToString()
        largest = operator == "MaxPool"
        expected = pooled(images, given, largest=largest).astype(np.float32)
        for one in kernels():
            if one.compiled and one.supported:
                session = Session(model, kernel=one.name)
                for name, values in ((by_itself, expected), (follows, np.maximum(expected, 0))):
                    found = session.run(images, outputs=[name])[name]
                    if largest:
                        np.testing.assert_array_equal(found, values, err_msg=f"{one.name} {operator} {name}")
                    else:
                        np.testing.assert_allclose(found, values, 1e-6, 1e-6, err_msg=f"{one.name} {operator} {name}")


@pytest.mark.parametrize("count_pads", [0, 1])
def test_a_window_far_larger_than_the_image(count_pads: int) -> None:
    b = Builder()
    window = {"kernel_shape": [4001, 4001], "strides": [9, 7], "pads": [2000] * 4, "count_include_pad": count_pads}
    mean = b.node("AveragePool", "images", **window)
    images = np.random.default_rng(0).standard_normal((1, 3, 11, 13)).astype(np.float32)
    session = Session(b.model(b.head(mean, 3), (3, 11, 13)).SerializeToString())
    found = session.run(images, outputs=[mean])[mean]  # minutes, were each tap outside of the image looked at
    expected = images.mean((2, 3), keepdims=True) * (11 * 13 / 4001**2 if count_pads else 1)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), 1e-5)


def test_a_pooling_window_without_a_pixel_is_refused():
    b = Builder()
    pooled = b.node("MaxPool", "images", kernel_shape=[2, 2], dilations=[3, 3], pads=[1, 1, 2, 2])
    with pytest.raises(EngineError, match="outside of the image"):
        Session(b.model(b.head(pooled, 3), (3, 1, 1)).SerializeToString())


def test_operators_of_another_time_are_refused():
    b = Builder()
    model = b.model(b.head(b.node("Relu", "images"), 3))
    model.opset_import[0].version = 6
    with pytest.raises(EngineError, match="opset 6"):
        Session(model.SerializeToString())


def test_shared_weights_cannot_ask_for_any_amount_of_memory():
    b = Builder()
    weights = b.reals(1000, 1000, 1, 1)
    x = b.conv("images", 3, 1000)
    for _ in range(200):
        x = b.node("Conv", x, weights)
    with pytest.raises(EngineError, match="MB in memory"):
        Session(b.model(b.head(x, 1000)).SerializeToString())


@pytest.mark.parametrize("threads", [-1, 257])
def test_threads_out_of_range_are_refused(threads):
    with pytest.raises((EngineError, ValueError), match="threads"):
        Session(residual_in_front_of_pooling().SerializeToString(), threads=threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_computes_the_same_and_ends():
    session = Session(residual_in_front_of_pooling().SerializeToString(), threads=2)
    images = np.ones((1, 3, 8, 8), np.float32)
    expected = session.run(images)
    child = os.fork()
    if child == 0:
        same = np.array_equal(session.run(images), expected)
        del session
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_process_forked_while_other_threads_run_does_not_wait_for_them():
    session = Session(residual_in_front_of_pooling().SerializeToString(), threads=2)
    images = np.ones((1, 3, 8, 8), np.float32)
    expected = session.run(images)
    done = threading.Event()

    def keep_running():
        while not done.is_set():
            session.run(images)

    others = [threading.Thread(target=keep_running) for _ in range(2)]
    for other in others:
        other.start()
    try:
        for _ in range(200):
            child = os.fork()
            if child == 0:
                signal.alarm(20)  # ends a child that hangs
                os._exit(0 if np.array_equal(session.run(images), expected) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        done.set()
        for other in others:
            other.join()
