"""Batches: what is in them, and that they follow from seed, part, epoch and step alone."""

import multiprocessing
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nasb.data import DataConfig, ImageData, load_image, open_data
from nasb.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # on one core

MakeFolder = Callable[..., Path]
Batches = list[tuple[Tensor, Tensor]]

KINDS = {
    "digits": {},
    "memory": {"image_size": 8, "in_memory": True},
    "stream, small": {"image_size": 8, "in_memory": False},
    "stream, small, 2 workers": {"image_size": 8, "in_memory": False, "workers": 2},
    "stream, photos": {"image_size": 6},
    "stream, photos, 2 workers": {"image_size": 6, "workers": 2},
}


@pytest.fixture
def open_kind(make_folder: MakeFolder) -> Callable[..., ImageData]:
    roots: list[Path] = []

    def opened(kind: str, *, seed: int = 0, **values: object) -> ImageData:
        if kind == "digits":
            return open_data(DataConfig(**{"batch_size": 300} | values), seed=seed)  # type: ignore[arg-type]
        if not roots:
            roots.append(make_folder({"train": 20, "test": 6}, classes=("ant", "bee", "cow")))
        settings = {"name": "folder", "root": str(roots[0]), "batch_size": 8, **KINDS[kind]} | values
        return open_data(DataConfig(**settings), seed=seed)  # type: ignore[arg-type]

    return opened


def equal(first: Iterable[tuple[Tensor, Tensor]], second: Iterable[tuple[Tensor, Tensor]]) -> bool:
    pairs = zip(list(first), list(second), strict=True)
    return all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_can_start_at_any_step(kind: str, open_kind: Callable[..., ImageData]) -> None:
    data = open_kind(kind)
    for part in ("train", "alpha"):
        whole = list(data.train_batches(part, seed=5, epoch=2))
        assert len(whole) == data.steps_per_epoch(part)
        # Starting processes is slow: there, only the second and the last step.
        for start in (1, len(whole) - 1) if "workers" in kind else range(len(whole) + 1):
            torch.rand(1)  # the caller's random state has no part in it
            assert equal(data.train_batches(part, seed=5, epoch=2, start_step=start), whole[start:])


@pytest.mark.parametrize("kind", ["digits", "memory", "stream, small", "stream, photos"])
def test_batches_follow_from_seed_epoch_and_part(kind: str, open_kind: Callable[..., ImageData]) -> None:
    data = open_kind(kind)
    first = [next(data.train_batches("train", seed=seed, epoch=epoch))[0] for seed in (0, 1) for epoch in (0, 1)]
    for number, images in enumerate(first):
        assert not any(torch.equal(images, other) for other in first[:number])
    assert equal(open_kind(kind).train_batches("train", seed=0, epoch=0), data.train_batches("train", seed=0, epoch=0))


@pytest.mark.parametrize("kind", KINDS)
def test_global_random_state_is_left_alone(kind: str, open_kind: Callable[..., ImageData]) -> None:
    torch.manual_seed(0)
    states = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    data = open_kind(kind)
    for _ in data.train_batches("train", seed=0, epoch=0):
        assert torch.equal(torch.get_rng_state(), states[0])
    list(data.evaluation_batches("test"))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # type: ignore[comparison-overlap]
    assert random.getstate() == states[2]


@pytest.mark.parametrize("size", ["small", "photos"])
def test_workers_change_nothing(size: str, open_kind: Callable[..., ImageData]) -> None:
    one = list(open_kind(f"stream, {size}").train_batches("train", seed=1, epoch=3))
    for workers in (1, 2):
        assert equal(one, open_kind(f"stream, {size}", workers=workers).train_batches("train", seed=1, epoch=3))


