"""Reading photos for training: nasb, from a folder and from shards, beside torchvision's ImageFolder; in turn.

    python benchmarks/loader.py [--rounds 15] > lines for results/loader.csv

Processor time of one process for a batch of normalized 224x224 training images (random resized crop, flip) out of
500x375 JPEGs, about 60 kB each, that are made for it: what one worker can feed. tests/data runs the same.
"""

import argparse
import csv
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nasb.data import DataConfig, open_data
from nasb.data._folders import image_folder
from nasb.data._shards import write_shards
from nasb.training.run_directory import cpu_name

FIELDS = ("what", "median", "lowest", "highest", "n", "unit", "cpu", "threads", "torch", "date", "command")
BATCH, BATCHES = 16, 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Epoch = Callable[[], int]


def make_photos(root: Path) -> Path:
    """Fill root/train/<class>/ with smooth pictures with some noise."""
    random = np.random.default_rng(0)
    for name in ("ant", "bee"):
        folder = root / "train" / name
        folder.mkdir(parents=True)
        for number in range(BATCH * BATCHES // 2):
            coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(np.int16)
            noisy = smooth + random.integers(-12, 13, smooth.shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:02}.jpg", quality=90)
    return root


def make_shards(photos: Path, root: Path) -> Path:
    """Pack them."""
    write_shards(image_folder(str(photos), validation=(), test="val"), root, shard_bytes=10**6, seed=0)
    return root


def torchvision_epoch(root: Path) -> Epoch:
    """Return what PyTorch's ImageNet example does for its training images; the function returns their number."""
    from torchvision import datasets, transforms

    varied = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    transform = transforms.Compose([*varied, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    images = datasets.ImageFolder(str(root / "train"), transform=transform)

    def epoch() -> int:
        batches = [range(first, first + BATCH) for first in range(0, BATCH * BATCHES, BATCH)]
        return sum(len(torch.utils.data.default_collate([images[i] for i in batch])[1]) for batch in batches)

    return epoch


def nasb_epoch(root: Path) -> Epoch:
    """Return the same by nasb."""
    config = DataConfig(name="imagenet", root=str(root), batch_size=BATCH, validation_fraction=0.0)
    data = open_data(config, seed=0)
    return lambda: sum(len(targets) for _, targets in data.train_batches("train", seed=0, epoch=0))


def seconds(epochs: dict[str, Epoch], rounds: int) -> dict[str, list[float]]:
    """Return the processor seconds of each for an image, round by round, in turn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {name: [] for name in epochs}
    for index in range(rounds + 1):
        for name, epoch in epochs.items():
            began = time.thread_time()
            images = epoch()
            if index:
                found[name].append((time.thread_time() - began) / images)
    torch.set_num_threads(threads)
    return found


def main() -> None:
    """Print CSV rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(Path(folder) / "photos")
        shards = make_shards(photos, Path(folder) / "shards")
        epochs = {"ImageFolder": torchvision_epoch(photos), "folder": nasb_epoch(photos), "shards": nasb_epoch(shards)}
        found = seconds(epochs, arguments.rounds)
    rows: list[tuple[str, str, list[float]]] = []
    for name, values in found.items():
        rows.append((f"{name}, images a second of processor time", "images/s", [1 / value for value in values]))
    for name in ("folder", "shards"):
        ratios = [theirs / ours for theirs, ours in zip(found["ImageFolder"], found[name], strict=True)]
        rows.append((f"{name} / ImageFolder, images a second of processor time", "ratio", ratios))
    facts = (cpu_name(), 1, torch.__version__, datetime.now(UTC).date(), " ".join(sys.argv))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(FIELDS)
    for what, unit, values in rows:
        numbers = [f"{value:.4g}" for value in (statistics.median(values), min(values), max(values))]
        writer.writerow([what, *numbers, len(values), unit, *facts])


if __name__ == "__main__":
    main()
