"""docs/when-binary-pays.md: what the page says is what made-up rows say; and measuring, in small."""

import argparse
import csv
from pathlib import Path
from typing import Any

import binary_pays_page as pays
import pytest
import when_binary_pays as study

ROWS = (  # network, precision, ratio, MB
    ("resnet18", "fp32", 1.0, 46.8),
    ("mobilenet_v3_small", "fp32", 0.2, 10.0),
    ("mobilenet_v3_small", "int8", 0.1, 2.6),
    ("quicknet", "binary", 0.15, 4.3),
    ("bireal_resnet18", "binary", 0.3, 4.2),
    ("reactnet_a", "binary", 0.5, 7.9),
    ("abcnet_resnet18", "binary", 2.0, 9.9),
)


def rows(held_to: str = "") -> list[dict[str, Any]]:
    same = {"rounds": 3, "threads": 1, "held_to": held_to, "load": "0.1", "note": "made up", "cpu": "a CPU"}
    same |= {"instruction_sets": "avx2", "versions": "x 1", "commit": "abc", "date": "2026-01-01", "kernel": ""}
    return [
        same | {
            "network": name, "precision": precision, "file_bytes": int(1e6 * size),
            "runtime": "nasb-engine" if precision == "binary" else "ONNX Runtime",
            "ms": f"{20 * ratio:.3f}", "ms_q1": "1", "ms_q3": "2",
            "ratio": f"{ratio:.3f}", "ratio_q1": f"{ratio - 0.01:.3f}", "ratio_q3": f"{ratio + 0.01:.3f}",
        }
        for name, precision, ratio, size in ROWS
    ]  # fmt: skip


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    study.write(tmp_path / "pays.csv", rows(), "")
    return tmp_path / "pays.csv"


def test_the_table_is_by_time_with_published_top1_and_its_source(measured: Path) -> None:
    lines = [line for line in pays.page(measured).splitlines() if line.startswith("| ")][2:]
    assert [line.split("|")[1].strip() for line in lines] == [
        "mobilenet_v3_small int8", "quicknet", "mobilenet_v3_small fp32", "bireal_resnet18", "reactnet_a",
        "resnet18 fp32", "abcnet_resnet18",
    ]  # fmt: skip
    assert "| quicknet | nasb-engine | 3.00 | 0.15 (0.14 - 0.16) | 4.30 | 63.3 ([Larq Zoo, QuickNet](https" in lines[1]
    assert lines[0].endswith("| 2.60 |  |")  # torchvision publishes no quantized MobileNetV3-Small
    assert "67.7 ([torchvision, IMAGENET1K_V1]" in lines[2]
    assert lines[-1].endswith("| 9.90 |  |")


def test_advice_is_what_the_numbers_say(measured: Path) -> None:
    page = pays.page(measured)
    assert (
        "**Where 69.5% on ImageNet is not enough.** No binary network here was published with more (reactnet_a). "
        in page
    )
    assert "resnet18 fp32 were." in page
    assert "as much or more: bireal_resnet18. Those real ones: mobilenet_v3_small fp32." in page
    assert "Faster than every real network here of as much published Top-1: quicknet and reactnet_a." in page
    assert "int8 runs as well" not in page  # the only one has no published Top-1
    assert "**For bytes.**" not in page
    assert "in both bytes and published Top-1: quicknet, bireal_resnet18 and reactnet_a." in page
    assert "Slower than ResNet-18 itself, fp32 in ONNX Runtime: abcnet_resnet18." in page


def test_a_network_whose_quartiles_meet_a_real_one_s_is_not_called_faster(tmp_path: Path) -> None:
    table = rows()
    table[3] |= {"ratio": "0.185", "ratio_q1": "0.175", "ratio_q3": "0.195"}  # the real one: 0.19 to 0.21
    study.write(tmp_path / "pays.csv", table, "")
    page = pays.page(tmp_path / "pays.csv")
    assert "as much or more: quicknet and bireal_resnet18. Those real ones: mobilenet_v3_small fp32." in page
    assert "Faster than every real network here of as much published Top-1: reactnet_a." in page


def test_a_host_in_our_engine_is_told_from_the_peer(tmp_path: Path) -> None:
    study.write(tmp_path / "pays.csv", [*rows(), rows()[0] | {"runtime": "nasb-engine", "ratio": "1.200"}], "")
    page = pays.page(tmp_path / "pays.csv")
    assert "| resnet18 fp32 (nasb-engine) | nasb-engine |" in page
    assert "| resnet18 fp32 | ONNX Runtime |" in page


def test_other_numbers_give_other_advice(tmp_path: Path) -> None:
    table = rows()
    table[1] |= {"file_bytes": 4_250_000}
    table[-1] |= {"ratio": "0.900"}
    study.write(tmp_path / "pays.csv", table, "")
    page = pays.page(tmp_path / "pays.csv")
    assert "stay real: quicknet. Those real ones: mobilenet_v3_small fp32." in page
    assert "in both bytes and published Top-1: bireal_resnet18 and reactnet_a." in page
    assert "With many bases" not in page


def test_a_run_replaces_its_own_rows_alone(measured: Path) -> None:
    study.write(measured, rows("avx2"), "avx2")
    study.write(measured, rows()[:4], "")
    with measured.open(newline="") as file:
        found = [row["held_to"] for row in csv.DictReader(file)]
    assert found == [*[""] * 4, *["avx2"] * len(ROWS)]
    assert "## Nobody may use AVX-512 (avx2)" in pays.page(measured)


def test_pictures_have_what_is_published(measured: Path, tmp_path: Path) -> None:
    pays.draw(measured, tmp_path / "pictures")
    for name in ("time.svg", "bytes.svg"):
        picture = (tmp_path / "pictures" / name).read_text()
        for label in ("quicknet", "resnet18 fp32", "mobilenet_v3_small fp32"):
            assert f">{label}</text>" in picture
        assert "abcnet" not in picture


@pytest.mark.skipif(not pays.CSV.exists(), reason="not measured")
def test_the_page_in_the_repository_is_up_to_date() -> None:
    text = pays.PAGE.read_text(encoding="utf-8")
    assert text == pays.page(pays.CSV), "python studies/when_binary_pays.py --page writes it"


def test_measuring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("nasb_engine", reason="the engine is not installed: make setup builds it")
    for name, value in {"PEERS": (), "HOSTS": (), "BINARY": ("quicknet_small",), "SHAPE": (3, 64, 64)}.items():
        monkeypatch.setattr(study, name, value)
    given = argparse.Namespace(rounds=2, seconds=0.001, only=None, held=False, note="a test")
    (found,) = study.measure(given)
    study.write(tmp_path / "pays.csv", [found], "")
    assert set(found) == set(study.FIELDS)
    assert (found["network"], found["runtime"], found["precision"]) == ("quicknet_small", "nasb-engine", "binary")
    assert float(found["ratio"]) == 1
    assert 0 < float(found["ms_q1"]) <= float(found["ms"]) <= float(found["ms_q3"])
    assert 4.0e6 < found["file_bytes"] < 4.3e6
