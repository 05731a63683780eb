"""Measures where binary pays on this machine, and makes docs/when-binary-pays.md of it.

    make peers                                                                # once: ONNX Runtime beside nasb
    build/peers/env/bin/python studies/when_binary_pays.py [--note "..."]     # measures, then writes page and pictures
    build/peers/env/bin/python studies/when_binary_pays.py --held             # the same where nobody may use AVX-512
    python studies/when_binary_pays.py --page                                 # page and pictures of what was measured

Every hand-made binary network and every host runs in our engine; ResNet-18 and four small real networks run in ONNX
Runtime, fp32 and int8. One image of 224x224, one thread, random weights. All take turns in one process, each round
beginning with another one; times are the thread's own processor time, so that other processes disturb them less. A row
of results/when-binary-pays.csv holds the median and the quartiles of the rounds, and those of the rounds' ratios to
ResNet-18, fp32, in ONNX Runtime. A run replaces the rows of the same `held_to`. Top-1 is never ours: it stands in
results/published.csv with its source.

studies/thin_real.py does the same in small, with accuracies of our own.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from binary_pays_page import CSV, PAGE, ROOT, draw, page

SHAPE = (3, 224, 224)
PEERS = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "shufflenet_v2_x1_0")
"""Of torchvision, the first one is what all are compared with."""
BINARY = ("bireal_resnet18", "bireal_resnet34", "bireal_resnet50", "*alexnet", "bnn_resnet18", "xnor_resnet18",
          "irnet_resnet18", "irnet_resnet34", "reactnet_a", "reactnet_resnet18", "quicknet*", "abcnet_resnet18",
          "abcnet_resnet34", "groupnet*_resnet18")  # fmt: skip
HOSTS = ("resnet18", "resnet34", "resnet50")
FIELDS = (
    *("network", "runtime", "precision", "kernel", "ms", "ms_q1", "ms_q3", "ratio", "ratio_q1", "ratio_q3"),
    *("file_bytes", "rounds", "threads", "held_to", "load", "note", "cpu", "instruction_sets", "versions", "commit"),
    "date",
)
Runner = Callable[[], object]


def main() -> None:
    """Measure, unless only the page is asked for; then write page and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="do not measure")
    parser.add_argument("--rounds", type=int, default=30, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.05, help="of a turn (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these networks alone, beside the first peer")
    parser.add_argument("--held", action="store_true", help="engine and ONNX Runtime without AVX-512")
    parser.add_argument("--note", default="", help="a word on the machine's state, into every row")
    parser.add_argument("--output", type=Path, default=CSV, help="(default: results/when-binary-pays.csv)")
    given = parser.parse_args()
    if not given.page:
        if given.held:
            hold()
        write(given.output, measure(given), "avx2" if given.held else "")
    if given.output == CSV:
        draw(CSV)
        PAGE.write_text(page(CSV), encoding="utf-8")


def hold() -> None:
    """Start this program again with what keeps ONNX Runtime to AVX2, as benchmarks/engine.py does."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from engine import HELD, HELD_PACKAGES
    from peers import hold_onnxruntime

    if any(os.environ.get(name) != value for name, value in HELD.items()):
        hold_onnxruntime.write(HELD_PACKAGES)
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | HELD)


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of all networks."""
    from nasb_engine import bench

    with tempfile.TemporaryDirectory(prefix="nasb-pays-") as folder:
        runners, facts = prepare(Path(folder), given.only, "avx2" if given.held else "")
        print(f"{len(runners)} networks in turn, {given.rounds} rounds", flush=True)
        load = os.getloadavg()[0]
        found = bench.compare(runners, rounds=given.rounds, seconds=given.seconds, clock=time.thread_time)
    common = conditions() | {
        "rounds": given.rounds, "threads": 1, "held_to": "avx2" if given.held else "", "note": given.note,
        "load": f"{max(load, os.getloadavg()[0]):.1f}",
    }  # fmt: skip
    return [
        facts[one.name] | common | {
            "ms": f"{one.milliseconds.median:.3f}", "ms_q1": f"{one.milliseconds.lower_quartile:.3f}",
            "ms_q3": f"{one.milliseconds.upper_quartile:.3f}", "ratio": f"{one.ratio.median:.3f}",
            "ratio_q1": f"{one.ratio.lower_quartile:.3f}", "ratio_q3": f"{one.ratio.upper_quartile:.3f}",
        }
        for one in found
    ]  # fmt: skip


