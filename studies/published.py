"""Figures that others published, from results/published.csv: each was read at its source, none is from memory.

A network may have several rows, one for each source. "NAME int8" is the quantized network.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILE = ROOT / "results" / "published.csv"


@dataclass(frozen=True)
class Published:
    """What one source says of one network, for images of 224x224; None where it says nothing."""

    network: str
    source: str
    url: str
    ops: float | None
    memory_mib: float | None
    """1 MiB = 2^20 bytes, as Larq Zoo counts."""
    top1: float | None
    """On the validation images of ImageNet, in percent."""
    top5: float | None


def published() -> list[Published]:
    """Return all rows, in the file's order."""

    def number(text: str) -> float | None:
        return float(text) if text else None

    with FILE.open(newline="") as file:
        return [
            Published(row["network"], row["source"], row["url"],
                      *(number(row[key]) for key in ("ops", "memory_mib", "top1", "top5")))
            for row in csv.DictReader(file)
        ]  # fmt: skip


def top1_of(network: str) -> Published | None:
    """Return the first row with a Top-1 of a network."""
    return next((row for row in published() if row.network == network and row.top1 is not None), None)
