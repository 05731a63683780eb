"""Each wrong input: exit code 2, one line that says what and where, no traceback, and nothing destroyed."""

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nasb.cli.parsing import parse_run
from nasb.networks import create_host
from nasb.training.checkpoint import Position
from nasb.training.run_directory import RunDirectory
from tests.cli.conftest import Command, Refused, cut, tiny_architecture

MakeImages = Callable[..., Path]


def begin_run(config: Path, out: Path) -> Path:
    """Make the run directory of a config as `nasb run` does, with a checkpoint, but without training."""
    run = RunDirectory(out, parse_run("run", "", ["--config", str(config), "--out", str(out)])[0])
    run.save("finetune", Position(), {})
    run.close()
    return out


# The config


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("serch: {epochs: 1}", "serch"),
        ("search: {epoch: 1}", 'unknown key "search.epoch"'),
        ("search: {epochs: many}", "config.yaml: search.epochs is many; give a whole number"),
        ("seed: 1\nsearch: {budget: 1.2}\nseed: 2", "the key seed stands there twice"),
        ("search: {budget: 1.2, epochs: 1, budget: 1.3}", "the key search.budget stands there twice"),
        ("search: {epochs: 1.5}", "search.epochs"),
        ("data: {download: perhaps}", "data.download"),
        ("data: {mean: [a, b, c]}", "data.mean"),
        ("network: {options: {width: [1]}}", "network.options"),
        ("network: {host: [1]}", "config.yaml: network.host is [1]; give text"),
        ("search: [1, 2]", "search"),
        ("search: 3", "search"),
        ("- 1\n- 2", "must be a mapping of keys, not list"),
        ("just words", "must be a mapping of keys, not str"),
        ("a: [1, 2\nb: {", "line 2"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "config"),
        (bytes(range(256)), "config"),
    ],
)
def test_a_config_that_is_none(refused: Refused, tmp_path: Path, text: str | bytes, says: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused("run", "--config", config, "--out", tmp_path / "run", says=(says,))


@pytest.mark.parametrize("name", ["missing.yaml", "folder/missing", "."])
def test_a_config_that_is_not_there(refused: Refused, tmp_path: Path, name: str) -> None:
    refused("run", "--config", tmp_path / name, "--out", tmp_path / "run", says=("there is no such file",))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--search.budget", "0.9"], "search.budget is 0.9, but a network with every edge"),
        (["--search.epochs", "-1"], "search.epochs is -1; it must be at least 1"),
        (["--pretrain.epochs", "-1"], "pretrain.epochs is -1; it must not be negative"),
        (["--finetune.epochs", "-1"], "finetune.epochs is -1; it must not be negative"),
        (["--finetune.epochs", "0"], "finetune.epochs is 0"),
        (["--finetune.teacher", "resnet20"], "finetune: teacher is resnet20 and teacher_weights is None"),
        (["--pretrain.teacher_weights", "x"], "pretrain: teacher is auto and teacher_weights is x"),
        (["--hardware.threads", "0"], "hardware.threads"),
        (["--checkpoint_minutes", "-1"], "checkpoint_minutes is -1"),
        (["--checkpoint_minutes", ".nan"], "checkpoint_minutes is nan"),
        (["--finetune.learning_rate", ".inf"], "finetune.learning_rate is inf; it must be a number above 0"),
        (["--search.alpha_learning_rate", ".inf"], "search.alpha_learning_rate is inf"),
        (["--finetune.epoch", "3"], "unknown option --finetune.epoch (closest: --finetune.epochs"),
        (["--architecture=search", "--search.operations", "[]"], "search.operations is []: there is nothing to choose"),
        (["--architecture=search", "--search.operations", "[none]"], "search.operations is ['none']"),
        (["--search.operations", "[identity, bin_conv_1x1, identity]"], "search.operations has identity twice"),
        (
            ["--architecture=search", "--cell.nodes=0", "--search.operations=[identity]"],
            "no edge of the network can",
        ),
        (["--search.epochs", "many"], "--search.epochs is many; give a whole number"),
        (["--search.budget", "much"], "--search.budget is much; give a number"),
        (["--data.train_limit", "few"], "--data.train_limit is few; give a whole number"),
        (["--data.mean", "grey"], "--data.mean is grey; give a list"),
        (["--init_partial", "x"], "--init_partial is x; give true or false"),
        (["--search.epoch", "1"], "--search.epoch"),
        (["--nonsense", "1"], "--nonsense"),
        (["--config"], "--config"),
    ],
)
def test_flags(refused: Refused, tiny: Path, tmp_path: Path, flags: list[str], says: str) -> None:
    refused("run", "--config", tiny, "--out", tmp_path / "run", *flags, says=(says,))


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_later_stage_without_a_run(refused: Refused, tiny: Path, tmp_path: Path, stage: str) -> None:
    flags = ("--config", tiny, "--architecture", "search", "--pretrain.epochs", 1, "--out", tmp_path / "typo")
    refused(stage, *flags, says=(f"typo: is no run directory, and {stage} needs search", "nasb search --out"))