def test_an_abandoned_epoch_leaves_no_processes(
    open_kind: Callable[..., ImageData], capfd: pytest.CaptureFixture[str]
) -> None:
    before = set(multiprocessing.active_children())
    data = open_kind("stream, photos, 2 workers", batch_size=2)
    batches = data.train_batches("train", seed=0, epoch=0)
    first = next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 2
    del batches
    assert set(multiprocessing.active_children()) == before
    assert torch.equal(first[0], next(data.train_batches("train", seed=0, epoch=0))[0])
    assert capfd.readouterr().err == ""


def test_memory_and_files_give_the_same_batches(open_kind: Callable[..., ImageData]) -> None:
    memory, stream = open_kind("memory"), open_kind("stream, small")
    for part in ("train", "weights", "alpha"):
        assert equal(memory.train_batches(part, seed=1, epoch=1), stream.train_batches(part, seed=1, epoch=1))
    for part in ("train", "alpha", "validation", "test"):
        assert equal(memory.evaluation_batches(part), stream.evaluation_batches(part))


@pytest.mark.parametrize("kind", ["digits", "memory", "stream, photos"])
def test_ranks_share_each_batch(kind: str, open_kind: Callable[..., ImageData]) -> None:
    data = open_kind(kind)

    def joined(ranks: list[Batches]) -> Batches:
        return [
            (torch.cat([images for images, _ in step]), torch.cat([classes for _, classes in step]))
            for step in zip(*ranks, strict=True)
        ]

    ranks = [list(data.train_batches("train", seed=0, epoch=0, rank=rank, world_size=3)) for rank in range(3)]
    assert {len(images) for rank in ranks for images, _ in rank} <= ({100} if kind == "digits" else {2, 3})
    assert equal(joined(ranks), data.train_batches("train", seed=0, epoch=0))
    ranks = [list(data.evaluation_batches("test", 6, rank=rank, world_size=3)) for rank in range(3)]
    if kind != "digits":  # 18 images: no ragged batch
        assert equal(joined(ranks), data.evaluation_batches("test", 6))
    assert sum(len(images) for rank in ranks for images, _ in rank) == data.size("test")


def contents(batches: Iterable[tuple[Tensor, Tensor]]) -> list[tuple[int, bytes]]:
    """Return class and pixels of each image, to tell images apart."""
    return [
        (int(target), image.numpy().tobytes())
        for images, classes in batches
        for image, target in zip(images, classes, strict=True)
    ]


@pytest.mark.parametrize("kind", ["memory", "stream, photos"])
def test_parts_are_disjoint_complete_and_stratified(
    kind: str, open_kind: Callable[..., ImageData], tmp_path: Path
) -> None:
    data = open_kind(kind, validation_fraction=0.2)
    parts = {
        part: contents(data.evaluation_batches(part)) for part in ("train", "weights", "alpha", "validation", "test")
    }
    every = [
        data.preprocessing(load_image(file)).numpy().tobytes() for file in (tmp_path / "root").glob("train/*/*.png")
    ]
    assert sorted(pixels for _, pixels in parts["train"] + parts["validation"]) == sorted(every)
    assert sorted(parts["weights"] + parts["alpha"]) == sorted(parts["train"])
    assert not set(parts["test"]) & set(parts["train"] + parts["validation"])
    for part, per_class in {"train": 16, "weights": 8, "alpha": 8, "validation": 4, "test": 6}.items():
        assert len(set(parts[part])) == len(parts[part]) == data.size(part)
        assert [sum(number == target for target, _ in parts[part]) for number in range(3)] == [per_class] * 3


