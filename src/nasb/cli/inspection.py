"""nasb summary, plan, draw, list, info: looking at networks without training them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasb.cli.exported import add_engine_options, is_exported, refuse_engine_options, run_engine
from nasb.cli.parsing import PLUGIN_HELP, load_plugins, parser
from nasb.errors import UserError, unknown_name

if TYPE_CHECKING:
    from torch import nn

    from nasb.cells.architecture import Architecture

TARGET_HELP = "name of a registered network, architecture.json, model.safetensors, or run directory"
NO_OPTIONS = {
    "name": "the network's name in its place",
    "num_classes": "--num-classes",
    "input_shape": "--input-size",
    "architecture": "the architecture.json in the network's place",
    "keep_real": "--keep-real of nasb plan, or network.keep_real of a run",
}
"""What create_network takes beside options, and how a command is told it."""


def parse_size(text: str) -> tuple[int, int, int]:
    """Read ``3x224x224`` as (channels, height, width).

    Raises:
        UserError: it is not three whole numbers above 0.
    """
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f'--input-size is "{text}"; give CHANNELSxHEIGHTxWIDTH, e.g. 3x224x224')
    return int(parts[0]), int(parts[1]), int(parts[2])


def parse_keep_real(texts: Sequence[str]) -> tuple[str, ...]:
    """Read names and wildcards; each text may be a JSON list of them, as a refusal writes it.

    Raises:
        UserError: a text begins as a list and is none of strings.
    """
    found: list[str] = []
    for text in texts:
        if not text.startswith("["):
            found.append(text)
            continue
        try:
            given = json.loads(text)
        except ValueError:
            given = None
        if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
            raise UserError(f'--keep-real is {text}; give a name, a wildcard, or a list such as ["layer4.*", "fc"]')
        found += given
    return tuple(found)


def parse_option(text: str) -> tuple[str, Any]:
    """Read ``key=value`` with a value in JSON, or a plain word.

    Raises:
        UserError: there is no "=".
    """
    key, separator, value = text.partition("=")
    if not separator:
        raise UserError(f'--option is "{text}"; give key=value, e.g. stem_stride=2')
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def find_architecture(target: str) -> "Architecture | None":
    """Return the architecture of a file or run directory; None if the target is neither."""
    from nasb.cells.architecture import Architecture

    path = Path(target)
    if path.is_dir():
        if not (path / "architecture.json").exists():
            raise UserError(
                f"{target}: holds no architecture.json: the search has not finished, or it is not a run directory"
            )
        return Architecture.load(path / "architecture.json")
    if path.suffix == ".safetensors":
        from nasb.model_file import load_model

        return load_model(path).architecture
    if path.suffix == ".onnx":
        raise UserError(f"{target}: is an exported file, whose layers are folded; give the run directory instead")
    if path.suffix == ".json" or path.is_file():
        return Architecture.load(path)
    return None


def build_target(
    target: str,
    input_size: str | None,
    options: Sequence[str],
    num_classes: int | None,
    keep_real: tuple[str, ...] = (),
) -> "tuple[nn.Module, tuple[int, int, int]]":
    """Return the network that a TARGET names, and its input shape.

    Raises:
        UserError: there is no such network or file, or an option does not fit it.
    """
    from nasb.networks import create_network, host_defaults

    shape = None if input_size is None else parse_size(input_size)
    architecture = find_architecture(target)
    if architecture is None:
        if Path(target.rpartition(":")[0]).is_file():
            load_plugins([target])  # a factory that is named here
        made = dict(parse_option(option) for option in options)
        for key, instead in NO_OPTIONS.items():
            if key in made:
                raise UserError(f"--option: {key} is no option of a network; give {instead}")
        network = create_network(target, num_classes=num_classes, input_shape=shape, keep_real=keep_real, **made)
        return network, shape or host_defaults(target)[0]
    if options or num_classes is not None:
        raise UserError(f"{target}: --option and --num-classes are for registered names; the file has its own")
    if shape is not None and shape[0] != architecture.input_shape[0]:
        raise UserError(f"{target}: is for {architecture.input_shape[0]} channels, --input-size has {shape[0]}")
    return architecture.build(), shape or architecture.input_shape


def summary_command(arguments: Sequence[str]) -> None:
    """Print the cost of a network."""
    p = parser("summary", "Cost of a network, layer by layer. One MAC is one operation; OPs = FLOPs + BOPs / 64.")
    p.add_argument("target", help=TARGET_HELP)
    p.add_argument("--input-size", type=str, default=None, help="CHANNELSxHEIGHTxWIDTH; null: the network's own")
    p.add_argument("--num-classes", type=int, default=None, help="classes; null: the network's own")
    p.add_argument("--option", action="append", default=[], help="key=value, e.g. stem_stride=2 or bases=3; repeatable")
    p.add_argument("--plugin", action="append", default=[], help=PLUGIN_HELP)
    p.add_argument(
        "--latency-table", type=str, default=None, help="predict milliseconds by it; null: the run directory's, if any"
    )
    p.add_argument("--json", action="store_true", help="print JSON")
    values = p.parse_args(list(arguments))
    load_plugins(values.plugin)
    from nasb.cost import count, render

    network, shape = build_target(values.target, values.input_size, values.option, values.num_classes)
    latency = _latency(values.target, values.latency_table, network, shape)
    result = count(network, shape)
    if values.json:
        print(json.dumps(result.to_dict() | latency, indent=1))
        return
    print(render(result))
    if latency:
        print(f"latency: {latency['predicted_ms']:.4g} ms predicted, on {latency['conditions']}")


def _latency(target: str, given: str | None, network: "nn.Module", shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return the predicted milliseconds of an architecture by a latency table; nothing where there is no table.

    Raises:
        UserError: the target is no architecture, or the table does not fit it.
    """
    kept = Path(target, "latency-table.json")
    if given is None and not kept.is_file():
        return {}
    from nasb.cost.latency import LatencyTable

    table = LatencyTable.load(kept if given is None else given)
    architecture = find_architecture(target)
    if architecture is None:
        raise UserError(f"{target}: --latency-table is for architectures: an architecture.json or a run directory")
    if shape != architecture.input_shape:
        if given is None:
            return {}
        raise UserError(
            f"--input-size is {'x'.join(map(str, shape))}: milliseconds are predicted at the architecture's own size, "
            f"{'x'.join(map(str, architecture.input_shape))}"
        )
    predicted = table.predict_architecture(architecture, network, own=given is None)
    return {"predicted_ms": predicted, "conditions": table.conditions}


