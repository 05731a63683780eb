"""Judging architectures with the shared weights: recalibration, ranks, which images, which candidate is kept."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from nasb.cells import CellConfig
from nasb.cost import count
from nasb.data import DataConfig, ImageData, open_data
from nasb.networks.convert import convert
from nasb.search import SearchConfig
from nasb.training.search_stage import SearchStage
from nasb.training.shared_weights import SharedWeights, recalibrated


def stage_of(**options: object) -> SearchStage:
    """Return a search of digits by a tiny network whose statistics are not the images'."""
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 1, bias=False), nn.BatchNorm2d(4)]
    layers += [nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)]
    layers += [nn.Conv2d(6, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6)]
    host = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))
    cell, shape = CellConfig(), (1, 8, 8)
    operations = ["identity", "bin_conv_1x1", "bin_conv_3x3"]
    backbone = count(convert(host, shape, cell=cell), shape)
    network = convert(host, shape, cell=cell, search=True, operations=operations)
    few = {"trials": 8, "population": 4, "at_once": 4, "candidate_batches": 2, "derive_batches": 2, "budget": 1.3}
    config = SearchConfig(**(few | options))  # type: ignore[arg-type]
    data = open_data(DataConfig(name="digits", batch_size=32, train_limit=192), seed=0)
    fabric = Fabric(accelerator="cpu", devices=1)
    return SearchStage(network, backbone.ops, data, config, fabric, seed=0, backbone_bits=backbone.memory_bits)


@pytest.fixture(scope="module")
def stage() -> SearchStage:
    return stage_of()


def some_choices(stage: SearchStage, number: int) -> list[tuple[int, ...]]:
    space = stage.searcher.space
    return [space.draw(torch.Generator().manual_seed(seed)) for seed in range(number)]


