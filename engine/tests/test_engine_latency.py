"""nasb-engine latency-table: without torch, from a file of shapes to a table; what is refused; progress."""

import base64
import io
import json
import os
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nasb_engine import EngineError, latency
from tiny_models import MODELS

Engine = Callable[..., "subprocess.CompletedProcess[str]"]

ENTRY = {
    **{"operation": "bin_conv_3x3", "kind": "binary_conv", "in_channels": 8, "in_height": 6, "in_width": 6},
    **{"out_channels": 8, "kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1, "groups": 1},
}


def packed(name: str) -> str:
    return base64.b64encode(zlib.compress(MODELS[name]().SerializeToString())).decode()


def shapes(**changes: Any) -> dict[str, Any]:
    """A file of shapes whose probe is much dearer than its backbone."""
    by_size = sorted(MODELS, key=lambda name: len(MODELS[name]().SerializeToString()))
    return {
        "format": latency.SHAPES,
        "version": latency.VERSION,
        "network": {"host": "tiny"},
        "entries": [ENTRY, ENTRY | {"operation": "identity", "kind": "identity", "kernel_size": 1, "padding": 0}],
        "backbone": {"file": packed(by_size[0])},
        "probes": {"paid": {"file": packed(by_size[-1]), "entries": [0, 0]}},
    } | changes


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(latency, "LEAST_CONTEXT", -1e9)  # the path is tested, not what a busy machine measures
    return latency.measure_table(shapes(), repeats=3)


def test_a_table(measured: dict[str, Any]) -> None:
    assert measured["format"] == latency.TABLE
    assert measured["network"] == {"host": "tiny"}
    assert [entry["operation"] for entry in measured["entries"]] == ["bin_conv_3x3", "identity"]
    for entry in (*measured["entries"], measured["backbone"]):
        assert 0 < entry["ms"] <= entry["median"] <= entry["upper_quartile"]
    assert set(measured["context"]) == {"paid"}
    assert measured["device"]["threads"] == 1
    assert set(measured["device"]) == {"cpu", "kernel", "threads", "engine", "date"}
    assert "file" not in measured["backbone"]
    assert "bin_conv_3x3" in latency.describe(measured)


def test_measurements_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def measure(**arguments: Any) -> list[float]:
        order.append(arguments["kind"])
        return [1.0, 2.0, 9.0]

    monkeypatch.setattr(latency._core, "measure", measure)
    monkeypatch.setattr(latency, "LEAST_CONTEXT", -1e9)
    shares: list[float] = []
    table = latency.measure_table(shapes(), repeats=2, progress=shares.append)
    assert order == ["binary_conv", "identity"] * 3
    assert [entry["ms"] for entry in table["entries"]] == [2.0, 2.0]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_measurements_that_contradict_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    same = shapes()
    same["probes"]["paid"]["file"] = same["backbone"]["file"]
    monkeypatch.setattr(latency._core, "measure", lambda **_: [1e3])
    with pytest.raises(latency.EngineError, match=r"paid operations seem to take .* try again"):
        latency.measure_table(same, repeats=2)


@pytest.mark.parametrize(
    "changes",
    [
        # 4159 pixels of padding around one: 69 million pixels.
        {"in_height": 1, "in_width": 1, "kernel_size": 64, "dilation": 64, "stride": 64, "padding": 4159},
        {"kernel_size": 65536, "dilation": 32768},
        {"in_height": 2**31 - 1, "padding": 2**30},
    ],
)
def test_shapes_too_large_to_be_measured_are_refused(changes: dict[str, int]) -> None:
    for kind in ("binary_conv", "conv"):
        with pytest.raises(EngineError, match="not one of a convolution, or too large"):
            latency.measure_table(shapes(entries=[ENTRY | {"kind": kind} | changes], probes={}), repeats=1)


def test_the_command_needs_no_torch(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "shapes.json").write_text(json.dumps(shapes()))
    result = engine("latency-table", "shapes.json", "-o", "table.json", "--repeats", "20", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == json.loads((tmp_path / "table.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shapes.json", "table.json"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not a file of shapes"),
        ({"format": latency.TABLE}, "is not a file of shapes"),
        ({"version": 2}, "version is 2; this engine reads 1"),
        ({"entries": []}, '"entries" or "network" is missing'),
        ({"entries": [{"operation": "identity"}]}, "entries[0].kind is None"),
        ({"entries": [ENTRY | {"stride": 1.5}]}, "entries[0].stride is 1.5"),
        ({"entries": [3]}, "entries[0] has no operation"),
        ({"backbone": {}}, "backbone has no file"),
        ({"probes": {"paid": {"file": "", "entries": [2]}}}, "probes.paid.entries does not name entries"),
        ({"probes": {"paid": {"file": "", "entries": [0.0]}}}, "probes.paid.entries does not name entries"),
        ({"probes": 3}, '"probes" is missing'),
        ({"entries": [ENTRY | {"kind": "\ud800"}]}, r"entries[0].kind is '\ud800'"),
        ({"backbone": {"file": "!"}}, "a network's file is damaged"),
        ({"backbone": {"file": base64.b64encode(zlib.compress(b"model")[:-2]).decode()}}, "cut short"),
        ({"backbone": {"file": base64.b64encode(zlib.compress(b"model")).decode()}}, "nasb-engine: "),
        ({"entries": [ENTRY | {"in_channels": 0}], "probes": {}}, "cannot be measured"),
        ({"entries": [ENTRY | {"in_channels": 10**30}], "probes": {}}, "entries[0].in_channels is 1000"),
        ({"entries": [ENTRY | {"stride": 10**10}], "probes": {}}, "entries[0].stride is 10000000000"),
        ({"entries": [ENTRY | {"padding": -1}], "probes": {}}, "entries[0].padding is -1"),
        ({"entries": [ENTRY | {"stride": 0}], "probes": {}}, "cannot be measured"),
        ({"entries": [ENTRY | {"kind": "sorcery"}], "probes": {}}, "cannot be measured"),
    ],
)
def test_wrong_shapes_are_one_line(engine: Engine, tmp_path: Path, change: Any, says: str) -> None:
    text = change if isinstance(change, str) else json.dumps(shapes(**change))
    (tmp_path / "shapes.json").write_text(text)
    result = engine("latency-table", "shapes.json", "-o", "table.json")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("nasb-engine: ")
    assert says in line
    assert not (tmp_path / "table.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("shapes.json", "-o", "missing/table.json"), "there is no directory missing"),
        (("shapes.json", "-o", "."), "is a directory"),
        (("shapes.json",), "-o/--output"),
        (("nowhere.json", "-o", "table.json"), "nowhere.json"),
        (("shapes.json", "-o", "table.json", "--repeats", "0"), "repeats is 0"),
        (("shapes.json", "-o", "table.json", "--kernel", "abacus"), "abacus"),
        (("shapes.json", "-o", "table.json", "--threads", "-1"), "threads is -1"),
    ],
)
def test_wrong_arguments_are_one_line(engine: Engine, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    (tmp_path / "shapes.json").write_text(json.dumps(shapes()))
    result = engine("latency-table", *arguments)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert says in line


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_tells_the_time_left() -> None:
    screen, seconds = Screen(), iter([0.0, 1.0, 4.0])
    bar = latency.Bar("measuring", screen, lambda: next(seconds))
    bar(0.25)
    bar(1.0)
    assert "25%,    3 s left" in screen.getvalue()
    assert screen.getvalue().endswith("100%,    0 s left\n")


def test_where_there_is_no_terminal_one_line_tells_the_time() -> None:
    log, seconds = io.StringIO(), iter([0.0, 1.0, 2.0, 3.0])
    bar = latency.Bar("measuring", log, lambda: next(seconds))
    for share in (0.01, 0.1, 0.5):
        bar(share)
    assert log.getvalue() == "measuring: about 18 s\n"


def test_a_link_stays_one_and_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    link = tmp_path / "table.json"
    link.symlink_to("real.json")
    latency.check_output(str(link))
    latency.write_table(str(link), {"a": 1})
    assert link.is_symlink()
    assert json.loads((tmp_path / "real.json").read_text()) == {"a": 1}
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EngineError, match="not a regular file"):
        latency.check_output(str(tmp_path / "pipe"))
