"""The page of nasb.cells.draw that shows one cell large, with everything written on it.

Units: see nasb.cells.drawing_canvas.
"""

from collections.abc import Sequence

from torch import nn

from nasb.cells.adapt import Adapt, AvgMaxShortcut, ConvShape, ConvShortcut
from nasb.cells.architecture import Architecture, Edge, prune
from nasb.cells.cell import Cell, edge_shape
from nasb.cells.drawing_canvas import GREY, Canvas, CellGraph, GraphStyle, level_of, text_width
from nasb.cells.drawing_network import Network, channels_text, shape_text
from nasb.cells.operations import OPERATIONS

MARGIN = 36.0
STYLE = GraphStyle(node=(96, 38), level=54, font=9, thick=2.0, port=10, head=9)
BETWEEN_NODES = 220.0
NARROWEST = 640.0


def cell_page(architecture: Architecture, network: Network, *, name: str) -> Canvas:
    """Draw one cell on a page of its own."""
    cell, edges = network.cells[name], architecture.cells[name]
    shape, config = cell.shape, cell.config
    above, below = level_of(edges, paid=True), level_of(edges, paid=False)
    notes = _notes(cell, edges)
    place = f"cell {list(network.cells).index(name) + 1} of {len(network.cells)} of {architecture.host}"
    facts = f"{shape_text(shape)}  ·  {_size(shape.in_size)} to {_size(shape.out_size)} pixels  ·  {place}"

    first = max((text_width(head, 9, bold=True) for head, _ in notes), default=0) + 14
    widest = max(first + text_width(line, 9) for _, lines in notes for line in lines)
    width = 2 * MARGIN + max(NARROWEST, (config.nodes + 1) * BETWEEN_NODES + STYLE.node[0], widest)
    top = MARGIN + 64 + (above + 1) * STYLE.level + STYLE.node[1] / 2
    bottom = top + STYLE.node[1] / 2 + (below + 1) * STYLE.level + 46
    height = bottom + sum(14 * len(lines) + 4 for _, lines in notes) + MARGIN - 6

    canvas = Canvas(width, height, f"nasb cell {name} of {architecture.host}")
    canvas.text(MARGIN, MARGIN + 10, name, 16, bold=True)
    canvas.text(MARGIN, MARGIN + 28, facts, 9, colour=GREY)
    graph = CellGraph(canvas, STYLE, config.nodes, MARGIN, width - MARGIN, top)
    bases = f"{config.bases} x " if config.bases > 1 else ""
    backbone = f"backbone: {bases}binary convolution {_size(shape.kernel_size)}, BN"
    graph.draw_frame(cell, edges, backbone, f"shortcut S: {_shortcut(cell, short=True)}")
    live = prune(edges, config.nodes)
    graph.draw_edges(edges, [_label(edge, shape, alive=edge in live) for edge in edges])
    outer = _tensor(shape.out_channels, shape.out_size)
    graph.draw_nodes([_tensor(shape.in_channels, shape.in_size), *[outer] * (config.nodes + 1)], edges)
    y = bottom
    for head, lines in notes:
        canvas.text(MARGIN, y, head, 9, bold=True)
        for line in lines:
            canvas.text(MARGIN + first, y, line, 9)
            y += 14
        y += 4
    return canvas


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _tensor(channels: int, size: tuple[int, int]) -> str:
    return f"{channels}x{_size(size)}"


def _label(edge: Edge, shape: ConvShape, *, alive: bool) -> str:
    wanted = edge_shape(shape, edge.source)
    if OPERATIONS[edge.operation].paid:
        note = f"{channels_text(wanted)}, BN"
    else:
        note = "BN" if wanted.keeps_shape else "of adapt(in), BN"
    return f"{edge.operation}\n{note if alive else 'dead: not computed'}"


def _shortcut(cell: Cell, *, short: bool) -> str:
    if cell.passed_by:
        return {
            "addition": "none, the host's residual block keeps its addition around the cell",
            "concatenation": "none, the host concatenates what the cell's branch has read",
        }[cell.passed_by]
    if cell.shortcut is None:
        return f"none, {cell.shape.in_channels} channels cannot be averaged to {cell.shape.out_channels}"
    if isinstance(cell.shortcut, ConvShortcut):
        stride = cell.shape.stride
        pooling = f"average pooling {_size(stride)}, " if stride != (1, 1) else ""
        return f"{pooling}real 1x1 {cell.shape.in_channels}-{cell.shape.out_channels}, BN"
    if isinstance(cell.shortcut, AvgMaxShortcut):
        added = cell.shape.out_channels - cell.shape.in_channels
        return f"average pooling {_size(cell.shape.stride)}; {added} channels added by max pooling, BN"
    if cell.shape.keeps_shape:
        return "identity" if short else "the cell's input itself"
    return "adapt(in)"


def _adapt(shape: ConvShape) -> str:
    """Return what adapt does to the cell's input."""
    steps = []
    if shape.stride != (1, 1):
        steps.append(f"average pooling {_size(shape.stride)}")
    elif shape.out_size != shape.in_size:
        steps.append(f"cut or extended to {_size(shape.out_size)} pixels")
    if shape.out_channels > shape.in_channels:
        steps.append(f"{shape.in_channels} channels repeated and cut to {shape.out_channels}")
    elif shape.out_channels < shape.in_channels:
        steps.append(f"{shape.in_channels} channels averaged to {shape.out_channels}")
    return ", ".join(steps) + "; no parameters"


def _notes(cell: Cell, edges: Sequence[Edge]) -> list[tuple[str, list[str]]]:
    """Return (heading, lines) for below the graph."""
    shape, config = cell.shape, cell.config
    kernel = f"BinConv{_size(shape.kernel_size)}"
    apart = config.thresholds == "edge" and any(OPERATIONS[e.operation].paid and e.source == 0 for e in edges)
    learned = config.learned_threshold or config.bases > 1 or apart
    own = config.thresholds == "edge" and any(OPERATIONS[edge.operation].paid for edge in edges)
    shortcut = "" if cell.shortcut is None else "S(x) + "
    if config.bases > 1:
        formula = f"{shortcut}Σ BNₖ({kernel}ₖ(sign(x ≥ tₖ))),  k = 1..{config.bases}"
    else:
        formula = f"{shortcut}BN({kernel}(sign(x ≥ t)))"
    sum_of = "backbone" + (" + the edges to out" if edges else "")
    behind = "" if isinstance(cell.activation, nn.Identity) else f"{config.activation}("
    notes = [
        ("out", [f"{behind}{sum_of}{')' if behind else ''}"]),
        ("backbone", [formula]),
        ("S(x)", [_shortcut(cell, short=False)]),
        ("sign(x ≥ t)", [f"+1 where x ≥ t, else -1; {'one learned t for each channel' if learned else 't = 0'}"]),
    ]
    if not edges:
        notes.append(("edges", ["none: the hand-made cell"]))
    if own:
        notes.append(("binary convolutions", ["each edge has one learned t for each channel"]))
    if shape.keeps_shape:
        return notes
    paid = {OPERATIONS[edge.operation].paid for edge in edges if edge.source == 0}
    change = [f"binary convolutions: {channels_text(shape)} is their own"] if True in paid else []
    change += ["operations without OPs: read adapt(in)"] if False in paid else []
    if change:
        notes.append(("edges out of in", change))
    if False in paid or isinstance(cell.shortcut, Adapt):
        notes.append(("adapt(in)", [_adapt(shape)]))
    return notes
