"""Wrong things given to the commands that read a trained network, or look at one: one line and exit code 2."""

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from nasb.model_file import load_model
from nasb.networks import create_network
from tests.cli.conftest import Command, Refused, cut, tiny_architecture

MakeImages = Callable[..., Path]


# A model file


def damage(path: Path, fault: str) -> tuple[str, ...]:
    """Damage a model file; return what the message has to say."""
    if fault == "missing":
        path.unlink()
        return ("there is no such file",)
    if fault == "cut":
        cut(path, 0.9)
        return ("is not a whole safetensors file",)
    with safe_open(path, framework="pt") as stream:
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - no dict
        metadata = stream.metadata()
    values = json.loads(metadata["nasb"])
    says = "its metadata is damaged"
    if fault == "no metadata":
        save_file(tensors, path)
        return ("was not written by nasb",)
    if fault == "tensors of another":
        tensors["conv1.weight"] = tensors["conv1.weight"][:2].clone()
        says = "conv1.weight"
    elif fault == "missing tensor":
        del tensors["conv1.weight"]
        says = "conv1.weight"
    elif fault == "newer version":
        values["version"], says = 99, "version 99"
    elif fault == "unknown host":
        values["architecture"]["host"], says = "resnet22", "resnet22"
    elif fault == "too few classes":
        values["class_names"], says = ["only one"], "class"
    elif fault == "other phase":
        values["phase"]["weights"], says = "ternary", "ternary"
    elif fault == "other preprocessing":
        values["preprocessing"]["size"], says = "large", "large"
    texts = {"cut JSON": metadata["nasb"][:-10], "not a mapping": "[1]", "deep JSON": "[" * 100_000}
    text = texts.get(fault, json.dumps(values))
    save_file(tensors, path, {"nasb": text})
    return (says,)


@pytest.mark.parametrize(
    "fault",
    [
        "missing", "cut", "no metadata", "cut JSON", "not a mapping", "deep JSON", "tensors of another",
        "missing tensor", "newer version", "unknown host", "too few classes", "other phase", "other preprocessing",
    ],
)  # fmt: skip
def test_a_damaged_model_file(
    refused: Refused, model: Path, tmp_path: Path, make_images: MakeImages, fault: str
) -> None:
    image = make_images(tmp_path / "data", ("train",), count=1) / "train" / "cat" / "0.png"
    says = ("model.safetensors", *damage(model, fault))
    refused("predict", model, image, says=says)
    refused("evaluate", model, "--data.name", "digits", says=says)
    refused("summary", model, says=says)


def test_evaluate(refused: Refused, model: Path, tmp_path: Path, make_images: MakeImages) -> None:
    root = make_images(tmp_path / "data", ("train",))
    (tmp_path / "empty").mkdir()
    refused("evaluate", model, says=("a file does not tell which images",))
    refused("evaluate", model, "--data.name", "digits", "--part", "tests", says=("--part is 'tests'", "validation"))
    flags = ["--data.name", "folder", "--data.root", root, "--data.image_size", "8"]
    refused("evaluate", model, *flags, says=("was trained on images of 1 channel(s)", "folder have 3"))
    refused("evaluate", tmp_path / "empty", says=("is not a run directory",))
    refused("evaluate", tmp_path / "nowhere", says=("nowhere: there is no such run directory or file",))
    refused("evaluate", model, "--data.name", "digits", "--option", "width=4", says=("--option: is for --network",))


@pytest.mark.parametrize("arguments", [("predict", "m.onnx", "a.png", "--top"), ("bench", "m.onnx", "--rounds")])
def test_a_number_that_is_none(refused: Refused, arguments: tuple[str, ...]) -> None:
    line = refused(*arguments, "x", says=())
    assert line == f"nasb: {arguments[-1]} is x; give a whole number"


@pytest.mark.parametrize("fault", ["missing", "text"])
def test_predict_without_an_image(command: Command, model: Path, tmp_path: Path, fault: str) -> None:
    image = tmp_path / "image.png"
    if fault == "text":
        image.write_text("not an image")
    result = command("predict", model, image)
    assert result.code == 2
    # One line for each image, and their number, as many images may be asked for.
    first, last = result.err.splitlines()
    assert first.startswith("nasb: image ")
    assert str(image) in first
    assert last == "nasb: 1 of 1 images have no prediction"


