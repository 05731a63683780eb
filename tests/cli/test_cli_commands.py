"""What each command prints: help with defaults, numbers, JSON, plain text; and that nothing heavy is imported early."""

import fnmatch
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from nasb.binary import layers, surrogate
from nasb.cells import config
from nasb.cells.operations import OPERATIONS
from nasb.cli import COMMANDS
from nasb.cli.parsing import parse_run
from nasb.data import dataset_names
from nasb.networks import list_networks
from nasb.recipes import list_recipes
from nasb.search import STRATEGIES, SearchConfig
from tests.cli.conftest import Command, tiny_architecture

PROGRAM = [sys.executable, "-c", "import sys; from nasb.cli import main; sys.exit(main(sys.argv[1:]))"]


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout


# Help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(command: Command, name: str) -> None:
    result = command(name, "--help")
    assert result.code == 0
    assert result.err == ""
    assert result.out.startswith(f"usage: nasb {name}")
    assert "default: " in result.out
    for line in result.out.splitlines():
        assert line.count("(default: ") + line.count(", default: ") <= 1, "two defaults of one option"


def test_help_of_all_lists_every_command(command: Command) -> None:
    for flags in ([], ["--help"], ["-h"]):
        result = command(*flags)
        assert result.code == 0
        for name, (_, text) in COMMANDS.items():
            assert any(line.split(maxsplit=1) == [name, text] for line in result.out.splitlines())


@pytest.mark.parametrize("name", ["run", "search", "pretrain", "finetune"])
def test_help_of_a_run_has_defaults_and_the_sentences_under_the_fields(command: Command, name: str) -> None:
    text = " ".join(command(name, "--help").out.split())
    for words in (
        "--search.budget BUDGET Largest OPs of the derived network, relative to its backbone alone",
        "(type: float, default: 1.1)",
        "--search.strategy STRATEGY How paths are sampled and alpha is updated: `nasb list strategies`.",
        "(type: str, default: regression)",
        "--data.root ROOT Folder that holds the data; digits needs none.",
        "--cell.bases BASES Binary bases K of the backbone",
        "--finetune.learning_rate LEARNING_RATE Learning rate after warm-up. (type: float, default: 0.003)",
        "--pretrain.activations ACTIVATIONS What stands in place of sign: hardtanh or tanh; or sign",
        "--hardware.precision PRECISION 32-true; or bf16-mixed or 16-mixed",
        "--resume RESUME auto: go on where the run directory stands",
    ):
        assert words in text
    for key in fields(SearchConfig):
        assert f"--search.{key.name} " in text


def test_the_help_s_defaults_are_those_of_a_run(tmp_path: Path) -> None:
    made, out = parse_run("run", "", ["--out", str(tmp_path / "run")])
    assert made.search == SearchConfig()
    assert made.finetune.learning_rate == 3e-3
    assert out == tmp_path / "run"


def test_version(command: Command) -> None:
    from importlib.metadata import version

    for flag in ("--version", "-V"):
        assert command(flag).out == f"nasb {version('nasb')}\n"


# list


LISTS = {
    "networks": list_networks(),
    "operations": list(OPERATIONS),
    "strategies": list(STRATEGIES),
    "datasets": list(dataset_names()),
    "recipes": list_recipes(),
}