def test_what_print_config_writes_is_a_config(command: Command, tiny: Path, tmp_path: Path) -> None:
    text = command("run", "--config", tiny, "--out", tmp_path / "run", "--devices", 1, "--print_config").out
    printed = tmp_path / "printed.yaml"
    printed.write_text(text)
    config, out = parse_run("run", "", ["--config", str(printed)])
    assert out == tmp_path / "run"
    assert config == parse_run("run", "", ["--config", str(tiny), "--out", "x"])[0]


def test_a_stage_that_is_left_out_may_keep_its_other_options(tiny: Path) -> None:
    flags = ["--config", str(tiny), "--pretrain.epochs", "0", "--pretrain.warmup_epochs", "5", "--out", "x"]
    assert parse_run("run", "", flags)[0].stages() == ["finetune"]


def test_a_second_config_is_checked_too(refused: Refused, tiny: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    second.write_text("search: {epoch: 1}")
    for flags in (["--config", second], [f"--config={second}"]):
        refused("run", "--config", tiny, *flags, "--out", tmp_path / "run", says=("second.yaml", '"search.epoch"'))


def test_the_last_out_counts(tiny: Path, tmp_path: Path) -> None:
    run, other = begin_run(tiny, tmp_path / "run"), tmp_path / "other"
    assert parse_run("run", "", ["--out", str(other), "--out", str(run)])[0].data.batch_size == 16  # the run's own
    config, out = parse_run("run", "", [f"--out={run}", "--out", str(other)])
    assert (config.data.batch_size, out) == (128, other)


def test_no_run_directory(refused: Refused, tiny: Path) -> None:
    refused("run", "--config", tiny, says=("--out is missing",))
    refused("run", "--config", tiny, "--out", "", says=("--out is missing",))
    refused("run", "--config", tiny, "--out", says=("--out",))


@pytest.mark.parametrize("architecture", ["backbone", "search"])
def test_a_batch_norm_that_sees_one_value_a_channel(
    refused: Refused, tiny: Path, tmp_path: Path, architecture: str
) -> None:
    flags = ("--data.batch_size", 1, "--network.options", "{width: 4, stem_stride: 2}", "--architecture", architecture)
    says = ("one value per channel", "data.batch_size")
    refused("run", "--config", tiny, "--out", tmp_path / "run", *flags, says=says, begun=True)


# Unknown names


@pytest.mark.parametrize(
    ("arguments", "closest"),
    [
        (["runn"], "run"),
        (["summary", "resnet118"], "resnet18"),
        (["plan", "resnet21"], "resnet20"),
        (["draw", "bireal_resnet19", "-o", "x.svg"], "bireal_resnet18"),
        (["list", "network"], "networks"),
        (["run", "--out", "run", "--config", "digts"], "digits"),
        (["run", "--out", "run", "--data.name", "digit"], "digits"),
        (["run", "--out", "run", "--network.host", "resnet22"], "resnet20"),
        (["run", "--out", "run", "--network.options", "{widt: 4}"], "width"),
        (["run", "--out", "run", "--search.strategy", "gumble"], "gumbel"),
        (["run", "--out", "run", "--search.operations", "[bin_conv_3x3, dil_conv_5x5]"], "dil_bin_conv_5x5"),
        (["run", "--out", "run", "--cell.surrogate", "polynomal"], "polynomial"),
        (["run", "--out", "run", "--hardware.precision", "bf16-mix"], "bf16-mixed"),
        (["run", "--out", "run", "--finetune.optimizer", "adam"], "adamw"),
        (["summary", "bireal_resnet20", "--option", "wdth=3"], "width"),
    ],
)
def test_an_unknown_name_lists_the_closest(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], closest: str
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(*arguments, says=("unknown", "known: ", "(closest: "))
    assert closest in line.split("(closest: ")[1].split(")")[0].split(", ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mobilenet_v2", 'unknown network "mobilenet_v2"; there is torchvision/mobilenet_v2'),
        ("bireal_densenet121", 'unknown network "bireal_densenet121"; there is bireal_torchvision/densenet121'),
        ("my_cnn.py", "my_cnn.py: is a file; name the function in it that makes the network: my_cnn.py:FUNCTION"),
    ],
)
def test_a_name_that_is_nearly_one(refused: Refused, name: str, says: str) -> None:
    assert refused("summary", name, says=()) == f"nasb: {says}"


