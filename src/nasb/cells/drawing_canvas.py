"""Canvas, on which the pages of nasb.cells.draw are drawn, and the graph of one cell.

All lengths are in points (1/72 inch), x to the right and y down, so that they compare with font sizes. An edge is an
arc whose height is its level: the number of nodes that it advances. So no two edges share a place, and inside each
there is room for its label. The backbone and the shortcut lie one level further out, with their labels outside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path
from matplotlib.textpath import text_to_path

from nasb.cells.architecture import Edge, prune
from nasb.cells.operations import OPERATIONS

if TYPE_CHECKING:
    from nasb.cells.cell import Cell

DOTS_PER_INCH = 120
INK, GREY, FAINT, PAPER = "#222222", "#767676", "#b8b8b8", "#ffffff"

# Okabe and Ito's palette, without its yellow, which white paper swallows; the olive is of Paul Tol's. Both palettes are
# safe for the colour-blind.
COLOURS = {
    "identity": "#000000",
    "avg_pool_3x3": "#009e73",
    "max_pool_3x3": "#999933",
    "bin_conv_1x1": "#e69f00",
    "bin_conv_3x3": "#0072b2",
    "bin_conv_5x5": "#d55e00",
    "dil_bin_conv_3x3": "#56b4e9",
    "dil_bin_conv_5x5": "#cc79a7",
}
SHORT_NAMES = {
    "identity": "id",
    "avg_pool_3x3": "avg",
    "max_pool_3x3": "max",
    "bin_conv_1x1": "1x1",
    "bin_conv_3x3": "3x3",
    "bin_conv_5x5": "5x5",
    "dil_bin_conv_3x3": "3x3d",
    "dil_bin_conv_5x5": "5x5d",
}


def colour_of(operation: str) -> str:
    """Return the colour of an operation; grey for one that a user has registered."""
    return COLOURS.get(operation, GREY)


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Return the width of a line of text."""
    font = FontProperties(size=size, weight="bold" if bold else "normal")
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0])


def wrapped(items: Sequence[str], separator: str, size: float, width: float) -> list[str]:
    """Join items to lines that are at most `width` wide; an item is never broken."""
    lines: list[str] = []
    for item in items:
        if lines and text_width(lines[-1] + separator + item, size) <= width:
            lines[-1] += separator + item
        else:
            lines.append(item)
    return lines


