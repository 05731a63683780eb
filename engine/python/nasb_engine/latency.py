"""nasb-engine latency-table: milliseconds of every operation of a search space, measured on this device.

What is to be measured comes from `nasb latency-table --shapes-only`: each operation at each shape, the network to which
all of them are added, its backbone, and probes: the backbone with an operation on each paid (free) edge. A probe tells
how much longer operations take within a network than alone, since caches are colder there.

Measurements take turns: a round measures everything once, so that a bad moment of the machine does not fall on one
entry. An entry is the lower quartile over the rounds, which on a shared machine is steadier than the median.
docs/latency.md of nasb tells the form of both files.
"""

import argparse
import base64
import json
import math
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from nasb_engine import _core
from nasb_engine._core import EngineError
from nasb_engine._kernels import cpu_name
from nasb_engine._session import Session, __version__

SHAPES, TABLE = "nasb latency shapes", "nasb latency table"
VERSION = 1
GEOMETRY = (
    *("kind", "in_channels", "in_height", "in_width", "out_channels"),
    *("kernel_size", "stride", "padding", "dilation", "groups"),
)
RUNS = 5
"""Runs of an entry in one round, after two that warm up."""
LARGEST_FILE = 1 << 30
"""Bytes of a network's file, unpacked."""
LARGEST_SIZE = 1 << 20
"""Of anything in an entry: channels, pixels, a stride."""
LEAST_CONTEXT = 0.25
"""Below it, a probe is hardly slower than the backbone: the machine changed its speed meanwhile."""