def plan_command(arguments: Sequence[str]) -> None:
    """Print what conversion makes of a host."""
    p = parser("plan", "What conversion makes of each convolution of a host, and why.")
    p.add_argument("host", help="host network, torchvision/NAME, timm/NAME, or your own factory: file.py:function")
    p.add_argument("--input-size", type=str, default=None, help="CHANNELSxHEIGHTxWIDTH; null: the host's own")
    p.add_argument("--option", action="append", default=[], help="key=value; repeatable")
    p.add_argument("--keep-real", action="append", default=[], help='what stays real, e.g. "layer4.*"; repeatable')
    p.add_argument("--plugin", action="append", default=[], help=PLUGIN_HELP)
    p.add_argument("--json", action="store_true", help="print JSON")
    values = p.parse_args(list(arguments))
    load_plugins(values.plugin)
    if ":" in values.host:
        load_plugins([values.host])
    from nasb.networks import host_defaults, host_of, is_rival
    from nasb.networks.plan import plan_of

    host_defaults(values.host)  # raises for an unknown name
    if is_rival(values.host):
        raise UserError(f"{values.host}: is a hand-made binary network; nothing of it is converted")
    keep = parse_keep_real(values.keep_real)
    network, shape = build_target(f"bireal_{host_of(values.host)}", values.input_size, values.option, None, keep)
    plan = plan_of(network)
    if values.json:
        print(json.dumps([vars(row) for row in plan.rows], indent=1))
        return
    from nasb.deploy.export import refusal

    reason = refusal(network, shape)
    print(f"{plan}\n{'nasb export holds all of it' if reason is None else f'nasb export will refuse it: {reason}'}")


def draw_command(arguments: Sequence[str]) -> None:
    """Draw an architecture."""
    p = parser("draw", "Picture of an architecture: the whole network, or one cell.")
    p.add_argument("target", help=TARGET_HELP)
    p.add_argument("-o", "--output", type=str, required=True, help="FILE.svg or FILE.png")
    p.add_argument("--cell", type=str, default=None, help="draw this cell alone, e.g. layer1.0.conv1")
    p.add_argument("--plugin", action="append", default=[], help=PLUGIN_HELP)
    values = p.parse_args(list(arguments))
    load_plugins(values.plugin)
    from nasb.cells.draw import draw_architecture

    architecture = find_architecture(values.target) or _registered_architecture(values.target)
    draw_architecture(architecture, values.output, cell=values.cell)
    print(values.output)


