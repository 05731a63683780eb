"""nasb latency-table: milliseconds of every operation of a search space on this device, or the list for another one."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasb.cli.inspection import parse_keep_real, parse_option, parse_size
from nasb.cli.parsing import PLUGIN_HELP, load_plugins, parser
from nasb.engine import engine_errors, engine_module
from nasb.errors import UserError, unknown_name

if TYPE_CHECKING:
    from torch import nn

    from nasb.cells.architecture import Edge


def latency_table_command(arguments: Sequence[str]) -> None:
    """Measure the operations of a search space, or write what there is to measure."""
    p = parser(
        "latency-table",
        "Measure each operation of a network's search space with the engine on this device: a latency table for "
        "search.budget_ms. For a device without torch: --shapes-only here, `nasb-engine latency-table` there.",
    )
    p.add_argument("--network", type=str, required=True, help="registered host network: nasb list networks")
    p.add_argument("--input-size", type=str, default=None, help="CHANNELSxHEIGHTxWIDTH; null: the host's own")
    p.add_argument("--num-classes", type=int, default=None, help="classes; null: the host's own")
    p.add_argument(
        "--option",
        action="append",
        default=[],
        help="key=value: an option of the host or of the cells, e.g. stem_stride=2 or activation=prelu; repeatable",
    )
    p.add_argument("--keep-real", action="append", default=[], help="network.keep_real of the run; repeatable")
    p.add_argument("--operations", type=str, default=None, help="candidates, separated by commas; null: all")
    p.add_argument("--plugin", action="append", default=[], help=PLUGIN_HELP)
    p.add_argument("--threads", type=int, default=1, help="threads of the engine; 0: as many as the process may use")
    p.add_argument("--repeats", type=int, default=100, help="rounds; each measures every operation once")
    p.add_argument("--kernel", type=str, default="", help='kernel of binary convolutions (nasb info); "": the best')
    p.add_argument("--shapes-only", action="store_true", help="write what is to be measured, for nasb-engine")
    p.add_argument("-o", "--output", type=str, required=True, help="FILE.json")
    p.add_argument("--json", action="store_true", help="print the table as JSON")
    values = p.parse_args(list(arguments))
    load_plugins(values.plugin)
    if ":" in values.network:
        from nasb.networks import register_factory

        register_factory(values.network)
    from nasb.deploy import check_path
    from nasb.files import write_text

    check_path(values.output)
    engine = None if values.shapes_only else engine_module("nasb_engine.latency")
    if values.repeats < 1:
        raise UserError(f"--repeats is {values.repeats}; it must be at least 1")
    shapes = _shapes(values)
    if engine is None:
        write_text(Path(values.output), json.dumps(shapes, indent=1) + "\n")
        print(
            json.dumps(shapes, indent=1)
            if values.json
            else f"{values.output}: {len(shapes['entries'])} operations; now, on the device:\n"
            f"nasb-engine latency-table {Path(values.output).name} -o table.json"
        )
        return
    with engine_errors():
        table = engine.measure_table(
            shapes,
            threads=values.threads,
            repeats=values.repeats,
            kernel=values.kernel,
            progress=engine.Bar("latency table"),
        )
    write_text(Path(values.output), json.dumps(table, indent=1) + "\n")
    print(json.dumps(table, indent=1) if values.json else f"{engine.describe(table)}\n{values.output}")


def _shapes(values: Any) -> dict[str, Any]:
    from nasb.cells.config import CellConfig
    from nasb.cost.latency import SHAPES, VERSION, network_key, shapes_of
    from nasb.networks import create_host, host_defaults, is_rival
    from nasb.networks.convert import convert
    from nasb.networks.registry import find_host

    if is_rival(values.network):
        raise UserError(
            f"--network: {values.network} is a hand-made binary network: it has no operations to choose from"
        )
    known = find_host(values.network)
    own_shape, own_classes = host_defaults(values.network)
    shape = own_shape if values.input_size is None else parse_size(values.input_size)
    classes = own_classes if values.num_classes is None else values.num_classes
    given = dict(parse_option(option) for option in values.option)
    of_cell = {field.name for field in fields(CellConfig)}
    cell = CellConfig(**{key: value for key, value in given.items() if key in of_cell})
    options = {key: value for key, value in given.items() if key not in of_cell}
    for key in options:
        if not known.accepts(key):
            raise UserError(f"--option: {unknown_name('key', key, [*known.options(), *of_cell])}")
    operations = None
    if values.operations is not None:
        operations = [name.strip() for name in values.operations.split(",") if name.strip()]
    host = create_host(values.network, num_classes=classes, in_channels=shape[0], options=options)
    keep = parse_keep_real(values.keep_real)
    found = shapes_of(convert(host, shape, cell=cell, keep_real=keep), operations)
    if not found.entries:
        raise UserError("--operations: no candidate fits this network")

    def packed(cells: "Mapping[str, Sequence[Edge]] | None" = None) -> str:
        return _packed(convert(host, shape, cell=cell, cells=cells, keep_real=keep), shape)

    return {
        "format": SHAPES,
        "version": VERSION,
        "network": network_key(values.network, options, classes, shape, cell, keep),
        "entries": found.entries,
        "backbone": {"file": packed()},
        "probes": {
            kind: {"entries": found.probe_entries[kind], "file": packed(cells)} for kind, cells in found.probes.items()
        },
    }


def _packed(network: "nn.Module", shape: tuple[int, int, int]) -> str:
    """Return the network's exported file as text. Its weights are constant: they do not matter, and pack well."""
    import base64
    import zlib

    import torch
    from torch.nn import BatchNorm2d

    from nasb.deploy import export_onnx

    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.fill_(1 / 64)
        for number, module in enumerate(network.modules()):
            if isinstance(module, BatchNorm2d):  # equal ones behind equal operations would be computed once
                module.weight.fill_(1 + number / 4096)
    with tempfile.TemporaryDirectory(prefix="nasb-latency-") as folder:
        path = Path(folder, "network.onnx")
        export_onnx(network.eval(), path, shape)
        return base64.b64encode(zlib.compress(path.read_bytes(), 9)).decode("ascii")
