"""A picture of labelled points, as docs/ shows them: accuracy over OPs, over milliseconds, over bytes.

The same points give the same bytes, so that a picture in the repository changes only with its numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#767676", "#e69f00")
"""Okabe and Ito's, safe for the colour-blind."""
MARKERS = ("o", "s", "^", "D", "v", "P")
LINE, LETTER, MARK = 0.028, 0.0088, 0.008
"""Height of a label, width of one of its letters, half the size of a point: shares of the axes."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One network."""

    label: str
    group: str
    """Points of one group have one colour and one entry in the legend."""
    x: float
    y: float
    error: float = 0.0
    """Half the length of its bar along y."""


def draw_points(
    path: Path, points: Sequence[Point], *, title: str, x: str, y: str, front: bool = False, log: bool = False
) -> None:
    """Write an SVG.

    Args:
        path: the file.
        points: what to draw.
        title, x, y: of the picture and its axes.
        front: join the points that no other one beats in both, more y and less x.
        log: the x axis is logarithmic.
    """
    groups = list(dict.fromkeys(point.group for point in points))
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "nasb", "svg.fonttype": "none", "font.size": 8})
        figure = Figure(figsize=(7.4, 5.0), facecolor="#ffffff", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for number, group in enumerate(groups):
            mine = [point for point in points if point.group == group]
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            errors = [point.error for point in mine] if any(point.error for point in mine) else None
            axes.errorbar([p.x for p in mine], [p.y for p in mine], errors, linestyle="none", markersize=5, label=group,
                          elinewidth=0.8, capsize=2, **style)  # fmt: skip
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.12, y=0.08)
        if front:
            best = pareto(points)
            axes.plot([p.x for p in best], [p.y for p in best], color="#b8b8b8", linewidth=1, zorder=0, label="front")
        axes.set(title=title, xlabel=x, ylabel=y)
        axes.grid(visible=True, color="#eeeeee", linewidth=0.6)
        axes.legend(loc="lower right", frameon=True, fontsize=7)
        _write_labels(axes, points)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None, "Title": title})


def pareto(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats or equals in both, by x."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not found or point.y > found[-1].y:
            found.append(point)
    return found


def _write_labels(axes: Axes, points: Sequence[Point]) -> None:
    """Write each label at the nearest free place beside its point, with a line to it where that is not at its side."""
    axes.autoscale_view()
    to_axes = axes.transScale + axes.transLimits
    at = {point: tuple(to_axes.transform((point.x, point.y))) for point in points}
    marks = [_Box(x - MARK, x + MARK, y - MARK, y + MARK) for x, y in at.values()]
    taken: list[_Box] = []
    for point in sorted(points, key=lambda p: (-p.y, p.x)):
        x, y = at[point]
        box, side = _free(x, y, LETTER * len(point.label), [*marks, *taken])
        taken.append(box)
        left, middle = side < 0, (box.bottom + box.top) / 2
        end = box.right if left else box.left
        if abs(end - x) + abs(middle - y) > 3 * MARK:
            axes.plot([x, end], [y, middle], color="#b8b8b8", linewidth=0.5, zorder=0, transform=axes.transAxes)
        axes.text(
            end, middle, point.label, transform=axes.transAxes, ha="right" if left else "left", va="center",
            fontsize=6.5,
        ).set_in_layout(False)  # fmt: skip


@dataclass(frozen=True)
class _Box:
    """A rectangle, in shares of the axes."""

    left: float
    right: float
    bottom: float
    top: float

    def meets(self, other: "_Box") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )


def _free(x: float, y: float, width: float, taken: Sequence[_Box]) -> tuple[_Box, int]:
    """Return the place of a label of a point at (x, y), and on which side of it: the first one that meets nothing."""
    places = []
    for ring in range(14):
        for rise in dict.fromkeys((0, ring, -ring)):
            for side in (1, -1):
                near = x + side * MARK * (1.4 if ring < 2 else 1.4 + ring / 2)
                begin, end = sorted((near, near + side * width))
                middle = y + rise * LINE
                places.append((_Box(begin, end, middle - LINE / 2, middle + LINE / 2), side))
    inside = [place for place in places if place[0].left > 0 and place[0].right < 1 and 0 < place[0].bottom < 1 - LINE]
    return next((place for place in inside if not any(place[0].meets(other) for other in taken)), places[0])
