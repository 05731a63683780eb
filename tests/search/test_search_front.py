"""Fronts: what is on them, against the definition and Optuna's own; their files; Optuna's studies; errors."""

import csv
import json

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judging import Oracle, judging_searcher
from latency_tables import table_values, write_table
from search_hosts import SHAPE, searchable

from nasb.cells.architecture import Architecture
from nasb.cli import main
from nasb.errors import UserError
from nasb.networks.convert import convert
from nasb.search import STRATEGIES, SearchConfig
from nasb.search.front import non_dominated, write_front
from nasb.search.population import Judged
from nasb.search.searcher import Searcher


def searched(strategy="nsga2", folder=None, **options):
    searcher = judging_searcher(strategy, **options)
    searcher.finish(Oracle(searcher), seed=5, folder=folder)
    return searcher


small = st.integers(0, 4).map(float)


@given(st.lists(st.tuples(small, small, small), min_size=1, max_size=20))
def test_a_front_is_what_no_other_beats(rows):
    population = [Judged((index,), a, {"ops": b, "ms": c}) for index, (a, b, c) in enumerate(rows)]
    front = non_dominated(population, ("ops", "ms"))
    found = {(j.loss, j.costs["ops"], j.costs["ms"]) for j in front}
    expected = {
        row
        for row in rows
        if not any(other != row and all(a <= b for a, b in zip(other, row, strict=True)) for other in rows)
    }
    assert found == expected
    assert len(front) == len(found)


@pytest.mark.parametrize(("strategy", "objectives"), [("nsga2", ()), ("nsga2", ("memory", "ops")), ("tpe", ("ops",))])
def test_the_front_is_that_of_the_optuna_study_on_disk(strategy, objectives, tmp_path):
    searcher = searched(strategy, tmp_path, objectives=objectives)
    named = searcher.strategy.objectives()
    assert named == (objectives or ("ops",))
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "optuna.journal"))
    study = optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend))
    assert len(study.trials) == 20
    front = non_dominated(searcher.strategy.population, named)
    ours = {(judged.loss, *(judged.costs[name] for name in named)) for judged in front}
    assert ours == {tuple(trial.values) for trial in study.best_trials}
    assert len(ours) > 1
    assert study.trials[0].params.keys() == searcher.strategy.distributions.keys()


def test_a_front_goes_up_to_the_budget_and_far_below_it():
    searcher = searched(trials=24)
    costs = [judged.costs["ops"] for judged in searcher.strategy.population]
    backbone = searcher.cost.backbone
    assert max(costs) <= searcher.budget
    assert max(costs) > 0.95 * searcher.budget
    assert min(costs) < backbone + 0.5 * (searcher.budget - backbone)


def test_a_front_in_milliseconds(tmp_path):
    network, backbone_ops, host, cell = searchable(4, 6, 6)
    backbone = convert(host, SHAPE, cell=cell)
    table = write_table(tmp_path / "table.json", table_values(backbone))
    options = {"budget": 1.6, "trials": 8, "population": 4, "at_once": 4, "latency_table": table.path}
    config = SearchConfig(strategy="nsga2", objectives=("ms",), **options)
    searcher = Searcher(network, backbone_ops, config, table)
    searcher.finish(Oracle(searcher))
    assert searcher.cost.unit == "OPs"
    for judged in searcher.strategy.population:
        assert judged.costs["ms"] == pytest.approx(table.predict(backbone, searcher.space.cells(judged.choice)))


def test_the_files_of_a_front(tmp_path):
    searcher = searched(objectives=("ops", "memory"))
    population = searcher.strategy.population
    (tmp_path / "front").mkdir()
    (tmp_path / "front" / "99.json").write_text("of an earlier front")

    def architecture_of(cells):
        return Architecture(host="made up", num_classes=2, input_shape=SHAPE, cells=cells)

    write_front(tmp_path, searcher.space, population, ("ops", "memory"), architecture_of)
    front = non_dominated(population, ("ops", "memory"))
    rows = list(csv.DictReader((tmp_path / "front.csv").read_text().splitlines()))
    content = json.loads((tmp_path / "front.json").read_text())
    assert content["objectives"] == ["loss", "ops", "memory"]
    assert content["unit"] == "OPs"
    assert content["budget"] == searcher.budget
    assert len(rows) == len(content["front"]) == len(front) == len(list((tmp_path / "front").iterdir()))
    for number, (row, point, judged) in enumerate(zip(rows, content["front"], front, strict=True)):
        assert int(row["number"]) == point["number"] == number
        assert float(row["loss"]) == point["loss"] == judged.loss
        assert float(row["ops"]) == judged.costs["ops"]
        assert float(row["memory_bits"]) == judged.costs["memory"]
        assert float(row["ops_ratio"]) == judged.costs["ops"] / searcher.cost.backbone
        architecture = Architecture.load(tmp_path / "front" / f"{number}.json")
        assert searcher.space.choice(architecture.cells) == judged.choice
        assert point["cells"] == architecture.to_dict()["cells"]
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_a_damaged_journal_is_named(tmp_path):
    searched(folder=tmp_path)
    file = tmp_path / "optuna.journal"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], "{\n", *lines[1:]]))
    with pytest.raises(UserError, match=r"optuna\.journal: is damaged. Delete it"):
        searched(folder=tmp_path)


def test_a_lock_that_a_kill_has_left_does_not_stop_a_search(tmp_path):
    searched(folder=tmp_path)
    (tmp_path / "optuna.journal.lock").symlink_to(tmp_path / "optuna.journal")
    searched(folder=tmp_path)
    assert not (tmp_path / "optuna.journal.lock").is_symlink()


@pytest.mark.parametrize("strategy", ["tpe", "nsga2"])
def test_a_missing_optuna_is_one_line_before_anything_is_written(strategy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nasb.search.optuna_search.find_spec", lambda name: None)
    out = tmp_path / "run"
    assert main(["search", "--out", str(out), "--search.strategy", strategy, "--data.train_limit", "64"]) == 2
    line = f"search.strategy: {strategy} needs Optuna, which is not installed: pip install 'nasb[optuna]'"
    assert line in capsys.readouterr().err
    assert not out.exists()
    assert main(["list", "strategies"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == list(STRATEGIES)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"strategy": "nsga2", "objectives": ("opps",)}, r'search.objectives: unknown cost "opps"; known: .*ops'),
        ({"strategy": "nsga2", "objectives": ("ops", "ops")}, "name each cost once"),
        ({"strategy": "evolution", "objectives": ("ops",)}, "strategy evolution has the loss alone"),
        ({"strategy": "nsga2", "objectives": ("ms",)}, "ms needs search.latency_table"),
        ({"trials": 0}, "search.trials is 0; it must be at least 1"),
        ({"population": 1}, "search.population is 1; it must be at least 2"),
        ({"race_epochs": 2}, "search.race_epochs is 2, but search.derive_candidates is 1; a race needs two or more"),
        ({"derive_candidates": 0}, "search.derive_candidates is 0; it must be at least 1"),
    ],
)
def test_options_that_do_not_fit(options, says):
    with pytest.raises(UserError, match=says):
        SearchConfig(**options)
