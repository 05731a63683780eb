"""Kernels check themselves before they are used: a fault in any part of any of them is found, said and gone round."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nasb_engine
from tiny_models import Builder, classifier

PARTS = ("epilogue", "sums", "gemm", "winograd", "winograd_inputs", "pool", "depthwise")
CHECKED = [kernel.name for kernel in nasb_engine.kernels() if kernel.verified and kernel.name != "reference"]

TELL = """
import json, sys, warnings
import nasb_engine
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    session = nasb_engine.Session(sys.argv[1])
try:
    refused = nasb_engine.Session(sys.argv[1], kernel=sys.argv[2]) and ""
except nasb_engine.EngineError as error:
    refused = str(error)
verified = [kernel.name for kernel in nasb_engine.kernels() if kernel.verified]
print(json.dumps([session.kernel, [f"{w.category.__name__}: {w.message}" for w in caught], refused, verified]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernels") / "model.onnx"
    path.write_bytes(classifier().SerializeToString())
    return path


def with_fault(fault: str, *command: object) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"NASB_TEST_FAULT": fault}
    return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kernel", CHECKED)
def test_a_fault_is_found_and_said(kernel: str, part: str, model: Path) -> None:
    done = with_fault(f"{kernel}:{part}", sys.executable, "-W", "ignore", "-c", TELL, model, kernel)
    chosen, warned, refused, verified = json.loads(done.stdout)
    others = [name for name in CHECKED if name != kernel]
    assert verified == [*others, "reference"]
    assert chosen == others[0]
    (line,) = warned
    assert line.startswith(f'RuntimeWarning: kernel "{kernel}" failed its self-check and is not used: ')
    assert line.endswith("differs from the reference")
    assert f'kernel "{kernel}" cannot be used' in refused


def test_nasb_run_says_it_on_one_line(native: Path, model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 8), np.float32))
    command = (native / "nasb-run", model, tmp_path / "x.npy", "--json")
    done = with_fault(f"{CHECKED[0]}:pool", *command)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f'nasb: kernel "{CHECKED[0]}" failed its self-check and is not used: pool_{CHECKED[0]}: ')
    assert json.loads(done.stdout)["kernel"] == CHECKED[1]
    assert with_fault("", *command).stderr == ""


def test_a_session_tells_its_kernel(model: Path) -> None:
    assert nasb_engine.Session(model).kernel == CHECKED[0]
    for name in (*CHECKED, "reference"):
        session = nasb_engine.Session(model, kernel=name)
        assert session.kernel == name
        assert f"kernel='{name}'" in repr(session)


def network(seed: int) -> bytes:
    """A whole network of every kind of layer, with channels and pixels that fill no vector."""
    b = Builder(seed)
    x = b.conv("images", 3, 70, 7, stride=2)
    x = b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for kernel, group, pad_value in ((3, 1, 0.0), (1, 1, 1.0), (3, 10, -1.0), (5, 2, 0.0)):
        y = b.binary_conv(b.binarize(x, 70), 70, 70, kernel, group=group, pad_value=pad_value)
        x = b.node("PRelu", b.node("Add", y, x), b.reals(70, 1, 1))
    x = b.conv(x, 70, 70, 3, group=70)
    x = b.node("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = b.binary_conv(b.binarize(x, 70), 70, 130)
    x = b.node("Add", y, b.conv(x, 70, 130, 1))
    x = b.node("Mul", x, b.node("Sigmoid", b.conv(b.node("GlobalAveragePool", x), 130, 130, 1)))
    return b.model(b.head(x, 130, 10), (3, 45, 38), 10, {}).SerializeToString()


@pytest.mark.parametrize("seed", range(3))
def test_all_kernels_give_the_same_bits_on_a_whole_network(seed: int) -> None:
    data = network(seed)
    images = np.random.default_rng(seed).standard_normal((2, 3, 45, 38), np.float32)
    names = nasb_engine.Session(data).tensor_names
    expected = nasb_engine.Session(data, 1, "reference").run(images, names)
    logits = nasb_engine.Session(data, 1, "reference").run(images)
    assert np.isfinite(logits).all()
    for kernel in CHECKED:
        for name, values in nasb_engine.Session(data, 2, kernel).run(images, names).items():
            assert np.array_equal(values, expected[name]), f"{kernel}: {name}"
        assert np.array_equal(nasb_engine.Session(data, 1, kernel).run(images), logits), kernel
