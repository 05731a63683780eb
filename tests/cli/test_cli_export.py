"""nasb export: what it writes and prints, and how it refuses."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from nasb.deploy.verify import Verification
from nasb.model_file import BINARY, load_model, save_model
from tests.cli.conftest import Command, Refused, contents

PRETRAINING = {"weights": "real", "activations": "hardtanh"}


def test_a_model_file_becomes_an_onnx_file(command: Command, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "[red]:cat:.onnx"  # printed as it is, not taken for rich's markup
    result = command("export", model, "-o", path)
    assert (result.code, result.err) == (0, "")
    text = " ".join(result.out.split())
    assert "conv1 (real) 160 first convolution" in text
    assert "linear (real) 680 classifier" in text
    assert f"file {path.stat().st_size:,} bytes" in text
    assert result.out.splitlines()[-1] == str(path)
    loaded = load_model(model)
    values = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(values["nasb.class_names"]) == list(loaded.class_names)
    assert json.loads(values["nasb.preprocessing"]) == loaded.preprocessing.to_dict()
    assert json.loads(values["nasb.architecture"]) == loaded.architecture.to_dict()
    images = torch.randn(2, 1, 8, 8)
    (logits,) = ReferenceEvaluator(str(path)).run(None, {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), loaded.network(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("flipped", "says"),
    [
        (0, "on 10 images: logits within 1.0e-07 of the largest\n"),
        (3, "logits within 1.0e-07 of the largest; in 3 of them a sign differed, by rounding\n"),
        (10, "on 10 images: layer by layer; in each of them a sign differed"),
    ],
)
def test_signs_that_rounding_turned_are_told(
    command: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flipped: int, says: str
) -> None:
    monkeypatch.setattr("nasb.deploy.export.verify", lambda *arguments: Verification(10, flipped, 1e-7))
    assert says in command("export", model, "-o", tmp_path / "m.onnx").out


def test_json(command: Command, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    values = json.loads(command("export", model, "--output", path, "--json").out)
    assert set(values) == {"path", "predicted_bytes", "file_bytes", "parts", "real_layers", "verification"}
    assert values["path"] == str(path)
    assert values["file_bytes"] == path.stat().st_size == sum(values["parts"].values())
    assert [layer["name"] for layer in values["real_layers"]] == ["conv1", "linear"]
    assert values["verification"]["images"] > 0


def test_a_run_directory(command: Command, tiny: Path, tmp_path: Path) -> None:
    run, path = tmp_path / "run", tmp_path / "run" / "model.onnx"
    assert command("run", "--config", tiny, "--out", run).code == 0
    assert command("export", run, "-o", path).code == 0
    onnx.checker.check_model(onnx.load(path))


def test_an_unfinished_run(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    refused("export", tmp_path / "run", "-o", tmp_path / "m.onnx", says=("the run has not finished",))


def test_a_missing_file(refused: Refused, tmp_path: Path) -> None:
    refused("export", tmp_path / "no", "-o", tmp_path / "m.onnx", says=("no: there is no such file",))


def test_a_model_in_its_phase_of_pretraining(refused: Refused, model: Path, tmp_path: Path) -> None:
    loaded = load_model(model)
    path = tmp_path / "pretrained.safetensors"
    save_model(path, loaded.network, loaded.architecture, loaded.preprocessing, loaded.class_names, PRETRAINING)
    (tmp_path / "m.onnx").write_bytes(b"former")
    says = ("layer1.0.conv1.binarize.0 is in its phase of pretraining", "finetune the network first")
    refused("export", path, "-o", tmp_path / "m.onnx", says=says)


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("missing/m.onnx", ("missing/m.onnx: cannot be written: there is no directory",)),
        (".", ("is a directory; give the name of a file",)),
        ("model.txt", ("give a name that ends in .onnx",)),
        ("model.safetensors/m.onnx", ("cannot be written: there is no directory",)),
    ],
)
def test_an_output_that_cannot_be_written(
    refused: Refused, model: Path, tmp_path: Path, output: str, says: tuple[str, ...]
) -> None:
    refused("export", model, "-o", tmp_path / output, says=says)


def test_an_output_without_permission(
    refused: Refused, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nasb.deploy.export.os.access", lambda path, mode: False)
    refused("export", model, "-o", tmp_path / "m.onnx", says=("m.onnx: cannot be written: no permission",))


def test_an_output_that_is_no_regular_file(refused: Refused, model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.onnx")
    refused("export", model, "-o", tmp_path / "m.onnx", says=("m.onnx: cannot be written: it is not a regular file",))
    assert (tmp_path / "m.onnx").is_fifo()


def test_a_link_is_followed(command: Command, refused: Refused, model: Path, tmp_path: Path) -> None:
    (tmp_path / "link.onnx").symlink_to("real.onnx")
    (tmp_path / "real.onnx").write_bytes(b"former")
    assert command("export", model, "-o", tmp_path / "link.onnx").code == 0
    assert (tmp_path / "link.onnx").is_symlink()
    onnx.checker.check_model(onnx.load(tmp_path / "real.onnx"))
    (tmp_path / "lost.onnx").symlink_to("nowhere/m.onnx")
    refused(
        "export", model, "-o", tmp_path / "lost.onnx", says=("lost.onnx: cannot be written: it leads to", "nowhere")
    )


def test_a_full_disk_leaves_the_former_file(
    refused: Refused, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"former")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("nasb.files.os.fsync", full)
    refused("export", model, "-o", tmp_path / "m.onnx", says=("m.onnx: cannot be written: No space left on device",))


def test_without_output(refused: Refused, model: Path) -> None:
    refused("export", model, says=("output",))


def test_an_abbreviated_option_is_refused(refused: Refused, model: Path, tmp_path: Path) -> None:
    refused("export", model, "--out", tmp_path / "m.onnx", says=("unknown option --out (closest: --output",))


def test_a_host_that_is_not_registered_here(refused: Refused, model: Path, tmp_path: Path) -> None:
    loaded = load_model(model)
    architecture = replace(loaded.architecture, host="my_host")
    path = tmp_path / "own.safetensors"
    save_model(path, loaded.network, architecture, loaded.preprocessing, loaded.class_names, BINARY)
    refused("export", path, "-o", tmp_path / "m.onnx", says=("own.safetensors", '"my_host"', "--plugin FILE.py"))


def test_a_layer_that_the_file_cannot_hold(refused: Refused, command: Command, tiny: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "own.py"
    plugin.write_text(
        "import nasb\n"
        "from torch import nn\n"
        "@nasb.register_host('own_elu_host', input_shape=(1, 8, 8), num_classes=10)\n"
        "def own(num_classes, in_channels):\n"
        "    '''Own.'''\n"
        "    layers = [nn.Conv2d(in_channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)]\n"
        "    head = [nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 8), nn.ELU()]\n"
        "    return nn.Sequential(*layers, *head, nn.Linear(8, num_classes))\n"
    )
    run = tmp_path / "run"
    options = ("--network.host", "own_elu_host", "--network.options", "{}")
    result = command("run", "--config", tiny, "--plugin", plugin, *options, "--out", run)
    assert result.code == 0, result.err
    before = contents(tmp_path)
    line = refused("export", run, "-o", tmp_path / "m.onnx", says=("export: 7 is a ELU, which the file cannot hold",))
    assert "ReLU" in line
    assert contents(tmp_path) == before
