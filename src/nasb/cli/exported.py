"""What the commands do with an exported file, model.onnx: the engine runs it. And nasb bench."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasb.cli.matching import check_images
from nasb.cli.parsing import PLUGIN_HELP, load_plugins, parser
from nasb.engine import engine_errors, engine_module
from nasb.errors import UserError, unknown_name

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from torch import nn

    from nasb.data import ImageData
    from nasb.engine import Session
    from nasb.training.evaluation import Result

PEERS = ("torch", "onnxruntime", "onnxruntime-int8")
ENGINE_OPTIONS: dict[str, tuple[type, str]] = {
    "threads": (int, "of model.onnx: threads; null or 0: as many as the process may use"),
    "kernel": (str, "of model.onnx: kernel of binary convolutions (nasb info); null: the best"),
    "batch": (int, "of model.onnx with FOLDER: images in one run of the engine; null: 32"),
}
"""What nasb-engine's commands take beside nasb's own, and its help. None where it is not given."""


def is_exported(target: str) -> bool:
    """Tell whether a command's target is a file for the engine."""
    return target.lower().endswith(".onnx")


def add_engine_options(p: "ArgumentParser", *names: str) -> None:
    """Let a command take options of the engine; what other targets do with them, `refuse_engine_options` says."""
    for name in names:
        kind, text = ENGINE_OPTIONS[name]
        p.add_argument(f"--{name}", type=kind, default=None, help=text)


def _given(values: "Namespace") -> dict[str, int | str]:
    return {name: values[name] for name in ENGINE_OPTIONS if values.get(name) is not None}


def refuse_engine_options(values: "Namespace", target: str) -> None:
    """Refuse options of the engine beside a target that torch runs.

    Raises:
        UserError: one is given.
    """
    for name in _given(values):
        raise UserError(f"--{name}: is for an exported file, model.onnx, which the engine runs; {target}")


def run_engine(command: str, values: "Namespace", *arguments: str) -> int:
    """Do what ``nasb-engine COMMAND`` does with these arguments and the options given; return its exit code."""
    options = [f"--{name}={value}" for name, value in _given(values).items()]
    main: Callable[..., int] = engine_module("nasb_engine.cli").main
    return main([command, *arguments, *options, *(["--json"] if values.json else [])], program="nasb")


def evaluate_exported(target: str, data: "ImageData", part: str, threads: int, kernel: str) -> "Result":
    """Return Top-1, Top-5 and loss of an exported file on a part of the data, run by the engine.

    Raises:
        UserError: the engine is not installed or refuses the file, or the file was made for other images or classes.
    """
    import torch
    import torch.nn.functional as F

    from nasb.data import Preprocessing
    from nasb.training.evaluation import Score

    with engine_errors():
        session = engine_module("nasb_engine").Session(target, threads=threads, kernel=kernel)
        if session.output_shape != (data.num_classes,):
            raise UserError(f"{target}: has {session.output_shape} outputs; the data have {data.num_classes} classes")
        steps = session.preprocessing
        trained_on = None if steps is None else Preprocessing.from_dict(asdict(steps))
        check_images(target, trained_on, session.class_names, data)
        score = Score(top5=data.num_classes > 5)
        for images, target_N in data.evaluation_batches(part):
            logits = torch.from_numpy(session.run(images.to(torch.float32).contiguous()))
            score.add(logits, target_N, F.cross_entropy(logits, target_N))
    return score.take()


