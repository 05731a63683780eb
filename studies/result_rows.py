"""The CSVs of results/: reading their rows, adding one, replacing one."""

import csv
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nasb.files import write_text


def rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV, none if it is not there; fields that do not fit the head end the program."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        found: list[dict[Any, Any]] = list(csv.DictReader(file))
    for number, row in enumerate(found):
        if None in row or None in row.values():
            sys.exit(f"{path}: row {number + 1} has not the fields of the head")
    return found


def append(path: Path, columns: tuple[str, ...], row: dict[str, Any]) -> None:
    """Add a row to a CSV."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def put(path: Path, columns: tuple[str, ...], row: dict[str, Any], key: Callable[[dict[str, str]], object]) -> None:
    """Add a row to a CSV, in place of an earlier one with the same key."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    new = {name: str(value) for name, value in row.items()}
    found = rows(path)
    places = [number for number, one in enumerate(found) if key(one) == key(new)]
    writer.writerows(
        [*(new if number in places else one for number, one in enumerate(found)), *([] if places else [new])]
    )
    write_text(path, text.getvalue())
