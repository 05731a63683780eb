"""The page of results from made-up CSVs: every number by hand, every section as its CSV appears."""

import csv
import statistics
from pathlib import Path
from typing import Any

import claim
import pictures
import pytest
import report
import result_rows
from claim_methods import METHODS, SEEDS, TRIALS
from report_claim import Claim, Sample, difference
from report_search import tau_table

from nasb.cells.architecture import Architecture, Edge
from nasb.search.config import SearchConfig

BEST = TRIALS[1]
"""The trial that is to win."""


TOP1 = {
    "backbone": (61.0,),
    "bireal-published": (60.0, 61.0, 62.0),
    "bireal": (60.5, 60.5, 60.5),
    "nasb-1.37": (66.0, 66.5, 67.0),
    "nasb-1.10": (62.0, 62.5, 63.0),
    "random-1.37": (64.0, 65.0, 66.0),
    "bnn": (50.0,),
    "groupnet": (66.0,),
    "nasb-multiple": (68.0,),
}
OPS = {"nasb-1.37": 1.37, "nasb-1.10": 1.10, "random-1.37": 1.37, "groupnet": 2.0, "nasb-multiple": 2.1}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def row(name: str, trial: tuple[float, float], seed: int, top1: float) -> dict[str, Any]:
    searched = METHODS[name].budget is not None and not METHODS[name].random
    ratio = OPS.get(name, 1.0)
    known = {
        **claim.Job("cifar10", name, *trial, seed).__dict__, "learning_rate": f"{trial[0]:g}",
        "branch_gain": f"{trial[1]:.4f}", "validation_top1": f"{top1:.2f}", "ops": 2e5 * ratio, "ops_ratio": ratio,
        "added_binary_macs": ratio - 1, "memory_bits": 346_000, "epochs": 12, "search_epochs": 10 if searched else 0,
        "search_seconds": 300 if searched else 0, "train_seconds": 240,
    }  # fmt: skip
    return {key: known.get(key, "") for key in claim.COLUMNS}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows = []
    for name, values in TOP1.items():
        if METHODS[name].as_in is None:
            rows += [row(name, trial, SEEDS[0], 40.0) for trial in TRIALS if trial != BEST]
        rows += [row(name, BEST, seed, top1) for seed, top1 in enumerate(values)]
    write(tmp_path / "claim.csv", rows)
    return tmp_path


