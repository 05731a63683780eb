"""Fair comparisons of speed: peers take turns in one process, and ratios are formed within a round.

A machine's clock and its neighbours change from second to second, so only what ran side by side is compared: each round
runs every peer for about the same time, beginning with another one each time; reported are the median and the quartiles
of the rounds' ratios, beside the median times.
"""

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nasb_engine._core import EngineError
from nasb_engine._kernels import cpu_name, instruction_sets
from nasb_engine._session import LayerProfile, Session, __version__

ENGINE = "nasb-engine"
PEERS = ("onnxruntime", "onnxruntime-int8")
Runner = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over the rounds."""

    median: float
    lower_quartile: float
    upper_quartile: float


@dataclass(frozen=True)
class Comparison:
    """One peer beside the engine."""

    name: str
    milliseconds: Spread
    """Of one image."""
    ratio: Spread
    """The peer's time over the engine's, in the same round: above 1 the engine is faster."""


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles."""
    lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75])
    return Spread(float(median), float(lower), float(upper))


def compare(
    runners: Mapping[str, Runner],
    *,
    rounds: int = 30,
    seconds: float = 0.05,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Comparison]:
    """Time runners in turn; the first one is what the others are compared with.

    Args:
        runners: name and what to time, each one run on one image.
        rounds: rounds after two that warm up and are not counted.
        seconds: about how long each runner runs in a round (at least one call; the median call counts).
        clock: seconds.
    """
    if rounds < 1:
        raise EngineError(f"rounds is {rounds}; give an integer >= 1")
    names = list(runners)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-2, rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            calls: list[float] = []
            start = clock()
            while not calls or clock() - start < seconds:
                before = clock()
                runners[name]()
                calls.append(clock() - before)
            if number >= 0:
                times[name].append(float(np.median(calls)))
    first = np.array(times[names[0]])
    return [
        Comparison(name, spread([1e3 * value for value in values]), spread((np.array(values) / first).tolist()))
        for name, values in times.items()
    ]