class Canvas:
    """One page of `width` x `height`."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=DOTS_PER_INCH, facecolor=PAPER)
        FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_xlim(0, width)
        self.axes.set_ylim(height, 0)
        self.axes.set_axis_off()

    def save(self, path: FilePath, form: str) -> None:
        """Write the page as ``svg`` or ``png``, without date and version."""
        nothing = {"Software": None} if form == "png" else {"Date": None, "Creator": None}
        self.figure.savefig(path, format=form, dpi=DOTS_PER_INCH, metadata={"Title": self.title, **nothing})

    def text(
        self, x: float, y: float, text: str, size: float, *, bold: bool = False, colour: str = INK,
        across: str = "left", up: str = "baseline",
    ) -> None:  # fmt: skip
        """Write text, which may have several lines."""
        if not text:
            return
        self.axes.text(
            x, y, text, fontsize=size, fontweight="bold" if bold else "normal", color=colour, linespacing=1.1,
            horizontalalignment=across, verticalalignment=up, parse_math=False, zorder=4,
        )  # fmt: skip

    def box(
        self, x: float, y: float, width: float, height: float, *, edge: str, fill: str = PAPER, thick: float = 0.8,
        behind: bool = False,
    ) -> None:  # fmt: skip
        """Draw a rounded box, (x, y) its upper left corner, above the lines or behind them."""
        style = f"round,pad=0,rounding_size={min(4.0, height / 3)}"
        self.axes.add_patch(
            FancyBboxPatch((x, y), width, height, boxstyle=style, edgecolor=edge, facecolor=fill, linewidth=thick,
                           zorder=0 if behind else 3)
        )  # fmt: skip

    def curve(
        self, points: Sequence[tuple[float, float]], colour: str, thick: float, *, dashed: bool = False,
        alpha: float = 1.0, head: float = 0.0,
    ) -> None:  # fmt: skip
        """Draw a line (2 points) or a cubic Bezier curve (4), with an arrow's head of length `head` at its end."""
        (x0, y0), (x1, y1) = points[-2:]
        length = max(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, 1e-9)
        dx, dy = (x1 - x0) / length * head, (y1 - y0) / length * head
        if head:
            corners = [(x1, y1), (x1 - dx - dy * 0.4, y1 - dy + dx * 0.4), (x1 - dx + dy * 0.4, y1 - dy - dx * 0.4)]
            self.axes.add_patch(Polygon(corners, facecolor=colour, edgecolor="none", alpha=alpha, zorder=2))
        codes = [Path.MOVETO, *[Path.LINETO if len(points) == 2 else Path.CURVE4] * (len(points) - 1)]
        path = Path([*points[:-1], (x1 - dx * 0.8, y1 - dy * 0.8)], codes)
        style = (0, (3.2, 1.6)) if dashed else "solid"
        self.axes.add_patch(
            PathPatch(path, facecolor="none", edgecolor=colour, linewidth=thick, linestyle=style, alpha=alpha,
                      capstyle="butt", zorder=1)
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GraphStyle:
    """Sizes of a cell's graph."""

    node: tuple[float, float]
    """Width and height of a node."""
    level: float
    """Height of an arc above the one below it."""
    font: float
    """Size of the labels on edges; those of nodes are 0.5 larger."""
    thick: float
    """Thickness of a chosen edge; backbone and shortcut have 0.7 of it."""
    port: float
    """Distance between the ends of two arcs at a node."""
    head: float
    """Length of an arrow's head."""


def level_of(edges: Sequence[Edge], *, paid: bool) -> int:
    """Return the highest level that the edges of one side take, 0 without edges."""
    return max((edge.target - edge.source for edge in edges if OPERATIONS[edge.operation].paid == paid), default=0)


class CellGraph:
    """The graph of one cell between x0 and x1, its nodes' centres at y."""

    def __init__(self, canvas: Canvas, style: GraphStyle, nodes: int, x0: float, x1: float, y: float) -> None:
        self.canvas, self.style, self.y = canvas, style, y
        inset = style.node[0] / 2
        self.xs = [x0 + inset + (x1 - x0 - 2 * inset) * node / (nodes + 1) for node in range(nodes + 2)]

    def draw_nodes(self, notes: Sequence[str], edges: Sequence[Edge]) -> None:
        """Draw the nodes, each with its name and, if it is not empty, a note in its box; faint where no edge is."""
        width, height = self.style.node
        names = ["in", *map(str, range(1, len(self.xs) - 1)), "out"]
        for node, (x, name, note) in enumerate(zip(self.xs, names, notes, strict=True)):
            outer = node in (0, len(self.xs) - 1)
            quiet = not (edges if outer else any(node in (edge.source, edge.target) for edge in edges))
            edge, ink = (FAINT, GREY) if quiet else (INK, INK)
            self.canvas.box(x - width / 2, self.y - height / 2, width, height, edge=edge)
            up = self.y - (height * 0.2 if note else 0)
            self.canvas.text(
                x, up, name, self.style.font + 0.5, bold=not quiet, colour=ink, across="center", up="center_baseline"
            )
            if note:
                self.canvas.text(
                    x,
                    self.y + height * 0.22,
                    note,
                    self.style.font - 1,
                    colour=GREY,
                    across="center",
                    up="center_baseline",
                )

    def arc(
        self, source: int, target: int, *, above: bool, level: int, slot: int, label: str, colour: str, ink: str = INK,
        thick: float = 1.0, alpha: float = 1.0, outside: bool = False,
    ) -> None:  # fmt: skip
        """Draw an edge; `slot`, from 1, is the place of its ends at the nodes, from their sides to the middle."""
        style, side = self.style, -1 if above else 1
        offset = style.node[0] / 2 - 1.5 - (slot - 1) * style.port
        start, end = self.xs[source] + offset, self.xs[target] - offset
        edge_of_node = self.y + side * style.node[1] / 2
        # A cubic Bezier curve with both handles at height h rises to 3/4 h.
        apex = edge_of_node + side * level * style.level
        handle = edge_of_node + side * level * style.level * 4 / 3
        bend = 0.06 * (end - start)
        self.canvas.curve(
            [(start, edge_of_node), (start + bend, handle), (end - bend, handle), (end, edge_of_node)],
            colour, style.thick * thick, dashed=not above, alpha=alpha, head=style.head,
        )  # fmt: skip
        up, down = ("bottom", "top") if above else ("top", "bottom")
        x = (start + end) / 2
        if outside:
            self.canvas.text(x, apex + side * 2, label, style.font, colour=ink, across="center", up=up)
        else:
            # The lowest arcs are narrow at their top, so their labels lie deeper.
            inset = style.level * (0.42 if level == 1 else 0.1)
            self.canvas.text(x, apex - side * inset, label, style.font, colour=ink, across="center", up=down)

    def draw_edges(self, edges: Sequence[Edge], labels: Sequence[str]) -> None:
        """Draw the chosen edges; those that lie on no way from input to output are pale."""
        live = prune(edges, len(self.xs) - 2)
        for edge, label in zip(edges, labels, strict=True):
            level = edge.target - edge.source
            self.arc(
                edge.source, edge.target, above=OPERATIONS[edge.operation].paid, level=level, slot=level, label=label,
                colour=colour_of(edge.operation), alpha=1.0 if edge in live else 0.3,
            )  # fmt: skip

    def draw_frame(self, cell: "Cell", edges: Sequence[Edge], backbone: str, shortcut: str) -> None:
        """Draw what every cell has: the backbone above all edges, the shortcut below."""
        above, below = level_of(edges, paid=True) + 1, level_of(edges, paid=False) + 1
        self._frame(above, backbone, above=True)
        if cell.shortcut is not None:
            self._frame(below, shortcut, above=False)
        else:
            x, y = (self.xs[0] + self.xs[-1]) / 2, self.y + self.style.node[1] / 2 + below * self.style.level
            self.canvas.text(x, y, shortcut, self.style.font, colour=GREY, across="center", up="bottom")

    def _frame(self, level: int, label: str, *, above: bool) -> None:
        last = len(self.xs) - 1
        self.arc(
            0,
            last,
            above=above,
            level=level,
            slot=last + 1,
            label=label,
            colour=FAINT,
            ink=GREY,
            thick=0.7,
            outside=True,
        )
