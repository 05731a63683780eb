"""nasb compare: rows are the networks' counts, in four forms; wildcards; latency; what is refused."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nasb.binary import BinaryConv2d
from nasb.cost import count
from nasb.cost.comparison import significant
from nasb.networks import create_network
from nasb.networks.random_numbers import randomize
from tests.cli.conftest import Command, Refused

NAMES = ("bireal_resnet20", "irnet_resnet20")
KEYS = ("ops", "bops", "flops", "memory_bits")


def rows(command: Command, *arguments: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(command("compare", *arguments, "--json").out)
    return found


def test_rows_are_the_counts_of_the_networks(command: Command) -> None:
    found = rows(command, *NAMES, "--input-size", "3x16x16", "--option", "width=4", "--num-classes", "5")
    assert [row["network"] for row in found] == list(NAMES)
    for row in found:
        network = create_network(row["network"], num_classes=5, input_shape=(3, 16, 16), width=4)
        expected = count(network, (3, 16, 16))
        assert [row[key] for key in KEYS] == [getattr(expected, key) for key in KEYS]
        assert (row["input_size"], row["uncounted"]) == ("3x16x16", [])


def test_a_size_of_its_own_is_each_network_s(command: Command) -> None:
    assert [row["input_size"] for row in rows(command, "bnn_resnet20", "bnn_resnet18")] == ["3x32x32", "3x224x224"]


def test_all_forms_say_the_same(command: Command) -> None:
    wanted = rows(command, *NAMES)
    read = list(csv.DictReader(io.StringIO(command("compare", *NAMES, "--format", "csv").out)))
    assert [[float(row[key]) for key in KEYS] for row in read] == [[row[key] for key in KEYS] for row in wanted]
    lines = command("compare", *NAMES, "--format", "markdown").out.splitlines()
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: |"
    table = command("compare", *NAMES).out.splitlines()
    for row, line, plain in zip(wanted, lines[2:], table[2:], strict=False):
        numbers = [significant(row[key] / 1e6) for key in KEYS]
        assert [cell.strip() for cell in line.strip("|").split("|")] == [row["network"], "3x32x32", *numbers]
        assert plain.split() == [row["network"], "3x32x32", *numbers]
    assert table[-1].startswith("OPs = FLOPs + BOPs / 64")


def test_wildcards_and_names_give_each_network_once(command: Command) -> None:
    found = [row["network"] for row in rows(command, "irnet_resnet20", "*net_resnet20", "*_resnet20")]
    assert found[0] == "irnet_resnet20"
    assert found[1:5] == ["abcnet_resnet20", "groupnet_resnet20", "reactnet_resnet20", "bireal_resnet20"]
    assert len(found) == len(set(found))
    assert not any(name.startswith("nasb_") for name in found)


def test_a_file_is_compared_as_well(command: Command, model: Path) -> None:
    found = rows(command, model, "bireal_resnet20")
    alone = json.loads(command("summary", model, "--json").out)
    assert [found[0][key] for key in KEYS] == [alone[key] for key in KEYS]


def test_what_is_not_counted_is_said(command: Command, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "import torch\n"
        "from torch import nn\n"
        "import nasb\n"
        "class Own(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.weight = nn.Parameter(torch.ones(3, 3, 1, 1))\n"
        "    def forward(self, x):\n"
        "        return nn.functional.conv2d(x, self.weight)\n"
        "@nasb.register_host('cli_compare_net', input_shape=(3, 4, 4), num_classes=3)\n"
        "def cli_compare_net(num_classes, in_channels):\n"
        "    'A network of this test.'\n"
        "    return nn.Sequential(Own(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))\n"
    )
    for form in ("table", "markdown", "csv", "json"):
        out = command("compare", "cli_compare_net", "--plugin", plugin, "--format", form).out
        assert "0 (Own): 9 parameters" in out
        assert "144 MACs in functional calls" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("names",)),
        (("quicknet_smal",), ('unknown network "quicknet_smal"', "closest: quicknet_small")),
        (("no*such",), ('"no*such" matches no network',)),
        (("nasb_*",), ('"nasb_*" matches no network that has a cost',)),
        (("nasb_resnet20",), ("nasb_resnet20: is searchable", "architecture.json")),
        (("nasb_torchvision/squeezenet1_1",), ("nasb_torchvision/squeezenet1_1: is searchable",)),
        (("bnn_resnet20", "--format", "markdwn"), ('--format: unknown format "markdwn"', "closest: markdown")),
        (("bnn_resnet20", "--input-size", "32"), ('--input-size is "32"',)),
        (("bnn_alexnet", "--input-size", "3x32x32"), ("bnn_alexnet: count: ", "does not run")),
        (("bnn_resnet20", "--option", "wdth=4"), ('unknown option "wdth"',)),
    ],
)
def test_what_is_refused(refused: Refused, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused("compare", *arguments, says=words)


@pytest.mark.parametrize(("flag", "value"), [("--threads", 0), ("--rounds", 0)])
def test_wrong_numbers_are_refused_before_any_work(refused: Refused, flag: str, value: int) -> None:
    pytest.importorskip("nasb_engine", reason="the engine is not installed: make setup builds it")
    refused("compare", "no such network", "--latency", flag, value, says=(f"{flag} is {value}",))


def test_latency_needs_the_engine(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "nasb_engine", None)
    monkeypatch.setitem(sys.modules, "nasb_engine.bench", None)
    refused("compare", "bnn_resnet20", "--latency", says=("the engine (nasb-engine)",))


def test_latency_is_measured(command: Command) -> None:
    pytest.importorskip("nasb_engine", reason="the engine is not installed: make setup builds it")
    flags = ("--option", "width=4", "--input-size", "3x8x8", "--latency", "--rounds", "2")
    first, second = rows(command, *NAMES, *flags)
    assert first["time_ratio"] == 1
    for row in (first, second):
        assert 0 < row["ms_lower_quartile"] <= row["ms"] <= row["ms_upper_quartile"]
        assert row["file_bytes"] > row["memory_bits"] / 8
    header = command("compare", *NAMES, *flags, "--format", "markdown").out.splitlines()[0]
    assert header.endswith("| ms | quartiles | time / bireal_resnet20 | file (kB) |")


def test_random_numbers_leave_no_layer_as_it_was_made() -> None:
    shape = (3, 8, 8)
    network = create_network("reactnet_resnet20", width=4)
    fresh = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    drawn = randomize(network, shape).state_dict()
    for key, tensor in drawn.items():
        same = key.endswith(("stem.0.weight", "head.2.weight", "head.2.bias")) or "shortcut.conv" in key
        assert torch.equal(tensor, fresh[key]) == same, key
    for layer in network.modules():
        if isinstance(layer, BinaryConv2d):
            assert 0.2 < (layer.weight > 0).double().mean() < 0.8
    assert not network.training
    again = randomize(create_network("reactnet_resnet20", width=4), shape, seed=1).state_dict()
    assert not torch.equal(again["stages.0.0.conv.weight"], drawn["stages.0.0.conv.weight"])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (41912.4, "41912"), (1676, "1676"), (163.96, "164.0"), (0.34592, "0.3459"), (0.0107, "0.01070")],
)
def test_numbers_have_four_digits_and_no_exponent(value: float, text: str) -> None:
    assert significant(value) == text