def conditions(threads: int) -> dict[str, Any]:
    """Return what a figure of speed needs beside it: CPU, instruction sets, cores, threads, versions."""
    versions = {ENGINE: __version__, "python": platform.python_version(), "numpy": np.__version__}
    for name in ("onnxruntime", "onnx", "torch"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "cpu": cpu_name(),
        "instruction_sets": instruction_sets(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "threads": threads,
        "versions": versions,
    }


def bench(
    model: str,
    against: Sequence[str] = (),
    *,
    real_model: str | None = None,
    threads: int = 1,
    rounds: int = 30,
    kernel: str = "",
    others: Callable[[npt.NDArray[np.float32]], Mapping[str, Runner]] | None = None,
    networks: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Time a model on one image, beside the peers named.

    Args:
        model: ONNX file of nasb.
        against: of `PEERS`. "onnxruntime" runs `real_model` where it is given, else the same file;
            "onnxruntime-int8" runs `real_model`, quantized.
        real_model: ONNX file of the real-valued network that the binary one replaces, with the same input shape.
        threads: for every peer.
        rounds: see `compare`.
        kernel: see `Session`.
        others: makes further peers for an image [1, C, H, W]: name and what to time.
        networks: what a peer runs, by the peer's name, where it is no file or one that will be gone.
    Returns:
        A record for JSON: model, kernel, conditions, peers (each with times, ratios and the file or network that it
        ran).
    Raises:
        EngineError: an unknown peer, one that is not installed, or a file that it refuses.
    """
    for name in against:
        if name not in PEERS:
            raise EngineError(f'unknown peer "{name}"; known: {", ".join(PEERS)}')
    if threads < 1:
        raise EngineError(f"threads is {threads}; give an integer >= 1, since all peers must have the same number")
    if real_model is not None and not against:
        raise EngineError(f"--real-model is for peers that run it; give --against {' or '.join(PEERS)}")
    session = Session(model, threads=threads, kernel=kernel)
    image_NCHW = np.random.default_rng(0).standard_normal((1, *session.input_shape), np.float32)
    runners: dict[str, Runner] = {ENGINE: lambda: session.run(image_NCHW)}
    files = {ENGINE: model}
    with tempfile.TemporaryDirectory(prefix="nasb-bench-") as folder:
        for name in against:
            if name == "onnxruntime-int8" and real_model is None:
                raise EngineError("onnxruntime-int8 needs --real-model: the real-valued ONNX file to quantize")
            files[name] = real_model or model
            if name == "onnxruntime":
                runners[name] = _onnxruntime(files[name], image_NCHW, threads)
            else:
                quantized = quantize(files[name], str(Path(folder, "int8.onnx")), session.input_shape)
                runners[name] = _onnxruntime(quantized, image_NCHW, threads)
        if others is not None:
            runners |= others(image_NCHW)
        comparisons = compare(runners, rounds=rounds)
    networks = networks or {}
    return {
        "model": model,
        "kernel": _kernel(session),
        "file_bytes": session.file_bytes,
        "batch": 1,
        "rounds": rounds,
        "conditions": conditions(threads),
        "peers": [
            asdict(comparison)
            | {
                "file": None if comparison.name in networks else files.get(comparison.name),
                "network": networks.get(comparison.name),
            }
            for comparison in comparisons
        ],
    }


def _kernel(session: Session) -> str:
    """Return the kernel of the binary convolutions; "" where there are none."""
    return session.kernel if any(layer.binary for layer in session.profile(repeats=1)) else ""


def _import(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        package = name.split(".", maxsplit=1)[0]
        raise EngineError(f"{package} cannot be imported ({error}); pip install {package}") from None


def _onnxruntime(path: str, image: npt.NDArray[np.float32], threads: int) -> Runner:
    runtime = _import("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Its threads may spin while it runs, as they do by default, but not on into the turns of the others.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        session.run(None, {name: image})
    except Exception as error:  # its own exceptions have no common base but this
        raise EngineError(f"{path}: onnxruntime refuses it: {_first_line(error)}") from None
    return lambda: session.run(None, {name: image})


def quantize(path: str, out: str, input_shape: Sequence[int], images: int = 8) -> str:
    """Quantize a real-valued ONNX file to int8 for ONNX Runtime, statically, per channel; return `out`.

    Calibrated on random images, since only speed is asked for: the accuracy of the result means nothing.
    """
    tools = _import("onnxruntime.quantization")
    prepare = _import("onnxruntime.quantization.shape_inference")
    onnx = _import("onnx")

    class Reader(tools.CalibrationDataReader):  # type: ignore[name-defined, misc]
        def __init__(self, name: str) -> None:
            generator = np.random.default_rng(0)
            self._batches: Iterator[dict[str, Any]] = iter(
                [{name: generator.standard_normal((1, *input_shape), np.float32)} for _ in range(images)]
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self._batches, None)

    try:
        name = onnx.load(path, load_external_data=False).graph.input[0].name
        prepared = f"{out}.prepared.onnx"
        prepare.quant_pre_process(path, prepared, skip_symbolic_shape=True)
        tools.quantize_static(
            prepared,
            out,
            Reader(name),
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
        )
    except Exception as error:  # see above
        raise EngineError(f"{path}: cannot be quantized by onnxruntime: {_first_line(error)}") from None
    return out


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def describe(record: Mapping[str, Any]) -> str:
    """Return a record of `bench` as lines for a reader."""
    found = record["conditions"]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines = [
        f"{record['model']}: {record['file_bytes']:,} bytes, one image, {found['threads']} thread(s), "
        f"{record['rounds']} rounds, {'kernel ' + record['kernel'] if record['kernel'] else 'no binary convolutions'}",
        f"{found['cpu']} ({' '.join(found['instruction_sets'])}); {versions}; load {found['load_average'][0]}",
        "",
        f"{'':<20}{'ms (median)':>12}{'quartiles':>20}{'ratio (median)':>16}{'quartiles':>18}",
    ]
    for peer in record["peers"]:
        ms, ratio = peer["milliseconds"], peer["ratio"]
        times = f"{ms['lower_quartile']:.3f} - {ms['upper_quartile']:.3f}"
        ratios = f"{ratio['lower_quartile']:.2f} - {ratio['upper_quartile']:.2f}"
        ran = peer["network"] or peer["file"]
        note = f"  {ran}" if ran not in (None, record["model"]) else ""
        lines.append(f"{peer['name']:<20}{ms['median']:>12.3f}{times:>20}{ratio['median']:>16.2f}{ratios:>18}{note}")
    return "\n".join(lines)


def describe_layers(layers: Sequence[LayerProfile]) -> str:
    """Return a profile as a table; its first columns are as wide as what they hold."""
    rows = [("layer", "operation", "kernel"), *((layer.layer, layer.operation, layer.kernel) for layer in layers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = ["  ".join(f"{word:<{width}}" for word, width in zip(row, widths, strict=True)) for row in rows]
    numbers = [
        f"{'threads':>9}{'ms':>10}{'MACs':>12}{'share':>8}",
        *(f"{layer.threads:>9}{layer.milliseconds:>10.4f}{layer.macs:>12.4g}{layer.share:>8.1%}" for layer in layers),
    ]
    return "\n".join(text + number for text, number in zip(texts, numbers, strict=True))
