"""The study in small, from its first run to docs/results.md, with digits for images: the path, no values."""

import contextlib
import csv
import io
import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import claim
import claim_methods
import pytest
import report
import result_rows
import search_score

from nasb.cli import main as nasb

NAMES = ("bireal-published", "nasb-1.37", "random-1.37", "random-race-1.37", "bnn")
TRIALS = ((0.01, 1 / 3),)
RANDOM = 2
SMALL = {
    "network.options": "{stem_stride: 2, width: 4}",
    "finetune.epochs": "1",
    "data.train_limit": "32",
    "data.batch_size": "16",
    "search.warmup_epochs": "0",
    "hardware.accelerator": "cpu",
    "hardware.compile": "false",
}


def run(command: list[Any], **options: Any) -> "subprocess.CompletedProcess[str]":
    """What the study runs as processes, in this one: starting them would take most of the time."""
    words = [str(word) for word in command]
    if Path(words[0]).name == "nasb":
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            assert nasb(words[1:]) == 0, words
        return subprocess.CompletedProcess(words, 0, said.getvalue(), "")
    if words[0] == sys.executable:
        before, sys.argv = sys.argv, words[1:]
        try:
            runpy.run_path(words[1], run_name="__main__")
        finally:
            sys.argv = before
        return subprocess.CompletedProcess(words, 0, "", "")
    return subprocess.run(command, **options)  # noqa: PLW1510 - the options say it


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    methods = {name: claim_methods.METHODS[name] for name in NAMES}
    for name, seeds in (("bireal-published", 1), ("nasb-1.37", 1), ("random-1.37", RANDOM), ("random-race-1.37", 1)):
        methods[name] = replace(methods[name], seeds=tuple(range(seeds)))
        if methods[name].budget is not None:
            methods[name] = replace(methods[name], as_in="bireal-published")
    files = {"RESULTS": tmp_path / "claim.csv", "FINAL": tmp_path / "claim-test.csv"}

    def rows(path: Path = files["RESULTS"]) -> list[dict[str, str]]:
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    import report_claim
    import report_search

    shared = {
        "METHODS": methods, "TRIALS": TRIALS, "SEEDS": (0,), "rows": rows,
        "SETS": {"cifar10": {"data.name": "digits"}},
        "BASE": claim_methods.BASE | SMALL, "SEARCH_EPOCHS": 1, "RACE": (2, 1), "subprocess": SimpleNamespace(run=run),
        "ARCHITECTURES": tmp_path / "architectures", "MODELS": tmp_path / "models", "STRATEGIES": ["random"],
        "RESULT": tmp_path / "search-score.csv", **files,
    }  # fmt: skip
    for module in (claim, claim_methods, search_score, report, report_claim, report_search):
        for name, value in shared.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    return tmp_path


def test_from_the_first_run_to_the_page(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nasb_engine")  # the test images are read with the exported networks
    runs = results / "runs"
    runner = claim.Runner({"cifar10": str(results)}, runs, workers=1)
    with pytest.raises(SystemExit, match=r"nasb-1\.37 has the settings of .*, whose trials are not trained yet"):
        claim.final(runner, ["nasb-1.37"])
    runner.run(list(NAMES))
    found = result_rows.rows(claim.RESULTS)
    assert sorted(row["method"] for row in found) == sorted([*NAMES, *["random-1.37"] * (RANDOM - 1)])
    assert list(claim.pending(found, ["cifar10"], list(NAMES))) == []
    assert all(float(row["ops"]) > 0 and row["config_hash"] and row["commit"] for row in found)
    assert (results / "architectures" / "cifar10" / "nasb-1.37-seed0.json").is_file()
    seconds = {row["method"]: float(row["search_seconds"]) for row in found}
    assert seconds["random-1.37"] == 0 < seconds["random-race-1.37"]
    raced = json.loads((runs / "cifar10" / "random-race-1.37" / "search-seed0" / "race.json").read_text())
    assert len(raced) == claim.RACE[0]

    arguments = ["search_score.py", "--root", str(results), "--runs", str(runs)]
    monkeypatch.setattr(sys, "argv", arguments)
    search_score.main()
    scored = [(row["strategy"], row["method"], row["seed"]) for row in result_rows.rows(search_score.RESULT)]
    assert scored == [("random", *key) for key in search_score.architectures("cifar10")]
    assert {"nasb-1.37", "random-1.37"} <= {method for _, method, _ in scored}
    search_score.main()  # nothing is scored twice
    assert len(result_rows.rows(search_score.RESULT)) == len(scored)

    assert len(list((results / "models").rglob("*.onnx"))) == len(found)
    assert report.SEALED in report.page(results)
    lost = next((results / "models").rglob("bnn/*.onnx"))
    lost.unlink()
    with pytest.raises(SystemExit, match=r"bnn/.* is not trained yet"):
        claim.final(runner, list(NAMES))
    assert not claim.FINAL.exists()
    runner.run(list(NAMES))
    assert lost.exists()
    assert result_rows.rows(claim.RESULTS) == found  # in place of the row that was there
    claim.final(runner, list(NAMES))
    assert len(result_rows.rows(claim.FINAL)) == len(found)
    lost.unlink()  # nothing has to read it any more
    assert list(claim.pending(found, ["cifar10"], list(NAMES))) == []
    claim.final(runner, list(NAMES))  # reads no test image twice
    assert len(result_rows.rows(claim.FINAL)) == len(found)
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", str(results), "--docs", str(results / "docs")])
    report.main()
    page = (results / "docs" / "results.md").read_text()
    for words in ("## CIFAR-10", "## What search costs", "## What was found", "## Does a search know", "## Trials"):
        assert words in page
    assert report.SEALED not in page
