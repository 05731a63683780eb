"""Top-1, Top-5 and loss, counted batch by batch."""

import pytest
import torch

from nasb.training.evaluation import Score


def test_top5_counts_targets_among_the_five_highest() -> None:
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1, 0]]).repeat(7, 1)
    score = Score(top5=True)
    for part in (slice(0, 3), slice(3, 7)):
        target = torch.arange(7)[part]
        score.add(logits[part], target, torch.nn.functional.cross_entropy(logits[part], target))
    result = score.take()
    assert (result.correct, result.images) == (1, 7)
    assert result.top1 == pytest.approx(100 / 7)
    assert result.top5 == pytest.approx(500 / 7)
    assert result.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, torch.arange(7))))
    assert score.take().images == 0


def test_without_top5_none_is_told() -> None:
    score = Score()
    score.add(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), torch.tensor(0.5))
    assert score.take().top5 is None
