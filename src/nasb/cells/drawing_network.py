"""The page of nasb.cells.draw that shows a whole network: every cell a small panel, a stage's cells in rows.

Units: see nasb.cells.drawing_canvas.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby

import torch.fx
from torch import nn

from nasb.cells.adapt import AvgMaxShortcut, ConvShape, ConvShortcut
from nasb.cells.architecture import Architecture, Edge, prune
from nasb.cells.cell import Cell, edge_shape
from nasb.cells.drawing_canvas import (
    FAINT,
    GREY,
    INK,
    PAPER,
    SHORT_NAMES,
    Canvas,
    CellGraph,
    GraphStyle,
    colour_of,
    level_of,
    text_width,
    wrapped,
)
from nasb.cells.operations import OPERATIONS
from nasb.errors import UserError

MARGIN, GAP = 26.0, 12.0
MOST_COLUMNS, WIDEST = 6, 1130.0
NARROWEST = 640.0
SMALL = GraphStyle(node=(21, 13), level=15, font=7, thick=1.4, port=2.7, head=4.5)
QUIET_FILL = "#f6f6f6"


@dataclass(frozen=True)
class Network:
    """What is drawn of a network: its cells in the order of execution, and a line for each real layer around them."""

    cells: dict[str, Cell]
    before: list[str]
    between: list[str]
    after: list[str]


def read_network(network: nn.Module, architecture: Architecture) -> Network:
    """Read cells and real layers out of a built network.

    Raises:
        UserError: its cells are not those of the architecture, or an operation cannot give the shape of its edge.
    """
    if isinstance(network, torch.fx.GraphModule):
        calls = [str(node.target) for node in network.graph.nodes if node.op == "call_module"]
        modules = [(name, network.get_submodule(name)) for name in calls]
    else:
        modules = list(network.named_modules())
    cells = {name: module for name, module in modules if isinstance(module, Cell)}
    if set(cells) != set(architecture.cells):
        wrong = sorted(set(cells) ^ set(architecture.cells))[0]
        raise UserError(f'network: it is not of this architecture: only one of them has the cell "{wrong}"')
    for name, cell in cells.items():
        for edge in architecture.cells[name]:
            if not OPERATIONS[edge.operation].fits(edge_shape(cell.shape, edge.source)):
                raise UserError(
                    f"architecture: cells.{name}: {edge.operation} does not fit {shape_text(cell.shape)} here"
                )
    lines: dict[str, list[str]] = {"before": [], "between": [], "after": []}
    left = len(cells)
    for name, module in modules:
        left -= isinstance(module, Cell)
        line = _real_layer(module)
        if line and not any(name.startswith(f"{cell}.") for cell in cells):
            lines["after" if left == 0 else "before" if left == len(cells) else "between"].append(f"{name}: {line}")
    return Network(cells, **lines)


def _real_layer(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        stride = f" /{module.stride[0]}" if module.stride[0] > 1 else ""
        height, width = module.kernel_size
        groups = f", {module.groups} groups" if module.groups > 1 else ""
        return f"{height}x{width} {module.in_channels}-{module.out_channels}{stride}{groups}"
    if isinstance(module, ConvShortcut):
        return f"average pooling, 1x1 {module.conv.in_channels}-{module.conv.out_channels}"
    if isinstance(module, nn.Linear):
        return f"fully connected {module.in_features}-{module.out_features}"
    pooling = {nn.MaxPool2d: "max pooling", nn.AvgPool2d: "average pooling", nn.AdaptiveAvgPool2d: "average pooling"}
    return pooling.get(type(module), "")


def shape_text(shape: ConvShape) -> str:
    """Return a cell's shape, e.g. ``3x3 16-32 /2``."""
    return f"{shape.kernel_size[0]}x{shape.kernel_size[1]} {channels_text(shape)}"


