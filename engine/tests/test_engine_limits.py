"""What a file may cost: loading takes time in proportion to its nodes, and memory is refused beyond a limit."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

from large_graphs import (
    binarizations,
    chain,
    convolutions,
    fan,
    far_taps,
    joined,
    joins_of_joins,
    large_map,
    large_maps,
    many_corrections,
    pairs,
    tall_kernel,
    u_shape,
    wide_constants,
)
from nasb_engine import EngineError, Session, kernels
from tiny_models import PREPROCESSING, classifier


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (joined, (5000, 1000)),
        (pairs, (20_000,)),
        (chain, (150_000,)),
        (u_shape, (50_000,)),
        (fan, (50_000, "Relu")),
        (convolutions, (40_000,)),
        (binarizations, (60_000,)),
        (joins_of_joins, (8000,)),
    ],
)
def test_large_graphs_load_in_time(make: Callable[..., ModelProto], size: tuple[int | str, ...]) -> None:
    data = make(*size).SerializeToString()
    begin = time.process_time()
    Session(data, threads=1)
    assert time.process_time() - begin < 2  # 0.1 to 0.5 s; what grew with a square took 3 s or more


@pytest.mark.parametrize("kernel", [kernel.name for kernel in kernels() if kernel.verified])
def test_a_tall_kernel_loads_in_time(kernel: str) -> None:
    data = tall_kernel(500).SerializeToString()
    begin = time.process_time()
    Session(data, 1, kernel)
    assert time.process_time() - begin < 2  # 0.01 to 0.2 s; look-up took 12 s


def outputs(model: ModelProto, images: np.ndarray, operations: list[str] | None = None) -> np.ndarray:
    session = Session(model.SerializeToString(), threads=1)
    if operations is not None:
        operations.extend(step.operation for step in session.profile(1))
    return session.run(images)


def test_more_tensors_than_are_placed_one_by_one_do_not_overlap() -> None:
    images = np.array([0.3], np.float32).reshape(1, 1, 1, 1)
    one = 1 / (1 + np.exp(-images))
    np.testing.assert_allclose(outputs(fan(6000), images), np.repeat(one, 6000, axis=1), 1e-6)
    total, last = images.copy(), images
    for _ in range(6000):
        last = 1 / (1 + np.exp(-last))
        total += last
    np.testing.assert_allclose(outputs(u_shape(6000), images), total, 1e-4)


def test_what_is_not_moved_any_more_is_computed_behind_the_concatenation() -> None:
    """All parts of the first few layers are moved, then the rewriting has added enough."""
    images = np.array([[-1.0, 2.0]], np.float32).reshape(2, 1, 1, 1)
    operations: list[str] = []
    expected = np.repeat(np.maximum(images, 0), 5000, axis=1)
    np.testing.assert_array_equal(outputs(joined(5000, 100), images, operations), expected)
    assert 5000 < operations.count("Relu") < 200_000


def test_joined_convolutions_are_joined_again() -> None:
    model = joins_of_joins(3)
    images = np.random.default_rng(0).standard_normal((2, 32, 1, 1)).astype(np.float32)
    operations: list[str] = []
    fused = outputs(model, images, operations)
    assert operations.count("BinaryConv2d + Add") == 1, operations
    names = [node.output[0] for node in model.graph.node]
    kept = Session(model.SerializeToString()).run(images, outputs=names)
    np.testing.assert_array_equal(fused, kept[names[-1]])


@pytest.mark.parametrize(
    ("model", "takes", "largest"),
    [
        (large_map(16384), 3221, '"images", has 1 x 16384 x 16384'),  # also a list of the pixels of a window
        (large_maps(20, 16384), 22_000, '"layer0", has 1 x 16384 x 16384'),
    ],
)
def test_too_much_memory_is_refused_at_once(model: ModelProto, takes: int, largest: str) -> None:
    data = model.SerializeToString()
    assert len(data) < 3000
    with pytest.raises(EngineError, match=re.escape(largest)) as refusal:
        Session(data, threads=1)
    megabytes = re.search(r"a run would take (\d+) MB of memory, 2147 MB are the most", str(refusal.value))
    assert megabytes
    assert takes <= int(megabytes[1]) < 1.1 * takes


def test_memory_below_the_limit_is_given() -> None:
    assert 1 << 30 < Session(large_maps(5, 8192).SerializeToString(), threads=1).workspace_bytes < 1 << 31


def test_inner_tensors_have_the_same_limit() -> None:
    """Kept until the end, they do not share memory."""
    model = large_maps(1, 8192)
    x = model.graph.node[0].output[0]
    del model.graph.node[1:]
    for _ in range(10):
        model.graph.node.add(op_type="Sigmoid", name=f"{x}s", input=[x], output=[f"{x}s"])
        x += "s"
    model.graph.node.add(op_type="MaxPool", input=[x], output=["y"]).attribute.add(
        name="kernel_shape", type=7, ints=[64, 64]
    )
    model.graph.output[0].name = "y"
    session = Session(model.SerializeToString(), threads=1)
    with pytest.raises(EngineError, match="a run would take 3"):
        session.run(np.zeros((1, 1, 1, 1), np.float32), outputs=session.tensor_names)


@pytest.mark.parametrize(
    ("make", "count", "refused"),
    [
        (wide_constants, 1000, r'node "layer6\d" \(Add\)'),  # 4 GB, were all of them made
        (far_taps, 200, r'node "layer1\d" \(nasb\.BinaryConv2d\)'),  # 2.6 GB by look-up
        (many_corrections, 400, r'node "layer\d\d" \(nasb\.BinaryConv2d\)'),  # 3.5 GB by words
    ],
)
def test_constants_are_refused_before_they_take_memory(
    make: Callable[[int], ModelProto], count: int, refused: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(make(count).SerializeToString())
    code = """
import resource, sys, nasb_engine
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    nasb_engine.Session(sys.argv[1])
except nasb_engine.EngineError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    kilobytes, message = done.stdout.split(" ", 1)
    assert re.search(rf"{refused}: the weights so far would take \d+ MB", message), message
    assert int(kilobytes) < 600_000


def test_an_image_is_not_enlarged_beyond_a_limit(native: Path, tmp_path: Path) -> None:
    model = classifier()
    (preprocessing,) = (entry for entry in model.metadata_props if entry.key == "nasb.preprocessing")
    preprocessing.value = json.dumps(PREPROCESSING | {"resize": 65536})
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "small.ppm").write_bytes(b"P6\n5 4\n255\n" + bytes(5 * 4 * 3))
    command = [native / "nasb-run", tmp_path / "model.onnx", tmp_path / "small.ppm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "an image of 5 x 4 pixels cannot be resized to 81920 x 65536" in done.stderr