@pytest.mark.parametrize("kind", ["networks", "operations", "strategies", "datasets", "recipes"])
def test_a_list_of_nothing(refused: Refused, command: Command, kind: str) -> None:
    refused("list", kind, "torchvision*", says=(f'no {kind} match "torchvision*"',))
    assert json.loads(command("list", kind, "torchvision*", "--json").out) == {}


# Data


def test_a_missing_data_folder(refused: Refused, tmp_path: Path) -> None:
    flags = ["--data.name", "folder", "--data.root", tmp_path / "nowhere"]
    refused("run", "--out", tmp_path / "run", *flags, says=("nowhere", "does not exist"))
    refused("run", "--out", tmp_path / "run", "--data.name", "folder", says=("data.root is missing",))


def test_an_empty_class_folder(refused: Refused, tmp_path: Path, make_images: MakeImages) -> None:
    root = make_images(tmp_path / "data", ("train",), count=4)
    (root / "train" / "emu").mkdir()
    flags = ["--data.name", "folder", "--data.root", root]
    refused("run", "--out", tmp_path / "run", *flags, says=('class "emu"', "has no images"))


@pytest.mark.parametrize("size", [32, 40])
def test_a_truncated_jpeg(refused: Refused, tiny: Path, tmp_path: Path, make_images: MakeImages, size: int) -> None:
    root = make_images(tmp_path / "data", ("train",), size=size, ending="jpg")
    for path in (root / "train" / "dog").iterdir():
        cut(path)
    flags = ["--data.name", "folder", "--data.root", root, "--data.image_size", "32", "--data.train_limit", "null"]
    line = refused("run", "--config", tiny, "--out", tmp_path / "run", *flags, says=("cannot be read",), begun=True)
    assert str(root / "train" / "dog") in line


# Files that a run takes