def channels_text(shape: ConvShape) -> str:
    """Return channels and stride, e.g. ``16-32 /2``."""
    stride = f" /{shape.stride[0]}" if shape.stride[0] > 1 else ""
    return f"{shape.in_channels}-{shape.out_channels}{stride}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def network_page(architecture: Architecture, network: Network) -> Canvas:
    """Draw the whole network on one page."""
    nodes = architecture.cell.nodes
    titles = [
        text_width(name, 8, bold=True) + text_width(shape_text(cell.shape), 7) for name, cell in network.cells.items()
    ]
    panel = max(max(titles) + 30, 24 + SMALL.node[0] + 44 * (nodes + 1))
    rows = _rows(list(network.cells), max(1, min(MOST_COLUMNS, int((WIDEST + GAP) / (panel + GAP)))))
    columns = max(map(len, rows))
    width = max(NARROWEST, 2 * MARGIN + columns * panel + (columns - 1) * GAP)
    panel = (width - 2 * MARGIN - (columns - 1) * GAP) / columns

    inner = width - 2 * MARGIN
    header = _header(architecture, inner)
    legend = _legend(architecture, inner)
    strips = {
        part: wrapped(lines, "   ·   ", 7.5, inner - 90)
        for part, lines in (
            ("stem", [f"input {'x'.join(map(str, architecture.input_shape))}", *network.before]),
            ("other real layers", network.between),
            ("classifier", [*network.after, f"classes: {architecture.num_classes}"]),
        )
        if lines
    }
    # What lies above and below the nodes' centres in each row, label of backbone and shortcut included.
    spans = [_spans([(network.cells[name], architecture.cells[name]) for name in row]) for row in rows]
    height = (
        MARGIN + 26 + 12 * len(header) + 10 + 15 * len(legend) + 20
        + sum(12 * len(lines) + 10 + GAP for lines in strips.values())
        + sum(map(sum, spans)) + GAP * len(rows) + MARGIN - GAP
    )  # fmt: skip
    canvas = Canvas(width, height, f"nasb architecture of {architecture.host}")

    y = MARGIN + 12
    canvas.text(MARGIN, y, architecture.host, 16, bold=True)
    canvas.text(MARGIN + text_width(architecture.host, 16, bold=True) + 10, y, _share(architecture), 10, colour=INK)
    y += 18
    for line in header:
        canvas.text(MARGIN, y, line, 8, colour=GREY)
        y += 12
    y += 6
    for items in legend:
        _draw_legend(canvas, items, y)
        y += 15
    canvas.text(MARGIN, y + 2, _reading(architecture), 8, colour=GREY)
    y += 16
    y = _draw_strip(canvas, "stem", strips["stem"], y)
    for row, (above, below) in zip(rows, spans, strict=True):
        centre, row_height = y + above, above + below
        for column, name in enumerate(row):
            x = MARGIN + column * (panel + GAP)
            edges = architecture.cells[name]
            _draw_panel(canvas, (x, y, panel, row_height), centre, name, network.cells[name], edges)
            if column:
                canvas.curve([(x - GAP + 1.5, centre), (x - 1.5, centre)], GREY, 0.8, head=4)
        y += row_height + GAP
    for part in ("other real layers", "classifier"):
        if part in strips:
            y = _draw_strip(canvas, part, strips[part], y)
    return canvas