@pytest.mark.parametrize("part", ["train", "weights", "alpha"])
def test_training_never_sees_images_of_other_parts(part: str, open_kind: Callable[..., ImageData]) -> None:
    data = open_kind("memory", augmentation="none", batch_size=5)
    own = contents(data.evaluation_batches(part))
    seen = [image for epoch in range(20) for image in contents(data.train_batches(part, seed=0, epoch=epoch))]
    assert set(seen) == set(own)
    assert len(seen) == 20 * (data.size(part) // 5 * 5)


def test_splits_follow_the_seed_but_the_test_set_does_not(open_kind: Callable[..., ImageData]) -> None:
    for kind in ("digits", "memory"):
        first, again, other = open_kind(kind, seed=1), open_kind(kind, seed=1), open_kind(kind, seed=2)
        for part in ("train", "weights", "alpha", "validation"):
            assert equal(first.evaluation_batches(part), again.evaluation_batches(part))
            assert sorted(contents(first.evaluation_batches(part))) != sorted(contents(other.evaluation_batches(part)))
        assert equal(first.evaluation_batches("test"), other.evaluation_batches("test"))


def test_augmented_images_are_normalized_black_at_the_border(open_kind: Callable[..., ImageData]) -> None:
    images, _ = next(open_kind("digits", image_size=16).train_batches("train", seed=0, epoch=0))
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    black = (0 - 0.3053) / 0.3761
    assert torch.allclose(images.min(), torch.tensor(black), atol=1e-6)


def test_ragged_ends(open_kind: Callable[..., ImageData]) -> None:
    data = open_kind("memory")  # 54 training images, halves of 27, 6 for validation, 18 for testing
    assert [len(classes) for _, classes in data.train_batches("weights", seed=0, epoch=0)] == [8] * 3
    assert [len(classes) for _, classes in data.evaluation_batches("weights")] == [8, 8, 8, 3]
    assert [len(classes) for _, classes in data.evaluation_batches("test", batch_size=7)] == [7, 7, 4]
    assert [data.steps_per_epoch(part) for part in ("train", "weights", "validation", "test")] == [6, 3, 1, 3]
    data = open_kind("memory", batch_size=1000)
    assert [len(classes) for _, classes in data.train_batches("train", seed=0, epoch=0)] == [54]
    assert data.steps_per_epoch("train") == 1


def test_wrong_parts_and_numbers_are_refused(open_kind: Callable[..., ImageData]) -> None:
    data = open_kind("memory")
    with pytest.raises(UserError, match='data part "test" is not for training; train on train, weights, alpha'):
        data.train_batches("test", seed=0, epoch=0)
    with pytest.raises(UserError, match=r'unknown data part "trian"; known: .*closest: train'):
        data.train_batches("trian", seed=0, epoch=0)
    for call in (data.size, data.steps_per_epoch, data.evaluation_batches):
        with pytest.raises(UserError, match='unknown data part "eval"'):
            call("eval")
    with pytest.raises(UserError, match=r"data\.batch_size: a batch of 8 images cannot be shared by 9 processes"):
        data.train_batches("train", seed=0, epoch=0, world_size=9)
    with pytest.raises(ValueError, match="start_step 7"):
        data.train_batches("train", seed=0, epoch=0, start_step=7)
    with pytest.raises(ValueError, match="rank is 2"):
        data.train_batches("train", seed=0, epoch=0, rank=2, world_size=2)
    with pytest.raises(ValueError, match="batch_size is 0"):
        data.evaluation_batches("train", batch_size=0)


def test_an_image_that_would_be_enormous_is_named(make_folder: MakeFolder) -> None:
    root = make_folder({"train": 4, "val": 2}, classes=("ant", "bee"))
    long = next((root / "val" / "ant").iterdir()).with_name("long.png")
    Image.new("RGB", (1, 60_000)).save(long)
    data = open_data(DataConfig(name="folder", root=str(root), image_size=256, batch_size=8, in_memory=False), seed=0)
    with pytest.raises(UserError, match=f'image "{long}" cannot be prepared: an image of 1 x 60,000 pixels cannot'):
        list(data.evaluation_batches("validation"))


def test_the_share_for_alpha_is_exact(make_folder: MakeFolder) -> None:
    root = make_folder({"train": 5}, classes=("ant", "bee"))
    config = DataConfig(name="folder", root=str(root), image_size=8, validation_fraction=0.0)
    data = open_data(config, seed=0, alpha_share=0.7)  # 10 * (1 - 0.7) is a little more than 3 in floating point
    assert data.size("weights") == 3
