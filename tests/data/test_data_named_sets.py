"""Digits as they are; CIFAR and Fashion-MNIST as small files of the same formats."""

import gzip
import hashlib
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from nasb.data import DataConfig, ImageData, open_data
from nasb.errors import UserError

BATCHES = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def test_digits() -> None:
    data = open_data(DataConfig(), seed=0)
    assert data.describe() == (
        "digits: 10 classes, 1x8x8, train 1,294 (weights 647, alpha 647), validation 144, test 359; "
        "training images in memory (0.1 MB)"
    )
    published = load_digits().images / 16
    assert data.preprocessing.mean == pytest.approx((published.mean(),), abs=1e-4)
    assert data.preprocessing.std == pytest.approx((published.std(),), abs=1e-4)
    parts = [next(data.evaluation_batches(part, 2000))[0] for part in ("train", "validation", "test")]
    pixels = torch.cat(parts)[:, 0].numpy() * 0.3761 + 0.3053
    difference = np.sort(pixels.reshape(1797, 64).sum(1)) - np.sort(published.reshape(1797, 64).sum(1))
    assert np.abs(difference).max() < 64 / 255


@pytest.mark.parametrize("size", [16, 28])
def test_digits_are_enlarged_as_an_image_file_would_be(size: int) -> None:
    small, large = (open_data(DataConfig(image_size=side), seed=0) for side in (8, size))
    assert large.input_shape == (1, size, size)
    image = next(small.evaluation_batches("test"))[0][0, 0]
    file = Image.fromarray(((image * 0.3761 + 0.3053) * 255).round().to(torch.uint8).numpy())
    assert torch.equal(next(large.evaluation_batches("test"))[0][0], large.preprocessing(file))


def write_idx(path: Path, values: np.ndarray) -> None:
    data = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_fashion(folder: Path, ending: str = "", labels: int = 40, side: int = 28, top: int = 9) -> None:
    random = np.random.default_rng(0)
    for prefix in ("train", "t10k"):
        write_idx(folder / f"{prefix}-images-idx3-ubyte{ending}", random.integers(0, 256, (40, side, side)))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{ending}", np.append(np.arange(labels - 1) % 10, top))


def open_fashion(root: Path, **values: Any) -> ImageData:
    return open_data(DataConfig(name="fashion-mnist", root=str(root), **values), seed=0)


@pytest.mark.parametrize(
    ("place", "ending"), [(".", ".gz"), (".", ""), ("FashionMNIST/raw", ""), ("FashionMNIST/raw", ".gz")]
)
def test_fashion_mnist_is_found(tmp_path: Path, place: str, ending: str) -> None:
    write_fashion(tmp_path / place, ending)
    data = open_fashion(tmp_path)
    assert data.input_shape == (1, 28, 28)
    assert (data.size("train"), data.size("validation"), data.size("test")) == (36, 4, 40)
    images, classes = next(data.evaluation_batches("test"))
    written = np.random.default_rng(0).integers(0, 256, (2, 40, 28, 28))[1]
    np.testing.assert_allclose(images[:, 0].numpy(), (written / 255 - 0.2860) / 0.3530, atol=1e-5)
    assert classes.tolist() == [*(np.arange(39) % 10), 9]
    assert data.class_names[9] == "Ankle boot"


def test_fashion_mnist_refuses_what_does_not_fit(tmp_path: Path) -> None:
    def refused(message: str, **values: int) -> None:
        write_fashion(tmp_path / "FashionMNIST" / "raw", **values)
        with pytest.raises(UserError, match=re.escape(message)):
            open_fashion(tmp_path)

    with pytest.raises(
        UserError, match=r"has no train-images-idx3-ubyte \(or .gz\), .*; set data.download to fetch it"
    ):
        open_fashion(tmp_path)
    refused('train-images-idx3-ubyte" holds 40 images, but', labels=39)
    refused("holds images of (27, 27) pixels; those of Fashion-MNIST are 28x28", side=27)
    refused('train-labels-idx1-ubyte" has the label 10; those of Fashion-MNIST are 0 to 9', top=10)
    with pytest.raises(UserError, match=r'data.root ".*nowhere" does not exist'):
        open_fashion(tmp_path / "nowhere")


