"""docs/rivals.md is what its command writes; published figures are those of their source, and differences explained."""

import re

import published
import pytest
import rivals

from nasb.networks.registry import RIVALS


@pytest.fixture(scope="module")
def page() -> str:
    return rivals.page()


def test_the_page_is_up_to_date(page: str) -> None:
    assert rivals.PAGE.read_text(encoding="utf-8") == page, "python studies/rivals.py writes it"


def test_every_hand_made_network_is_on_the_page(page: str) -> None:
    shown = set(re.findall(r"^\| (\w+) \| 3x", page, re.MULTILINE))
    assert shown == {*RIVALS, *(f"bireal_resnet{depth}" for depth in (18, 20, 34, 50))}
    assert page.count("arXiv") >= len(rivals.MODULES)


def test_each_explanation_is_of_a_difference_above_the_limit(page: str) -> None:
    above = [share for share in re.findall(r"([+-]\d+\.\d)% \|", page) if abs(float(share)) > 100 * rivals.LIMIT]
    assert len(above) == len(rivals.EXPLAINED)


def test_a_difference_without_an_explanation_is_refused() -> None:
    assert rivals.difference("bireal_resnet18", "OPs", 1.64e8, 1.63e8) == "+0.6%"
    with pytest.raises(SystemExit, match=r"bireal_resnet18: OPs: \+1\.2%"):
        rivals.difference("bireal_resnet18", "OPs", 1.65e8, 1.63e8)


def test_figures_of_torchvision_are_those_of_its_weights() -> None:
    from torchvision.models import get_model_weights

    seen = 0
    for row in published.published():
        if not row.source.startswith("torchvision, "):
            continue
        name, _, kind = row.network.partition(" ")
        weights = get_model_weights(f"quantized_{name}" if kind else name)[row.source.removeprefix("torchvision, ")]
        metrics = weights.meta["_metrics"]["ImageNet-1K"]
        assert (row.top1, row.top5) == (metrics["acc@1"], metrics["acc@5"]), row.network
        seen += 1
    assert seen == 11


def test_the_first_row_with_a_top1_is_a_network_s() -> None:
    assert published.top1_of("bireal_resnet18").top1 == 56.4
    assert published.top1_of("reactnet_resnet18").top1 == 65.9
    assert published.top1_of("abcnet_resnet18") is None
