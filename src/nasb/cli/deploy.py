"""nasb export: from a trained network to one ONNX file."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nasb.cli.parsing import PLUGIN_HELP, load_plugins, parser
from nasb.errors import UserError

if TYPE_CHECKING:
    from nasb.deploy import Export


def export_command(arguments: Sequence[str]) -> None:
    """Write a trained network as ONNX."""
    p = parser(
        "export",
        "ONNX file of a trained network, one bit per binary weight. The file is compared with the network before it "
        "appears.",
    )
    p.add_argument("target", help="run directory or model.safetensors")
    p.add_argument("-o", "--output", type=str, required=True, help="FILE.onnx")
    p.add_argument("--plugin", action="append", default=[], help=PLUGIN_HELP)
    p.add_argument("--json", action="store_true", help="print JSON")
    values = p.parse_args(list(arguments))
    load_plugins(values.plugin)
    from nasb.deploy import check_path, export_model
    from nasb.model_file import load_model

    check_path(values.output)
    if not values.output.endswith(".onnx"):
        raise UserError(f"--output is {values.output}; give a name that ends in .onnx")
    result = export_model(load_model(values.target), values.output)
    if values.json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        _print(result)


def _print(result: "Export") -> None:
    """Print what the file holds, what stayed real and why."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("part", overflow="fold")
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("because", overflow="fold")
    for part, size, reason in result.rows():
        table.add_row(part, f"{size:,}", reason)
    console.print(table)
    checked = result.verification
    agreed = f"logits within {checked.logit_error:.1e} of the largest"
    if checked.flipped == checked.images:
        agreed = "layer by layer; in each of them a sign differed, by rounding, so that the logits tell nothing"
    elif checked.flipped:
        agreed += f"; in {checked.flipped} of them a sign differed, by rounding"
    console.print(
        f"predicted {result.predicted_bytes:,.0f} bytes, file {result.file_bytes:,} bytes "
        f"({result.file_bytes / result.predicted_bytes - 1:+.1%})\n"
        f"compared with the network on {checked.images} images: {agreed}\n{result.path}",
        soft_wrap=True,
    )
