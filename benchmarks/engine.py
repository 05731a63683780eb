"""The engine against what a user would pick instead: interleaved, ratios within a round, rows into results/engine.csv.

    make peers
    build/peers/env/bin/python benchmarks/engine.py [--sections ...] [--note "..."]

For a final run: `--quiet 0.1`, and `--held --sections layers networks real` as a second one. The column "others" says
how much of a core other processes had (median of the rounds).

Each round gives every peer its turn of about `--seconds`, beginning with another one each time; a row holds the median
and the quartiles of the rounds' ratios, peer over engine: above 1 the engine is faster. Float in and float out
everywhere: for the engine the sum of its steps (binarization and packing, convolution with scale and bias), channels
last as between two layers of a network; "Session.run" adds the change from and to channels first.

For a machine that cannot be made quiet: with `--own-clock`, what runs in this process is timed by its thread's own
clock (the engine's steps and Larq Compute Engine, a process of its own, stay with the wall clock).

Where the CPU has AVX-512, so have the peers. With `--held` nobody has: PyTorch, oneDNN, MKL and Larq Compute Engine's
ruy are told by variables of the environment, ONNX Runtime is a copy made by peers/hold_onnxruntime.py, and the engine
has its AVX2 kernels alone. So it shows what to expect on a CPU with AVX2 only, as far as another CPU can.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from peers import hold_onnxruntime
from peers import runtimes as peers
from random_weights import random_network

import nasb
from nasb.cost import count
from nasb.networks import create_network
from nasb_engine import Session, __version__, cpu_name, kernels
from nasb_engine._kernels import instruction_sets
from nasb_engine.bench import quantize

ROOT = Path(__file__).parents[1]
HELD_PACKAGES = ROOT / "build/peers/held"
HELD = {
    **{"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "RUY_PATHS": "18",  # 8: plain C++, 10: AVX2 and FMA
    "PYTHONPATH": os.pathsep.join(
        dict.fromkeys([str(HELD_PACKAGES), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
    ),
}
"""What holds the peers to AVX2; read when they are loaded."""
LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7))
REAL = {
    "stem 7x7/2 3-64 @224": (3, 64, 7, 224, 2),
    "1x1 64-128 @28": (64, 128, 1, 28, 1),
    "1x1 128-256 @14": (128, 256, 1, 14, 1),
    "1x1 256-512 @7": (256, 512, 1, 7, 1),
    "fc 512-1000": (512, 1000, 1, 1, 1),
    "3x3 64 @56": (64, 64, 3, 56, 1),
    "3x3 128 @28": (128, 128, 3, 28, 1),
    "3x3 256 @14": (256, 256, 3, 14, 1),
    "3x3 512 @7": (512, 512, 3, 7, 1),
}
RUN = "Session.run"
"""The engine itself, its first kernel, from and to channels first."""
SLOWED = 1.1
"""A core that takes so much longer for core_speed.cpp's loop than at its best is not ours alone."""
FIELDS = (
    *("section", "what", "engine_kernel", "peer", "rounds", "engine_ms", "peer_ms", "ratio", "ratio_q1", "ratio_q3"),
    *("threads", "held_to", "note", "others", "cpu", "instruction_sets", "versions", "commit", "date"),
)