def write_cifar(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write small files of CIFAR's format and let torchvision take their MD5 sums for the published ones."""
    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    folder = root / BATCHES[name]
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    classes = [f"class {number}" for number in range(10)]

    def write(file: str, content: dict[str, Any]) -> list[str]:
        data = pickle.dumps(content)
        (folder / file).write_bytes(data)
        return [file, hashlib.md5(data).hexdigest()]

    def batch() -> dict[str, Any]:
        labels = "labels" if name == "cifar10" else "fine_labels"
        return {"data": random.integers(0, 256, (20, 3072), dtype=np.uint8), labels: [*range(10)] * 2}

    monkeypatch.setattr(kind, "train_list", [write(f"train{number}", batch()) for number in range(2)])
    monkeypatch.setattr(kind, "test_list", [write("test", batch())])
    meta = write("meta", {kind.meta["key"]: classes})
    monkeypatch.setattr(kind, "meta", {"filename": "meta", "key": kind.meta["key"], "md5": meta[1]})


@pytest.mark.parametrize("name", BATCHES)
def test_cifar(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, name, monkeypatch)
    data = open_data(DataConfig(name=name, root=str(tmp_path), validation_fraction=0), seed=0)
    assert data.class_names[3] == "class 3"
    assert (data.size("train"), data.size("test"), data.input_shape) == (40, 20, (3, 32, 32))
    images, classes = next(data.evaluation_batches("train"))
    written = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8).reshape(20, 3, 32, 32) / 255
    expected = (written - np.reshape((0.4914, 0.4822, 0.4465), (3, 1, 1))) / np.reshape(
        (0.2470, 0.2435, 0.2616), (3, 1, 1)
    )
    np.testing.assert_allclose(images[:20].numpy(), expected, atol=1e-5)
    assert classes.tolist() == [*range(10)] * 4


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("file", ["train0", "train1", "test", "meta"])
def test_an_altered_cifar_file_is_refused_and_not_unpickled(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path, name, monkeypatch)
    mark = tmp_path / "the payload ran"
    payload = pickle.dumps(Payload(mark))
    (tmp_path / BATCHES[name] / file).write_bytes(payload)
    with pytest.raises(UserError, match=f'{BATCHES[name]}" is incomplete or altered: its MD5 sums are not those of'):
        open_data(DataConfig(name=name, root=str(tmp_path)), seed=0)
    assert not mark.exists()
    pickle.loads(payload)
    assert mark.exists()  # the test's payload does run where it is unpickled


def test_cifar_as_published_is_the_only_one_that_is_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "the payload ran"
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch", "batches.meta"]:
        (folder / file).write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(UserError, match="is incomplete or altered"):
        open_data(DataConfig(name="cifar10", root=str(tmp_path)), seed=0)
    assert not mark.exists()


def test_missing_cifar_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'data.root ".*nowhere" does not exist'):
        open_data(DataConfig(name="cifar10", root=str(tmp_path / "nowhere")), seed=0)
    with pytest.raises(UserError, match=r"has no cifar-100-python/; set data\.download to fetch it"):
        open_data(DataConfig(name="cifar100", root=str(tmp_path)), seed=0)
    (tmp_path / "cifar10" / "train").mkdir(parents=True)
    for root in (tmp_path, tmp_path / "cifar10"):
        message = re.escape(f'"{tmp_path / "cifar10"}" holds images in folders: set data.name to folder')
        with pytest.raises(UserError, match=message):
            open_data(DataConfig(name="cifar10", root=str(root)), seed=0)


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist"])
def test_a_failed_download_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", fail)
    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", fail)
    with pytest.raises(UserError, match=f'^{name} cannot be fetched into data.root ".*" \\(.*no network.*\\)$'):
        open_data(DataConfig(name=name, root=str(tmp_path), download=True), seed=0)
