"""Does a search know what is good? Kendall's tau between its own score of architectures and their trained accuracy.

    python studies/search_score.py --root DATA --runs RUNS        # after claim.py has trained random architectures

The architectures are the random ones of one budget that studies/claim.py trained. Each strategy searches once as
claim.py's searched method of that budget does, but for its name; then its network scores every architecture: by
its own score (`SearchStage.score`: what alpha has gained), and by the loss of the shared weights on the alpha part,
which is all that strategies have that judge whole architectures. A row for each strategy in results/search-score.csv.
"""

import argparse
import json
from pathlib import Path

import torch
from claim import ARCHITECTURES, ROOT, Job, append, chosen_trial, commit, key_of, nasb, rows, run_flags, search_flags
from claim_methods import METHODS, SEARCH_EPOCHS
from scipy.stats import kendalltau

from nasb.cells.architecture import Architecture, Edge
from nasb.cli.parsing import parse_run
from nasb.files import load_safetensors
from nasb.search import STRATEGIES
from nasb.training.pipeline import Pipeline

RESULT = ROOT / "results" / "search-score.csv"
COLUMNS = ("set", "strategy", "budget", "architectures", "tau_own", "p_own", "tau_shared_loss", "p_shared_loss",
           "search_epochs", "seconds", "commit")  # fmt: skip
Cells = dict[str, tuple[Edge, ...]]


def trained(data: str, budget: str) -> list[tuple[Cells, float]]:
    """Return the random architectures that are trained: (cells, validation Top-1)."""
    done = rows()
    trial = chosen_trial(done, data, f"random-{budget}")
    found = []
    for row in done:
        if row["set"] != data or row["method"] != f"random-{budget}" or trial is None:
            continue
        seed = int(row["seed"])
        if key_of(row) == Job(data, row["method"], *trial, seed).row_key():
            file = ARCHITECTURES / data / f"{row['method']}-seed{seed}.json"
            found.append((dict(Architecture.load(file).cells), float(row["validation_top1"])))
    return found


@torch.no_grad()
def scores(folder: Path, architectures: list[Cells]) -> tuple[list[float], list[float]]:
    """Return (the strategy's scores, losses of the shared weights) of architectures, by a finished search's network."""
    config, _ = parse_run("search", "", ["--out", str(folder)])
    with Pipeline(config, folder) as pipeline:
        stage = pipeline.search_stage()
        stage.network.load_state_dict(load_safetensors(folder / "supernet.safetensors")[0])
        stage.network.train()
        return [stage.score(a) for a in architectures], [stage.shared_loss(a) for a in architectures]


def main() -> None:
    """Search with each strategy that has no row yet, and write its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="cifar10", help="(default: %(default)s)")
    parser.add_argument("--root", required=True, help="the data set's folder")
    parser.add_argument("--runs", type=Path, default=Path("runs/claim"), help="the searches' run directories")
    parser.add_argument("--budget", default="1.37", help="(default: %(default)s)")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES), metavar="NAME",
                        help="these, in this order (default: all)")  # fmt: skip
    given = parser.parse_args()
    found = trained(given.set, given.budget)
    if len(found) < 8:
        raise SystemExit(f"{len(found)} random architectures are trained; 8 are needed: studies/claim.py run")
    accuracy = [top1 for _, top1 in found]
    method = METHODS[f"nasb-{given.budget}"]
    there = {row["strategy"] for row in rows(RESULT) if (row["set"], row["budget"]) == (given.set, given.budget)}
    for strategy in (name for name in given.strategies if name not in there):
        folder = given.runs / given.set / "search-score" / strategy
        flags = run_flags(given.set, given.root, method, 0)
        nasb(
            "search",
            search_flags(flags, method)
            | {"search.strategy": strategy, "search.race_epochs": "0", "search.derive_candidates": "1"},
            folder,
        )
        own, losses = scores(folder, [cells for cells, _ in found])
        alpha, shared = kendalltau(own, accuracy), kendalltau([-loss for loss in losses], accuracy)
        seconds = json.loads((folder / "stages.json").read_text())["search"]["seconds"]
        numbers = (alpha.statistic, alpha.pvalue, shared.statistic, shared.pvalue)
        row = (given.set, strategy, given.budget, len(found), *(f"{n:.3f}" for n in numbers))
        row = (*row, SEARCH_EPOCHS, f"{seconds:.0f}", commit())
        append(RESULT, COLUMNS, dict(zip(COLUMNS, row, strict=True)))
        print(f"{strategy}: tau {alpha.statistic:.3f}, by the shared weights' loss {shared.statistic:.3f}", flush=True)


if __name__ == "__main__":
    main()
