"""results/training-memory.csv counts the networks that there are: a change of the cells shows here."""

import csv
from pathlib import Path

import pytest
import training_memory

from nasb.cli.parsing import parse_run
from nasb.networks import create_host
from nasb.networks.convert import convert

RESULT = Path(__file__).parents[2] / "results" / "training-memory.csv"


@pytest.mark.parametrize("recipe", ["imagenet-resnet18", "imagenet-resnet18-k5"])
def test_weights_are_those_of_the_recipe(recipe: str) -> None:
    config, _ = parse_run("run", "", ["--config", recipe, "--data.root", ".", "--out", "."])
    network = convert(create_host(config.network.host), training_memory.SHAPE, cell=config.cell)
    counted = {
        "finetune": training_memory.parameters_of(network),
        "search": training_memory.searchable_parameters(network, config),
    }
    with RESULT.open(newline="") as file:
        rows = {row["stage"]: int(row["parameters"]) for row in csv.DictReader(file) if row["recipe"] == recipe}
    assert {stage: rows[stage] for stage in counted} == counted