class Table:
    """Rows of results/engine.csv, written as they come."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.seconds: float = arguments.seconds
        self.path = Path(arguments.output)
        self.kernels = ["avx2"] if arguments.held else usable()
        self.larq = peers.larq_models()
        self._core_speed, self.fastest = peers.core_speed(), float("inf")
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        self.common = {
            "held_to": "avx2" if arguments.held else "",
            "note": arguments.note,
            "cpu": cpu_name(),
            "instruction_sets": " ".join(instruction_sets()),
            "versions": " ".join(
                f"{k} {v}" for k, v in {"nasb-engine": __version__, "numpy": np.__version__, **peers.versions()}.items()
            ),
            "commit": commit.stdout.strip(),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        }

    def add(
        self,
        section: str,
        what: str,
        kernel: str,
        peer: str,
        engine: Sequence[float],
        other: Sequence[float],
        threads: int = 1,
    ) -> None:
        """Append one comparison: seconds of a run, round by round."""
        ratios = np.array(other) / np.array(engine)
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        row = {
            **self.common,
            **{"section": section, "what": what, "engine_kernel": kernel, "peer": peer},
            **{"rounds": len(ratios), "threads": threads},
            **{"engine_ms": f"{1e3 * np.median(engine):.4f}", "peer_ms": f"{1e3 * np.median(other):.4f}"},
            **{"ratio": f"{middle:.2f}", "ratio_q1": f"{low:.2f}", "ratio_q3": f"{high:.2f}"},
        }
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        times = f"{row['engine_ms']:>9} {row['peer_ms']:>9}"
        print(f"{what:24} {kernel:17} {peer:38} {times} {middle:7.2f} ({low:.2f} - {high:.2f})", flush=True)

    def write_beside(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Write a CSV of other columns beside the table, in place of the one before."""
        with self.path.with_name(name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def interleave(self, turns: Mapping[str, peers.Turn]) -> dict[str, list[float]]:
        """Return the seconds of a run of each peer, round by round; two rounds before them warm up.

        A round is made again in which other processes had more than `--quiet` of a core, or in which the core ran
        slower than SLOWED says, as told between the turns; ten times as many at most, of which the least slow count.
        """
        names, quiet = list(turns), self.arguments.quiet
        rounds: list[tuple[float, float, dict[str, float]]] = []
        for number in range(-2, 10 * self.arguments.rounds):
            before, start = peers.processor_seconds(), time.perf_counter()
            found, slowest = {}, self.core_speed()
            for name in names[number % len(names) :] + names[: number % len(names)]:
                found[name] = turns[name](self.seconds)
                slowest = max(slowest, self.core_speed())
            (busy, own), elapsed = peers.processor_seconds(), time.perf_counter() - start
            share = max(0.0, (busy - before[0]) - (own - before[1])) / elapsed
            late = number >= 9 * self.arguments.rounds  # better loud rows than none
            if number >= 0 and (share <= quiet or late):
                rounds.append((slowest, share, found))
            undisturbed = [one for one in rounds if one[0] <= SLOWED * self.fastest] if quiet < 1 else rounds
            if len(undisturbed) == self.arguments.rounds:
                rounds = undisturbed
                break
        else:
            rounds = sorted(rounds, key=lambda one: one[0])[: self.arguments.rounds]
        self.common["others"] = f"{np.median([share for _, share, _ in rounds]):.2f}"
        return {name: [found[name] for _, _, found in rounds] for name in names}

    def core_speed(self) -> float:
        """Return the seconds of the fastest of some loops of core_speed.cpp, made now."""
        seconds = min(self._core_speed() for _ in range(3))
        self.fastest = min(self.fastest, seconds)
        return seconds

    def all(self, section: str, what: str, times: Mapping[str, Sequence[float]]) -> None:
        """Append each engine kernel against each peer."""
        for kernel in self.kernels:
            for peer in times:
                if peer not in self.kernels and (peer != RUN or kernel == self.kernels[0]):
                    self.add(section, what, kernel, peer, times[kernel], times[peer])


def usable() -> list[str]:
    """The engine's fast kernels on this CPU."""
    return [kernel.name for kernel in kernels() if kernel.verified and kernel.name not in ("reference", "portable")]


def layers(table: Table) -> None:
    """3x3 binary convolutions of ResNet-18."""
    for channels, size in LAYERS:
        what = f"3x3 {channels} @{size}"
        signs = np.random.default_rng(0).integers(0, 2, (channels, 9, channels), np.uint8)
        model = peers.binary_conv(signs, size)
        image = np.random.default_rng(0).standard_normal((1, channels, size, size), np.float32)
        weight = (1.0 - 2.0 * signs.reshape(channels, 3, 3, channels).transpose(0, 3, 1, 2)).astype(np.float32)
        module = torch.nn.Conv2d(channels, channels, 3, 1, 1)
        turns: dict[str, peers.Turn] = {kernel: peers.engine_steps(model, kernel) for kernel in table.kernels}
        turns[RUN] = peers.engine_run(model, image, table.kernels[0])
        turns["PyTorch fp32"] = peers.pytorch(module, image)
        turns["ONNX Runtime fp32"] = peers.onnx_runtime(peers.conv_fp32(weight, size, 1), image)
        turns["ONNX Runtime int8"] = peers.onnx_runtime(peers.conv_int8(channels, size), image)
        turns["popcount AVX2"] = peers.popcount(channels, size, signs)
        client = peers.Larq(f"{channels}@{size}") if table.larq else None
        if client is not None:
            turns["Larq Compute Engine"] = client.turn
        table.all("3x3 binary", what, table.interleave(turns))
        if client is not None:
            client.close()


def export(network: torch.nn.Module, folder: str, name: str) -> str:
    """Write a network's file."""
    path = f"{folder}/{name}.onnx"
    nasb.export_onnx(network, path, (3, 224, 224))
    return path


def networks(table: Table) -> None:
    """Whole networks on one image of 224x224."""
    from torchvision import models

    torch.manual_seed(0)
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    with tempfile.TemporaryDirectory(prefix="nasb-bench-") as folder:
        resnet, mobile = create_network("resnet18").eval(), models.mobilenet_v2(weights=None).eval()
        pairs = (
            ("Bi-Real ResNet-18", create_network("bireal_resnet18").eval(), "ResNet-18", resnet),
            ("ReActNet-A", random_network("reactnet_a"), "MobileNetV2", mobile),
        )
        for name, network, real_name, real in pairs:
            data = Path(export(network, folder, name)).read_bytes()
            turns: dict[str, peers.Turn] = {kernel: peers.engine_run(data, image, kernel) for kernel in table.kernels}
            turns[f"{real_name}, PyTorch fp32"] = peers.pytorch(real, image)
            path = export(real, folder, real_name)
            turns[f"{real_name}, ONNX Runtime fp32"] = peers.onnx_runtime(path, image)
            int8 = quantize(path, f"{folder}/{real_name}-int8.onnx", (3, 224, 224))
            turns[f"{real_name}, ONNX Runtime int8"] = peers.onnx_runtime(int8, image)
            client = peers.Larq("e18") if table.larq and real is resnet else None
            if client is not None:
                turns["BinaryResNetE18, Larq Compute Engine"] = client.turn
            table.all("network", name, table.interleave(turns))
            if client is not None:
                client.close()


def real(table: Table) -> None:
    """Real-valued layers against ONNX Runtime fp32: the whole call, and its Conv node without changes of layout.

    Against the node the engine, too, reads what a layer before wrote; against the whole call, an image.
    """
    for what, (inputs, outputs, kernel, size, stride) in REAL.items():
        random = np.random.default_rng(0)
        weight = 0.1 * random.standard_normal((outputs, inputs, kernel, kernel), np.float32)
        model = peers.conv_fp32(weight, size, stride)
        inside = peers.conv_fp32(weight, size, stride, inside=inputs > 3)  # a stem reads the image in a network, too
        image = random.standard_normal((1, inputs, size, size), np.float32)
        turns = {name: peers.engine_steps(model, name) for name in table.kernels}
        turns |= {f"{name}, node": peers.engine_steps(inside, name, operation="Conv") for name in table.kernels}
        node = peers.OnnxRuntimeNode(model, image, "Conv")
        turns["ONNX Runtime fp32"] = peers.onnx_runtime(model, image)
        turns["node"] = node.turn
        times = table.interleave(turns)
        by_turn = node.seconds()
        nodes = [by_turn[int(number)] for number in times.pop("node")]
        steps = {name: times.pop(f"{name}, node") for name in table.kernels}
        table.all("real", what, times)
        for name in table.kernels:
            table.add("real", what, name, "ONNX Runtime fp32, Conv node", steps[name], nodes)


def burn() -> "subprocess.Popen[bytes]":
    """A process that keeps a core busy."""
    return subprocess.Popen([sys.executable, "-c", "while True: pass"])


def threads(table: Table) -> None:
    """Two threads against one, on a quiet machine; then with every core busy.

    The layers stand in a chain of eight, as in a network: before a single one, the second thread would be asleep. What
    two sessions of one thread get done at once is what the machine's cores give: on some, two are one core's halves.
    With the cores busy it is the mean of whole calls that counts: medians do not see the calls that wait for a core.
    """
    kernel = table.kernels[0]
    for channels, size in LAYERS[:2]:
        signs = np.random.default_rng(0).integers(0, 2, (channels, 9, channels), np.uint8)
        model = peers.binary_conv(signs, size, chained=8)
        what = f"8 x (3x3 {channels} @{size} + x)"

        def make(number: int, model: bytes = model) -> peers.Turn:
            return peers.engine_steps(model, kernel, number)

        turns = {"two": make(2), "one": make(1), "apart": peers.engine_apart(model, kernel, 2)}
        times = table.interleave(turns)
        table.add("threads", what, kernel, "one thread", times["two"], times["one"], 2)
        table.add("threads", what, kernel, "two sessions at once, a run of either", times["two"], times["apart"], 2)
        image = np.random.default_rng(0).standard_normal((1, channels, size, size), np.float32)
        two, one = (peers.engine_mean(model, image, kernel, number) for number in (2, 1))
        quiet = [two(table.seconds) for _ in range(table.arguments.rounds)]
        burning = [burn() for _ in range(os.cpu_count() or 1)]
        try:
            time.sleep(0.5)
            loaded = [two(table.seconds) for _ in range(table.arguments.rounds)]
            single = [one(table.seconds) for _ in range(table.arguments.rounds)]
        finally:
            for process in burning:
                process.kill()
                process.wait()
        table.add("threads", what, kernel, "two threads, all cores busy (mean of calls)", quiet, loaded, 2)
        table.add("threads", what, kernel, "one thread, all cores busy (mean of calls)", quiet, single, 2)


def files(table: Table) -> None:
    """The file of Bi-Real ResNet-18 against predicted bits and the real network's weights; a table of its own."""
    with tempfile.TemporaryDirectory(prefix="nasb-bench-") as folder:
        binary, host = create_network("bireal_resnet18").eval(), create_network("resnet18").eval()
        written = nasb.export_onnx(binary, f"{folder}/m.onnx", (3, 224, 224))
        real_bytes = sum(4 * parameter.numel() for parameter in host.parameters())
        loaded = Session(f"{folder}/m.onnx")
    record = {
        "network": "bireal_resnet18",
        "file_bytes": loaded.file_bytes,
        "predicted_bytes": written.predicted_bytes,
        "counted_bytes": count(binary, (3, 224, 224)).memory_bits / 8,
        "file_over_predicted": round(loaded.file_bytes / written.predicted_bytes, 4),
        "real_weight_bytes": real_bytes,
        "real_over_file": round(real_bytes / loaded.file_bytes, 2),
        "commit": table.common["commit"],
    }
    print(json.dumps(record))
    table.write_beside("engine-file-size.csv", [record])


def profile(table: Table) -> None:
    """Each step of the two binary networks; a table of its own."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="nasb-bench-") as folder:
        for name, network in (
            ("Bi-Real ResNet-18", create_network("bireal_resnet18").eval()),
            ("ReActNet-A", random_network("reactnet_a")),
        ):
            path = export(network, folder, name)
            for kernel in dict.fromkeys([table.kernels[0], "avx2"]):
                session = Session(path, 1, kernel)
                session.profile(3)
                rounds = [session.profile(3) for _ in range(table.arguments.rounds)]
                # The lower quartile: on a busy machine longer steps are interrupted more often.
                times = np.quantile([[step.milliseconds for step in steps] for steps in rounds], 0.25, axis=0)
                for step, ms in zip(rounds[0], times, strict=True):
                    row = {"network": name, "engine_kernel": kernel, "step": step.layer, "operation": step.operation}
                    row |= {"macs": str(step.macs), "binary": str(step.binary), "ms": f"{ms:.4f}"}
                    row |= {"gmacs_per_second": f"{1e-6 * step.macs / ms:.1f}", "share": f"{ms / times.sum():.4f}"}
                    rows.append(row | {"rounds": table.arguments.rounds, **table.common})
    for row in rows:
        print(row["network"], row["engine_kernel"], row["step"], row["operation"], row["ms"], row["gmacs_per_second"])
    table.write_beside("engine-profile.csv", rows)


SECTIONS = {
    **{"layers": layers, "networks": networks, "real": real, "threads": threads, "files": files},
    "profile": profile,
}


def main() -> None:
    """Run the sections asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=0.05, help="of a peer's turn in a round")
    parser.add_argument("--quiet", type=float, default=float("inf"), help="see Table.interleave; 0.1 for a final run")
    parser.add_argument("--held", action="store_true", help="engine and peers without AVX-512")
    parser.add_argument(
        "--own-clock", action="store_true", help="for a machine that cannot be made quiet: the thread's own clock"
    )
    parser.add_argument("--note", default="", help="a word on the machine's state, into every row")
    parser.add_argument("--output", default=str(ROOT / "results/engine.csv"), help="rows are appended")
    arguments = parser.parse_args()
    if arguments.held and any(os.environ.get(name) != value for name, value in HELD.items()):
        hold_onnxruntime.write(HELD_PACKAGES)
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | HELD)
    if arguments.own_clock:
        os.environ[peers.OWN_CLOCK] = "1"
        arguments.note += f"{', ' if arguments.note else ''}by the thread's own clock"
    torch.set_num_threads(1)
    table = Table(arguments)
    for name in arguments.sections:
        SECTIONS[name](table)


if __name__ == "__main__":
    main()
