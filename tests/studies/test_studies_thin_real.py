"""Thin real networks beside binary ones: which widths are picked, and the page's section from made-up rows."""

import csv
from pathlib import Path
from typing import Any

import binary_pays_page as pays
import claim
import pytest
import thin_real
from claim_methods import METHODS, TRIALS, Method
from test_studies_binary_pays import rows as of_imagenet
from when_binary_pays import FIELDS, write

OURS = 50_000


def measured() -> list[dict[str, Any]]:
    same = dict.fromkeys(FIELDS, "1") | {"ratio_q1": "0.1", "ratio_q3": "0.2"}
    found = [same | {"network": "nasb-1.37", "precision": "binary", "runtime": "nasb-engine", "ratio": "1.000",
                     "file_bytes": OURS}]  # fmt: skip
    for width in (4, 6, 8):
        for precision, ratio, size in (("fp32", 0.2 * width, 9000 * width), ("int8", 0.15 * width, 6000 * width)):
            found.append(same | {"network": f"real-{width}", "precision": precision, "runtime": "ONNX Runtime",
                                 "ratio": f"{ratio:.3f}", "file_bytes": size})  # fmt: skip
    return found


def test_the_widest_that_is_no_slower_and_no_larger_is_picked() -> None:
    assert thin_real.widths(measured()) == {
        ("fp32", "time"): 4, ("fp32", "bytes"): 4, ("int8", "time"): 6, ("int8", "bytes"): 8,
    }  # fmt: skip
    slow = [row | {"ratio": "1.5"} if row["network"] != "nasb-1.37" else row for row in measured()]
    assert thin_real.widths(slow) == {("fp32", "bytes"): 4, ("int8", "bytes"): 8}


def test_the_lines_for_claim_methods_are_methods() -> None:
    import claim_methods

    lines = "\n".join(thin_real.method_lines(thin_real.widths(measured())))
    made = eval("{" + lines + "\n}", vars(claim_methods))
    assert list(made) == ["real-4", "real-6", "real-8"]
    assert dict(made["real-6"].flags)["network.options"] == "{stem_stride: 2, width: 6, branch_gain: GAIN}"
    assert "# fp32 by time, fp32 by bytes" in lines.splitlines()[0]


def test_without_an_architecture_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thin_real, "ARCHITECTURES", tmp_path)
    with pytest.raises(SystemExit, match=r"nasb-1\.37-seed0\.json is not there"):
        thin_real.prepare(tmp_path)


def run(name: str, seed: int, trial: tuple[float, float], top1: float) -> dict[str, Any]:
    job = claim.Job("cifar10", name, *trial, seed)
    keys = ("set", "method", "seed", "learning_rate", "branch_gain")
    known = dict(zip(keys, job.row_key(), strict=True)) | {"validation_top1": f"{top1:.2f}"}
    return {key: known.get(key, "") for key in claim.COLUMNS}


def test_the_page_has_accuracies_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "pays.csv", of_imagenet(), "")
    assert "In small" not in pays.page(tmp_path / "pays.csv")
    write(tmp_path / "thin-real.csv", measured(), "")
    monkeypatch.setitem(METHODS, "real-6", Method(label="real ResNet-20, width 6", tier="B"))
    runs = [run(name, 0, trial, 50) for name in ("backbone", "real-6") for trial in TRIALS]
    runs += [run("nasb-1.37", seed, TRIALS[0], 50 + seed) for seed in (0, 1, 2)]
    int8 = {"set": "cifar10", "method": "real-6", "seed": "0", "part": "validation", "top1": "48.00"}
    for name, found in (("claim.csv", runs), ("thin-real-int8.csv", [int8])):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(found)
    section = pays.page(tmp_path / "pays.csv").partition("## In small")[2].partition("## Where")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == [
        ["`real-6`", "int8", "ONNX Runtime", "1.000", "0.90 (0.10 - 0.20)", "36.0", "48.00 (1)"],
        ["`nasb-1.37`", "binary", "nasb-engine", "1.000", "1.00 (0.10 - 0.20)", "50.0", "51.00 ± 1.00 (3)"],
        ["`real-6`", "fp32", "ONNX Runtime", "1.000", "1.20 (0.10 - 0.20)", "54.0", "50.00 (1)"],
    ]
    assert "on validation images" in section
    assert "- **In no more bytes, int8:** `real-8`, which is not trained yet." in section
    assert "- **In no more time, int8:** `real-6`, 3.00 points below `nasb-1.37`." in section
    assert "With as much" not in section