def _rows(names: Sequence[str], most: int) -> list[list[str]]:
    """Break the cells into rows of at most `most`; a stage of the network (layer1, ...) starts a new row.

    Where stages have hardly more than two cells (a MobileNet's blocks), they follow each other without a break.
    """
    parts = [name.split(".") for name in names]
    depth = 0
    while all(len(part) > depth + 1 for part in parts) and len({part[depth] for part in parts}) == 1:
        depth += 1
    # Neighbours only: the order of execution comes first.
    stages = [list(stage) for _, stage in groupby(names, lambda name: name.split(".")[depth])]
    groups = stages if len(names) / len(stages) >= 3 else [list(names)]

    def rows_of(columns: int) -> int:
        return sum(-(-len(group) // columns) for group in groups)

    most = next(columns for columns in range(1, most + 1) if rows_of(columns) == rows_of(most))
    return [group[start : start + most] for group in groups for start in range(0, len(group), most)]


def _spans(row: Sequence[tuple[Cell, Sequence[Edge]]]) -> tuple[float, float]:
    edges = [edge for _, chosen in row for edge in chosen]
    above, below = ((level_of(edges, paid=paid) + 1) * SMALL.level + SMALL.node[1] / 2 for paid in (True, False))
    with_label = any(cell.shortcut is not None and _short_shortcut(cell) for cell, _ in row)
    return above + 22 + (8 if row[0][0].config.bases > 1 else 0), below + 8 + (8 if with_label else 0)


def _header(architecture: Architecture, width: float) -> list[str]:
    given = [f"{key} {_plain(value)}" for key, value in architecture.options.items()] or ["no options"]
    of_host = ["host: " + given[0], *given[1:], f"input {'x'.join(map(str, architecture.input_shape))}"]
    cell = [f"{field.name} {_plain(getattr(architecture.cell, field.name))}" for field in fields(architecture.cell)]
    cell[0] = f"cell: {cell[0]}"
    return wrapped(of_host, "  ·  ", 8, width) + wrapped(cell, "  ·  ", 8, width)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _share(architecture: Architecture) -> str:
    live = [prune(edges, architecture.cell.nodes) for edges in architecture.cells.values()]
    busy = sum(bool(edges) for edges in live)
    if not busy:
        return f"none of {_count(len(live), 'cell')} has edges: the hand-made binary network"
    return (
        f"{busy} of {_count(len(live), 'cell')} ({100 * busy / len(live):.0f}%) "
        f"{'has' if busy == 1 else 'have'} edges, {sum(map(len, live))} in all"
    )


def _reading(architecture: Architecture) -> str:
    """Return how the panels are read."""
    text = "above the nodes, solid: binary convolutions  ·  below, dashed: operations without OPs"
    nodes = architecture.cell.nodes
    dead = any(len(prune(edges, nodes)) < len(edges) for edges in architecture.cells.values())
    return text + ("  ·  pale: on no way from in to out, not computed" if dead else "")


def _legend(architecture: Architecture, width: float) -> list[list[tuple[str, str]]]:
    """Return lines of (operation, text); the operation is "" for what every cell has."""
    counts = Counter(edge.operation for edges in architecture.cells.values() for edge in edges)
    order = sorted(counts, key=lambda name: (not OPERATIONS[name].paid, name))
    items = [(name, f"{SHORT_NAMES.get(name, name)} = {name} ({counts[name]})") for name in order]
    items.append(("", "always there: backbone (above), shortcut (below)"))
    lines: list[list[tuple[str, str]]] = [[]]
    for item in items:
        used = sum(_legend_width(text) for _, text in lines[-1])
        if lines[-1] and used + _legend_width(item[1]) > width:
            lines.append([])
        lines[-1].append(item)
    return lines


def _legend_width(text: str) -> float:
    return text_width(text, 8) + 48


def _draw_legend(canvas: Canvas, items: Sequence[tuple[str, str]], y: float) -> None:
    x = MARGIN
    for name, text in items:
        dashed = bool(name) and not OPERATIONS[name].paid
        canvas.curve([(x, y), (x + 26, y)], colour_of(name) if name else FAINT, 1.6, dashed=dashed, head=5)
        canvas.text(x + 31, y, text, 8, up="center_baseline")
        x += _legend_width(text)


def _draw_strip(canvas: Canvas, name: str, lines: Sequence[str], y: float) -> float:
    height = 12 * len(lines) + 10
    canvas.box(MARGIN, y, canvas.width - 2 * MARGIN, height, edge=FAINT, fill=QUIET_FILL, behind=True)
    canvas.text(MARGIN + 8, y + 14, name, 8, bold=True, colour=GREY)
    for index, line in enumerate(lines):
        canvas.text(MARGIN + 92, y + 14 + 12 * index, line, 7.5, colour=GREY)
    return y + height + GAP


def _draw_panel(
    canvas: Canvas, box: tuple[float, float, float, float], centre: float, name: str, cell: Cell, edges: Sequence[Edge]
) -> None:  # fmt: skip
    x, y, width, height = box
    quiet = not edges
    canvas.box(x, y, width, height, edge=FAINT if quiet else INK, fill=QUIET_FILL if quiet else PAPER, behind=True)
    canvas.text(x + 7, y + 12, name, 8, bold=not quiet, colour=GREY if quiet else INK)
    canvas.text(x + width - 7, y + 12, shape_text(cell.shape), 7, colour=GREY, across="right")
    graph = CellGraph(canvas, SMALL, cell.config.nodes, x + 12, x + width - 12, centre)
    bases = cell.config.bases
    graph.draw_frame(cell, edges, f"K = {bases}" if bases > 1 else "", _short_shortcut(cell))
    graph.draw_edges(edges, [SHORT_NAMES.get(edge.operation, edge.operation) for edge in edges])
    graph.draw_nodes([""] * (cell.config.nodes + 2), edges)


def _short_shortcut(cell: Cell) -> str:
    if cell.shortcut is None:
        return {"addition": "the block's addition", "concatenation": "the concatenation"}.get(
            cell.passed_by, "no shortcut"
        )
    if isinstance(cell.shortcut, ConvShortcut):
        return "real 1x1"
    if isinstance(cell.shortcut, AvgMaxShortcut):
        return "avg, max"
    return "" if cell.shape.keeps_shape else "adapt"
