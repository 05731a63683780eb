"""The data sets that are not folders of images: digits, CIFAR, Fashion-MNIST."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from nasb.data._folders import existing_folder
from nasb.data._idx import read_idx
from nasb.data._sources import ArrayImages, Integers, Source
from nasb.data._splits import complement, stratified_choice
from nasb.errors import UserError

_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def digits() -> Source:
    """Return scikit-learn's digits; a fifth of each class is the test set, the same one for every seed."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    # Pixels are counts 0..16 of a 4x4 block each.
    pixels_NHWC = np.round(bunch.images[..., None] * (255 / 16)).astype(np.uint8)
    images = ArrayImages(pixels_NHWC, bunch.target.astype(np.int64))
    count = len(images.targets)
    test = stratified_choice(images.targets, round(count / 5), seed=0, purpose="test set of digits")
    parts = {"train": images.take(complement(count, test)), "test": images.take(test)}
    return Source(tuple(str(digit) for digit in range(10)), parts)


def cifar(name: str, root: str, *, download: bool) -> Source:
    """Read CIFAR-10 or CIFAR-100 through torchvision from root/cifar-10-batches-py or root/cifar-100-python.

    These files are pickles, which could run any code. torchvision compares the MD5 sum of every file with that of the
    published one before it unpickles any, and refuses the rest; a test holds it to that.

    Raises:
        UserError: files are missing, altered, or cannot be fetched.
    """
    from torchvision import datasets

    kind: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    folder = Path(root).expanduser() if download else existing_folder(root)
    if not download and not (folder / kind.base_folder).is_dir():
        raise UserError(f'data.root "{root}" has no {kind.base_folder}/; {_mend_cifar(folder, name)}')
    try:
        with warnings.catch_warnings():
            # NumPy 2.4 may warn of how the published pickles, made with Python 2, spell their dtype.
            warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
            opened = {part: kind(folder, train=part == "train", download=download) for part in ("train", "test")}
    except (RuntimeError, OSError) as error:
        if download:
            raise UserError(f'{name} cannot be fetched into data.root "{root}" ({_one_line(error)})') from error
        raise UserError(
            f'"{folder / kind.base_folder}" is incomplete or altered: its MD5 sums are not those of the published '
            f"{name}; remove it and set data.download to fetch it again"
        ) from error
    parts = {
        part: ArrayImages(np.ascontiguousarray(images.data), np.array(images.targets, dtype=np.int64))
        for part, images in opened.items()
    }
    return Source(tuple(opened["train"].classes), parts)


def _mend_cifar(folder: Path, name: str) -> str:
    for place in (folder, folder / name):
        if (place / "train").is_dir():
            return f'"{place}" holds images in folders: set data.name to folder, data.root to it, data.image_size to 32'
    return "set data.download to fetch it"


def fashion_mnist(root: str, *, download: bool) -> Source:
    """Read Fashion-MNIST's four IDX files, plain or .gz, from root or root/FashionMNIST/raw.

    Raises:
        UserError: files are missing, damaged, do not belong together, or cannot be fetched.
    """
    folder = Path(root).expanduser()
    if download and _find(folder, "train-images-idx3-ubyte") is None:
        from torchvision import datasets

        try:
            datasets.FashionMNIST(folder, download=True)
        except (RuntimeError, OSError) as error:
            raise UserError(f'fashion-mnist cannot be fetched into data.root "{root}" ({_one_line(error)})') from error
    existing_folder(root)
    parts = {part: _idx_part(folder, root, prefix) for part, prefix in (("train", "train"), ("test", "t10k"))}
    return Source(_FASHION_CLASSES, parts)


def _idx_part(folder: Path, root: str, prefix: str) -> ArrayImages:
    paths = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        path = _find(folder, f"{prefix}-{kind}")
        if path is None:
            raise UserError(
                f'data.root "{root}" has no {prefix}-{kind} (or .gz), nor has its FashionMNIST/raw/; '
                "set data.download to fetch it"
            )
        paths.append(path)
    pixels_NHW, labels_N = read_idx(paths[0], 3), read_idx(paths[1], 1)
    if pixels_NHW.shape[1:] != (28, 28):
        raise UserError(f'"{paths[0]}" holds images of {pixels_NHW.shape[1:]} pixels; those of Fashion-MNIST are 28x28')
    if len(pixels_NHW) != len(labels_N):
        raise UserError(f'"{paths[0]}" holds {len(pixels_NHW):,} images, but "{paths[1]}" {len(labels_N):,} labels')
    if labels_N.max() >= len(_FASHION_CLASSES):
        raise UserError(f'"{paths[1]}" has the label {labels_N.max()}; those of Fashion-MNIST are 0 to 9')
    targets: Integers = labels_N.astype(np.int64)
    return ArrayImages(pixels_NHW[..., None], targets)


def _find(folder: Path, name: str) -> Path | None:
    for place in (folder, folder / "FashionMNIST" / "raw"):
        for path in (place / name, place / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
