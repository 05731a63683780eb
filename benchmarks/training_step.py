"""Time of training steps, as ratios measured in turn in one process; peak memory, one process each.

    python benchmarks/training_step.py [--rounds 15] [--strategy gumbel] > lines for results/training_step.csv

- binary / real: a step of the hand-made binary ResNet-20 over one of the real ResNet-20, full and small stem; and, full
  stem, the same where the real one teaches, as with `nasb run --init`.
- search pair / derived: a step of weights and one of alpha over a plain step of the derived network (small stem, 1.10).

Random images, batch 128. Run it on a quiet machine. OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0 is set here, and freed
memory is kept, as `nasb run` does it (hardware.keep_memory), for both sides.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch
import torch.nn.functional as F
from torch import nn

from nasb.cost import count
from nasb.networks import create_host, create_network
from nasb.networks.convert import convert
from nasb.search import SearchConfig
from nasb.search.searcher import Searcher
from nasb.training.memory import keep_freed_memory
from nasb.training.optimization import distillation_loss, freeze
from nasb.training.run_directory import cpu_name

SHAPE, BATCH = (3, 32, 32), 128
FIELDS = ("what", "median", "lowest", "highest", "n", "unit", "cpu", "threads", "torch", "date", "command")


def plain_step(network: nn.Module, teacher: nn.Module | None = None) -> Callable[[], None]:
    """Return a function that makes a step of forward, backward and optimizer on random images."""
    network.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    x_NCHW, target_N = batch()

    def step() -> None:
        optimizer.zero_grad()
        logits = network(x_NCHW)
        loss = F.cross_entropy(logits, target_N)
        if teacher is not None:
            with torch.no_grad():
                soft_labels = teacher(x_NCHW)
            loss = 0.1 * loss + 0.9 * distillation_loss(logits, soft_labels, temperature=4.0)
        loss.backward()
        optimizer.step()

    return step


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Return random images [N, C, H, W] and targets [N]."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, *SHAPE, generator=generator).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(10, (BATCH,), generator=generator)


def search_steps(strategy: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return (a pair of steps of the search, a plain step of the network derived from it)."""
    torch.manual_seed(0)
    host = create_host("resnet20", options={"stem_stride": 2})
    backbone_ops = count(convert(host, SHAPE), SHAPE).ops
    network = convert(host, SHAPE, search=True).train().to(memory_format=torch.channels_last)
    searcher = Searcher(network, backbone_ops, SearchConfig(strategy=strategy, budget=1.10))
    optimizer = torch.optim.AdamW(searcher.weights(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    x_NCHW, target_N = batch()

    def loss() -> torch.Tensor:
        return F.cross_entropy(network(x_NCHW), target_N)

    def pair() -> None:
        searcher.select_for_weights(generator, warmup=False)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        searcher.alpha_step(loss, generator, progress=0.5, epoch=5)

    return pair, plain_step(convert(host, SHAPE, cells=searcher.derive()))


def ratios(first: Callable[[], None], second: Callable[[], None], rounds: int) -> list[float]:
    """Return the time of `first` over that of `second`, round by round, in turn."""
    found = []
    for index in range(rounds + 2):
        times = []
        for step in (first, second):
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
        if index >= 2:
            found.append(times[0] / times[1])
    return found


def peak_memory(which: str, strategy: str) -> float:
    """Return the peak memory of a process of 12 such steps, less what it had before it built the network, in MB."""
    command = [sys.executable, __file__, "--memory-of", which, "--strategy", strategy]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_memory(which: str, strategy: str) -> None:
    """Measure this process and print it."""
    plain_step(nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)))()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # a child inherits its parent's peak otherwise
    before = _peak()
    pair, derived = search_steps(strategy)
    for _ in range(12):
        (pair if which == "pair" else derived)()
    print(_peak() - before)


def _peak() -> float:
    """Return the peak of this process's memory since the last reset, in MB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1000


def main() -> None:
    """Print CSV rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--strategy", default="gumbel")
    parser.add_argument("--memory-of", choices=("pair", "derived"))
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.memory_of:
        print_memory(arguments.memory_of, arguments.strategy)
        return
    rows: list[tuple[str, list[float]]] = []
    for stem_stride in (1, 2):
        binary = plain_step(create_network("bireal_resnet20", stem_stride=stem_stride))
        real = plain_step(create_host("resnet20", options={"stem_stride": stem_stride}))
        rows.append(
            (f"binary / real step, resnet20, stem stride {stem_stride}", ratios(binary, real, arguments.rounds))
        )
    teacher = freeze(create_host("resnet20")).to(memory_format=torch.channels_last)
    taught, real = plain_step(create_network("bireal_resnet20"), teacher), plain_step(create_host("resnet20"))
    rows.append(("binary, taught / real step, resnet20, stem stride 1", ratios(taught, real, arguments.rounds)))
    for strategy in ("gumbel", "gates"):
        pair, derived = search_steps(strategy)
        rows.append((f"search pair / derived step, {strategy}, time", ratios(pair, derived, arguments.rounds)))
        memory = [peak_memory("pair", strategy) / peak_memory("derived", strategy) for _ in range(3)]
        rows.append((f"search pair / derived step, {strategy}, peak memory", memory))
    facts = (cpu_name(), torch.get_num_threads(), torch.__version__, datetime.now(UTC).date(), " ".join(sys.argv))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(FIELDS)
    for what, found in rows:
        numbers = [f"{value:.3f}" for value in (statistics.median(found), min(found), max(found))]
        writer.writerow([what, *numbers, len(found), "ratio", *facts])


if __name__ == "__main__":
    main()