def cells(page: str, start: str) -> list[str]:
    """The cells of the first line that begins so."""
    line = next(line for line in page.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_accuracies_have_mean_spread_and_number(results: Path) -> None:
    page = report.page(results)
    label = METHODS["nasb-1.37"].label
    assert cells(page, label) == [
        label, "`nasb-1.37`", "0.2740", "1.370", "37.0%", "43.2", "66.50 ± 0.50 (3)", "", "12, 10",
        "0.02, 0.33, as `backbone`",
    ]  # fmt: skip
    assert cells(page, "BNN")[6:] == ["50.00 (1)", "", "12", "0.02, 0.33"]
    assert "±" not in cells(page, "BNN")[6]


def test_goals_are_judged_against_the_best_rival(results: Path) -> None:
    page = report.page(results)
    found = cells(page, "NASB 1.37 over the best of BNN, XNOR-Net, Bi-Real Net")
    error = (0.5**2 / 3 + 1.0**2 / 3) ** 0.5
    assert found[1] == f"{METHODS['bireal-published'].label} (without XNOR-Net: not run)"
    assert found[2:] == ["3, 3", f"+5.50 ± {error:.2f}", "1.37", "+4.00", "yes", "0.004"]  # t 8.5, 2.9 degrees
    assert cells(page, "NASB 1.10 over the same")[3:] == [f"+1.50 ± {error:.2f}", "1.10", "+4.00", "**no**", "0.104"]
    # Above the mean of the random ones by 1.5 points; their spread is 1. n of the random ones is 3 here.
    assert cells(page, "NASB 1.37 over random architectures, by their spread")[3:] == [
        f"+1.50 ± {(0.5**2 / 3 + 1 / 3) ** 0.5:.2f}", "1.00", "+1.00", "yes", "0.104",
    ]  # fmt: skip
    # 2 points more, but at more OPs.
    found = cells(page, "NASB of several bases over the best multiple network, no more OPs")
    assert found[2:] == ["1, 1", "+2.00", "1.05", "+1.00", "**no**", ""]
    assert "| NASB 1.37 over the widened Bi-Real Net |" not in page  # it has not run


def test_what_is_left_to_the_real_network_is_told(results: Path) -> None:
    assert "What there is to win" not in report.page(results)
    found = result_rows.rows(results / "claim.csv")
    real = [row("real-16", trial, SEEDS[0], 69.0 if trial == BEST else 40.0) for trial in TRIALS]
    write(results / "claim.csv", [*found, *real])
    text = f"8.00 above {METHODS['bireal-published'].label} and 2.50 above {METHODS['nasb-1.37'].label}."
    assert text in report.page(results)


def test_test_images_decide_once_they_are_read(results: Path) -> None:
    assert report.SEALED in report.page(results)
    sealed = []
    for name, values in TOP1.items():
        for seed, top1 in enumerate(values):
            key = claim.Job("cifar10", name, *BEST, seed).row_key()
            keys = ("set", "method", "seed", "learning_rate", "branch_gain")
            test = top1 - (5.0 if name == "nasb-1.37" else 0.0)
            sealed.append(dict(zip(keys, key, strict=True)) | {"test_top1": f"{test:.2f}", "commit": "x"})
    write(results / "claim-test.csv", sealed)
    page = report.page(results)
    assert report.SEALED not in page
    assert cells(page, METHODS["nasb-1.37"].label)[6:8] == ["66.50 ± 0.50 (3)", "61.50 ± 0.50 (3)"]
    assert cells(page, "NASB 1.37 over the best of BNN, XNOR-Net, Bi-Real Net")[3].startswith("+0.50 ±")
    write(results / "claim-test.csv", [line for line in sealed if line["method"] != "nasb-1.37"])
    page = report.page(results)
    assert report.SEALED in page
    assert cells(page, "NASB 1.37 over the best of BNN, XNOR-Net, Bi-Real Net")[3].startswith("+5.50 ±")  # both sides


def test_the_cost_of_search_is_in_plain_epochs(results: Path) -> None:
    found = cells(report.page(results).partition("## What search costs")[2], METHODS["nasb-1.37"].label)
    assert found[1:] == ["300", "10", "15.0", "240", "12.0"]  # a plain epoch: 240 s / 12


def test_trials_of_every_method_are_shown(results: Path) -> None:
    trials = report.page(results).partition("## Trials")[2]
    assert cells(trials, "BNN")[1:] == [
        "40.00 (0.01, 0.33)", "50.00 (0.02, 0.33)", "40.00 (0.01, 1.00)", "40.00 (0.02, 0.10)",
    ]  # fmt: skip
    assert METHODS["random-1.37"].label not in trials  # it has none of its own


def test_nothing_is_compared_before_its_trials_are_done(results: Path) -> None:
    rows = result_rows.rows(results / "claim.csv")
    write(results / "claim.csv", [line for line in rows if line["method"] != "bnn" or line["branch_gain"] != "1.0000"])
    page = report.page(results)
    assert "BNN" not in page.partition("## Trials")[0].partition("| goal |")[0]
    assert cells(page.partition("## Trials")[2], "BNN")[1:] == [
        "40.00 (0.01, 0.33)", "50.00 (0.02, 0.33)", "to come (0.01, 1.00)", "40.00 (0.02, 0.10)",
    ]  # fmt: skip


def test_operations_are_counted_by_stage_and_edge(results: Path) -> None:
    (results / "architectures" / "cifar10").mkdir(parents=True)
    for seed, edges in enumerate(((Edge(0, 2, "bin_conv_3x3"), Edge(0, 1, "identity")), (Edge(0, 2, "bin_conv_3x3"),))):
        Architecture(
            host="resnet20", options={"stem_stride": 2}, num_classes=10, input_shape=(3, 32, 32),
            cells={"layer1.0.conv1": edges, "layer3.2.conv2": edges[:1]},
        ).save(results / "architectures" / "cifar10" / f"nasb-1.37-seed{seed}.json")  # fmt: skip
    (results / "architectures" / "cifar10" / "random-1.37-seed0.json").write_text("not read")
    found = report.page(results).partition("## What was found")[2]
    header = next(line for line in found.splitlines() if line.startswith("| operation"))
    assert header == "| operation | in all | layer1 | layer3 | 0 -> 1 | 0 -> 2 |"
    assert cells(found, "`bin_conv_3x3`")[1:] == ["2.0", "1.0", "1.0", "0.0", "2.0"]
    assert cells(found, "`identity`")[1:] == ["0.5", "0.5", "0.0", "0.5", "0.0"]


def test_ablations_are_beside_their_method_at_equal_seeds(results: Path) -> None:
    base = row("nasb-1.37", BEST, 0, 0.0)
    write(
        results / "ablation.csv",
        [base | {"seed": seed, "validation_top1": top1, "variant": "no warm-up", "note": "as one word"}
         for seed, top1 in ((0, 64.0), (1, 65.0))],
    )  # fmt: skip
    found = cells(report.screening_page(results), METHODS["nasb-1.37"].label)
    error = (0.5 / 2 + 0.125 / 2) ** 0.5
    assert found[1:] == [
        "no warm-up", "as one word", "0.2740", "64.50 ± 0.71 (2)", "66.25 ± 0.35 (2)", f"-1.75 ± {error:.2f}",
    ]  # fmt: skip


@pytest.mark.parametrize("best", ["gates", SearchConfig().strategy])
def test_the_best_strategy_is_named_and_compared_with_the_default(best: str) -> None:
    accuracy = [70.0, 71.0, 69.0, 68.0, 72.0, 73.0, 67.0, 66.0]
    trained = [row("backbone", trial, 0, 63.0 + (trial == BEST)) for trial in TRIALS]
    trained += [row("random-1.37", BEST, seed, top1) for seed, top1 in enumerate(accuracy)]
    runs = [{key: str(value) for key, value in line.items()} for line in trained]
    scores = [
        {
            "set": "cifar10", "strategy": name, "budget": "1.37", "epochs": "10", "method": "random-1.37",
            "seed": str(seed), "score": str(sign * top1), "shared_loss": str(top1), "search_seconds": "99",
        }
        for name, sign in (("darts", -1), (best, 1))
        for seed, top1 in enumerate(accuracy)
    ]  # fmt: skip
    text = tau_table(Claim(runs, []), scores)
    assert cells(text, best)[3:] == ["+1.00 (8; p 0.00)", "-1.00 (8; p 0.00)"] * 2 + ["10", "99"]
    assert cells(text, "darts")[3] == "-1.00 (8; p 0.00)"
    assert f"of random ones is `{best}`, " in text
    assert ("which is the default" in text) == (best == SearchConfig().strategy)
    assert "The best one" not in tau_table(Claim(runs[:-1], []), scores)  # of seven nothing is said


def test_differences_have_a_standard_error_where_there_is_a_spread() -> None:
    ours, theirs = Sample((1.0, 3.0)), Sample((0.0, 1.0, 2.0))
    points, error = difference(ours, theirs)
    assert points == 1.0
    assert error == pytest.approx((statistics.variance((1, 3)) / 2 + statistics.variance((0, 1, 2)) / 3) ** 0.5)
    assert difference(ours, Sample((2.0,))) == (0.0, None)


def test_pictures_hold_every_method_and_are_the_same_twice(results: Path, tmp_path: Path) -> None:
    report.draw(results, tmp_path / "a")
    report.draw(results, tmp_path / "b")
    picture = (tmp_path / "a" / "cifar10-ops.svg").read_text()
    assert picture == (tmp_path / "b" / "cifar10-ops.svg").read_text()
    for name in TOP1:
        assert f">{name}</text>" in picture
    assert "validation Top-1" in picture


def test_the_front_is_what_nothing_beats() -> None:
    def point(x: float, y: float) -> pictures.Point:
        return pictures.Point(label="", group="", x=x, y=y)

    points = [point(1, 5), point(2, 4), point(2, 7), point(3, 7), point(4, 9), point(1, 4)]
    assert [(p.x, p.y) for p in pictures.pareto(points)] == [(1, 5), (2, 7), (4, 9)]


def test_commands(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = tmp_path / "docs"
    arguments = ["report.py", "--results", str(results), "--docs", str(docs)]
    monkeypatch.setattr("sys.argv", [*arguments, "--check"])
    with pytest.raises(SystemExit, match="out of date"):
        report.main()
    monkeypatch.setattr("sys.argv", arguments)
    report.main()
    page = (docs / "results.md").read_text()
    for line in page.splitlines():
        if line.startswith("!["):
            assert (docs / line.rpartition("(")[2].rstrip(")")).is_file(), line
    monkeypatch.setattr("sys.argv", [*arguments, "--check"])
    report.main()
    monkeypatch.setattr("sys.argv", ["report.py", "--results", str(docs)])
    with pytest.raises(SystemExit, match=r"claim\.csv is not there"):
        report.main()


@pytest.mark.skipif(not (claim.ROOT / "docs" / "results.md").exists(), reason="the study has not run")
def test_the_pages_in_the_repository_are_up_to_date() -> None:
    for name, made in (("results.md", report.page), ("screening.md", report.screening_page)):
        page = (claim.ROOT / "docs" / name).read_text(encoding="utf-8")
        assert page == made(claim.ROOT / "results"), "python studies/report.py writes it"


def test_unchosen_runs_are_not_averaged(results: Path) -> None:
    found = Claim.load(results)
    assert found.validation("cifar10", "bireal-published").values == TOP1["bireal-published"]
    assert found.methods("cifar10") == [name for name in METHODS if name in TOP1]
    assert found.methods("fashion-mnist") == []
