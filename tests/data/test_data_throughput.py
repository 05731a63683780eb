"""Photos are read as fast as torchvision's ImageFolder reads them: processor time of one worker, measured in turn."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets, transforms

from nasb.data import DataConfig, open_data
from nasb.data._folders import image_folder
from nasb.data._shards import write_shards

BATCH, BATCHES, ROUNDS = 16, 2, 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Smooth pictures with some noise, 500x375, about 60 kB each, in root/train/<class>/."""
    random = np.random.default_rng(0)
    for name in ("ant", "bee"):
        folder = tmp_path / "photos" / "train" / name
        folder.mkdir(parents=True)
        for number in range(BATCH * BATCHES // 2):
            coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(np.int16)
            noisy = smooth + random.integers(-12, 13, smooth.shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:02}.jpg", quality=90)
    return tmp_path / "photos"


def image_folder_epoch(root: Path) -> Callable[[], int]:
    """What torchvision's and PyTorch's ImageNet examples do for each training image."""
    varied = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    transform = transforms.Compose([*varied, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    images = datasets.ImageFolder(str(root / "train"), transform=transform)

    def epoch() -> int:
        batches = [range(first, first + BATCH) for first in range(0, BATCH * BATCHES, BATCH)]
        return sum(len(torch.utils.data.default_collate([images[i] for i in batch])[1]) for batch in batches)

    return epoch


def our_epoch(root: Path) -> Callable[[], int]:
    settings = {"name": "imagenet", "root": str(root), "batch_size": BATCH, "validation_fraction": 0.0}
    data = open_data(DataConfig(**settings), seed=0)  # type: ignore[arg-type]
    return lambda: sum(len(targets) for _, targets in data.train_batches("train", seed=0, epoch=0))


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_worker_feeds_as_many_photos_as_torchvision_s(photos: Path, tmp_path: Path, kind: str) -> None:
    root = photos
    if kind == "shards":
        root = tmp_path / "shards"
        write_shards(image_folder(str(photos), validation=(), test="val"), root, shard_bytes=10**6, seed=0)
    epochs = image_folder_epoch(photos), our_epoch(root)
    assert [epoch() for epoch in epochs] == [BATCH * BATCHES] * 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ratios = []
    for _ in range(ROUNDS):
        seconds = []
        for epoch in epochs:
            began = time.thread_time()
            epoch()
            seconds.append(time.thread_time() - began)
        ratios.append(seconds[0] / seconds[1])
    torch.set_num_threads(threads)
    assert statistics.median(ratios) >= 0.9, ratios
