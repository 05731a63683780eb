"""Photos are read as fast as torchvision's ImageFolder reads them: processor time of one worker, measured in turn."""

import importlib.util
import statistics
from pathlib import Path

import pytest


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_worker_feeds_as_many_photos_as_torchvision_s(tmp_path: Path, kind: str) -> None:
    spec = importlib.util.spec_from_file_location("loader", Path(__file__).parents[2] / "benchmarks" / "loader.py")
    assert spec is not None
    assert spec.loader is not None
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    photos = loader.make_photos(tmp_path / "photos")
    root = photos if kind == "folder" else loader.make_shards(photos, tmp_path / "shards")
    epochs = {"theirs": loader.torchvision_epoch(photos), "ours": loader.nasb_epoch(root)}
    assert [epoch() for epoch in epochs.values()] == [loader.BATCH * loader.BATCHES] * 2
    found = loader.seconds(epochs, rounds=5)
    ratios = [theirs / ours for theirs, ours in zip(found["theirs"], found["ours"], strict=True)]
    assert statistics.median(ratios) >= 0.9, ratios
