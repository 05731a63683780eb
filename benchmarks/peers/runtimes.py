"""What the engine is measured against, as turns: each runs for some seconds and returns the median seconds of a run.

And what tells whether the machine is quiet.
"""

import contextlib
import copy
import ctypes
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

try:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper
except ModuleNotFoundError as error:
    raise SystemExit(
        f"{error.name} is missing: the peers have an environment of their own; make peers, then "
        "build/peers/env/bin/python benchmarks/engine.py"
    ) from None

from nasb_engine import Session

Real = npt.NDArray[np.float32]
Turn = Callable[[float], float]
HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build/peers"
LARQ = BUILD / "larq"
"""The environment of requirements-larq.txt."""
OWN_CLOCK = "NASB_BENCH_OWN_CLOCK"
"""Set: a clock that stands while another process has the core. Right for one thread alone."""


def repeated(run: Callable[[], object]) -> Turn:
    """Time single runs; by the thread's own clock where OWN_CLOCK is set."""
    clock = time.thread_time if os.environ.get(OWN_CLOCK) else time.perf_counter

    def turn(seconds: float) -> float:
        times: list[float] = []
        start = clock()
        while not times or clock() - start < seconds:
            before = clock()
            run()
            times.append(clock() - before)
        return float(np.median(times))

    return turn


def engine_steps(model: bytes, kernel: str, threads: int = 1, operation: str = "") -> Turn:
    """The engine's steps as in a network, floats in and out, channels last: the sum of their medians.

    With `operation`, of those alone that begin so.
    """
    session = Session(model, threads, kernel)

    def seconds_of(repeats: int) -> float:
        steps = session.profile(repeats)
        return 1e-3 * sum(step.milliseconds for step in steps if step.operation.startswith(operation))

    once = seconds_of(20)
    return lambda seconds: seconds_of(max(3, int(seconds / once)))


def engine_apart(model: bytes, kernel: str, sessions: int) -> Turn:
    """Sessions of one thread each that run at once: seconds of a run over their number.

    What so many threads could gain at most: they share the machine, and nothing else.
    """
    turns = [engine_steps(model, kernel) for _ in range(sessions)]
    pool = ThreadPoolExecutor(sessions)
    return lambda seconds: statistics.mean(pool.map(lambda turn: turn(seconds), turns)) / sessions


def engine_run(model: bytes, image: Real, kernel: str = "", threads: int = 1) -> Turn:
    """Session.run as a user calls it: channels first, in and out."""
    session = Session(model, threads, kernel)
    return repeated(lambda: session.run(image))


def engine_mean(model: bytes, image: Real, kernel: str, threads: int) -> Turn:
    """The mean of whole calls of Session.run, those that wait for a core among them."""
    session = Session(model, threads, kernel)

    def turn(seconds: float) -> float:
        began, calls = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            session.run(image)
            calls += 1
        return (time.perf_counter() - began) / calls

    return turn


def pytorch(module: torch.nn.Module, image: Real, threads: int = 1) -> Turn:
    """PyTorch fp32: contiguous or channels_last, whichever is faster in this turn."""
    torch.set_num_threads(threads)
    turns = []
    for layout in (torch.contiguous_format, torch.channels_last):
        network = copy.deepcopy(module).eval().to(memory_format=layout)
        x = torch.from_numpy(image).to(memory_format=layout)

        def run(network: torch.nn.Module = network, x: torch.Tensor = x) -> None:
            with torch.inference_mode():
                network(x)

        turns.append(repeated(run))
    return lambda seconds: min(turn(seconds / 2) for turn in turns)


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def onnx_runtime(model: str | bytes, image: Real, threads: int = 1) -> Turn:
    """ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(model, _options(threads), providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: image}
    return repeated(lambda: session.run(None, feeds))


class OnnxRuntimeNode:
    """ONNX Runtime's own time of one operator, without the change of layout around it; told when all turns are over."""

    def __init__(self, model: str | bytes, image: Real, operator: str) -> None:
        options = _options(1)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(tempfile.mkdtemp(prefix="nasb-bench-"), "profile"))
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._feeds = {self._session.get_inputs()[0].name: image}
        self._operator, self._runs = operator, [0]

    def turn(self, seconds: float) -> float:
        """Run; return the number of the turn, since the operator's time is not known yet."""
        start = time.perf_counter()
        self._runs.append(0)
        while self._runs[-1] == 0 or time.perf_counter() - start < seconds:
            self._session.run(None, self._feeds)
            self._runs[-1] += 1
        return float(len(self._runs) - 2)

    def seconds(self) -> list[float]:
        """Return the medians, turn by turn."""
        path = Path(self._session.end_profiling())
        events = json.loads(path.read_text())
        times = [
            1e-6 * e["dur"]
            for e in events
            if e.get("args", {}).get("op_name") == self._operator and "kernel_time" in e["name"]
        ]
        ends = np.cumsum(self._runs[1:])
        if len(times) != ends[-1]:
            raise RuntimeError(f"{path}: {len(times)} times of {self._operator} for {ends[-1]} runs")
        return [float(np.median(part)) for part in np.split(np.array(times), ends[:-1])]


