"""The front of a search with several objectives: what no other judged architecture beats in loss and all costs.

front.csv      a row for each point: its number, loss, costs, and their ratios to the backbone's
front.json     the same, and the edges of every cell
front/N.json   the architectures: `nasb run --architecture RUN/front/N.json`
front.png      loss against each cost, with all judged architectures
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nasb.files import write_atomically, write_text
from nasb.search.population import Judged

if TYPE_CHECKING:
    from nasb.cells.architecture import Architecture
    from nasb.search.space import Cells, Space

COLUMNS = {"ops": "ops", "memory": "memory_bits", "ms": "ms"}
LABELS = {"ops": "OPs", "memory": "memory (bits)", "ms": "latency (ms)"}


def non_dominated(population: Sequence[Judged], objectives: Sequence[str]) -> list[Judged]:
    """Return the architectures that no other equals or beats in loss and every cost, each once, the cheapest first."""

    def values(judged: Judged) -> tuple[float, ...]:
        return (judged.loss, *(judged.costs[name] for name in objectives))

    unique = {judged.choice: judged for judged in population}.values()
    # Sorted so that what beats another stands before it; of equals the first one is kept.
    ranked = sorted(unique, key=lambda judged: (*values(judged)[1:], judged.loss))
    front: list[Judged] = []
    for judged in ranked:
        own = values(judged)
        if not any(all(a <= b for a, b in zip(values(better), own, strict=True)) for better in front):
            front.append(judged)
    return front


def write_front(
    folder: Path,
    space: "Space",
    population: Sequence[Judged],
    objectives: Sequence[str],
    architecture_of: "Callable[[Cells], Architecture]",
) -> None:
    """Write the front's files into a run directory.

    Args:
        folder: the run directory.
        space: of the population.
        population: all judged architectures.
        objectives: the costs that were minimized beside the loss.
        architecture_of: makes an architecture of its cells.

    Raises:
        UserError: a file cannot be written.
    """
    front = non_dominated(population, objectives)
    names = list(space.costs)
    backbone = {name: cost.backbone for name, cost in space.costs.items()}
    rows = []
    for number, judged in enumerate(front):
        costs = {COLUMNS[name]: judged.costs[name] for name in names}
        ratios = {f"{name}_ratio": judged.costs[name] / backbone[name] for name in names}
        rows.append({"number": number, "loss": judged.loss, **costs, **ratios})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "front.csv", text.getvalue())
    points = []
    (folder / "front").mkdir(exist_ok=True)
    for stale in (folder / "front").glob("*.json"):
        stale.unlink()
    for row, judged in zip(rows, front, strict=True):
        architecture = architecture_of(space.cells(judged.choice))
        architecture.save(folder / "front" / f"{row['number']}.json")
        points.append({**row, "cells": architecture.to_dict()["cells"]})
    content = {"objectives": ["loss", *objectives], "budget": space.budget, "unit": space.cost.unit, "front": points}
    write_text(folder / "front.json", json.dumps(content, indent=1) + "\n")
    write_atomically(folder / "front.png", lambda path: _draw(path, space, population, front, objectives))


def _draw(
    path: Path, space: "Space", population: Sequence[Judged], front: Sequence[Judged], objectives: Sequence[str]
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0 * len(objectives), 4.0), layout="constrained")
    axes = figure.subplots(1, len(objectives), squeeze=False)[0]
    for axis, name in zip(axes, objectives, strict=True):
        for points, style in ((population, {"color": "0.7", "s": 12}), (front, {"color": "tab:blue", "s": 24})):
            axis.scatter([p.costs[name] for p in points], [p.loss for p in points], **style)
        if space.costs[name] is space.cost:
            axis.axvline(space.budget, color="tab:red", linewidth=1)
        axis.set_xlabel(LABELS[name])
        axis.set_ylabel("loss with shared weights")
    figure.savefig(path, format="png", dpi=120)
