"""Does a search know what is good? Each strategy's scores of architectures that studies/claim.py trains.

    python studies/search_score.py --root DATA --runs RUNS [--strategies NAME ...]

Each strategy searches once as claim.py's searched method of that budget does, but for its name (and darts for fewer
epochs, see EPOCHS); then its network scores every architecture in results/architectures, random and searched ones,
trained yet or not: by its own score (`SearchStage.score`: what alpha has gained), and by the loss of the shared weights
on the alpha part, which is all that strategies have that judge whole architectures. A row for each strategy and
architecture in results/search-score.csv; studies/report.py makes Kendall's tau of scores and trained accuracies of
them. Architectures that are added later are scored as long as the search's run directory is there.
"""

import argparse
import json
from pathlib import Path

import torch
from claim import ARCHITECTURES, ROOT, commit, nasb, run_flags, search_flags
from claim_methods import METHODS
from result_rows import append, rows

from nasb.cells.architecture import Architecture
from nasb.cli.parsing import parse_run
from nasb.files import load_safetensors
from nasb.search import STRATEGIES
from nasb.training.pipeline import Pipeline

RESULT = ROOT / "results" / "search-score.csv"
COLUMNS = ("set", "strategy", "budget", "epochs", "method", "seed", "score", "shared_loss", "search_seconds", "commit")
EPOCHS = {"darts": {"search.epochs": "3", "search.warmup_epochs": "1"}}
"""Flags of strategies whose epochs are not those of claim.py's searches: a step of darts runs all operations, and takes
many times as long as a sampled path. So it has about the time of the slowest of the others."""


def architectures(data: str) -> dict[tuple[str, str], Path]:
    """Return the files of a data set's architectures by (method, seed)."""
    files = sorted((ARCHITECTURES / data).glob("*-seed*.json"))
    return {(file.stem.rpartition("-seed")[0], file.stem.rpartition("-seed")[2]): file for file in files}


@torch.no_grad()
def scores(folder: Path, files: list[Path]) -> list[tuple[float, float]]:
    """Return (the strategy's score, loss of the shared weights) of architectures, by a finished search's network."""
    config, _ = parse_run("search", "", ["--out", str(folder)])
    with Pipeline(config, folder) as pipeline:
        stage = pipeline.search_stage()
        stage.network.load_state_dict(load_safetensors(folder / "supernet.safetensors")[0])
        stage.network.train()
        found = [dict(Architecture.load(file).cells) for file in files]
        return [(stage.score(cells), stage.shared_loss(cells)) for cells in found]


def main() -> None:
    """Search with each strategy that has no row yet, and score what it has not scored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="cifar10", help="(default: %(default)s)")
    parser.add_argument("--root", required=True, help="the data set's folder")
    parser.add_argument("--runs", type=Path, default=Path("runs/claim"), help="the searches' run directories")
    parser.add_argument("--budget", default="1.37", help="(default: %(default)s)")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES), metavar="NAME",
                        help="these, in this order (default: all)")  # fmt: skip
    given = parser.parse_args()
    method = METHODS[f"nasb-{given.budget}"]
    for strategy in given.strategies:
        of_strategy = (given.set, strategy, given.budget)
        done = [row for row in rows(RESULT) if (row["set"], row["strategy"], row["budget"]) == of_strategy]
        folder = given.runs / given.set / "search-score" / strategy
        if done and not folder.exists():
            continue
        flags = search_flags(run_flags(given.set, given.root, method, 0), method) | EPOCHS.get(strategy, {})
        nasb(
            "search",
            flags | {"search.strategy": strategy, "search.race_epochs": "0", "search.derive_candidates": "1"},
            folder,
        )
        seconds = json.loads((folder / "stages.json").read_text())["search"]["seconds"]
        there = {(row["method"], row["seed"]) for row in done}
        missing = {key: file for key, file in architectures(given.set).items() if key not in there}
        for key, (score, loss) in zip(missing, scores(folder, list(missing.values())), strict=True):
            found = (f"{score:.5f}", f"{loss:.5f}", f"{seconds:.0f}", commit())
            row = (*of_strategy, flags["search.epochs"], *key, *found)
            append(RESULT, COLUMNS, dict(zip(COLUMNS, row, strict=True)))
        print(f"{strategy}: {len(missing)} architectures scored", flush=True)


if __name__ == "__main__":
    main()