@pytest.mark.parametrize("fault", ["other host", "other classes", "cut", "missing", "unknown operation"])
def test_a_given_architecture(refused: Refused, tiny: Path, tmp_path: Path, fault: str) -> None:
    path = tmp_path / "given.json"
    says = ["given.json"]
    if fault == "other host":
        tiny_architecture(host="resnet32").save(path)
        says += ["host is 'resnet32'", "'resnet20'"]
    elif fault == "other classes":
        tiny_architecture(num_classes=7).save(path)
        says += ["num_classes is 7", "10"]
    elif fault == "cut":
        tiny_architecture().save(path)
        cut(path)
        says += ["is not valid JSON"]
    elif fault == "unknown operation":
        text = tiny_architecture().dumps()
        edge = '"edges": [{"from": 0, "to": "output", "operation": "bin_conv_7x7"}]'
        path.write_text(text.replace('"edges": []', edge, 1))
        says += ["layer1.0.conv1.edges[0].operation", "closest: bin_conv_5x5"]
    elif fault == "missing":
        says += ["architecture is ", "accepted: search, backbone, or the path of an architecture.json"]
    refused("run", "--config", tiny, "--out", tmp_path / "run", "--architecture", path, says=tuple(says))


@pytest.mark.parametrize(
    "fault", ["missing", "cut", "other network", "another classifier", "not safetensors", "torch.save"]
)
@pytest.mark.parametrize("flag", ["--init", "--finetune.teacher_weights"])
def test_weights_of_a_real_network(refused: Refused, tiny: Path, tmp_path: Path, flag: str, fault: str) -> None:
    path = tmp_path / "weights.safetensors"
    says = {
        "missing": "there is no such file",
        "cut": "is not a whole safetensors file",
        "other network": "is it of another network?",
        "another classifier": "is it of another network?",
        "not safetensors": "is not a whole safetensors file",
        "torch.save": "it looks like one of torch.save; write a state dict by safetensors.torch.save_file",
    }
    if fault != "missing":
        host = create_host(
            "resnet32" if fault == "other network" else "resnet20",
            num_classes=11 if fault == "another classifier" else 10,
            in_channels=1,
            options={"width": 4},
        )
        save_file(host.state_dict(), path)
    if fault == "cut":
        cut(path)
    elif fault == "not safetensors":
        path.write_text("these are no weights")
    elif fault == "torch.save":
        torch.save({"conv1.weight": torch.zeros(1)}, path)
    flags = [flag, path]
    if flag != "--init":
        flags += ["--finetune.teacher", "resnet20", "--finetune.teacher_options", "{width: 4}"]
    line = refused(
        "run", "--config", tiny, "--out", tmp_path / "run", *flags, says=("weights.safetensors", says[fault])
    )
    # What helps, where it helps: the user's own CNN, trained for other classes.
    assert ("--init_partial true leaves such layers" in line) == (flag == "--init" and fault == "another classifier")


# The run directory


@pytest.mark.parametrize("place", ["run", "run/inside"])
def test_a_file_stands_where_the_run_directory_should_be(
    refused: Refused, tiny: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "run").write_text("precious")
    refused("run", "--config", tiny, "--out", tmp_path / place, says=(place, "cannot be made a run directory"))


def test_a_run_of_another_config(refused: Refused, tiny: Path, tmp_path: Path) -> None:
    out = begin_run(tiny, tmp_path / "run")
    says = ("holds another run", "seed is 1 now, but the run was begun with 0")
    refused("run", "--config", tiny, "--out", out, "--seed", 1, says=says)


def test_results_of_no_run(refused: Refused, tiny: Path, tmp_path: Path) -> None:
    """An architecture that lies there would be trained in place of the one that is asked for."""
    out = begin_run(tiny, tmp_path / "run")
    (out / "config.yaml").unlink()
    (out / "architecture.json").write_text("{}")
    refused(
        "run",
        "--config",
        tiny,
        "--out",
        out,
        says=("run: holds architecture.json, checkpoints/finetune.pt, but no config.yaml",),
    )


def test_no_images_to_judge_architectures_by(refused: Refused, tmp_path: Path) -> None:
    """Of 60 images a hundredth is none."""
    flags = ["--config", "digits", "--data.train_limit", 60, "--search.alpha_share", 0.01]
    refused("run", *flags, "--out", tmp_path / "run", says=("search.alpha_share is 0.01: of", "none are left"))


