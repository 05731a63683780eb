"""draw_architecture(): an Architecture as a picture, the whole network on one page or one cell large.

The picture is for people who judge a search: which cells got edges, which operations, where the hand-made cell was left
as it is. Binary convolutions are drawn above the nodes and solid, operations without OPs below and dashed; the backbone
and the shortcut, which every cell has, are faint.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nasb.cells.architecture import Architecture
from nasb.errors import UserError, unknown_name
from nasb.files import write_atomically

if TYPE_CHECKING:
    from torch import nn

FORMATS = (".svg", ".png")


def draw_architecture(
    architecture: Architecture, path: str | Path, *, cell: str | None = None, network: "nn.Module | None" = None
) -> None:
    """Write a drawing of an architecture; the same architecture gives the same bytes.

    Args:
        architecture: what to draw.
        path: file to write, atomically: ``.svg`` or ``.png``.
        cell: qualified name of one cell, drawn large with everything written on it; None: the whole network on one
            page.
        network: the network that `architecture.build` gave, whose shapes are read. None: it is built, which needs a
            registered host.

    Raises:
        UserError: another suffix, a cell that the architecture does not have, a host that is not registered, a network
            of another architecture, or a path that cannot be written. Nothing is written then.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f'{path}: a drawing ends in {" or ".join(FORMATS)}, not in "{path.suffix}"')
    architecture = Architecture.from_dict(architecture.to_dict())  # refuses what no file could hold; drops "none"
    if not architecture.cells:
        raise UserError(f"{architecture.host}: has no cells, so there is nothing to draw")
    if cell is not None and cell not in architecture.cells:
        raise UserError(f"{architecture.host}: {unknown_name('cell', cell, architecture.cells)}")

    import matplotlib
    import torch

    from nasb.cells.drawing_cell import cell_page
    from nasb.cells.drawing_network import network_page, read_network

    if network is None:
        with torch.random.fork_rng(devices=[]):  # fresh weights are drawn; the caller's random state stays
            network = _build(architecture)
    described = read_network(network, architecture)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's own style would change the picture
        # hashsalt: names inside the SVG are random without it. fonttype: text stays text, so that it can be searched.
        matplotlib.rcParams.update({"svg.hashsalt": "nasb", "svg.fonttype": "none"})
        canvas = (
            network_page(architecture, described) if cell is None else cell_page(architecture, described, name=cell)
        )
        write_atomically(path, lambda temporary: canvas.save(temporary, path.suffix.lower().removeprefix(".")))


def _build(architecture: Architecture) -> "nn.Module":
    from nasb.networks import host_defaults

    try:
        host_defaults(architecture.host)
    except UserError as error:
        raise UserError(f"{error}; in Python, register it or give network=architecture.build(host)") from None
    # Only shapes are read: the network without edges has the same ones, and is converted many times faster.
    return replace(architecture, cells=dict.fromkeys(architecture.cells, ())).build()
