"""How a finished search rates its operations: a row for each run directory, for results/search-effects.csv.

    python studies/search_effects.py RUN... > rows

Gains are what alpha has won over its start, against none; strategy regression gives them in units of the spread of its
own effects, so that signs and orders compare between searches, sizes hardly.
"""

import argparse
import csv
import statistics
import sys
from pathlib import Path

from nasb.cells.architecture import Architecture
from nasb.cli.parsing import parse_run
from nasb.files import load_safetensors
from nasb.training.pipeline import Pipeline

FIELDS = ("run", "seed", "strategy", "budget", "edge_gain", "free_share", "alpha_share", "mean_gain_paid",
          "spread_paid", "mean_gain_free", "spread_free", "cells", "max_pool_input_to_output")  # fmt: skip


def row(folder: Path) -> tuple[object, ...]:
    """Return a search's row."""
    config, _ = parse_run("search", "", ["--out", str(folder)])
    with Pipeline(config, folder) as pipeline:
        stage = pipeline.search_stage()
        stage.network.load_state_dict(load_safetensors(folder / "supernet.safetensors")[0])
        gains: dict[bool, list[float]] = {True: [], False: []}
        for _, (_, _, paid), edge in stage.searcher.named:
            gains[paid] += edge.gain()[1:].tolist()
    cells = Architecture.load(folder / "architecture.json").cells
    pooled = sum(
        (edge.source, edge.target, edge.operation) == (0, config.cell.nodes + 1, "max_pool_3x3")
        for edges in cells.values()
        for edge in edges
    )
    told = [f"{f(gains[paid]):.3f}" for paid in (True, False) for f in (statistics.mean, statistics.stdev)]
    search = config.search
    return (folder.name, config.seed, search.strategy, search.budget, config.cell.edge_gain, search.free_share,
            search.alpha_share, *told, len(cells), pooled)  # fmt: skip


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory of a finished search")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(FIELDS)
    for folder in parser.parse_args().runs:
        writer.writerow(row(folder))


if __name__ == "__main__":
    main()
