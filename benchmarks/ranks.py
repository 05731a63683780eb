"""Images a second of the search on two ranks of this machine, over those of one, one thread each; measured in turn.

    python benchmarks/ranks.py [--each 128] [--rounds 9] [--steps 4] > lines for results/ranks.csv

One step is one of weights and one of alpha on 128 images each (digits at 32x32), in the searchable ResNet-20 with a
strided stem, strategy gumbel. Two ranks have --each images a step each (64: they share one rank's batch) and agree
after each step; while one rank is measured, the other one waits. Run it on a quiet machine. Beside it: the processor
time of a step on one rank over that of either of two, images counted, which neighbours disturb less; two ranks cannot
be faster than that.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch

from nasb.data import open_data
from nasb.training.config import DataConfig, HardwareConfig, NetworkConfig, RunConfig, SearchConfig
from nasb.training.loop import Stage
from nasb.training.pipeline import Pipeline
from nasb.training.run_directory import cpu_name

FIELDS = ("what", "median", "lowest", "highest", "n", "unit", "cpu", "threads", "torch", "date", "command")
RANKS = 2
IMAGES = 128
"""Of a step of one rank alone."""


def stepper(stage: Stage) -> Callable[[], None]:
    """Return a function that makes the stage's next step."""

    def endless() -> Iterator[tuple[int, Any]]:
        epoch = 0
        while True:
            yield from ((epoch, batch) for batch in stage.batches(epoch, 0))
            epoch += 1

    stage.begin_epoch(0)
    batches = endless()

    def step() -> None:
        epoch, batch = next(batches)
        stage.step(min(epoch, stage.epochs - 1), 0, batch)

    return step


def measure(folder: str, rounds: int, steps: int, each: int) -> list[tuple[float, float]]:
    """Return (images/s of all over one rank's, the same of processor time), round by round; run by each rank."""
    from lightning_fabric import Fabric

    config = RunConfig(
        network=NetworkConfig(options={"stem_stride": 2}),
        data=DataConfig(image_size=32, batch_size=RANKS * each),
        search=SearchConfig(strategy="gumbel", warmup_epochs=0, alpha_share=0.5),
        hardware=HardwareConfig(accelerator="cpu", threads=1),
    )
    with Pipeline(config, f"{folder}/run") as pipeline:
        ranks = pipeline.fabric
        together = stepper(pipeline.search_stage())
        pipeline.fabric = Fabric(accelerator="cpu", devices=1)  # the same run, as one rank has it
        pipeline.data = open_data(replace(config.data, batch_size=IMAGES), seed=config.seed)
        alone = stepper(pipeline.search_stage())
        pipeline.fabric = ranks
        found: list[tuple[float, float]] = []
        for index in range(rounds + 1):
            seconds, processor = [], []
            for step, works in ((alone, ranks.is_global_zero), (together, True)):
                ranks.barrier()
                began, used = time.perf_counter(), time.process_time()
                for _ in range(steps if works else 0):
                    step()
                seconds.append(time.perf_counter() - began)
                processor.append(time.process_time() - used)
            if index:
                more = RANKS * each / IMAGES
                found.append((more * seconds[0] / seconds[1], more * processor[0] / processor[1]))
        return found if ranks.is_global_zero else []


def main() -> None:
    """Start the ranks, or be one; print CSV rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=IMAGES, help="images of a step of each of two ranks")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_of is None:
        with tempfile.TemporaryDirectory() as folder:
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS)]
            meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--local-addr", "localhost"]
            subprocess.run([*torchrun, *meeting, *sys.argv, "--rank-of", folder], check=True)
        return
    found = measure(arguments.rank_of, arguments.rounds, arguments.steps, arguments.each)
    if found:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(FIELDS)
        facts = (
            cpu_name(),
            1,
            torch.__version__,
            datetime.now(UTC).date(),
            f"benchmarks/ranks.py --each {arguments.each}",
        )
        what = ("search, images/s of 2 ranks / 1 rank", "search, processor time of a step, 1 rank / each of 2")
        for name, ratios in zip(what, zip(*found, strict=True), strict=True):
            numbers = [f"{value:.3f}" for value in (statistics.median(ratios), min(ratios), max(ratios))]
            writer.writerow([name, *numbers, len(ratios), "ratio", *facts])


if __name__ == "__main__":
    main()
