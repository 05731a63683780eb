"""nasb latency-table, measured here or by nasb-engine; a run within a budget of milliseconds; what is refused."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nasb.cells import Architecture, CellConfig
from nasb.cli.parsing import parse_run
from nasb.cost.latency import SHAPES, LatencyTable, network_key, shapes_of
from nasb.networks import create_host
from nasb.networks.convert import convert
from tests.cli.conftest import TINY, Command, Refused

NETWORK = ("--network", "resnet20", "--input-size", "1x8x8", "--num-classes", "10", "--option", "width=4")
OPTIONS = {"width": 4}


def table_values(ms: float = 0.002, **changes: Any) -> dict[str, Any]:
    """A table of the tiny run's network, made up: every operation takes as long, the backbone 0.1 ms."""
    backbone = convert(create_host("resnet20", num_classes=10, in_channels=1, options=OPTIONS), (1, 8, 8))
    return {
        "format": "nasb latency table",
        "version": 1,
        "network": network_key("resnet20", OPTIONS, 10, (1, 8, 8), CellConfig()),
        "device": {"cpu": "abacus", "kernel": "beads", "threads": 1, "engine": "0", "date": "2026-01-01"},
        "backbone": {"ms": 0.1},
        "context": {"paid": 1.0, "free": 1.0},
        "entries": [{**entry, "ms": ms} for entry in shapes_of(backbone, None).entries],
    } | changes


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table_values()))
    return path


@pytest.fixture
def searching(tmp_path: Path, table: Path) -> Path:
    """The tiny config with a search within 0.13 ms: 15 edges at 2 us."""
    values = yaml.safe_load(TINY) | {"architecture": "search"}
    values["search"] = {"epochs": 1, "warmup_epochs": 0, "budget_ms": 0.13, "latency_table": str(table)}
    path = tmp_path / "searching.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


