"""Latency tables: what is measured of a search space, and a network's milliseconds from what was measured.

    ms of a network = ms of its backbone + sum over live edges of context(paid or free) * entry(operation, shape)

The engine runs each edge as one step, the operation with its batch norm and the addition to what its target node holds
already; that is what an entry measures. The backbone (the same network with every edge "none") is measured as a whole.
So are two probes, the backbone with a paid (free) operation on each edge: they give the contexts, how much longer paid
(free) operations take within a network than alone. In that is what no edge has for itself: colder caches, the signs of
inside nodes, adapt of strided cells. docs/latency.md has the files' form and the measured errors.
"""

import functools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nasb.cells.adapt import ConvShape
from nasb.cells.architecture import Architecture, Edge, prune
from nasb.cells.cell import edge_shape
from nasb.cells.config import CellConfig
from nasb.cells.operations import NONE, OPERATIONS, BinaryBranch, FreeBranch
from nasb.cells.searchable import candidates, searchable_cells
from nasb.errors import UserError

SHAPES, TABLE = "nasb latency shapes", "nasb latency table"
VERSION = 1
GEOMETRY = (
    *("kind", "in_channels", "in_height", "in_width", "out_channels"),
    *("kernel_size", "stride", "padding", "dilation", "groups"),
)
"""What names an entry, beside the operation's name: the arguments of the engine's measurement."""
TIMED_OPTIONS = ("bases", "activation", "shortcut", "learned_threshold", "thresholds", "pad_value")
"""Options of the cell on which times depend: the backbone's, or those of operations within a network."""
PAID, FREE = "paid", "free"
FREE_KINDS = {nn.Identity: "identity", nn.AvgPool2d: "avg_pool", nn.MaxPool2d: "max_pool"}

Geometry = dict[str, str | int]