def test_a_warning_is_one_line_without_a_place_in_the_code(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "train" / name / "1.png")
        (tmp_path / "train" / name / "2.heic").write_text("x")
    # Refused once the images have been listed: none are left to judge architectures by.
    words = ["run", "--config", "folder", "--data.root", tmp_path, "--search.alpha_share", "0.01"]
    words += ["--out", tmp_path / "run"]
    run = subprocess.run([sys.executable, "-m", "nasb", *words], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.splitlines()[0] == (
        f'warning: left out 2 files in "{tmp_path}/train", whose endings are those of no image that Pillow reads: '
        ".heic 2"
    )


def test_what_can_be_listed(command: Command) -> None:
    kinds = json.loads(command("list", "--json").out)
    assert sorted(kinds) == sorted(LISTS)
    assert command("list").out.splitlines() == [f"nasb list {kind}" for kind in kinds]


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("pattern", ["*", "*n*", "[a-g]*"])
def test_list_names_and_describes(command: Command, kind: str, pattern: str) -> None:
    expected = sorted(name for name in LISTS[kind] if fnmatch.fnmatchcase(name, pattern))
    assert expected
    entries = json.loads(command("list", kind, pattern, "--json").out)
    assert sorted(entries) == expected
    lines = command("list", kind, pattern).out.splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [[name, entries[name]] for name in entries]
    for text in entries.values():
        assert text
        assert ".;" not in text, "a full stop within the line"


# summary, plan


def test_summary_gives_bi_real_s_published_numbers(command: Command) -> None:
    summary = json.loads(command("summary", "bireal_resnet18", "--input-size", "3x224x224", "--json").out)
    assert set(summary) >= {"flops", "bops", "ops", "memory_bits", "parameters", "layers"}
    assert summary["ops"] == pytest.approx(1.640e8, rel=2e-3)
    assert summary["memory_bits"] == pytest.approx(33.515e6, rel=2e-3)
    assert summary["ops"] == summary["flops"] + summary["bops"] / 64
    for key in ("flops", "bops", "memory_bits", "parameters"):
        assert summary[key] == sum(layer[key] for layer in summary["layers"])


def test_summary_gives_resnet18_s_flops_at_any_size(command: Command) -> None:
    whole, small = (
        json.loads(command("summary", "resnet18", *flags, "--json").out)["flops"]
        for flags in ([], ["--input-size", "3x32x32"])
    )
    assert whole == pytest.approx(1.814e9, rel=1e-3)
    classifier = 512 * 1000
    assert small - classifier == (whole - classifier) / 7**2


def test_summary_of_a_file_is_that_of_its_network(command: Command, tmp_path: Path, model: Path) -> None:
    architecture = tmp_path / "architecture.json"
    tiny_architecture().save(architecture)
    flags = ["--option", "width=4", "--input-size", "1x8x8", "--json"]
    expected = json.loads(command("summary", "bireal_resnet20", *flags).out)
    assert expected["bops"] > 0
    for target in (architecture, model, tmp_path):
        assert json.loads(command("summary", target, "--json").out) == expected
    table = command("summary", architecture).out
    assert f"OPs: {expected['ops']:.4g}" in table
    assert table.splitlines()[0].split() == ["layer", "kind", "output", "FLOPs", "BOPs", "parameters", "kB"]


def test_summary_takes_options_classes_and_a_plugin(command: Command, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "from torch import nn\n"
        "import nasb\n"
        "@nasb.register_host('cli_test_net', input_shape=(3, 8, 8), num_classes=3)\n"
        "def cli_test_net(num_classes, in_channels, width=8):\n"
        "    'A network of this test.'\n"
        "    head = nn.Linear(width, num_classes, bias=False)\n"
        "    stem = nn.Conv2d(in_channels, width, 3, bias=False)\n"
        "    return nn.Sequential(stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)\n"
    )
    flags = ["--plugin", plugin, "--option", "width=16", "--num-classes", "5", "--json"]
    summary = json.loads(command("summary", "cli_test_net", *flags).out)
    assert summary["parameters"] == 3 * 16 * 9 + 16 * 5


def test_plan_says_what_becomes_of_every_convolution_and_why(command: Command) -> None:
    rows = json.loads(command("plan", "resnet18", "--json").out)
    by_name = {row["layer"]: row for row in rows}
    assert sum(row["becomes"] == "cell" for row in rows) == 16
    assert by_name["conv1"]["becomes"] != "cell"
    assert by_name["conv1"]["reason"]
    table = command("plan", "resnet18").out
    for name in by_name:
        assert name in table
    assert command("plan", "bireal_resnet18").out == table


# draw


@pytest.mark.parametrize("flags", [[], ["--cell", "layer2.0.conv1"]])
@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_draw(command: Command, tmp_path: Path, suffix: str, flags: list[str]) -> None:
    path = tmp_path / f"drawing.{suffix}"
    result = command("draw", "bireal_resnet20", "-o", path, *flags)
    assert result.code == 0
    assert result.out == f"{path}\n"
    if suffix == "png":
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 100
    else:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
        assert "layer2.0.conv1" in path.read_text()


def test_draw_a_network_of_torchvision(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "drawing.svg"
    result = command("draw", "bireal_torchvision/resnet18", "-o", path)
    assert result.code == 0, result.err
    assert "torchvision/resnet18" in path.read_text()


def test_draw_an_architecture_file(command: Command, tmp_path: Path) -> None:
    tiny_architecture().save(tmp_path / "architecture.json")
    assert command("draw", tmp_path / "architecture.json", "-o", tmp_path / "file.svg").code == 0
    assert command("draw", tmp_path, "-o", tmp_path / "folder.svg").code == 0
    assert (tmp_path / "file.svg").read_bytes() == (tmp_path / "folder.svg").read_bytes()


# info


def test_info(command: Command) -> None:
    import torch

    facts = json.loads(command("info", "--json").out)
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0]
    assert facts["cores"] == os.cpu_count()
    text = command("info").out
    # The engine's part goes on over indented lines: its CPU and kernels.
    assert [line.split(":")[0] for line in text.splitlines() if not line.startswith(" ")] == list(facts)


# How it looks, and what it costs to start


def test_output_is_plain_where_it_is_no_terminal(command: Command, tiny: Path, tmp_path: Path) -> None:
    for arguments in (
        ["--help"],
        ["run", "--help"],
        ["list", "networks"],
        ["summary", "bireal_resnet20"],
        ["plan", "resnet20"],
        ["run", "--config", tiny, "--out", tmp_path / "run"],
        ["summary", "resnet21"],
    ):
        result = command(*arguments)
        assert result.out + result.err
        for control in "\x1b\r":
            assert control not in result.out + result.err


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments", [["list", "recipes"], ["summary", "bireal_resnet20", "--json"], ["--help"], ["run", "--help"]]
)
def test_a_reader_that_has_gone_is_no_error(arguments: list[str], unbuffered: str) -> None:
    """As in `nasb summary ... | head -1`; buffered, a short output is only written when the process ends."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [*PROGRAM, *arguments]
    try:
        result = subprocess.run(
            command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False, env=environment
        )
    finally:
        os.close(writing)
    assert result.stderr == ""


def test_importing_is_cheap() -> None:
    code = "import time; t = time.perf_counter(); import nasb; print(time.perf_counter() - t)"
    assert min(float(python(code)) for _ in range(3)) < 0.5


@pytest.mark.parametrize(
    "code",
    [
        "import nasb",
        "import nasb.cli",
        "from nasb.cli import main; main(['--help'])",
        "from nasb.cli import main; main(['--version'])",
        "from nasb.cli.parsing import run_parser; run_parser('run', '')",
        "from nasb.cli.parsing import parse_run; parse_run('run', '', ['--config', 'digits', '--out', 'x'])",
        "from nasb.cli import main; main(['list', 'recipes']); main(['list', 'datasets'])",
        "from nasb.cli import main; main(['run', '--out', 'x', '--search.budget', '0.5'])",
    ],
)
def test_no_torch_before_it_is_needed(code: str) -> None:
    assert python(f"{code}; import sys; print('torch' in sys.modules)").splitlines()[-1] == "False"


def test_names_that_are_written_twice_are_the_same() -> None:
    """nasb.cells.config keeps copies, as it is imported without torch."""
    assert set(config.SURROGATES) == set(surrogate.SURROGATES)
    assert set(config.WEIGHT_SCALES) == set(layers.WEIGHT_SCALES)