class TestWithEngine:
    @pytest.fixture(autouse=True)
    def _engine(self) -> None:
        pytest.importorskip("nasb_engine", reason="the engine is not installed: make setup builds it")

    @pytest.fixture(autouse=True)
    def _busy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The path is tested, not the values: on a busy machine they may contradict each other."""
        import nasb_engine.latency

        monkeypatch.setattr(nasb_engine.latency, "LEAST_CONTEXT", -1e9)

    def test_a_table_measured_here_and_by_the_engine_alone(self, command: Command, tmp_path: Path) -> None:
        shapes, here, there = (tmp_path / f"{name}.json" for name in ("shapes", "here", "there"))
        few = (*NETWORK, "--operations", "bin_conv_1x1,bin_conv_3x3,identity")
        assert command("latency-table", *few, "--shapes-only", "-o", shapes).code == 0
        assert json.loads(shapes.read_text())["format"] == SHAPES
        from nasb_engine.cli import main

        assert main(["latency-table", str(shapes), "-o", str(there), "--repeats", "2"]) == 0
        result = command("latency-table", *few, "-o", here, "--repeats", 2, "--json")
        assert result.code == 0
        assert "latency table" in result.err  # how long it takes
        assert json.loads(result.out) == json.loads(here.read_text())
        mine, theirs = (json.loads(path.read_text()) for path in (here, there))
        assert mine["network"] == theirs["network"] == network_key("resnet20", OPTIONS, 10, (1, 8, 8), CellConfig())
        assert mine["device"]["threads"] == 1
        assert [entry["operation"] for entry in mine["entries"]] == [entry["operation"] for entry in theirs["entries"]]
        for entry in (*mine["entries"], mine["backbone"], theirs["backbone"]):
            assert 0 < entry["ms"] <= entry["median"] <= entry["upper_quartile"]
        assert set(mine["context"]) == {"paid", "free"}
        for values in (mine, theirs):
            values["context"] = {"paid": 1.0, "free": 1.0}
        here.write_text(json.dumps(mine))
        assert LatencyTable.load(here).backbone_ms == mine["backbone"]["ms"]

    def test_wrong_inputs(self, refused: Refused, tmp_path: Path) -> None:
        out = tmp_path / "t.json"
        for arguments, says in (
            (("--network", "resnet21", "-o", out), ("unknown host network", "resnet20")),
            (("--network", "bireal_resnet20", "-o", out), ("unknown host network", "resnet20")),
            ((*NETWORK, "--option", "widht=4", "-o", out), ("widht", "closest: width")),
            ((*NETWORK, "--operations", "bin_conv_7x7", "-o", out), ("bin_conv_7x7", "bin_conv_5x5")),
            ((*NETWORK, "--operations", "none", "-o", out), ("--operations",)),
            ((*NETWORK, "--repeats", 0, "-o", out), ("--repeats is 0",)),
            ((*NETWORK, "-o", tmp_path / "missing" / "t.json"), ("there is no directory",)),
            ((*NETWORK, "-o", tmp_path), ("is a directory",)),
            ((*NETWORK,), ("output",)),
        ):
            refused("latency-table", *arguments, says=says)

    def test_an_unknown_kernel(self, refused: Refused, tmp_path: Path) -> None:
        few = (*NETWORK, "--operations", "bin_conv_1x1")
        refused("latency-table", *few, "--kernel", "abacus", "-o", tmp_path / "t.json", says=("abacus",))


def test_without_the_engine_the_shapes_can_be_written(
    monkeypatch: pytest.MonkeyPatch, refused: Refused, command: Command, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "nasb_engine"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nasb_engine", None)
    out = tmp_path / "t.json"
    refused("latency-table", *NETWORK, "-o", out, says=("the engine", "pip install ./engine"))
    result = command("latency-table", *NETWORK, "--operations", "bin_conv_1x1", "--shapes-only", "-o", out)
    assert result.code == 0
    assert "nasb-engine latency-table t.json" in result.out


def test_a_run_within_milliseconds_goes_on_without_the_table_and_tells_its_prediction(
    command: Command, refused: Refused, searching: Path, table: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = command("search", "--config", searching, "--out", out)
    assert result.code == 0, result.err
    assert "budget: 0.13 ms on abacus, beads, 1 thread" in result.err
    assert "search.budget, on OPs, is not used" in result.err
    assert "note: the latency table" not in result.err
    kept = out / "latency-table.json"
    assert kept.read_bytes() == table.read_bytes()
    (row,) = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
    assert row["expected_ms"] == pytest.approx(0.13, rel=0.2)
    architecture = Architecture.load(out / "architecture.json")
    edges = sum(map(len, architecture.cells.values()))
    assert 0.13 * 0.98 <= 0.1 + 0.002 * edges <= 0.13

    text = command("summary", out)
    assert f"latency: {0.1 + 0.002 * edges:.4g} ms predicted, on abacus" in text.out
    assert json.loads(command("summary", out, "--json").out)["predicted_ms"] == pytest.approx(0.1 + 0.002 * edges)

    # Another table is another run; the same one may be gone, since the run has a copy.
    table.write_text(json.dumps(table_values(ms=0.003)))
    refused("run", "--out", out, says=("table.json", "is not the latency table that it was begun with"))
    table.unlink()
    result = command("run", "--out", out)
    assert result.code == 0, result.err
    assert f"{0.1 + 0.002 * edges:.4g} ms predicted" in result.out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["predicted_ms"] == pytest.approx(0.1 + 0.002 * edges)
    assert (summary["budget_ms"], summary["backbone_ms"]) == (0.13, 0.1)
    assert summary["device"]["cpu"] == "abacus"


def test_summary_predicts_for_an_architecture(command: Command, refused: Refused, table: Path, tmp_path: Path) -> None:
    values = Architecture(
        host="resnet20", options=OPTIONS, num_classes=10, input_shape=(1, 8, 8),
        cells={f"layer{s}.{b}.conv{c}": () for s in (1, 2, 3) for b in range(3) for c in (1, 2)},
    )  # fmt: skip
    path = tmp_path / "architecture.json"
    values.save(path)
    assert "latency: 0.1 ms predicted" in command("summary", path, "--latency-table", table).out
    assert "latency" not in command("summary", path).out
    refused("summary", "bireal_resnet20", "--latency-table", table, says=("is for architectures",))
    refused("summary", path, "--input-size", "1x16x16", "--latency-table", table, says=("1x8x8",))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"network": network_key("resnet32", OPTIONS, 10, (1, 8, 8), CellConfig())}, ("host is 'resnet32' there",)),
        ({"network": network_key("resnet20", OPTIONS, 10, (3, 32, 32), CellConfig())}, ("input_shape", "[1, 8, 8]")),
        ({"backbone": {"ms": 0.2}}, ("search.budget_ms is 0.13", "0.2 ms")),
        ({"entries": []}, ("has no entry for", "layer1.0.conv1 needs")),
        ({"version": 7}, ("version is 7",)),
    ],
)
def test_tables_that_do_not_fit_are_refused_before_anything_is_written(
    refused: Refused, searching: Path, table: Path, tmp_path: Path, change: dict[str, Any], says: tuple[str, ...]
) -> None:
    table.write_text(json.dumps(table_values(**change)))
    refused("search", "--config", searching, "--out", tmp_path / "run", says=says)


def test_a_budget_without_a_table(refused: Refused, searching: Path, table: Path, tmp_path: Path) -> None:
    table.unlink()
    refused("search", "--config", searching, "--out", tmp_path / "run", says=("table.json", "cannot be read"))
    refused("search", "--config", "digits", "--search.budget_ms", 2, "--out", tmp_path / "run", says=("give both",))


def test_a_table_of_several_threads_is_noted(command: Command, searching: Path, table: Path, tmp_path: Path) -> None:
    values = table_values()
    table.write_text(json.dumps(values | {"device": values["device"] | {"threads": 4}}))
    result = command("search", "--config", searching, "--out", tmp_path / "run")
    assert result.code == 0
    assert "note: the latency table was made with 4 threads" in result.err


def test_the_documented_commands_fit_together() -> None:
    text = (Path(__file__).parents[2] / "docs" / "latency.md").read_text()
    tables = [block for block in text.replace("\\\n", " ").splitlines() if "nasb latency-table --network" in block]
    assert len(tables) == 2
    recipe, _ = parse_run("run", "", ["--config", "cifar10-resnet20", "--data.root", "any", "--out", "any"])
    plain = {key: str(value) for key, value in network_key("", {}, 0, (), CellConfig())["cell"].items()}
    wanted = {key: str(value) for key, value in network_key("", {}, 0, (), recipe.cell)["cell"].items()}
    for command in tables:
        given = dict(re.findall(r"--option (\w+)=(\w+)", command))
        assert plain | given == wanted
