"""nasb evaluate and predict: using a trained network."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nasb.cli.exported import add_engine_options, evaluate_exported, is_exported, refuse_engine_options, run_engine
from nasb.cli.matching import check_images
from nasb.cli.parsing import PLUGIN_HELP, load_plugins, parser
from nasb.engine import engine_module
from nasb.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import Namespace
    from torch import nn

    from nasb.cli.parsing import Parser
    from nasb.data import DataConfig, ImageData
    from nasb.model_file import Model

PARTS = ("test", "validation", "train")


def evaluate_command(arguments: Sequence[str]) -> int | None:
    """Print Top-1 and Top-5 of a trained network."""
    p = _evaluate_parser()
    values = p.parse_args(list(arguments))
    _check_evaluate(values, arguments)
    exported = is_exported(values.target)
    if exported:
        engine_module("nasb_engine")  # said before any data are opened
        if values.folder is not None:
            return run_engine("evaluate", values, values.target, values.folder)
    load_plugins(values.plugin)
    seed = values.seed
    if Path(values.target).is_dir():
        own, seed = _data_of_run(values.target)
        named = values["data"].name if any(argument.startswith("--data.name") for argument in arguments) else own.name
        if named == own.name:  # what is given counts on top of the run's own
            p.set_defaults({f"data.{key}": value for key, value in vars(own).items()})
            values = p.parse_args(list(arguments))
    elif not any(argument.startswith("--data") for argument in arguments):
        if not Path(values.target).exists():
            raise UserError(f"{values.target}: there is no such run directory or file")
        folder = "a FOLDER of images, or " if exported else ""
        raise UserError(
            f"{values.target}: a file does not tell which images to use; give {folder}--data.name (and --data.root)"
        )
    data = _open(values.target, p.instantiate(values)["data"], seed)
    if exported:
        result = evaluate_exported(values.target, data, values.part, values.threads or 0, values.kernel or "")
    else:
        from nasb.training.evaluation import evaluate

        result = evaluate(_network(values, data).eval(), data, values.part)
    if values.json:
        scores = {"top1": result.top1, "top5": result.top5, "loss": result.loss}
        print(json.dumps({"part": values.part, **scores, "images": result.images}))
    else:
        top5 = "" if result.top5 is None else f", Top-5 {result.top5:.2f}%"
        print(f"{values.part}: Top-1 {result.top1:.2f}%{top5}, loss {result.loss:.4f}, {result.images:,} images")
    return None


def _evaluate_parser() -> "Parser":
    from nasb.data import DataConfig

    p = parser(
        "evaluate",
        "Top-1 and Top-5 of a trained network. A run directory brings its own data; a model file needs --data.name. "
        "model.onnx with FOLDER does what nasb-engine evaluate does, which tells images per second, too.",
    )
    p.add_argument(
        "target",
        help="run directory, model.safetensors, model.onnx (run by the engine), or weights of a registered real "
        "network (with --network)",
    )
    p.add_argument(
        "folder",
        nargs="?",
        metavar="FOLDER",
        help="of model.onnx: folder with one folder of images for each class, or with test/ or val/",
    )
    p.add_argument("--part", type=str, default="test", help=", ".join(PARTS))
    p.add_argument("--network", type=str, default=None, help="registered real network whose weights the target holds")
    p.add_argument("--option", action="append", default=[], help="key=value: an option of --network; repeatable")
    p.add_argument("--plugin", action="append", default=[], help=PLUGIN_HELP)
    p.add_argument("--seed", type=int, default=0, help="seed of the validation split, where no run directory tells it")
    add_engine_options(p, "batch", "threads", "kernel")
    p.add_argument("--json", action="store_true", help="print JSON")
    p.add_class_arguments(DataConfig, "data")
    return p


def _check_evaluate(values: "Namespace", arguments: Sequence[str]) -> None:
    """Refuse options that do not fit the target, and what chooses other images beside a folder.

    Raises:
        UserError: names the option.
    """
    if values.part not in PARTS:
        raise UserError(f"--part is {values.part!r}; accepted: {', '.join(PARTS)}")
    if values.option and values.network is None:
        raise UserError("--option: is for --network, which is not given")
    if not is_exported(values.target):
        refuse_engine_options(values, f"{values.target} is none")
        if values.folder is not None:
            raise UserError(
                f"{values.folder}: a folder of images is for an exported file, model.onnx, which the engine runs; give "
                f"--data.name folder --data.root {values.folder}"
            )
        return
    if values.network is not None:
        raise UserError(f"{values.target}: is a whole network; leave out --network")
    if values.folder is None:
        if values.batch is not None:
            raise UserError("--batch: is for FOLDER; give --data.batch_size")
        return
    for argument in arguments:
        if argument.startswith(("--part", "--seed", "--data")):
            raise UserError(
                f"{argument.partition('=')[0]}: does not go with {values.folder}; give the folder of the images "
                "themselves, or leave it out and choose by --data.name"
            )


def _open(target: str, config: "DataConfig", seed: int) -> "ImageData":
    """Open the data; tell whom a folder without train/ suffices."""
    from nasb.data import open_data

    try:
        return open_data(config, seed=seed)
    except UserError as error:
        if is_exported(target) and config.name == "folder" and config.root and Path(config.root).is_dir():
            hint = f"nasb evaluate {target} {config.root} takes a folder that has no train/"
            raise UserError(f"{error}; {hint}") from None
        raise


def _network(values: "Namespace", data: "ImageData") -> "nn.Module":
    """Return the network of a run directory or model file, or --network with the weights of the target."""
    if values.network is None:
        model = _model(values.target)
        check_images(values.target, model.preprocessing, model.class_names, data)
        return model.network
    from nasb.cli.inspection import parse_option
    from nasb.networks import create_host
    from nasb.training.optimization import load_weights

    options = dict(parse_option(option) for option in values.option)
    network = create_host(
        values.network, num_classes=data.num_classes, in_channels=data.input_shape[0], options=options
    )
    load_weights(network, values.target)
    return network


def _data_of_run(target: str) -> "tuple[DataConfig, int]":
    """Return the data config and the seed of a run directory."""
    from nasb.data import DataConfig
    from nasb.training.run_directory import read_config

    values = read_config(Path(target))
    try:
        return DataConfig(**values["data"]), int(values["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{target}/config.yaml: is damaged: {error}") from None


def _model(target: str) -> "Model":
    from nasb.model_file import load_model

    return load_model(target)


def predict_command(arguments: Sequence[str]) -> int | None:
    """Print the classes of images."""
    p = parser("predict", "Classes of images, with the probabilities that the network gives.")
    p.add_argument("target", help="run directory, model.safetensors, or model.onnx (run by the engine)")
    p.add_argument("images", nargs="+", help="image files")
    p.add_argument("--top", type=int, default=3, help="how many classes to print for each image")
    p.add_argument("--plugin", action="append", default=[], help=PLUGIN_HELP)
    add_engine_options(p, "threads", "kernel")
    p.add_argument("--json", action="store_true", help="print JSON")
    values = p.parse_args(list(arguments))
    if values.top < 1:
        raise UserError(f"--top is {values.top}; it must be at least 1")
    if is_exported(values.target):
        return run_engine("predict", values, values.target, *values.images, f"--top={values.top}")
    refuse_engine_options(values, f"{values.target} is none")
    load_plugins(values.plugin)
    import torch

    from nasb.data import load_image, preparing

    model = _model(values.target)
    failed = 0
    found = {}
    for path in values.images:
        try:
            image = load_image(path)
            with preparing(path):
                image_CHW = model.preprocessing(image)
            with torch.no_grad():
                scores = model.network(image_CHW[None])[0]
            if not scores.isfinite().all():
                raise UserError(f'image "{path}": the network\'s scores are not finite; the weights are damaged')
        except UserError as error:
            failed += 1
            print(f"nasb: {error}", file=sys.stderr)
            continue
        probabilities = scores.softmax(0)
        best = probabilities.topk(min(values.top, len(model.class_names)))
        found[path] = {model.class_names[int(i)]: float(p) for p, i in zip(best.values, best.indices, strict=True)}
    if values.json:
        print(json.dumps(found, indent=1))
    else:
        for path, classes in found.items():
            print(f"{path}: " + ", ".join(f"{name} {probability:.1%}" for name, probability in classes.items()))
    if failed:
        raise UserError(f"{failed} of {len(values.images)} images have no prediction")
    return None