def measure_table(
    shapes: Mapping[str, Any],
    *,
    threads: int = 1,
    repeats: int = 100,
    kernel: str = "",
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Measure what `shapes` lists (`read_shapes`).

    Args:
        shapes: the content of a file of shapes.
        threads: of the engine; 0: as many as the process may use.
        repeats: rounds.
        kernel: see `Session`.
        progress: called with the share that is done, 0 to 1.
    Returns:
        The table: `shapes` with milliseconds (lower quartile over the rounds), median and upper quartile in each entry
        and for the backbone; the device; and `context`: what an operation costs in a network is its entry's ms times
        that of its kind, paid or free.
    Raises:
        EngineError: an option or the list is refused, or the machine is too busy to tell a probe from the backbone.
    """
    if repeats < 1:
        raise EngineError(f"repeats is {repeats}; give an integer >= 1")
    backbone = _Network(shapes["backbone"]["file"], threads, kernel)
    probes = {kind: _Network(probe["file"], threads, kernel) for kind, probe in shapes["probes"].items()}
    entries = shapes["entries"]
    operations: list[list[float]] = [[] for _ in entries]
    for number in range(-1, repeats):  # the first round warms up
        measured = [network.measure() for network in (backbone, *probes.values())]
        for index, entry in enumerate(entries):
            measured.append(_measure(entry, backbone.session.threads, kernel))
            if progress is not None:
                progress(((number + 1) * len(entries) + index + 1) / ((repeats + 1) * len(entries)))
        if number >= 0:
            lists = (backbone.times, *(probe.times for probe in probes.values()), *operations)
            for times, milliseconds in zip(lists, measured, strict=True):
                times.append(milliseconds)
    context = {}
    for kind, probe in probes.items():
        alone = sum(_spread(operations[index])["ms"] for index in shapes["probes"][kind]["entries"])
        context[kind] = _round((_spread(probe.times)["ms"] - _spread(backbone.times)["ms"]) / alone)
        if context[kind] < LEAST_CONTEXT:
            raise EngineError(
                f"{kind} operations seem to take {context[kind]:.2f} of their time within a network; the machine is "
                "too busy to measure, or has changed its speed: try again, with more repeats"
            )
    return {
        "format": TABLE,
        "version": VERSION,
        "network": shapes["network"],
        "device": {
            "cpu": cpu_name(),
            "kernel": backbone.session.kernel,
            "threads": backbone.session.threads,
            "engine": __version__,
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        },
        "repeats": repeats,
        "backbone": _spread(backbone.times),
        "context": context,
        "entries": [{**entry, **_spread(times)} for entry, times in zip(entries, operations, strict=True)],
    }


class _Network:
    """A whole network, timed on one image.

    One thread is timed by its own clock, which stands while another process has the core: a run is so much longer than
    an operation that on a busy machine hardly one is undisturbed. Several threads are timed by the wall clock.
    """

    def __init__(self, file: str, threads: int, kernel: str) -> None:
        self.session = Session(_unpack(file), threads=threads, kernel=kernel)
        self.image_NCHW = np.random.default_rng(0).standard_normal((1, *self.session.input_shape), np.float32)
        fine = time.get_clock_info("thread_time").resolution < 1e-5
        self.clock = time.thread_time if self.session.threads == 1 and fine else time.perf_counter
        self.times: list[float] = []

    def measure(self) -> float:
        """Return the median of a few runs, in ms."""
        calls = []
        for _ in range(RUNS):
            start = self.clock()
            self.session.run(self.image_NCHW)
            calls.append(1e3 * (self.clock() - start))
        return float(np.median(calls))


def _measure(entry: Mapping[str, Any], threads: int, kernel: str) -> float:
    geometry = {name: entry[name] for name in GEOMETRY}
    try:
        times = _core.measure(
            **geometry, residual=True, sign_output=False, repeats=RUNS, threads=threads, kernel=kernel
        )
    except EngineError as error:
        raise EngineError(f"{entry['operation']}, {geometry}: cannot be measured: {error}") from None
    return float(np.median(times))


def _spread(times: Sequence[float]) -> dict[str, float]:
    lower, median, upper = np.quantile(times, [0.25, 0.5, 0.75]).tolist()
    return {"ms": _round(lower), "median": _round(median), "upper_quartile": _round(upper)}


def _round(milliseconds: float) -> float:
    return float(f"{milliseconds:.5g}")


def read_shapes(path: str) -> dict[str, Any]:
    """Read a file of shapes.

    Raises:
        OSError: it cannot be read.
        EngineError: it is no such file, or of a newer version.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{path}: is not valid JSON: {error}") from None
    problem = next(_problems(values), None)
    if problem is not None:
        raise EngineError(f"{path}: {problem}; make it with `nasb latency-table --shapes-only`")
    return values  # type: ignore[no-any-return]


def _problems(values: Any) -> Iterator[str]:
    """Yield what is wrong; only the first one means anything."""
    if not isinstance(values, dict) or values.get("format") != SHAPES:
        yield f'is not a file of shapes ("format": "{SHAPES}")'
    if values.get("version") != VERSION:
        yield f"version is {values.get('version')!r}; this engine reads {VERSION}"
    entries, backbone, probes = (values.get(key) for key in ("entries", "backbone", "probes"))
    if not isinstance(entries, list) or not entries or not isinstance(values.get("network"), dict):
        yield '"entries" or "network" is missing'
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("operation"), str):
            yield f"entries[{index}] has no operation"
        for key in GEOMETRY:
            value = entry.get(key)
            if not _may_be(key, value):
                yield f"entries[{index}].{key} is {value!r}"
    if not isinstance(probes, dict):
        yield '"probes" is missing'
    for name, part in {"backbone": backbone, **probes}.items():
        if not isinstance(part, dict) or not isinstance(part.get("file"), str):
            yield f"{name} has no file"
        if name != "backbone":
            used = part.get("entries")
            if (
                not isinstance(used, list)
                or not used
                or any(type(i) is not int or i not in range(len(entries)) for i in used)
            ):
                yield f"probes.{name}.entries does not name entries"


def _may_be(key: str, value: Any) -> bool:
    if key == "kind":
        return isinstance(value, str) and value.isascii()
    return type(value) is int and 0 <= value <= LARGEST_SIZE


def _unpack(text: str) -> bytes:
    unpack = zlib.decompressobj()
    try:
        data = unpack.decompress(base64.b64decode(text, validate=True), LARGEST_FILE)
    except (ValueError, zlib.error) as error:
        raise EngineError(f"a network's file is damaged: {error}") from None
    if not unpack.eof:
        raise EngineError("a network's file is damaged: it is cut short, or unpacks to more than 1 GiB")
    return data