def network_key(
    host: str, options: Mapping[str, Any], num_classes: int, input_shape: Sequence[int], cell: CellConfig,
    keep_real: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Return what a table says of the network that it was made for."""
    return {
        "host": host,
        "options": dict(options),
        "num_classes": num_classes,
        "input_shape": list(input_shape),
        "cell": {key: getattr(cell, key) for key in TIMED_OPTIONS},
        **({"keep_real": list(keep_real)} if keep_real else {}),
    }


@functools.cache
def geometry(operation: str, shape: ConvShape) -> dict[str, str | int]:
    """Return how the engine measures an operation that has to give a shape.

    Raises:
        UserError: the engine measures only square kernels, strides, paddings and dilations.
    """
    with torch.device("meta"):
        module = OPERATIONS[operation].build(shape, CellConfig())
    if isinstance(module, BinaryBranch):
        return _of_convolution(module, shape, operation)
    if not isinstance(module, FreeBranch) or type(module.pool) not in FREE_KINDS:
        raise UserError(f"latency: the engine cannot measure {operation}")
    size, padding = getattr(module.pool, "kernel_size", 1), getattr(module.pool, "padding", 0)
    kind, channels = FREE_KINDS[type(module.pool)], shape.out_channels
    return dict(zip(GEOMETRY, (kind, channels, *shape.out_size, channels, size, 1, padding, 1, 1), strict=True))


def _of_convolution(branch: BinaryBranch, shape: ConvShape, name: str) -> Geometry:
    conv = branch.conv
    squares = []
    for key in ("kernel_size", "stride", "padding", "dilation"):
        first, second = getattr(conv, key)
        if first != second:
            raise UserError(f"latency: {name} has the {key} {first}x{second}; the engine measures only square ones")
        squares.append(first)
    values = ("binary_conv", conv.in_channels, *shape.in_size, conv.out_channels, *squares, conv.groups)
    return dict(zip(GEOMETRY, values, strict=True))


@dataclass(frozen=True)
class SearchShapes:
    """What has to be measured of a search space: ``entries``, each operation at each shape once; for each probe its
    cells, and the entries of their edges.
    """

    entries: list[dict[str, Any]]
    probes: dict[str, dict[str, tuple[Edge, ...]]]
    probe_entries: dict[str, list[int]]


def shapes_of(network: nn.Module, operations: Sequence[str] | None) -> SearchShapes:
    """Return what has to be measured of the search space around a backbone.

    Args:
        network: the hand-made network, every edge "none".
        operations: the candidates (None: all).
    """
    entries: dict[str, dict[str, Any]] = {}
    probes: dict[str, dict[str, tuple[Edge, ...]]] = {}
    probe_entries: dict[str, list[int]] = {}
    turn = {PAID: 0, FREE: 0}
    for name, cell in searchable_cells(network).items():
        chosen: dict[str, dict[Edge, int]] = {PAID: {}, FREE: {}}
        for (source, target, paid), (_, *names) in candidates(cell.shape, cell.config, operations).items():
            shape = edge_shape(cell.shape, source)
            for operation in names:
                found = geometry(operation, shape)
                entries.setdefault(_key(found), {"operation": operation, **found})
            kind = PAID if paid else FREE
            turn[kind] += 1
            operation = names[turn[kind] % len(names)]
            at = list(entries).index(_key(geometry(operation, shape)))
            chosen[kind][Edge(source, target, operation)] = at
        for kind, edges in chosen.items():
            live = prune(edges, cell.config.nodes)
            probes.setdefault(kind, {})[name] = live
            probe_entries.setdefault(kind, []).extend(cell.calls * [edges[edge] for edge in live])
    kinds = [kind for kind, used in probe_entries.items() if used]
    return SearchShapes(list(entries.values()), {k: probes[k] for k in kinds}, {k: probe_entries[k] for k in kinds})


def _key(values: Mapping[str, Any]) -> str:
    return json.dumps([values[name] for name in GEOMETRY])


@dataclass(frozen=True)
class LatencyTable:
    """A table that was read; `text` is the file's."""

    path: str
    text: str
    network: Mapping[str, Any]
    device: Mapping[str, Any]
    backbone_ms: float
    context: Mapping[str, float]
    entries: Mapping[str, float]

    @classmethod
    def load(cls, path: str | Path) -> "LatencyTable":
        """Read a table.

        Raises:
            UserError: the file is missing or damaged, or of a newer version.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            values = json.loads(text)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: is not valid JSON: {error}") from None
        if not isinstance(values, dict) or values.get("format") != TABLE:
            hint = ""
            if isinstance(values, dict) and values.get("format") == SHAPES:
                hint = ": it says what to measure; `nasb-engine latency-table` measures it"
            raise UserError(f"{path}: is not a latency table{hint}; `nasb latency-table` makes one")
        if values.get("version") != VERSION:
            raise UserError(f"{path}: version is {values.get('version')!r}; this version of nasb reads {VERSION}")
        for key, kind in (
            ("network", dict),
            ("device", dict),
            ("backbone", dict),
            ("context", dict),
            ("entries", list),
        ):
            if not isinstance(values.get(key), kind):
                raise UserError(f'{path}: "{key}" is missing or no {"mapping" if kind is dict else "list"}')
        backbone = values["backbone"]
        entries: dict[str, float] = {}
        for index, entry in enumerate(values["entries"]):
            where = f"{path}: entries[{index}]"
            if not isinstance(entry, dict) or any(key not in entry for key in GEOMETRY):
                raise UserError(f"{where} must hold {', '.join((*GEOMETRY, 'ms'))}")
            entries[_key(entry)] = _positive(entry.get("ms"), f"{where}.ms")
        return cls(
            path=str(path),
            text=text,
            network=values["network"],
            device=values["device"],
            backbone_ms=_positive(backbone.get("ms"), f"{path}: backbone.ms"),
            context={kind: _positive(value, f"{path}: context.{kind}") for kind, value in values["context"].items()},
            entries=entries,
        )

    @property
    def conditions(self) -> str:
        """One line on the device and how it was measured."""
        get = {key: self.device.get(key, "?") for key in ("cpu", "kernel", "threads", "engine", "date")}
        threads = f"{get['threads']} thread{'' if get['threads'] == 1 else 's'}"
        return f"{get['cpu']}, {get['kernel']}, {threads}, engine {get['engine']}, {get['date']}"

    def check_network(self, wanted: Mapping[str, Any], *, own: bool = False) -> None:
        """Refuse a table that was made for another network.

        Args:
            wanted: the network (`network_key`).
            own: the table is a run's own copy, which was checked when the run began; of the cell's options those count
                that it names.

        Raises:
            UserError: names the first difference, and how the right table is made.
        """
        for key in dict.fromkeys((*wanted, "keep_real")):
            value, known = wanted.get(key), self.network.get(key)
            if key == "cell" and isinstance(known, dict):  # an earlier version wrote fewer options of it
                known = (wanted[key] if own else network_key("", {}, 0, (), CellConfig())[key]) | known
            if known == value:
                continue
            raise UserError(
                f"{self.path}: was made for another network: {key} is {self.network.get(key)!r} there, {value!r} here; "
                f"make one with `{table_command(wanted)}`"
            )

    def milliseconds(self, operation: str, shape: ConvShape, where: str) -> float:
        """Return what an operation adds to a network, "none" nothing.

        Args:
            operation: its name.
            shape: what it has to give.
            where: leads the error message: the cell.

        Raises:
            UserError: it was not measured.
        """
        if operation == NONE:
            return 0.0
        found = geometry(operation, shape)
        ms = self.entries.get(_key(found))
        context = self.context.get(PAID if OPERATIONS[operation].paid else FREE)
        if ms is None or context is None:
            size = "x".join(str(found[key]) for key in ("in_channels", "in_height", "in_width"))
            raise UserError(
                f"{self.path}: has no entry for {operation} from {size} to {found['out_channels']} channels "
                f"(stride {found['stride']}), which {where} needs; make the table anew with `nasb latency-table`"
            )
        return context * ms

    def predict(self, network: nn.Module, cells: Mapping[str, Sequence[Edge]]) -> float:
        """Return the milliseconds of a network with these (pruned) edges; `network` has the cells, with any edges.

        Raises:
            UserError: an operation was not measured.
        """
        found = searchable_cells(network)
        added = (
            found[name].calls * self.milliseconds(edge.operation, edge_shape(found[name].shape, edge.source), name)
            for name, edges in cells.items()
            for edge in edges
        )
        return self.backbone_ms + sum(added)

    def predict_architecture(self, architecture: Architecture, network: nn.Module, *, own: bool = False) -> float:
        """Return the milliseconds of an architecture's network; `own` as in `check_network`.

        Raises:
            UserError: the table was made for another network, or has no entry for an operation.
        """
        a = architecture
        self.check_network(network_key(a.host, a.options, a.num_classes, a.input_shape, a.cell, a.keep_real), own=own)
        return self.predict(network, {name: prune(edges, a.cell.nodes) for name, edges in a.cells.items()})


def table_command(network: Mapping[str, Any]) -> str:
    """Return the command that makes a table for a network (`network_key`)."""
    default = network_key("", {}, 0, (), CellConfig())["cell"]
    options = {**network["options"], **{k: v for k, v in network["cell"].items() if v != default[k]}}
    flags = "".join(
        f" --option {key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()
    )
    flags += "".join(f" --keep-real '{pattern}'" for pattern in network.get("keep_real", ()))
    size = "x".join(map(str, network["input_shape"]))
    return (
        f"nasb latency-table --network {network['host']} --input-size {size} --num-classes {network['num_classes']}"
        f"{flags} -o table.json"
    )


def _positive(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise UserError(f"{where} is {value!r}; it must be a number above 0")
    return float(value)