def bench_command(arguments: Sequence[str]) -> None:
    """Print the speed of an exported file beside other engines."""
    p = parser(
        "bench",
        "Time an exported file on one image beside other engines, in turns within one process: median and quartiles of "
        "the rounds' ratios. The peers run the real-valued network that the binary one replaces, with random "
        "weights: --real-network, else the host that the file names, with the options that the file tells; "
        "--real-model in its place for onnxruntime.",
    )
    p.add_argument("model", help="model.onnx of nasb export")
    p.add_argument("--against", type=str, default="", help=f"peers, separated by commas: {', '.join(PEERS)}")
    p.add_argument("--real-network", type=str, default=None, help="registered real network that the peers run")
    p.add_argument("--real-model", type=str, default=None, help="real-valued ONNX file for the peers onnxruntime*")
    p.add_argument("--threads", type=int, default=1, help="threads of every peer")
    p.add_argument("--plugin", action="append", default=[], help=PLUGIN_HELP)
    p.add_argument("--rounds", type=int, default=30, help="rounds, each with a turn of every peer")
    p.add_argument("--kernel", type=str, default="", help='kernel of binary convolutions (nasb info); "": the best')
    p.add_argument("--json", action="store_true", help="print JSON")
    values = p.parse_args(list(arguments))
    against = [name.strip() for name in values.against.split(",") if name.strip()]
    for name in against:
        if name not in PEERS:
            raise UserError(unknown_name("peer", name, PEERS))
    if values.real_network is not None and not against:
        raise UserError("--real-network is for peers that run it; give --against")
    load_plugins(values.plugin)
    bench = engine_module("nasb_engine.bench")
    with engine_errors(), tempfile.TemporaryDirectory(prefix="nasb-bench-") as folder:
        others: Callable[[Any], Mapping[str, Callable[[], object]]] | None = None
        real_model = values.real_model
        networks: dict[str, str] = {}
        if "torch" in against or (real_model is None and against):
            session = engine_module("nasb_engine").Session(values.model, threads=1)
            host, called = _real_host(session, values.model, values.real_network)
            networks = {name: called for name in against if name == "torch" or real_model is None}
            if "torch" in against:
                others = _torch_peer(host, values.threads)
            if real_model is None and against != ["torch"]:
                real_model = _export_host(session.input_shape, host, Path(folder, "real.onnx"))
        record = bench.bench(
            values.model,
            [name for name in against if name != "torch"],
            real_model=real_model,
            threads=values.threads,
            rounds=values.rounds,
            kernel=values.kernel,
            others=others,
            networks=networks,
        )
    print(json.dumps(record, indent=1) if values.json else bench.describe(record))


def _real_host(session: "Session", path: str, name: str | None) -> "tuple[nn.Module, str]":
    """Return the real network that an exported file's binary one replaces, with random weights, and what to call it.

    It has the file's options of its host, or, where the user names another host, those of them that this one knows.

    Raises:
        UserError: neither the user nor the file names it, or it was never a real one.
    """
    from nasb.cells.architecture import Architecture
    from nasb.networks.registry import create_host, find_host, is_rival

    text = session.metadata.get("nasb.architecture")
    try:
        architecture = None if text is None else Architecture.from_dict(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its metadata nasb.architecture are damaged: {error}") from None
    if name is not None:
        if is_rival(name):
            raise UserError(f"--real-network is {name}, which is hand-made and binary; give a real network")
    elif architecture is None:
        raise UserError(
            f"{path}: does not name the host that it was made of, so there is no real network to compare with; give "
            "--real-network"
        )
    elif is_rival(architecture.host):
        raise UserError(
            f"{path}: {architecture.host} is hand-made and replaces no real network to compare with; give "
            "--real-network"
        )
    else:
        name = architecture.host
    options = {} if architecture is None else dict(architecture.options)
    if architecture is not None and name != architecture.host:
        options = {key: value for key, value in options.items() if key in find_host(name).options()}
    network = create_host(
        name, num_classes=session.output_shape[0], in_channels=session.input_shape[0], options=options
    )
    called = ", ".join(f"{key}: {value}" for key, value in options.items())
    return network.eval(), f"{name} ({called})" if called else name


def _torch_peer(host: "nn.Module", threads: int) -> Callable[[Any], Mapping[str, Callable[[], object]]]:
    import torch

    def make(image: Any) -> Mapping[str, Callable[[], object]]:
        x_NCHW = torch.from_numpy(image)
        torch.set_num_threads(threads)

        def run() -> object:
            with torch.inference_mode():
                return host(x_NCHW)

        return {"torch": run}

    return make


def _export_host(shape: tuple[int, ...], host: "nn.Module", out: Path) -> str:
    from nasb.deploy import export_onnx

    export_onnx(host, out, shape)
    return str(out)
