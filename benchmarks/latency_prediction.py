"""How well a latency table predicts: random architectures, their predicted and their measured milliseconds.

    python benchmarks/latency_prediction.py --network resnet18 --input-size 3x224x224 > results/latency-prediction.csv

A table is made by `nasb latency-table`, then the architectures are exported and measured in turn, one thread. Draws:

- uniform: each edge takes any of its candidates with the same probability: the whole search space, mostly dense cells.
- budget: random preferences, derived to a random budget of 1.05 to 1.6 times the backbone's ms, as a search does it.

`measured` is the median over the rounds of the median call of a round, one thread, by the thread's own clock, which
stands while another process has the core (as in the table). The table holds lower quartiles: on a machine that changes
its speed the second error is the one of the prediction. Run it on a quiet machine all the same.
"""

import argparse
import contextlib
import csv
import os
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import numpy as np
import torch
from torch import nn

from nasb.cells import CellConfig, Edge
from nasb.cells.architecture import prune
from nasb.cells.cell import EdgeKey
from nasb.cells.searchable import candidates, searchable_cells
from nasb.cli import main as nasb
from nasb.cost.latency import LatencyTable
from nasb.deploy import export_onnx
from nasb.engine import Session
from nasb.networks import create_host
from nasb.networks.convert import convert
from nasb.search.cost_model import CostModel
from nasb.search.derive import Derivation

FIELDS = (
    *("network", "input_size", "nodes", "draw", "number", "live_edges", "predicted_ms", "measured_ms"),
    *(
        "lower_quartile",
        "upper_quartile",
        "n",
        "error",
        "error_to_lower_quartile",
        "cpu",
        "kernel",
        "threads",
        "engine",
        "date",
        "commit",
    ),
    "command",
)
Cells = dict[str, tuple[Edge, ...]]
CALLS = 5


def uniform(backbone: nn.Module, rng: random.Random) -> Cells:
    """Draw an architecture, each candidate of an edge with the same probability."""
    drawn = {}
    for name, cell in searchable_cells(backbone).items():
        edges = candidates(cell.shape, cell.config, None).items()
        chosen = [Edge(source, target, rng.choice(names)) for (source, target, _), names in edges]
        drawn[name] = prune(chosen, cell.config.nodes)
    return drawn


def within_budget(cost: CostModel, rng: random.Random) -> Cells:
    """Draw random preferences, and derive them to a random budget."""
    names: dict[str, dict[EdgeKey, tuple[str, ...]]] = {}
    logs: dict[str, dict[EdgeKey, list[float]]] = {}
    for cell, module in cost.cells.items():
        for key in module.edge_keys:
            names.setdefault(cell, {})[key] = module.edge(key).names  # type: ignore[attr-defined]
            logs.setdefault(cell, {})[key] = [float(np.log(rng.random())) for _ in names[cell][key]]
    return Derivation(cost, names, logs, rng.uniform(1.05, 1.6) * cost.backbone).run()


def trained_like(network: nn.Module, seed: int) -> nn.Module:
    """Give every batch norm numbers of its own: equal ones would be merged at export."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                *((module.weight, 0.2, 0.5), (module.bias, -0.2, 0.2)),
                *((module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 2.0)),
            ):
                tensor.data.uniform_(low, high, generator=generator)  # type: ignore[union-attr]
    return network.eval()


def measure(files: dict[str, Path], shape: tuple[int, int, int], rounds: int) -> dict[str, list[float]]:
    """Return each file's median call of every round, in ms."""
    sessions = {name: Session(str(path), threads=1) for name, path in files.items()}
    image = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
    times: dict[str, list[float]] = {name: [] for name in files}
    for number in range(-1, rounds):
        for name, session in sessions.items():
            calls = []
            for _ in range(CALLS):
                start = time.thread_time()
                session.run(image)
                calls.append(1e3 * (time.thread_time() - start))
            if number >= 0:
                times[name].append(float(np.median(calls)))
    return times


def run(values: argparse.Namespace, folder: Path) -> None:
    """Make the table, draw, export, measure, print."""
    shape = tuple(map(int, values.input_size.split("x")))
    cell = CellConfig(nodes=values.nodes)
    arguments = ["--network", values.network, "--input-size", values.input_size, "--num-classes", "10"]
    with contextlib.redirect_stdout(sys.stderr):  # the lines of the CSV alone go to standard output
        code = nasb(
            ["latency-table", *arguments, "--option", f"nodes={values.nodes}", "-o", str(folder / "table.json")]
        )
    if code:
        sys.exit(code)
    table = LatencyTable.load(folder / "table.json")
    torch.manual_seed(0)
    host = create_host(values.network, num_classes=10)
    backbone = convert(host, shape, cell=cell)
    cost = CostModel.of_milliseconds(convert(host, shape, cell=cell, search=True), table)
    drawn: dict[str, Cells] = {"backbone 0": dict.fromkeys(searchable_cells(backbone), ())}
    for number in range(values.architectures):
        drawn[f"uniform {number}"] = uniform(backbone, random.Random(number))
    for number in range(values.budgeted):
        drawn[f"budget {number}"] = within_budget(cost, random.Random(number))
    files = {}
    for index, (name, cells) in enumerate(drawn.items()):
        files[name] = folder / f"{index}.onnx"
        export_onnx(trained_like(convert(host, shape, cell=cell, cells=cells), index), files[name], shape)
        print(f"exported {name}", file=sys.stderr)
    times = measure(files, shape, values.rounds)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    writer = csv.DictWriter(sys.stdout, FIELDS)
    if values.header:
        writer.writeheader()
    for name, cells in drawn.items():
        lower, median, upper = np.quantile(times[name], [0.25, 0.5, 0.75])
        predicted = table.predict(backbone, cells)
        draw, number = name.split()
        writer.writerow(
            {
                "network": values.network,
                "input_size": values.input_size,
                "nodes": values.nodes,
                "draw": draw,
                "number": number,
                "live_edges": sum(map(len, cells.values())),
                "predicted_ms": f"{predicted:.4f}",
                "measured_ms": f"{median:.4f}",
                "lower_quartile": f"{lower:.4f}",
                "upper_quartile": f"{upper:.4f}",
                "n": values.rounds,
                "error": f"{predicted / median - 1:+.4f}",
                "error_to_lower_quartile": f"{predicted / lower - 1:+.4f}",
                **{key: table.device[key] for key in ("cpu", "kernel", "threads", "engine")},
                "date": datetime.now(UTC).strftime("%Y-%m-%d"),
                "commit": commit.stdout.strip(),
                "command": f"benchmarks/latency_prediction.py {' '.join(sys.argv[1:])}",
            }
        )


def main() -> None:
    """Parse and run."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--network", default="resnet20")
    p.add_argument("--input-size", default="3x32x32")
    p.add_argument("--nodes", type=int, default=1, help="inside nodes of a cell")
    p.add_argument("--architectures", type=int, default=10, help="uniform draws")
    p.add_argument("--budgeted", type=int, default=5, help="draws within a budget")
    p.add_argument("--rounds", type=int, default=60)
    p.add_argument("--header", action="store_true", help="print the columns' names first")
    values = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="nasb-latency-") as folder:
        run(values, Path(folder))


if __name__ == "__main__":
    main()
