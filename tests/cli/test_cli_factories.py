"""The user's own CNN at the command line: a factory in a file, what stays real, and networks of torchvision by name."""

import json
from pathlib import Path

import pytest

from nasb.cells.architecture import Architecture
from nasb.networks import create_host
from nasb.networks.registry import HOSTS
from tests.cli.conftest import Command, Refused

OWN = """
from torch import nn

def small(num_classes, in_channels, width=8):
    layers = [nn.Conv2d(in_channels, width, 3, 2, 1), nn.ReLU()]
    layers += [nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))

def five_classes():
    return small(5, 1)

def normed(num_classes, in_channels):
    layers = [*small(num_classes, in_channels)]
    return nn.Sequential(*layers[:1], nn.GroupNorm(2, 8), *layers[1:])
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    create_host("resnet20", options={"width": 1})  # registers nasb's own
    monkeypatch.setattr(HOSTS, "_entries", dict(HOSTS._entries))
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def test_plan_of_a_factory(command: Command, own: Path) -> None:
    result = command("plan", f"{own}:small", "--input-size", "3x16x16", "--keep-real", "2", "--option", "width=4")
    assert result.code == 0, result.err
    rows = [line.split() for line in result.out.splitlines()]
    assert [row[0] for row in rows] == ["layer", "0", "2", "4", "nasb"]
    assert result.out.splitlines()[-1] == "nasb export holds all of it"
    assert rows[2] == ["2", "3x3", "4-4", "real", "asked:", "keep_real"]
    assert rows[3] == ["4", "3x3", "4-4", "cell", "shortcut:", "the", "input", "itself"]
    as_a_list = ("--keep-real", '["2"]', "--option", "width=4")
    assert command("plan", f"{own}:small", "--input-size", "3x16x16", *as_a_list).out == result.out
    for wrong in ('["2"', "[2]"):
        refused = command("plan", f"{own}:small", "--input-size", "3x16x16", "--keep-real", wrong)
        assert refused.code == 2
        assert refused.err.startswith(f"nasb: --keep-real is {wrong}; give a name, a wildcard"), refused.err


def test_factories_that_are_named_once_or_several_times(command: Command, refused: Refused, own: Path) -> None:
    result = command("summary", f"{own}:small", "--input-size", "3x16x16", "--option", "width=4", "--json")
    assert result.code == 0, result.err
    plugins = ("--plugin", f"{own}:small", "--plugin", f"{own}:five_classes")
    both = (f"bireal_{own}:small", f"bireal_{own}:five_classes", "--input-size", "1x16x16")
    result = command("compare", *both, *plugins, "--json")
    assert result.code == 0, result.err
    assert len(json.loads(result.out)) == 2
    refused("summary", f"{own.with_name('nowhere.py')}:small", "--input-size", "3x16x16", says=("is a factory",))


def test_a_run_of_a_factory_and_what_reads_it_later(command: Command, refused: Refused, own: Path, tiny: Path) -> None:
    factory, run, onnx = f"{own}:small", own.parent / "run", own.parent / "m.onnx"
    options = ("--network.factory", factory, "--network.options", "{width: 4}", "--network.keep_real", '["2"]')
    result = command("run", "--config", tiny, *options, "--out", run)
    assert result.code == 0, result.err
    architecture = Architecture.load(run / "architecture.json")
    assert (architecture.host, architecture.keep_real, list(architecture.cells)) == (factory, ("2",), ["4"])
    assert json.loads((run / "summary.json").read_text())["uncounted"] == []
    del HOSTS._entries[factory]  # as in a new process
    refused("export", run, "-o", onnx, says=(f"--plugin {factory}",))
    assert command("export", run, "-o", onnx, "--plugin", factory).code == 0
    assert onnx.stat().st_size > 0
    del HOSTS._entries[factory]
    moved = own.parent / "elsewhere" / own.name
    moved.parent.mkdir()
    own.rename(moved)
    assert command("evaluate", run, "--plugin", f"{moved}:small").code == 0


def test_what_cannot_be_exported_is_told_before_it_is_trained(command: Command, own: Path, tiny: Path) -> None:
    says = "nasb export will refuse it: export: 1 is a GroupNorm, which the file cannot hold"
    plan = command("plan", f"{own}:normed", "--input-size", "1x8x8", "--keep-real", "1")
    assert plan.code == 0, plan.err
    assert plan.out.splitlines()[-1].startswith(says)
    options = ("--network.factory", f"{own}:normed", "--network.options", "{}", "--network.keep_real", '["1"]')
    result = command("run", "--config", tiny, *options, "--architecture", "backbone", "--out", own.parent / "run")
    assert result.code == 0, result.err
    assert says.replace("it:", "this network:") in result.err


def test_a_factory_of_another_number_of_classes(refused: Refused, own: Path, tiny: Path) -> None:
    refused(
        *("run", "--config", tiny, "--network.factory", f"{own}:five_classes", "--network.options", "{}"),
        *("--out", own.parent / "run"),
        says=("five_classes: has 5 outputs, the data 10 classes; let its function take num_classes",),
    )


def test_networks_of_torchvision_are_listed_if_asked(command: Command) -> None:
    found = json.loads(command("list", "networks", "torchvision/dense*", "--json").out)
    assert found["torchvision/densenet121"] == "densenet121 of torchvision"
    assert "torchvision/densenet121" not in command("list", "networks").out
