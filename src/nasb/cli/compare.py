"""nasb compare: what networks cost, side by side; and their milliseconds, where the engine is installed."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nasb.cli.inspection import TARGET_HELP, build_target
from nasb.cli.parsing import PLUGIN_HELP, load_plugins, parser
from nasb.engine import engine_errors, engine_module
from nasb.errors import UserError, unknown_name

if TYPE_CHECKING:
    from nasb.cost.comparison import NetworkCost

WILDCARDS = "*?["


def compare_command(arguments: Sequence[str]) -> None:
    """Print networks side by side."""
    from nasb.cost.comparison import FORMATS, render_comparison

    p = parser(
        "compare",
        "OPs, MACs and memory of networks, side by side. With --latency each is exported with random weights and timed "
        "by the engine on one image, in turns within one process: medians, quartiles, and the rounds' ratios to the "
        "first network.",
    )
    p.add_argument("names", nargs="+", help=f"each a {TARGET_HELP}; or a shell wildcard of names, e.g. 'bireal_*'")
    p.add_argument("--input-size", type=str, default=None, help="CHANNELSxHEIGHTxWIDTH; null: each network's own")
    p.add_argument("--num-classes", type=int, default=None, help="classes; null: each network's own")
    p.add_argument("--option", action="append", default=[], help="key=value for all of them; repeatable")
    p.add_argument("--plugin", action="append", default=[], help=PLUGIN_HELP)
    p.add_argument("--latency", action="store_true", help="measure milliseconds on this machine, too")
    p.add_argument("--threads", type=int, default=1, help="threads of the engine")
    p.add_argument("--rounds", type=int, default=30, help="rounds, each with a turn of every network")
    p.add_argument("--format", type=str, default="table", help=", ".join(FORMATS))
    p.add_argument("--json", action="store_true", help="the same as --format json")
    values = p.parse_args(list(arguments))
    form = "json" if values.json else values.format
    if form not in FORMATS:
        raise UserError(f"--format: {unknown_name('format', form, FORMATS)}")
    load_plugins(values.plugin)
    if values.latency:
        engine_module("nasb_engine.bench")  # before any work is done
        if values.threads < 1:
            raise UserError(f"--threads is {values.threads}; it must be at least 1")
        if values.rounds < 1:
            raise UserError(f"--rounds is {values.rounds}; it must be at least 1")
    given = (values.input_size, values.option, values.num_classes)
    names = expand(values.names)
    rows = [cost_of(name, *given) for name in names]
    if values.latency:
        rows = _timed(rows, *given, threads=values.threads, rounds=values.rounds)
    print(render_comparison(rows, form))


def expand(names: Sequence[str]) -> list[str]:
    """Put the networks that match in place of each wildcard; each name once, in order.

    Searchable networks match no wildcard: they have no cost of their own.

    Raises:
        UserError: nothing matches a wildcard, or a name is that of a searchable network.
    """
    from nasb.networks import list_networks
    from nasb.networks.registry import SEARCHED, is_searchable

    found: dict[str, None] = {}
    for name in names:
        if not any(sign in name for sign in WILDCARDS):
            if is_searchable(name):
                raise UserError(
                    f"{name}: is searchable, so it has no cost of its own; give an architecture.json or a run directory"
                )
            found[name] = None
            continue
        matching = [match for match in list_networks(name) if not match.startswith(SEARCHED)]
        if not matching:
            raise UserError(f'"{name}" matches no network that has a cost; nasb list networks tells the names')
        found |= dict.fromkeys(matching)
    return list(found)


def cost_of(
    name: str, input_size: str | None = None, options: Sequence[str] = (), num_classes: int | None = None
) -> "NetworkCost":
    """Return the row of one network, without latency.

    Raises:
        UserError: there is no such network or file, or it does not fit the options or the size.
    """
    import torch

    from nasb.cost import count
    from nasb.cost.comparison import NetworkCost
    from nasb.networks import is_rival

    with torch.device("meta" if is_rival(name) else "cpu"):  # shapes are enough; conversion needs numbers
        network, shape = build_target(name, input_size, options, num_classes)
    try:
        return NetworkCost(network=name, input_shape=shape, count=count(network, shape))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _timed(
    rows: "Sequence[NetworkCost]",
    input_size: str | None,
    options: Sequence[str],
    num_classes: int | None,
    *,
    threads: int,
    rounds: int,
) -> "list[NetworkCost]":
    """Return the rows with what the engine measured."""
    import numpy as np

    from nasb.cost.comparison import Latency
    from nasb.deploy import export_onnx
    from nasb.networks.random_numbers import randomize

    engine, bench = engine_module("nasb_engine"), engine_module("nasb_engine.bench")
    with engine_errors(), tempfile.TemporaryDirectory(prefix="nasb-compare-") as folder:
        runners, sizes = {}, {}
        for row in rows:
            network, shape = build_target(row.network, input_size, options, num_classes)
            path = Path(folder, "network.onnx")
            export_onnx(randomize(network, shape), path, shape)
            session = engine.Session(path, threads=threads)
            image = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
            runners[row.network] = lambda session=session, image=image: session.run(image)
            sizes[row.network] = session.file_bytes
        compared = bench.compare(runners, rounds=rounds)
    return [
        replace(
            row,
            latency=Latency(
                ms=found.milliseconds.median,
                ms_lower_quartile=found.milliseconds.lower_quartile,
                ms_upper_quartile=found.milliseconds.upper_quartile,
                time_ratio=found.ratio.median,
                file_bytes=sizes[row.network],
            ),
        )
        for row, found in zip(rows, compared, strict=True)
    ]