def prepare(folder: Path, only: list[str] | None, kernel: str) -> tuple[dict[str, Runner], dict[str, dict[str, Any]]]:
    """Return what to time and what is known of it, by a name for each; the first one is the reference."""
    import torch
    from torchvision import models

    from nasb.cli.compare import expand
    from nasb.networks import create_network
    from nasb.networks.random_numbers import randomize

    torch.set_num_threads(1)
    runners: dict[str, Runner] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name in PEERS:
        if only is not None and name not in (PEERS[0], *only):
            continue
        torch.manual_seed(0)
        network = randomize(models.get_model(name, weights=None), SHAPE)
        for precision, path in real_files(network, folder / name, SHAPE).items():
            key = f"{name} {precision}"
            runners[key] = onnx_runtime(path, SHAPE)
            facts[key] = {"network": name, "runtime": "ONNX Runtime", "precision": precision,
                          "file_bytes": path.stat().st_size}  # fmt: skip
            print(key, flush=True)
    for name in (*expand(BINARY), *HOSTS):
        if only is not None and name not in only:
            continue
        torch.manual_seed(0)
        network = randomize(create_network(name, input_shape=SHAPE), SHAPE)
        runners[name], facts[name] = in_engine(network, folder / "network.onnx", SHAPE, kernel)
        facts[name] |= {"network": name, "precision": "fp32" if name in HOSTS else "binary"}
        print(name, flush=True)
    return runners, facts


def real_files(network: Any, stem: Path, shape: tuple[int, int, int]) -> dict[str, Path]:
    """Write a real network for ONNX Runtime, as a user would: exported by PyTorch; then quantized, too."""
    import warnings

    import torch

    from nasb_engine.bench import quantize

    plain, int8 = stem.with_suffix(".onnx"), stem.with_suffix(".int8.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter, which needs no further package, says that it is older
        torch.onnx.export(
            network, (torch.zeros(1, *shape),), str(plain), input_names=["images"], opset_version=18, dynamo=False
        )
    quantize(str(plain), str(int8), shape)
    return {"fp32": plain, "int8": int8}


def onnx_runtime(path: Path, shape: tuple[int, int, int]) -> Runner:
    """Return a call of ONNX Runtime on one image, one thread."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: np.random.default_rng(0).standard_normal((1, *shape), np.float32)}
    return lambda: session.run(None, feeds)


def in_engine(network: Any, path: Path, shape: tuple[int, int, int], kernel: str = "") -> tuple[Runner, dict[str, Any]]:
    """Return a call of our engine on one image, one thread, and what is known of it."""
    import numpy as np

    import nasb
    from nasb_engine import Session, kernels

    best = next(one.name for one in kernels() if one.verified)
    nasb.export_onnx(network, path, shape)
    session = Session(path, threads=1, kernel=kernel)
    image = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
    facts = {"runtime": "nasb-engine", "kernel": kernel or best, "file_bytes": session.file_bytes}
    return lambda: session.run(image), facts


def conditions() -> dict[str, str]:
    """Return what a figure of speed needs beside it."""
    from nasb_engine import bench

    found = bench.conditions(1)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {
        "cpu": found["cpu"],
        "instruction_sets": " ".join(found["instruction_sets"]),
        "versions": " ".join(f"{name} {number}" for name, number in found["versions"].items()),
        "commit": commit.stdout.strip(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def write(path: Path, rows: list[dict[str, Any]], held_to: str) -> None:
    """Put rows in place of those of the same `held_to`."""
    kept: list[Mapping[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if row["held_to"] != held_to]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows([*kept, *rows] if held_to else [*rows, *kept])


if __name__ == "__main__":
    main()
