"""What makes the searched network good? It is trained again with one thing changed, a row in results/ablation.csv each.

    python studies/ablations.py --cifar10 DATA --out RUNS [--variants NAME ...]     # goes on where it stands

The network is that of seed 0 of METHOD in results/architectures; its settings are those with which claim.py trains it.
(The other rows of that CSV are screening by hand, from before this program: docs/screening.md.)
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from claim import ARCHITECTURES, COLUMNS, RESULTS, ROOT, Job, chosen_trial, nasb, result_row, run_flags
from claim_methods import EPOCHS, METHODS, SEEDS, SETS
from result_rows import append, rows

from nasb.cells.architecture import Architecture, prune
from nasb.cells.operations import OPERATIONS

RESULT = ROOT / "results" / "ablation.csv"
METHOD = "nasb-1.37"
PRETRAIN = EPOCHS // 3
WIDE = 19
"""Channels that cost about as many OPs as METHOD's paid operations."""
NOTE = "studies/ablations.py"


def _same(operation: str) -> str:
    return operation


@dataclass(frozen=True)
class Variant:
    """One change to the searched network or to its training."""

    label: str
    cell: tuple[tuple[str, Any], ...] = ()
    """Options of the architecture's cells."""
    operation: Callable[[str], str] = _same
    """What stands on an edge instead of an operation."""
    options: tuple[tuple[str, Any], ...] = ()
    """Options of the host."""
    flags: tuple[tuple[str, str], ...] = ()
    """Flags of the run."""

    def change(self, architecture: Architecture) -> Architecture:
        """Return the architecture with the change made."""
        cell = replace(architecture.cell, **dict(self.cell))
        cells = {
            name: prune((replace(edge, operation=self.operation(edge.operation)) for edge in edges), cell.nodes)
            for name, edges in architecture.cells.items()
        }
        return replace(architecture, cell=cell, cells=cells, options={**architecture.options, **dict(self.options)})


def _pretrained(activations: str) -> tuple[tuple[str, str], ...]:
    return (
        ("pretrain.epochs", str(PRETRAIN)),
        ("pretrain.activations", activations),
        ("finetune.epochs", str(EPOCHS - PRETRAIN)),
    )


VARIANTS = {
    "pretrained": Variant(
        f"{PRETRAIN} of the {EPOCHS} epochs pretraining, hard tanh", flags=_pretrained("hardtanh")
    ),
    "pretrained-sign": Variant(
        f"{PRETRAIN} of the {EPOCHS} epochs pretraining with real weights, binary activations",
        flags=_pretrained("sign"),
    ),
    "edges-at-a-third": Variant("edges starting at 1/3", cell=(("edge_gain", 1 / 3),)),
    "inside-at-a-third": Variant("edges to inside nodes starting at 1/3", cell=(("inside_gain", 1 / 3),)),
    "inside-at-1": Variant("edges to inside nodes starting at 1", cell=(("inside_gain", 1.0),)),
    "real-shortcut": Variant("shortcuts with a real 1x1, as published", cell=(("shortcut", "conv"),)),
    "prelu": Variant("PReLU behind every cell", cell=(("activation", "prelu"), ("activation_slope", 0.25))),
    "prelu-at-1": Variant(
        "PReLU behind every cell, starting as identity", cell=(("activation", "prelu"), ("activation_slope", 1.0))
    ),
    "average-pooling": Variant(
        "every max pooling an average pooling",
        operation=lambda name: "avg_pool_3x3" if name == "max_pool_3x3" else name,
    ),
    # Without paid operations out of the input its cells have no learned thresholds.
    "free-alone": Variant(
        "its free operations alone, pruned", operation=lambda name: "none" if OPERATIONS[name].paid else name
    ),
    "free-alone-rsign": Variant(
        "its free operations alone, pruned; learned thresholds",
        cell=(("learned_threshold", True),),
        operation=lambda name: "none" if OPERATIONS[name].paid else name,
    ),
    "free-alone-rsign-wide": Variant(
        f"its free operations alone, pruned; learned thresholds; {WIDE} channels in place of 16",
        cell=(("learned_threshold", True),),
        operation=lambda name: "none" if OPERATIONS[name].paid else name,
        options=(("width", WIDE),),
    ),
    "paid-alone": Variant(
        "its paid operations alone, pruned", operation=lambda name: name if OPERATIONS[name].paid else "none"
    ),
}  # fmt: skip


def train(name: str, data: str, root: str, out: Path) -> dict[str, Any]:
    """Train a variant, and return its row."""
    variant, method, seed = VARIANTS[name], METHODS[METHOD], SEEDS[0]
    trial = chosen_trial(rows(RESULTS), data, METHOD)
    if trial is None:
        raise SystemExit(f"{data}: the settings of {METHOD} are not chosen yet; claim.py run chooses them")
    job = Job(data, METHOD, *trial, seed)
    searched = Architecture.load(ARCHITECTURES / data / f"{METHOD}-seed{seed}.json")
    cell = replace(searched.cell, branch_gain=round(trial[1], 4))
    file = out / data / "ablations" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    changed = variant.change(replace(searched, cell=cell))
    changed.save(file)
    flags = run_flags(data, root, method, seed) | method.settings(*trial) | dict(variant.flags)
    del flags["cell.branch_gain"]  # the architecture has it
    folder = file.with_suffix("")
    flags |= {"architecture": str(file), "network.options": json.dumps(dict(changed.options))}
    nasb("run", flags, folder)
    return result_row(job, method, folder, 0.0) | {"variant": variant.label, "note": NOTE}


def main() -> None:
    """Train what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for data in SETS:
        parser.add_argument(f"--{data}", metavar="FOLDER", help=f"where {data} is; without it, it is left out")
    parser.add_argument("--out", type=Path, default=Path("runs/claim"), help="the run directories")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME",
                        help=f"{', '.join(VARIANTS)} (default: all)")  # fmt: skip
    given = parser.parse_args()
    for data in SETS:
        if (root := getattr(given, data.replace("-", "_"))) is None:
            continue
        for name in given.variants:
            variant = VARIANTS[name]
            if any(
                (row["set"], row["method"], row["variant"]) == (data, METHOD, variant.label) for row in rows(RESULT)
            ):
                continue
            row = train(name, data, root, given.out)
            append(RESULT, (*COLUMNS, "variant", "note"), row)
            print(f"{data}, {variant.label}: validation Top-1 {row['validation_top1']}", flush=True)


if __name__ == "__main__":
    main()