class Larq:
    """Larq Compute Engine, `use_indirect_bgemm=True`, in a process that sleeps while it is not its turn."""

    def __init__(self, name: str, threads: int = 1) -> None:
        self._process = subprocess.Popen(
            [LARQ / "bin/python", HERE / "larq_worker.py", BUILD / f"models/{name}.tflite", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._process.stdout is None or self._process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"Larq Compute Engine does not run {name}")

    def turn(self, seconds: float) -> float:
        """Run for some seconds."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("closed")
        print(seconds, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def larq_models() -> bool:
    """Convert the models if Larq Compute Engine is installed; return whether it is."""
    if not (LARQ / "bin/python").exists():
        return False
    subprocess.run([LARQ / "bin/python", HERE / "larq_convert.py", BUILD / "models"], check=True, capture_output=True)
    return True


def processor_seconds() -> tuple[float, float]:
    """Seconds of all processors, used since the system began by anyone, and by this process and its children."""
    tick = os.sysconf("SC_CLK_TCK")
    busy = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    own = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            values = path.read_text().rpartition(")")[2].split()
            if os.getpid() in (int(path.parent.name), int(values[1])):
                own += sum(int(value) for value in values[11:15])
    return (sum(busy) - busy[3] - busy[4]) / tick, own / tick


def core_speed() -> Callable[[], float]:
    """Return what runs the loop of core_speed.cpp and returns its seconds: some 3e-5 on a core of our own."""
    seconds = _compiled("core_speed").core_speed_seconds
    seconds.restype = ctypes.c_double
    return lambda: float(seconds())


def _compiled(name: str) -> ctypes.CDLL:
    """Return a C++ file of this folder as a library."""
    BUILD.mkdir(parents=True, exist_ok=True)
    library = BUILD / f"{name}.so"
    command = ["g++", "-O3", "-mavx2", "-mfma", "-shared", "-fPIC", HERE / f"{name}.cpp", "-o", library]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def popcount(channels: int, size: int, signs_OHWI: npt.NDArray[np.uint8]) -> Turn:  # noqa: N803
    """The classic AVX2 kernel of popcount_avx2.cpp."""
    functions = _compiled("popcount_avx2")
    functions.popcount_create.restype = ctypes.c_void_p
    scale, x = np.full(channels, 0.01, np.float32), np.random.default_rng(0).standard_normal((size, size, channels))
    x = x.astype(np.float32)
    y = np.empty_like(x)

    def pointer(array: npt.NDArray[Any]) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    signs = np.ascontiguousarray(signs_OHWI)
    layer = ctypes.c_void_p(functions.popcount_create(channels, size, *map(pointer, (signs, scale, scale))))
    functions.popcount_run(layer, pointer(x), pointer(y))
    where = np.where(np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=1) >= 0, 1, -1)[:3, :3]
    wanted = 0.01 * ((1.0 - 2.0 * signs.reshape(channels, 3, 3, channels)) * where).sum((1, 2, 3)) + 0.01
    if not np.allclose(y[0, 0], wanted, atol=1e-4):
        raise RuntimeError("popcount_avx2.cpp is wrong")
    return repeated(lambda: functions.popcount_run(layer, pointer(x), pointer(y)))


def one_node(
    nodes: list[Any], shape: tuple[int, ...], out: tuple[int, ...], constants: dict[str, npt.NDArray[Any]]
) -> bytes:
    """An ONNX model from x to y."""
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *out])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    domains = {"": 18, "nasb": 1}
    opsets = [helper.make_opsetid(d, domains[d]) for d in sorted({node.domain for node in nodes} | {""})]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return model.SerializeToString()  # type: ignore[no-any-return]


def conv_fp32(weight_OIHW: Real, size: int, stride: int, *, inside: bool = False) -> bytes:  # noqa: N803
    """A real convolution with a bias, its border half a kernel; `inside`: behind another node, as within a network."""
    outputs, inputs, kernel, _ = weight_OIHW.shape
    before = [helper.make_node("Relu", ["x"], ["r"], "relu")] if inside else []
    values = ["r" if inside else "x", "w", "b"]
    node = helper.make_node("Conv", values, ["y"], "conv", strides=[stride] * 2, pads=[kernel // 2] * 4)
    node.attribute.append(helper.make_attribute("kernel_shape", [kernel] * 2))
    constants = {"w": weight_OIHW, "b": np.zeros(outputs, np.float32)}
    out = (outputs, (size - 1) // stride + 1, (size - 1) // stride + 1)
    return one_node([*before, node], (inputs, size, size), out, constants)


def conv_int8(channels: int, size: int) -> bytes:
    """Float in and out around QLinearConv: activations u8, weights s8, a scale for each output channel."""
    random = np.random.default_rng(0)
    constants: dict[str, npt.NDArray[Any]] = {
        "scale": np.array(0.02, np.float32),
        "zero": np.array(128, np.uint8),
        "w": random.integers(-127, 128, (channels, channels, 3, 3)).astype(np.int8),
        "w_scale": random.uniform(0.001, 0.01, channels).astype(np.float32),
        "w_zero": np.zeros(channels, np.int8),
        "y_scale": np.array(0.05, np.float32),
        "b": np.zeros(channels, np.int32),
    }
    quantized = ["xq", "scale", "zero", "w", "w_scale", "w_zero", "y_scale", "zero", "b"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("QLinearConv", quantized, ["yq"], pads=[1] * 4, strides=[1, 1], kernel_shape=[3, 3]),
        helper.make_node("DequantizeLinear", ["yq", "y_scale", "zero"], ["y"]),
    ]
    return one_node(nodes, (channels, size, size), (channels, size, size), constants)


def binary_conv(signs_OHWI: npt.NDArray[np.uint8], size: int, chained: int = 0) -> bytes:  # noqa: N803
    """Binarize and BinaryConv2d 3x3, border 0; with `chained`, so many in turn, each with a shortcut around it."""
    channels = len(signs_OHWI)
    attributes = {"strides": [1, 1], "dilations": [1, 1], "pads": [1] * 4, "group": 1, "channels": channels}
    attributes |= {"domain": "nasb", "pad_value": 0.0}
    names = ["x", *(f"x{number}" for number in range(1, chained)), "y"]
    nodes = []
    for x, y in pairwise(names):
        sums = f"{y}_sums" if chained else y
        nodes.append(helper.make_node("Binarize", [x, "t"], [f"{y}_signs"], f"{y}_signs", domain="nasb"))
        nodes.append(helper.make_node("BinaryConv2d", [f"{y}_signs", "w", "c", "c"], [sums], sums, **attributes))
        if chained:
            nodes.append(helper.make_node("Add", [sums, x], [y], y))
    constants = {
        "t": np.zeros(1, np.float32),
        "w": np.packbits(signs_OHWI.reshape(channels, 3, 3, channels), axis=-1, bitorder="little"),
        "c": np.full(channels, 0.01, np.float32),
    }
    return one_node(nodes, (channels, size, size), (channels, size, size), constants)


def versions() -> dict[str, str]:
    """Of the peers that are imported."""
    return {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}
