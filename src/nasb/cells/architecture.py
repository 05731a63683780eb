"""Architecture: the JSON file that passes from search to training. It names a host, its cells and their edges.

    {"schema_version": 1, "host": "resnet20", "options": {"stem_stride": 2}, "num_classes": 10, "input_shape": [3, 32,
    32],
     "cell": {"nodes": 1, "bases": 1, ...},
     "cells": {"layer1.0.conv1": {"edges": [{"from": 0, "to": "output", "operation": "bin_conv_3x3"}]}, ...}}

Nodes are numbered from 0, the cell's input; "output" is the last. An edge that is not listed is "none"; a cell
without edges is the hand-made one. Between two nodes there may be one free and one paid operation. "keep_real", a list
of wildcards of what the conversion leaves real, stands there only if there are any.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasb.cells.config import CellConfig
from nasb.errors import UserError, unknown_name

if TYPE_CHECKING:
    from torch import nn

SCHEMA_VERSION = 1
OUTPUT = "output"
KEYS = ("schema_version", "host", "options", "num_classes", "input_shape", "cell", "cells")
OPTIONAL_KEYS = ("keep_real",)


@dataclass(frozen=True, order=True)
class Edge:
    """One chosen operation between two nodes of a cell; node 0 is the input, node `nodes + 1` the output."""

    source: int
    target: int
    operation: str


def node_pairs(nodes: int) -> list[tuple[int, int]]:
    """Return every (source, target) of a cell with that many inside nodes: each node to each later one."""
    return [(i, j) for j in range(1, nodes + 2) for i in range(j)]


def live_pairs(pairs: Iterable[tuple[int, int]], nodes: int) -> set[tuple[int, int]]:
    """Return those of the connected pairs that lie on a way from the input to the output.

    An inside node without input is 0, and sign(0) = +1 is a constant that only costs; an inside node that leads nowhere
    costs as well.
    """
    pairs = set(pairs)
    output = nodes + 1
    fed = {0}
    for target in range(1, nodes + 2):
        if any((source, target) in pairs for source in fed):
            fed.add(target)
    leads = {output}
    for source in range(nodes, -1, -1):
        if any((source, target) in pairs for target in leads):
            leads.add(source)
    return {(source, target) for source, target in pairs if source in fed and target in leads}


def prune(edges: Iterable[Edge], nodes: int) -> tuple[Edge, ...]:
    """Return the edges that are neither "none" nor dead, sorted."""
    chosen = [edge for edge in edges if edge.operation != "none"]
    live = live_pairs(((edge.source, edge.target) for edge in chosen), nodes)
    return tuple(sorted(edge for edge in chosen if (edge.source, edge.target) in live))


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A host network and the operations on the edges of its cells."""

    host: str
    options: Mapping[str, Any] = field(default_factory=dict)
    num_classes: int
    input_shape: tuple[int, int, int]
    cell: CellConfig = field(default_factory=CellConfig)
    cells: Mapping[str, tuple[Edge, ...]]
    keep_real: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object."""

        def node(number: int) -> int | str:
            return OUTPUT if number == self.cell.nodes + 1 else number

        cells = {
            name: {"edges": [{"from": node(e.source), "to": node(e.target), "operation": e.operation} for e in edges]}
            for name, edges in self.cells.items()
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "host": self.host,
            "options": dict(self.options),
            "num_classes": self.num_classes,
            "input_shape": list(self.input_shape),
            "cell": self.cell.to_dict(),
            "cells": cells,
            **({"keep_real": list(self.keep_real)} if self.keep_real else {}),
        }

    @classmethod
    def from_dict(cls, values: object, where: str = "architecture") -> "Architecture":
        """Read the JSON object; `where` (a file's name) leads the error messages.

        Raises:
            UserError: it names the key and what is accepted there.
        """
        values = _mapping(values, where)
        _check_keys(values, KEYS, where, OPTIONAL_KEYS)
        if type(values["schema_version"]) is not int or values["schema_version"] != SCHEMA_VERSION:
            raise UserError(
                f"{where}: schema_version is {values['schema_version']!r}; this version of nasb reads {SCHEMA_VERSION}"
            )
        if not isinstance(values["host"], str):
            raise UserError(f"{where}: host must be the name of a network, not {values['host']!r}")
        shape = values["input_shape"]
        if not isinstance(shape, list) or len(shape) != 3 or not all(_is_count(n) for n in shape):
            raise UserError(f"{where}: input_shape is {shape!r}; give [channels, height, width]")
        if not _is_count(values["num_classes"]):
            raise UserError(f"{where}: num_classes is {values['num_classes']!r}; give a whole number above 0")
        keep_real = values.get("keep_real", [])
        if not isinstance(keep_real, list) or not all(isinstance(pattern, str) for pattern in keep_real):
            raise UserError(f"{where}: keep_real is {keep_real!r}; give a list of wildcards of layers' names")
        cell = CellConfig.from_dict(values["cell"], where)
        cells = {
            str(name): _read_cell(entry, cell.nodes, f"{where}: cells.{name}")
            for name, entry in _mapping(values["cells"], f"{where}: cells").items()
        }
        return cls(
            host=values["host"],
            options=dict(_mapping(values["options"], f"{where}: options")),
            num_classes=values["num_classes"],
            input_shape=(shape[0], shape[1], shape[2]),
            cell=cell,
            cells=cells,
            keep_real=tuple(keep_real),
        )

    @classmethod
    def load(cls, path: str | Path) -> "Architecture":
        """Read an architecture.json.

        Raises:
            UserError: the file is missing, is not JSON, or a key of it is wrong.
        """
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: is not valid JSON: {error}") from None
        return cls.from_dict(values, str(path))

    def dumps(self) -> str:
        """Return the file's text."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the file atomically."""
        from nasb.files import write_text

        write_text(Path(path), self.dumps())

    def build(self, host: "nn.Module | None" = None) -> "nn.Module":
        """Build the derived binary network.

        Args:
            host: the real network to convert, whose weights are taken over; by default the registered one, fresh.

        Raises:
            UserError: the host is not registered, or its cells are not those of this architecture.
        """
        from nasb.networks import build_architecture

        return build_architecture(self, host)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _mapping(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a mapping, not {type(value).__name__}")
    return value


def _check_keys(values: Mapping[str, Any], keys: tuple[str, ...], where: str, optional: tuple[str, ...] = ()) -> None:
    for key in values:
        if key not in (*keys, *optional):
            raise UserError(f"{where}: {unknown_name('key', key, (*keys, *optional))}")
    for key in keys:
        if key not in values:
            raise UserError(f'{where}: the key "{key}" is missing')


def _read_cell(value: object, nodes: int, where: str) -> tuple[Edge, ...]:
    from nasb.cells.operations import OPERATIONS

    entry = _mapping(value, where)
    _check_keys(entry, ("edges",), where)
    if not isinstance(entry["edges"], list):
        raise UserError(f"{where}.edges must be a list")
    edges: list[Edge] = []
    taken: set[tuple[int, int, bool]] = set()
    for index, item in enumerate(entry["edges"]):
        here = f"{where}.edges[{index}]"
        values = _mapping(item, here)
        _check_keys(values, ("from", "to", "operation"), here)
        operation = values["operation"]
        if not isinstance(operation, str) or operation not in OPERATIONS:
            raise UserError(f"{here}.operation: {unknown_name('operation', operation, OPERATIONS)}")
        source = values["from"]
        target = nodes + 1 if values["to"] == OUTPUT else values["to"]
        inside = type(source) is int and type(target) is int and (source, target) in node_pairs(nodes)
        if not inside or values["to"] == nodes + 1:  # the output goes by its name alone
            raise UserError(
                f"{here} goes from {values['from']!r} to {values['to']!r}; a cell with {nodes} inside nodes has the "
                f'nodes 0 to {nodes} and "{OUTPUT}", and edges go from a lower to a higher one'
            )
        if operation == "none":
            continue
        if operation == "identity" and source == 0 and target == nodes + 1:
            raise UserError(f"{here}: no identity from 0 to {OUTPUT}: the cell's shortcut is there already")
        key = (source, target, OPERATIONS[operation].paid)
        if key in taken:
            raise UserError(f"{here}: a second {'paid' if key[2] else 'free'} operation between the same two nodes")
        taken.add(key)
        edges.append(Edge(source, target, operation))
    return tuple(sorted(edges))