def test_recalibrated_statistics_are_the_means_over_the_batches_and_go_back() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3, momentum=0.3))
    network(torch.randn(8, 1, 4, 4))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    batches = [torch.randn(8, 1, 4, 4) * 2 + 1 for _ in range(3)]
    outputs = [network[0](x).detach() for x in batches]
    with torch.no_grad(), recalibrated(network, iter(batches)):
        assert not network.training
        mean = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
        var = torch.stack([y.var((0, 2, 3)) for y in outputs]).mean(0)
        torch.testing.assert_close(network[1].running_mean, mean)
        torch.testing.assert_close(network[1].running_var, var)
        x = torch.randn(2, 1, 4, 4)
        expected = F.batch_norm(network[0](x), mean, var, network[1].weight, network[1].bias)
        torch.testing.assert_close(network(x), expected)
    assert network.training
    assert network[1].momentum == 0.3
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_judging_waits_for_no_other_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank judges other architectures: a SyncBatchNorm that asked the others would wait for ever."""
    stage = stage_of()
    choices = some_choices(stage, 3)
    losses, ranking = stage.shared.losses(choices), stage.shared.ranking(choices)
    stage.shared.network = nn.SyncBatchNorm.convert_sync_batchnorm(stage.network)

    def ask(*_: Any) -> None:
        raise AssertionError("other ranks are asked")

    monkeypatch.setattr(nn.SyncBatchNorm, "forward", ask)
    assert stage.shared.losses(choices) == losses
    assert stage.shared.ranking(choices) == ranking
    with pytest.raises(AssertionError, match="other ranks are asked"):
        stage.network(torch.randn(4, 1, 8, 8))


@pytest.mark.parametrize("training", [True, False])
def test_judging_leaves_the_network_as_it_is(stage: SearchStage, training: bool) -> None:
    stage.network.train(training)
    before = {key: value.clone() for key, value in stage.network.state_dict().items()}
    choices = some_choices(stage, 3)
    assert stage.shared.losses(choices) == stage.shared.losses(choices)
    assert stage.shared.ranking(choices) == stage.shared.ranking(choices)
    assert stage.network.training is training
    assert all(torch.equal(value, before[key]) for key, value in stage.network.state_dict().items())


def test_dropout_judges_by_no_luck(stage: SearchStage) -> None:
    head = stage.network.get_submodule("8")
    assert isinstance(head, nn.Linear)
    stage.network.add_module("8", nn.Sequential(nn.Dropout(0.5), head))
    try:
        stage.network.train()
        choices = some_choices(stage, 2)
        assert stage.shared.losses(choices) == stage.shared.losses(choices)
    finally:
        stage.network.add_module("8", head)


@pytest.mark.parametrize(("strategy", "expected"), [("regression", [False, True]), ("evolution", [False, False])])
def test_images_of_alpha_are_read_only_where_alpha_has_a_step(strategy: str, expected: list[bool]) -> None:
    stage = stage_of(strategy=strategy, epochs=2, warmup_epochs=1)
    for epoch, both in enumerate(expected):
        stage.begin_epoch(epoch)
        assert [alpha is not None for _, alpha in stage.batches(epoch, 0)] == stage.steps * [both]
        assert stage.images == stage.data.images_per_step("weights") * (1 + both)


class Recorder:
    """Stands between SharedWeights and its images, and notes the parts."""

    def __init__(self, data: ImageData) -> None:
        self.data, self.parts = data, set[str]()

    def train_batches(self, part: str, **options: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.parts.add(part)
        return self.data.train_batches(part, **options)


def test_validation_and_test_images_are_not_touched(stage: SearchStage) -> None:
    recorder, shared = Recorder(stage.data), stage.shared
    watched = SharedWeights(
        stage.network,
        shared.space,
        recorder,
        stage.config,
        stage.fabric,
        shared.seed,  # type: ignore[arg-type]
    )
    assert watched.losses(some_choices(stage, 1)) == shared.losses(some_choices(stage, 1))
    assert recorder.parts == {"alpha"}
    watched.ranking(some_choices(stage, 1))
    assert recorder.parts == {"alpha", "weights"}


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("method", ["losses", "ranking"])
def test_ranks_share_the_architectures_and_find_the_same(stage: SearchStage, ranks: int, method: str) -> None:
    choices, tables = some_choices(stage, 5), list[Tensor]()

    def judge(rank: int, all_reduce: Callable[..., Tensor]) -> object:
        fabric: Any = SimpleNamespace(
            global_rank=rank, world_size=ranks, device=torch.device("cpu"), all_reduce=all_reduce
        )
        shared = SharedWeights(stage.network, stage.searcher.space, stage.data, stage.config, fabric, stage.seed)
        return getattr(shared, method)(choices)

    for rank in range(ranks):
        judge(rank, lambda table, reduce_op: tables.append(table.clone()) or table)
    judged = [int(table.any(1).sum()) for table in tables]
    assert sum(judged) == 5
    assert max(judged) - min(judged) <= 1
    assert judge(0, lambda table, reduce_op: torch.stack(tables).sum(0)) == getattr(stage.shared, method)(choices)


def test_the_best_candidate_on_the_alpha_half_is_kept(tmp_path: Path) -> None:
    stage = stage_of(strategy="gumbel", derive_candidates=4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for edge in stage.searcher.edges:
            edge.alpha += torch.randn(edge.alpha.shape, generator=generator)
    alphas = [alpha.detach().clone() for alpha in stage.searcher.alphas()]
    kept = stage.derive(tmp_path)
    rows = list(csv.DictReader((tmp_path / "candidates.csv").read_text().splitlines()))
    assert 2 <= len(rows) <= 4  # the space is small, and no architecture comes twice
    losses = [float(row["loss"]) for row in rows]
    assert [row["kept"] for row in rows] == ["1" if loss == min(losses) else "0" for loss in losses]
    (result,) = stage.shared.ranking([stage.searcher.space.choice(kept)])
    assert result.loss == min(losses)
    assert float(rows[losses.index(min(losses))]["ops"]) == stage.searcher.cost.of(kept)
    assert all(torch.equal(a, b) for a, b in zip(alphas, stage.searcher.alphas(), strict=True))
    assert stage.derive() == kept


def test_one_candidate_is_what_alpha_says(tmp_path: Path) -> None:
    stage = stage_of(strategy="gumbel", derive_candidates=1)
    assert stage.derive(tmp_path) == stage.searcher.derive()
    assert not (tmp_path / "candidates.csv").exists()


def test_alpha_of_a_population_says_what_was_kept_and_its_score_is_the_shared_loss(tmp_path: Path) -> None:
    stage = stage_of(strategy="evolution", derive_candidates=3)
    kept = stage.derive(tmp_path)
    assert stage.searcher.derive() == kept
    assert len((tmp_path / "population.jsonl").read_text().splitlines()) == 8
    for judged in stage.searcher.strategy.population:  # type: ignore[attr-defined]
        cells = stage.searcher.space.cells(judged.choice)
        assert stage.shared_loss(cells) == judged.loss == -stage.score(cells)
    gumbel = stage_of(strategy="gumbel")
    assert gumbel.score(kept) == gumbel.searcher.score(kept)


def test_a_derived_architecture_without_convolutions_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    stage = stage_of(strategy="random", budget=1.012, candidates=2)
    assert not any(edge.operation != "identity" for edges in stage.derive().values() for edge in edges)
    assert "no binary convolution besides its backbone" in capsys.readouterr().err
