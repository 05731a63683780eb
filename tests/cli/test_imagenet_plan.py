"""docs/imagenet.md is arithmetic on the recipes: every row of its tables is computed here."""

import csv
import math
from functools import cache
from pathlib import Path

import pytest

from nasb.cli.parsing import parse_run
from nasb.cost import count
from nasb.networks import create_network
from nasb.training.config import RunConfig

ROOT = Path(__file__).parents[2]
TRAIN = 1_281_167
RECIPES = [f"imagenet-resnet{depth}{suffix}" for depth in (18, 34, 50) for suffix in ("", "-k5")]
SUSTAINED = 20e12


def config(recipe: str) -> RunConfig:
    return parse_run("run", "", ["--config", recipe, "--data.root", ".", "--out", "."])[0]


@cache
def macs(host: str, bases: int) -> float:
    """Return the MACs of the hand-made network; its binary ones are those of one base, K times."""
    cost = count(create_network(f"bireal_{host}", num_classes=1000, input_shape=(3, 224, 224)), (3, 224, 224))
    return cost.flops + bases * cost.bops


def steps_row(recipe: str) -> str:
    run = config(recipe)
    batch = run.data.batch_size
    train = TRAIN - round(TRAIN * run.data.validation_fraction)
    weights = math.ceil(train * (1 - run.search.alpha_share))
    search = weights // batch * (2 * run.search.epochs - run.search.warmup_epochs)
    steps = train // batch * (run.pretrain.epochs + run.finetune.epochs)
    return f"| {recipe} | {batch} | {search:,} | {steps:,} | {(search + steps) * batch / 1e6:.1f} M |"


def hours_row(recipe: str) -> str:
    run = config(recipe)
    images = float(steps_row(recipe).split("|")[5].removesuffix(" M "))
    work = 6 * macs(run.network.host, run.cell.bases)
    hours = images * 1e6 * work / SUSTAINED / 3600
    return f"| {recipe} | {work / 1e9:.1f} GFLOP | {SUSTAINED / work:,.0f} | {hours:,.0f} |"


def memory_row(line: dict[str, str]) -> str:
    images = line["activation_bytes_per_image"]
    megabytes = f"{int(images) / 1e6:.0f} MB" if images else "not counted"
    parameters, state = int(line["parameters"]) / 1e6, int(line["state_bytes"]) / 1e9
    return f"| {line['recipe']} | {line['stage']} | {parameters:,.0f} M | {state:.1f} GB | {megabytes} |"


@pytest.mark.parametrize("recipe", RECIPES)
def test_steps_and_hours_are_those_of_the_recipe(recipe: str) -> None:
    page = (ROOT / "docs" / "imagenet.md").read_text()
    for row in (steps_row(recipe), hours_row(recipe)):
        assert row in page, row


def test_memory_is_what_was_counted() -> None:
    page = (ROOT / "docs" / "memory.md").read_text()
    with (ROOT / "results" / "training-memory.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert {line["recipe"] for line in lines} == set(RECIPES)
    for line in lines:
        assert memory_row(line) in page, memory_row(line)
