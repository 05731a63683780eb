"""What the searches chose, whether their scores knew, what one change does: operations, Kendall's tau, ablations."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from claim_methods import METHODS
from markdown_table import table
from report_claim import Claim, Row, Sample, difference
from scipy.stats import kendalltau

from nasb.cells.architecture import Architecture
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


def tau_table(claim: Claim, rows: Sequence[Row]) -> str:
    """Return Kendall's tau of each strategy's scores with trained accuracy, and what it says of the default.

    Over the random architectures of the search's budget, and over the searched ones of that budget too. Strategies are
    compared by their own score over the random ones, which none of them has found.
    """
    taus: dict[str, float] = {}
    lines = []
    searches = dict.fromkeys((row["set"], row["strategy"], row["budget"]) for row in rows)
    for data, strategy, budget in searches:
        of_search = [row for row in rows if (row["set"], row["strategy"], row["budget"]) == (data, strategy, budget)]
        scored = {(row["method"], row["seed"]): (float(row["score"]), -float(row["shared_loss"])) for row in of_search}
        accuracy = {
            (method, row["seed"]): float(row["validation_top1"])
            for method in dict.fromkeys(name for name, _ in scored)
            for row in claim.chosen(data, method)
        }
        line = [strategy, data, budget]
        random = (f"random-{budget}", f"random-race-{budget}")
        for methods in (random, (*random, f"nasb-{budget}")):
            known = [key for key in accuracy if key[0] in methods and key in scored]
            for which in (0, 1):
                if len(known) < LEAST:
                    line.append("")
                    continue
                found = kendalltau([scored[key][which] for key in known], [accuracy[key] for key in known])
                line.append(f"{found.statistic:+.2f} ({len(known)}; p {found.pvalue:.2f})")
                if which == 0 and methods == random:
                    taus[strategy] = found.statistic
        lines.append([*line, of_search[0]["search_seconds"]])
    own, shared = "own score", "shared weights' loss"
    header = (
        "strategy",
        "data",
        "budget",
        f"random ones: {own}",
        shared,
        f"with searched ones: {own}",
        shared,
        "search, s",
    )
    text = table(header, lines, left=2)
    if not taus:
        return text
    best, default = max(taus, key=lambda name: taus[name]), SearchConfig().strategy
    verdict = "which is the default" if best == default else f"**but the default is `{default}`**"
    return f"{text}\n\nThe best one by its own score of random ones is `{best}`, {verdict}."


def ablation_table(claim: Claim, rows: Sequence[Row]) -> str:
    """Return each variant of one data set beside its method, in validation Top-1 of the same seeds.

    A variant differs from its method in the one thing that its name says.
    """
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