def write_table(path: str, table: Mapping[str, Any]) -> None:
    """Write a table as JSON, whole or not at all. A symbolic link stays one: the file that it leads to is replaced.

    Raises:
        OSError: it cannot be written.
    """
    target = Path(os.path.realpath(path))
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(json.dumps(table, indent=1) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def check_output(path: str) -> None:
    """Refuse what cannot become a file, before any work is done.

    Raises:
        EngineError: names it.
    """
    folder = Path(os.path.realpath(path)).parent if Path(path).is_symlink() else Path(path).parent
    if Path(path).is_dir():
        raise EngineError(f"{path}: is a directory; give the name of a file, e.g. {Path(path) / 'table.json'}")
    if Path(path).exists() and not Path(path).is_file():
        raise EngineError(f"{path}: cannot be written: it is not a regular file; give another name")
    if not folder.is_dir():
        raise EngineError(f"{path}: cannot be written: there is no directory {folder}")
    if not os.access(folder, os.W_OK):
        raise EngineError(f"{path}: cannot be written: no permission to write in {folder}")


def describe(table: Mapping[str, Any]) -> str:
    """Return the table for a reader."""
    device, backbone = table["device"], table["backbone"]
    lines = [
        f"{'operation':<20}{'input':>14}{'output':>8}{'stride':>8}{'ms':>10}{'median':>10}{'upper quartile':>16}",
        *(
            f"{e['operation']:<20}{'x'.join(str(e[k]) for k in ('in_channels', 'in_height', 'in_width')):>14}"
            f"{e['out_channels']:>8}{e['stride']:>8}{e['ms']:>10.4f}"
            f"{e['median']:>10.4f}{e['upper_quartile']:>16.4f}"
            for e in table["entries"]
        ),
        f"backbone: {backbone['ms']:.4g} ms, median {backbone['median']:.4g}, upper quartile "
        f"{backbone['upper_quartile']:.4g}; "
        + ", ".join(f"{kind} operations take {value:.2f} times as long" for kind, value in table["context"].items())
        + " within a network as alone",
        f"{device['cpu']}, {device['kernel']}, {device['threads']} threads, engine {device['engine']}",
    ]
    return "\n".join(lines)


class Bar:
    """Progress with the time left on standard error: a bar at a terminal, else one line when the end can be told."""

    def __init__(self, text: str, stream: Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.text, self.stream, self.clock = text, sys.stderr if stream is None else stream, clock
        self.begun, self.drawn, self.told = clock(), -math.inf, False

    def __call__(self, share: float) -> None:
        """Show how much is done, 0 to 1."""
        now = self.clock()
        left = (now - self.begun) * (1 - share) / max(share, 1e-9)
        if self.stream.isatty():
            if now - self.drawn > 0.2 or share >= 1:
                self.drawn = now
                full = round(30 * share)
                end = "\n" if share >= 1 else ""
                self.stream.write(
                    f"\r{self.text} {'#' * full}{'.' * (30 - full)} {share:4.0%}, {left:4.0f} s left{end}"
                )
                self.stream.flush()
        elif not self.told and share >= 0.02:
            self.told = True
            self.stream.write(f"{self.text}: about {left:.0f} s\n")
            self.stream.flush()


def add_command(commands: Any) -> None:
    """Add `latency-table` to the command line (nasb_engine.cli)."""
    text = "Measure each operation of a search space on this device: a latency table for `nasb search`."
    made = commands.add_parser(
        "latency-table",
        help=text,
        description=text,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("shapes", metavar="SHAPES", help="what to measure: file of `nasb latency-table --shapes-only`")
    made.add_argument("-o", "--output", required=True, help="FILE.json")
    made.add_argument("--threads", type=int, default=1, help="threads; 0: as many as the process may use")
    made.add_argument("--repeats", type=int, default=100, help="rounds; each measures every operation once")
    made.add_argument("--kernel", default="", help='kernel of binary convolutions (nasb-engine info); "": the best')
    made.add_argument("--json", action="store_true", help="print the table as JSON")
    made.set_defaults(function=_command)


def _command(values: argparse.Namespace) -> int:
    check_output(values.output)
    shapes = read_shapes(values.shapes)
    table = measure_table(
        shapes, threads=values.threads, repeats=values.repeats, kernel=values.kernel, progress=Bar("latency table")
    )
    write_table(values.output, table)
    print(json.dumps(table, indent=1) if values.json else f"{describe(table)}\n{values.output}")
    return 0