def test_a_checkpoint_cut_short(refused: Refused, tiny: Path, tmp_path: Path) -> None:
    out = begin_run(tiny, tmp_path / "run")
    cut(out / "checkpoints" / "finetune.pt")
    says = ("finetune.pt: is damaged, or no checkpoint of this run. Delete it",)
    refused("run", "--config", tiny, "--out", out, says=says, begun=True)


def test_a_checkpoint_of_another_network(refused: Refused, tiny: Path, tmp_path: Path) -> None:
    out = begin_run(tiny, tmp_path / "run")
    refused("run", "--config", tiny, "--out", out, says=("checkpoint", "does not fit this run"), begun=True)


@pytest.mark.parametrize("name", ["config.yaml", "stages.json", "architecture.json"])
@pytest.mark.parametrize("garbage", ["{", "[]", "\x00\ufffd"])
def test_a_damaged_file_in_the_run_directory(
    refused: Refused, tiny: Path, tmp_path: Path, name: str, garbage: str
) -> None:
    out = begin_run(tiny, tmp_path / "run")
    (out / "checkpoints" / "finetune.pt").unlink()
    (out / name).write_text(garbage)
    refused("run", "--config", tiny, "--out", out, says=(name,), begun=True)


def test_an_architecture_that_is_gone(refused: Refused, tiny: Path, tmp_path: Path) -> None:
    tiny.write_text(tiny.read_text().replace("architecture: backbone", "architecture: search"))
    out = begin_run(tiny, tmp_path / "run")
    (out / "stages.json").write_text('{"search": {"seconds": 1.0}}')
    says = ("architecture.json: is gone, though the search is finished",)
    refused("run", "--config", tiny, "--out", out, says=says, begun=True)


def test_a_line_of_metrics_that_was_cut_short_by_a_kill(command: Command, tiny: Path, tmp_path: Path) -> None:
    """Killed while the first line is written, before the first checkpoint: the same command goes on."""
    out = begin_run(tiny, tmp_path / "run")
    (out / "checkpoints" / "finetune.pt").unlink()
    (out / "metrics.jsonl").write_text('{"stage": "finetune", "epo')
    assert command("run", "--config", tiny, "--out", out).code == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["epoch"]) for row in rows] == [("finetune", 0)]


# A full disk


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "name", ["config.yaml", "architecture.json", "metrics.jsonl", "model.safetensors", "stages.json", "summary.json"]
)
def test_a_full_disk_names_the_file(
    refused: Refused, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    flush = os.fsync

    def full(handle: int) -> None:
        if name in Path(f"/proc/self/fd/{handle}").readlink().name:
            raise full_disk()
        flush(handle)

    monkeypatch.setattr("nasb.files.os.fsync", full)
    says = (name, "No space left on device")
    refused("run", "--config", tiny, "--out", tmp_path / "run", says=says, begun=True)


def test_a_full_disk_leaves_the_former_checkpoint_from_which_the_run_goes_on(
    refused: Refused, command: Command, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "finetune.pt"
    make, former = tempfile.mkstemp, b""

    def full(*arguments: Any, **options: Any) -> tuple[int, str]:
        nonlocal former
        if checkpoint.exists() and options["prefix"] == ".finetune.pt.":
            former = checkpoint.read_bytes()
            raise full_disk()
        return make(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("nasb.files.tempfile.mkstemp", full)
        says = ("finetune.pt: cannot be written", "No space left on device")
        refused("run", "--config", tiny, "--out", tmp_path / "run", says=says, begun=True)
    assert former
    assert checkpoint.read_bytes() == former
    result = command("run", "--out", tmp_path / "run")
    assert result.code == 0
    assert "finetune: going on at epoch 0, step 1" in result.err
