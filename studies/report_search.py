"""What the searches chose, whether their scores knew, what one change does: operations, Kendall's tau, ablations."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from claim_methods import METHODS
from markdown_table import table
from report_claim import Claim, Row, Sample, difference

from nasb.cells.architecture import Architecture
from nasb.search import STRATEGIES
from nasb.search.config import SearchConfig

LEAST = 8
"""Architectures below which there is no tau."""


def load_architectures(folder: Path, data: str) -> dict[str, list[tuple[int, Architecture]]]:
    """Return (seed, architecture) of each searched method of a data set, from FOLDER/SET/METHOD-seedN.json."""
    found: dict[str, list[tuple[int, Architecture]]] = {}
    for name, method in METHODS.items():
        if method.random or method.budget is None:
            continue
        files = {int(path.stem.rpartition("-seed")[2]): path for path in (folder / data).glob(f"{name}-seed*.json")}
        if files:
            found[name] = [(seed, Architecture.load(files[seed])) for seed in sorted(files)]
    return found


def _stage(cell: str) -> str:
    """Return the stage that a cell of ResNet-20 is in: its module's first name."""
    return cell.partition(".")[0]


def operations_table(architectures: Sequence[Architecture]) -> str:
    """Return how often each operation was chosen, a network on average: by stage, and by edge."""
    stages = sorted({_stage(cell) for a in architectures for cell in a.cells})
    by_stage: Counter[tuple[str, str]] = Counter()
    by_edge: Counter[tuple[str, str]] = Counter()
    for architecture in architectures:
        for cell, edges in architecture.cells.items():
            for edge in edges:
                by_stage[edge.operation, _stage(cell)] += 1
                by_edge[edge.operation, f"{edge.source} -> {edge.target}"] += 1
    operations = sorted({operation for operation, _ in by_stage}, key=lambda name: (-sum(_of(by_stage, name)), name))
    places = sorted({place for _, place in by_edge})
    n = len(architectures)
    lines = []
    for name in operations:
        counts = [by_stage[name, stage] for stage in stages] + [by_edge[name, place] for place in places]
        lines.append([f"`{name}`", f"{sum(_of(by_stage, name)) / n:.1f}", *(f"{count / n:.1f}" for count in counts)])
    return table(("operation", "in all", *stages, *places), lines)


def _of(counts: Counter[tuple[str, str]], operation: str) -> list[int]:
    return [count for (name, _), count in counts.items() if name == operation]


@dataclass(frozen=True)
class Tau:
    """Kendall's tau over pairs of architectures of the same budget: what a budget buys is no merit of a score."""

    value: float
    architectures: int
    p: float
    """By the normal approximation."""

    @classmethod
    def of(cls, pairs: Mapping[float, Sequence[tuple[float, float]]]) -> "Tau":
        """Return it of (score, accuracy) pairs by budget."""
        agreeing = in_all = variance = 0.0
        for found in pairs.values():
            n = len(found)
            for (score, accuracy), (other_score, other_accuracy) in combinations(found, 2):
                difference = (score - other_score) * (accuracy - other_accuracy)
                agreeing += (difference > 0) - (difference < 0)
            in_all += n * (n - 1) / 2
            variance += n * (n - 1) * (2 * n + 5) / 18
        return cls(agreeing / in_all, sum(map(len, pairs.values())), math.erfc(abs(agreeing) / math.sqrt(2 * variance)))

    def __str__(self) -> str:
        return f"{self.value:+.2f} ({self.architectures}; p {self.p:.2f})"


def tau_table(claim: Claim, rows: Sequence[Row]) -> str:
    """Return Kendall's tau of each strategy's scores with trained accuracy, and what it says of the default.

    Over random architectures, and over searched ones too. Strategies are compared by their own score over the random
    ones, which none of them has found.
    """
    taus: dict[str, float] = {}
    lines = []
    for data, strategy, budget in dict.fromkeys((row["set"], row["strategy"], row["budget"]) for row in rows):
        of_search = [row for row in rows if (row["set"], row["strategy"], row["budget"]) == (data, strategy, budget)]
        # A loss that ranks well is low where the accuracy is high.
        scored = {(row["method"], row["seed"]): (float(row["score"]), -float(row["shared_loss"])) for row in of_search}
        line = [strategy, data, budget]
        for searched in (False, True):
            for which in (0, 1):
                pairs: dict[float, list[tuple[float, float]]] = {}
                for name in dict.fromkeys(name for name, _ in scored):
                    method = METHODS[name]
                    if method.budget is None or not (method.random or searched):
                        continue
                    for row in claim.chosen(data, name):
                        if (name, row["seed"]) in scored:
                            pair = scored[name, row["seed"]][which], float(row["validation_top1"])
                            pairs.setdefault(method.budget, []).append(pair)
                if sum(map(len, pairs.values())) < LEAST:
                    line.append("")
                    continue
                tau = Tau.of(pairs)
                line.append(str(tau))
                if which == 0 and not searched:
                    taus[strategy] = tau.value
        lines.append([*line, of_search[0]["epochs"], of_search[0]["search_seconds"]])
    header = ("strategy", "data", "searched at", "random ones: own score", "minus the shared weights' loss",
              "with searched ones: own score", "minus the shared weights' loss", "epochs", "search, s")  # fmt: skip
    text = table(header, lines, left=2)
    if not taus:
        return text
    best, default = max(taus, key=lambda name: taus[name]), SearchConfig().strategy
    verdict = "which is the default" if best == default else f"**but the default is `{default}`**"
    missing = [name for name in STRATEGIES if name not in taus]
    unknown = f" Not measured: {', '.join(f'`{name}`' for name in missing)}." if missing else ""
    return f"{text}\n\nThe best one by its own score of random ones is `{best}`, {verdict}.{unknown}"


def ablation_table(claim: Claim, rows: Sequence[Row]) -> str:
    """Return each variant of one data set beside its method, in validation Top-1 of the same seeds."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["variant"]), []).append(row)
    lines, data = [], rows[0]["set"]
    for (method, variant), found in groups.items():
        sample = Sample(tuple(float(row["validation_top1"]) for row in found))
        seeds = {row["seed"] for row in found}
        base = Sample(
            tuple(float(row["validation_top1"]) for row in claim.chosen(data, method) if row["seed"] in seeds)
            if method in METHODS
            else ()
        )
        points = ""
        if base.values:
            change, error = difference(sample, base)
            points = f"{change:+.2f}" + ("" if error is None else f" ± {error:.2f}")
        label = METHODS[method].label if method in METHODS else method
        ops = sum(float(row["ops"]) for row in found) / len(found) / 1e6
        note = "; ".join(dict.fromkeys(row["note"] for row in found if row["note"]))
        lines.append([label, variant, note, f"{ops:.4f}", str(sample), str(base), points])
    return table(("method", "variant", "note", "OPs (M)", "Top-1", "the method's", "points"), lines, left=3)