def test_predict_with_an_image_too_long_and_with_lost_weights(
    command: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(model)
    monkeypatch.setattr("nasb.model_file.load_model", lambda target: loaded)
    object.__setattr__(loaded, "preprocessing", replace(loaded.preprocessing, resize=10_000))
    Image.new("L", (1, 60_000)).save(tmp_path / "long.png")
    Image.new("L", (8, 8)).save(tmp_path / "small.png")
    with torch.no_grad():
        list(loaded.network.parameters())[-1].fill_(torch.nan)
    result = command("predict", model, tmp_path / "long.png", tmp_path / "small.png")
    assert result.code == 2
    assert result.out == ""
    long, small, _ = result.err.splitlines()
    assert f'image "{tmp_path / "long.png"}" cannot be prepared: an image of 1 x 60,000 pixels' in long
    assert small.endswith("small.png\": the network's scores are not finite; the weights are damaged")


# Looking at networks


@pytest.mark.parametrize("size", ["3x32", "3x32x32x1", "axbxc", "0x32x32", "3x-1x32", ""])
def test_a_bad_input_size(refused: Refused, size: str) -> None:
    refused("summary", "resnet20", "--input-size", size, says=(f'--input-size is "{size}"', "3x224x224"))


def test_options(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    tiny_architecture().save(path)
    refused("summary", "resnet20", "--option", "width", says=('--option is "width"; give key=value',))
    refused("plan", "resnet20", "--option", "width", says=('--option is "width"; give key=value',))
    refused("summary", "resnet20", "--option", "width=four", says=("resnet20", "four"))
    for key in [name for name in inspect.signature(create_network).parameters if name != "options"]:
        refused("summary", "nasb_resnet20", "--option", f"{key}=5", says=(f"--option: {key} is no option", "; give "))
    refused("summary", path, "--option", "width=4", says=("the file has its own",))
    refused("summary", path, "--input-size", "3x8x8", says=("is for 1 channels",))
    refused("summary", cut(path), says=("architecture.json: is not valid JSON",))
    refused("summary", tmp_path, says=("is not valid JSON",))
    path.unlink()
    refused("summary", tmp_path, says=("holds no architecture.json",))
    refused("summary", "model.onnx", says=("model.onnx: is an exported file", "give the run directory"))


def test_drawings(refused: Refused, tmp_path: Path) -> None:
    old = tmp_path / "old.svg"
    old.write_text("a former drawing")
    refused("draw", "resnet20", "-o", tmp_path / "x.gif", says=("x.gif", ".svg or .png"))
    refused("draw", "resnet20", "-o", tmp_path / "no" / "x.svg", says=("x.svg: cannot be written",))
    says = ('unknown cell "layer1.0.conv"', "closest: layer1.0.conv")
    refused("draw", "resnet20", "-o", old, "--cell", "layer1.0.conv", says=says)
    refused("draw", "resnet20", says=("output",))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no such file"),
        ("1/0\n", "failed: ZeroDivisionError"),
        ("this is no Python\n", "failed: SyntaxError"),
        ("import nowhere\n", "failed: ModuleNotFoundError"),
        ("raise ValueError('two\\nlines')\n", "failed: ValueError: two"),
        ("import sys; sys.exit(3)\n", "failed: SystemExit"),
    ],
)
def test_plugins_that_fail(refused: Refused, tmp_path: Path, text: str | None, says: str) -> None:
    plugin = tmp_path / "plugin.py"
    if text is not None:
        plugin.write_text(text)
    refused("plan", "resnet20", "--plugin", plugin, says=("plugin.py", says))
    refused("run", "--out", tmp_path / "run", "--plugin", plugin, says=("plugin.py", says))


def test_a_plugin_is_run_once_a_process(command: Command, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(f"with open({str(tmp_path / 'told')!r}, 'a') as file:\n    file.write('x')\n")
    for _ in range(2):
        assert command("plan", "resnet20", "--plugin", plugin).code == 0
    assert (tmp_path / "told").read_text() == "x"