def _registered_architecture(name: str) -> "Architecture":
    """Return the hand-made architecture of a registered name, so that it can be drawn."""
    from nasb.cells.architecture import Architecture
    from nasb.networks import create_network, host_defaults, host_of, is_rival
    from nasb.networks.plan import plan_of

    if is_rival(name):
        raise UserError(f"{name}: is a hand-made binary network without cells, so there is nothing to draw")
    host = host_of(name)
    shape, num_classes = host_defaults(name)
    plan = plan_of(create_network(f"bireal_{host}"))
    cells = dict.fromkeys(plan.becoming("cell"), ())
    return Architecture(host=host, num_classes=num_classes, input_shape=shape, cells=cells)


def list_command(arguments: Sequence[str]) -> None:
    """List names."""
    kinds = ("networks", "operations", "strategies", "datasets", "recipes")
    p = parser("list", f"List {', '.join(kinds)}.")
    p.add_argument("kind", nargs="?", help=f"{', '.join(kinds)}; without it, these are listed")
    p.add_argument("pattern", nargs="?", default="*", help="shell wildcard")
    p.add_argument("--json", action="store_true", help="print JSON")
    values = p.parse_args(list(arguments))
    if values.kind is None:
        print(json.dumps(kinds) if values.json else "\n".join(f"nasb list {kind}" for kind in kinds))
        return
    if values.kind not in kinds:
        raise UserError(unknown_name("list", values.kind, kinds))
    import fnmatch

    listing = _listing(values.kind, values.pattern)
    entries = {n: text for n, text in listing.items() if fnmatch.fnmatchcase(n, values.pattern)}
    if values.json:
        print(json.dumps(entries, indent=1))
        return
    if not entries:
        hint = "; others by torchvision/* and timm/*" if values.kind == "networks" else ""
        raise UserError(f'no {values.kind} match "{values.pattern}": nasb list {values.kind} shows all{hint}')
    width = max(map(len, entries))
    for name, text in entries.items():
        print(f"{name.ljust(width)}  {text}".rstrip())


def _listing(kind: str, pattern: str) -> dict[str, str]:
    if kind == "networks":
        from nasb.networks import describe_network, list_networks

        return {name: describe_network(name) for name in list_networks(pattern)}
    if kind == "operations":
        from nasb.cells.operations import OPERATIONS

        return {
            name: f"{'paid' if OPERATIONS[name].paid else 'free'}: {OPERATIONS[name].description}"
            for name in OPERATIONS
        }
    if kind == "strategies":
        from nasb.search import STRATEGIES

        return {name: STRATEGIES[name].description for name in STRATEGIES}
    if kind == "datasets":
        from nasb.data import dataset_names

        return dataset_names()
    from nasb.recipes import list_recipes, recipe_path

    lines = {name: recipe_path(name).read_text(encoding="utf-8").splitlines()[0] for name in list_recipes()}
    return {name: line.removeprefix("#").strip() for name, line in lines.items()}


def info_command(arguments: Sequence[str]) -> int | None:
    """Print versions and hardware, or what an exported file is."""
    p = parser("info", "Versions and hardware; with model.onnx what nasb-engine info tells of it.")
    p.add_argument("model", nargs="?", help="model.onnx of nasb export")
    add_engine_options(p, "threads", "kernel")
    p.add_argument("--json", action="store_true", help="print JSON")
    values = p.parse_args(list(arguments))
    if values.model is not None:
        if not is_exported(values.model):
            raise UserError(f"{values.model}: is no exported file, model.onnx; nasb summary tells of other networks")
        return run_engine("info", values, values.model)
    refuse_engine_options(values, "give one")
    from nasb.training.run_directory import environment

    facts = environment()
    del facts["command"]
    engine, engine_text = _engine_facts()
    if values.json:
        print(json.dumps(facts | {"engine": engine}, indent=1))
        return None
    for key, value in facts.items():
        print(f"{key}: {', '.join(f'{k} {v}' for k, v in value.items()) if isinstance(value, dict) else value}")
    print(f"engine: {engine_text}")
    return None


def _engine_facts() -> "tuple[dict[str, Any] | str, str]":
    """Return the record of the engine's kernels on this machine, and the same for a reader; or why there is none."""
    from nasb.engine import engine_module

    try:
        info = engine_module("nasb_engine._info")
    except UserError as error:
        return str(error), str(error)
    machine: dict[str, Any] = info.machine()
    return machine, "\n  ".join(info.describe_machine(machine).splitlines())
