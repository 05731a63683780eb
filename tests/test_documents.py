"""The Python that the documents show runs as it stands there."""

import re
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import nasb

DOCS = Path(__file__).parents[1] / "docs"


def block_after(page: str, heading: str) -> str:
    """Return the first indented block behind a heading."""
    text = (DOCS / page).read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1]
    return textwrap.dedent(re.search(r"(?:^ {4}.*\n|^\n)+", text[text.index("\n    ") + 1 :], re.MULTILINE)[0])  # type: ignore[index]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_training_it_yourself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    layers = [layer for c in (3, 8) for layer in (nn.Conv2d(c, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())]
    my_cnn = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    loader = [(torch.randn(4, 3, 64, 64), torch.randint(0, 3, (4,))) for _ in range(2)]
    names = {"my_cnn": my_cnn, "loader": loader, "class_names": ["ant", "bee", "cow"]}
    before = {n: value for n, value in nasb.convert(my_cnn, (3, 64, 64)).named_parameters() if n.endswith("weight")}
    exec(block_after("your-own-network.md", "Training it yourself"), names)
    after = dict(names["network"].named_parameters())  # type: ignore[attr-defined]
    assert before.keys() <= after.keys()
    assert not any(torch.equal(value, after[name]) for name, value in before.items())
    session = pytest.importorskip("nasb_engine").Session(tmp_path / "mine.onnx")
    assert session.class_names == ("ant", "bee", "cow")
    assert session.preprocessing.resize == 73
