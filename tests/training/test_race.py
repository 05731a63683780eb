"""A race of derived architectures: who wins, that it is what finetune would do, and that it goes on after a kill."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import nasb
from nasb.cells.architecture import Edge
from nasb.cli.parsing import parse_run
from nasb.errors import UserError
from nasb.search.space import Cells
from nasb.training.evaluation import evaluate
from nasb.training.pipeline import Pipeline
from nasb.training.race import FILE, Race

FLAGS = ("--search.derive_candidates=3", "--search.race_epochs=2", "--checkpoint_minutes=60")


@pytest.fixture
def pipeline(tiny: Path, tmp_path: Path) -> Any:
    config, _ = parse_run("search", "", ["--config", str(tiny), "--out", str(tmp_path / "run"), *FLAGS])
    with Pipeline(config, tmp_path / "run") as made:
        yield made


@pytest.fixture
def candidates(pipeline: Pipeline) -> list[Cells]:
    assert pipeline.networks.plan is not None
    names = ("bin_conv_1x1", "max_pool_3x3", "bin_conv_3x3")
    return [dict.fromkeys(pipeline.networks.plan.becoming("cell"), (Edge(0, 2, name),)) for name in names]


def race_of(pipeline: Pipeline, folder: Path | None = None) -> Race:
    return Race(pipeline._race_stage, pipeline.fabric, seed=pipeline.config.seed, folder=folder)


def test_each_is_trained_on_the_weights_part_and_judged_on_alphas(pipeline: Pipeline, candidates: list[Cells]) -> None:
    made = []

    def stage_of(cells: Any) -> Any:
        made.append(pipeline._race_stage(cells))
        return made[-1]

    race = Race(stage_of, pipeline.fabric, seed=pipeline.config.seed, folder=None)
    results = race.results(candidates)
    assert [stage.part for stage in made] == ["weights"] * 3
    assert [stage.epochs for stage in made] == [2] * 3
    for stage, result in zip(made, results, strict=True):
        assert evaluate(stage.trained(), pipeline.data, "alpha") == result
        assert stage.optimizer.param_groups[0]["lr"] < 0.3 * pipeline.config.finetune.learning_rate  # to the end
    assert len({result.loss for result in results}) == 3


def test_all_begin_with_the_hosts_weights_and_get_the_same_result_again(
    pipeline: Pipeline, candidates: list[Cells]
) -> None:
    (first,) = race_of(pipeline).results(candidates[:1])
    torch.rand(7)
    assert race_of(pipeline).results([candidates[1], candidates[0]])[1] == first
    one, other = (pipeline._race_stage(cells).network.state_dict() for cells in candidates[:2])
    common = one.keys() & other.keys()
    assert any("backbone" in name for name in common)
    assert any(one[name].std() > 0 for name in common if name.endswith("weight"))
    assert all(torch.equal(one[name], other[name]) for name in common)


def test_what_is_finished_is_not_run_again(
    pipeline: Pipeline, candidates: list[Cells], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = race_of(pipeline, tmp_path).results(candidates)
    told = capsys.readouterr().err
    assert f"race: architecture 2 of 3: loss {whole[1].loss:.4g}, Top-1 {whole[1].top1:.2f}%" in told
    rows = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(rows[:1]))
    ran = []

    def stage_of(cells: Any) -> Any:
        ran.append(cells)
        return pipeline._race_stage(cells)

    assert Race(stage_of, pipeline.fabric, seed=pipeline.config.seed, folder=tmp_path).results(candidates) == whole
    assert ran == candidates[1:]
    again = json.loads((tmp_path / FILE).read_text())
    assert again[0] == rows[0]  # its seconds among it
    assert [row | {"seconds": 0} for row in again] == [row | {"seconds": 0} for row in rows]


@pytest.mark.parametrize("text", ["{", "[1]", '[{"cells": "a", "loss": 1}]', '{"a": 1}'])
def test_a_damaged_file_is_refused(pipeline: Pipeline, candidates: list[Cells], tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match=r"race.json: is damaged. Delete the file to run the race anew"):
        race_of(pipeline, tmp_path).results(candidates)


def test_the_search_keeps_the_winner(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([0.9, 0.4, 0.6])
    seen = []

    def run(self: Race, stage: Any) -> Any:
        seen.append(stage)
        return SimpleNamespace(top1=50.0, loss=next(losses), images=10, correct=5)

    monkeypatch.setattr(Race, "_run", run)
    pipeline.run_stages(["search"])
    assert len(seen) == 3
    kept = [row.split(",")[1] for row in (tmp_path / "run" / "candidates.csv").read_text().splitlines()[1:]]
    assert kept == ["0", "1", "0"]
    architecture = nasb.Architecture.load(tmp_path / "run" / "architecture.json")
    keys = [row["cells"] for row in json.loads((tmp_path / "run" / FILE).read_text())]
    from nasb.training.race import _key

    assert keys[1] == _key(architecture.cells)
