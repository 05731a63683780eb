"""Networks side by side: what one image costs in each, as a table to read, Markdown, CSV or JSON."""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nasb.cost.counting import BOPS_PER_FLOP, Count


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of one image in the engine, measured in turn with the other networks."""

    ms: float
    """Median of the rounds."""
    ms_lower_quartile: float
    ms_upper_quartile: float
    time_ratio: float
    """Median of the rounds' ratios to the first network's time."""
    file_bytes: int
    """Of the exported file, with random weights."""


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """One network's row."""

    network: str
    input_shape: tuple[int, ...]
    """Of one image."""
    count: Count
    latency: Latency | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: the row of JSON and CSV."""
        counted = {key: getattr(self.count, key) for key in ("ops", "bops", "flops", "memory_bits")}
        measured = {} if self.latency is None else vars(self.latency)
        size = "x".join(map(str, self.input_shape))
        return {"network": self.network, "input_size": size, **counted, **measured}


def significant(value: float, digits: int = 4) -> str:
    """Return a number with so many significant digits, and never with an exponent: 1676, 33.52, 0.3459."""
    if value == 0:
        return "0"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def render_comparison(rows: Sequence[NetworkCost], form: str) -> str:
    """Return networks side by side; see `FORMATS`. What could not be counted is said below a table."""
    return FORMATS[form](rows)


def _cells(rows: Sequence[NetworkCost]) -> list[list[str]]:
    """Return header and rows in the units that a reader wants."""
    header = ["network", "input", "OPs (M)", "BOPs (M)", "FLOPs (M)", "memory (Mbit)"]
    timed = any(row.latency is not None for row in rows)
    if timed:
        header += ["ms", "quartiles", f"time / {rows[0].network}", "file (kB)"]
    cells = [header]
    for row in rows:
        count, size = row.count, "x".join(map(str, row.input_shape))
        numbers = (count.ops, count.bops, count.flops, count.memory_bits)
        line = [row.network, size, *(significant(number / 1e6) for number in numbers)]
        if row.latency is not None:
            found = row.latency
            quartiles = f"{significant(found.ms_lower_quartile, 3)} - {significant(found.ms_upper_quartile, 3)}"
            line += [significant(found.ms, 3), quartiles, f"{found.time_ratio:.2f}", f"{found.file_bytes / 1e3:,.0f}"]
        cells.append(line)
    return cells


def _uncounted(rows: Sequence[NetworkCost]) -> list[str]:
    return [f"not counted of {row.network}: {line}" for row in rows for line in row.count.uncounted]


def table(rows: Sequence[NetworkCost]) -> str:
    """Return columns for a terminal."""
    cells = _cells(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            text.ljust(width) if number == 0 else text.rjust(width)
            for number, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    notes = [f"OPs = FLOPs + BOPs / {BOPS_PER_FLOP}, of one image; M = 1e6", *_uncounted(rows)]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], "", *notes])


def markdown(rows: Sequence[NetworkCost]) -> str:
    """Return a table for a document."""
    header, *cells = _cells(rows)
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = [f"| {' | '.join(line)} |" for line in (header, rule, *cells)]
    missing = _uncounted(rows)
    return "\n".join([*lines, *(["", *missing] if missing else [])])


def comma_separated(rows: Sequence[NetworkCost]) -> str:
    """Return raw numbers, MACs and bits, under a header."""
    records = [row.to_dict() | {"uncounted": "; ".join(row.count.uncounted)} for row in rows]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue().rstrip("\n")


def as_json(rows: Sequence[NetworkCost]) -> str:
    """Return raw numbers, MACs and bits."""
    return json.dumps([row.to_dict() | {"uncounted": list(row.count.uncounted)} for row in rows], indent=1)


FORMATS: dict[str, Callable[[Sequence[NetworkCost]], str]] = {
    "table": table,
    "markdown": markdown,
    "csv": comma_separated,
    "json": as_json,
}
