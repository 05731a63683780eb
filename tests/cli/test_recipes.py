"""Every recipe is read as it is written, and its search runs to an architecture within its budget."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from nasb.cells.architecture import Architecture
from nasb.cli.parsing import parse_run
from nasb.cost import count
from nasb.networks import create_network
from nasb.recipes import list_recipes, recipe_path, recipes_folder
from nasb.training.config import RunConfig
from tests.cli.conftest import Command


def read(*arguments: object) -> RunConfig:
    return parse_run("run", "", [str(argument) for argument in (*arguments, "--out", "run")])[0]


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"search.budget": 1.1, ...}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def test_the_recipes_are_found() -> None:
    assert {f"{name}.yaml" for name in list_recipes()} == {path.name for path in recipes_folder().iterdir()}
    assert len(list_recipes()) >= 7


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_is_read_as_it_is_written(name: str, tmp_path: Path) -> None:
    written = yaml.safe_load(recipe_path(name).read_text())
    config = read("--config", name, "--data.root", tmp_path)
    made = leaves(config.to_dict())
    for key, value in leaves(written).items():
        assert made[key] == value, key
    assert recipe_path(name).read_text().startswith("# "), "the first line describes it in `nasb list recipes`"
    assert ("Give data.root." in recipe_path(name).read_text()) == (name != "digits")


@pytest.mark.parametrize("name", list_recipes())
def test_the_config_of_a_run_directory_is_read_back(name: str, tmp_path: Path) -> None:
    flags = ["--data.root", tmp_path, "--data.mean", "null", "--search.operations", "[none, bin_conv_3x3]"]
    config = read("--config", name, *flags, "--finetune.teacher_options", "{width: 8, wide: true}", "--init", "x")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    assert read("--config", path) == config


def test_flags_and_their_order_stand_above_the_recipe(tmp_path: Path) -> None:
    assert read("--config", "digits").search.epochs == 6
    assert read("--config", "digits", "--search.epochs", 3).search.epochs == 3
    assert read("--config", "digits", "--search.epochs", 3).finetune.epochs == 24
    own = tmp_path / "own.yaml"
    own.write_text("search: {epochs: 4}")
    both = read("--config", "digits", "--config", own)
    assert (both.search.epochs, both.search.warmup_epochs, both.finetune.epochs) == (4, 2, 24)


FEWER_OPERATIONS = {
    "folder": "[none, identity, bin_conv_1x1]",
    "imagenet-resnet34": "[none, identity, bin_conv_1x1, bin_conv_3x3]",
    # With every operation the searchable ResNet-50 has 2.2e9 parameters: 36 GB with gradients and Adam's moments.
    "imagenet-resnet50": "[none, identity, bin_conv_1x1]",
    "imagenet-resnet18-k5": "[none, identity, bin_conv_1x1]",
    "imagenet-resnet34-k5": "[none, identity, bin_conv_1x1]",
    "imagenet-resnet50-k5": "[none, identity, bin_conv_1x1]",
}
"""Large recipes search among these here, for the memory of the machine that tests."""


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_s_search_runs_and_keeps_its_budget(
    command: Command, tmp_path: Path, make_images: Callable[..., Path], name: str
) -> None:
    recipe = read("--config", name, "--data.root", tmp_path)
    flags: list[object] = [
        "--data.batch_size", 4, "--data.train_limit", 10, "--data.workers", 0, "--search.epochs", 1,
        "--search.warmup_epochs", 0, "--hardware.precision", "32-true", "--hardware.threads", 1,
    ]  # fmt: skip
    if name != "digits":
        parts = ("train", "val") if recipe.data.name == "imagenet" else ("train", "val", "test")
        flags += ["--data.root", make_images(tmp_path / "data", parts, count=8)]
        flags += ["--data.image_size", 32 if recipe.data.name.startswith("cifar") else 64]
        flags += ["--data.name", "folder"] if recipe.data.name.startswith("cifar") else []
    if name in FEWER_OPERATIONS:
        flags += ["--search.operations", FEWER_OPERATIONS[name]]
    out = tmp_path / "run"
    result = command("search", "--config", name, "--out", out, *flags)
    assert result.code == 0, result.err
    assert "search epoch 0" in result.err
    assert {path.name for path in out.iterdir()} >= {"architecture.json", "architecture.svg", "stages.json"}

    architecture = Architecture.load(out / "architecture.json")
    assert (architecture.host, architecture.options) == (recipe.network.host, recipe.network.options)
    assert any(architecture.cells.values())
    backbone = create_network(
        f"bireal_{architecture.host}",
        num_classes=architecture.num_classes,
        input_shape=architecture.input_shape,
        **{**architecture.options, **architecture.cell.to_dict()},
    )
    ops, backbone_ops = (count(net, architecture.input_shape).ops for net in (architecture.build(), backbone))
    assert backbone_ops < ops <= recipe.search.budget * backbone_ops
