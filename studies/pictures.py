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
from matplotlib.ticker import FuncFormatter

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#767676", "#e69f00")
"""Okabe and Ito's, safe for the colour-blind."""
MARKERS = ("o", "s", "^", "D", "v", "P")
LINE = 0.032
"""Height of a label, as a share of the picture's."""


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
            for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
                axis(FuncFormatter(lambda value, _: f"{value:g}"))
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
    """Write each label beside its point, moved up where it would cover one that stands there."""
    axes.autoscale_view()
    low, high = axes.get_ylim()
    step = LINE * (high - low)
    taken: list[tuple[float, float]] = []  # x as a share of the axis, and y
    for point in sorted(points, key=lambda p: p.y):
        across = axes.transLimits.transform(axes.transScale.transform((point.x, point.y)))[0]
        y = point.y
        while any(abs(across - other) < 0.25 and abs(y - there) < step for other, there in taken):
            y += step / 4
        taken.append((across, y))
        left = across > 0.5  # inside the picture
        axes.annotate(
            point.label,
            (point.x, y),
            xytext=(-5 if left else 5, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=6.5,
        ).set_in_layout(False)
