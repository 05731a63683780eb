"""The data sets that go by a name, and what is known of each before a file is touched. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nasb.registry import Registry

if TYPE_CHECKING:
    from nasb.data._sources import Source
    from nasb.data.config import DataConfig


@dataclass(frozen=True, kw_only=True)
class DataSetEntry:
    """A named data set: one line about it, what the network sees by default, and how to open it."""

    description: str
    image_size: int
    """Default side in pixels."""
    channels: int
    mean: tuple[float, ...]
    """Default mean per channel, of pixels in [0, 1]."""
    std: tuple[float, ...]
    """Default standard deviation per channel, of pixels in [0, 1]."""
    flip: bool = True
    """Whether a mirrored image is still one of its class."""
    photos: bool = False
    """Whether images are large and of mixed sizes, without looking at the files."""
    from_files: bool = False
    """Whether images are files in folders."""
    needs_root: bool = True
    downloadable: bool = False
    open: "Callable[[DataConfig], Source]"


DATASETS: Registry[DataSetEntry] = Registry("data set")


def dataset_names() -> dict[str, str]:
    """Return every data set's name with its one-line description."""
    return {name: DATASETS[name].description for name in DATASETS}


def _digits(config: "DataConfig") -> "Source":
    from nasb.data._named_sets import digits

    return digits()


def _folder(config: "DataConfig") -> "Source":
    from nasb.data._folders import VALIDATION, image_folder
    from nasb.data._shards import holds_shards, sharded_images

    root = str(config.root)
    if holds_shards(root):
        return sharded_images(root, test="test")
    return image_folder(root, validation=VALIDATION, test="test")


def _imagenet(config: "DataConfig") -> "Source":
    from nasb.data._folders import image_folder
    from nasb.data._shards import holds_shards, sharded_images

    # Published ImageNet numbers are measured on val/; so it is the test set here, and validation comes out of train/.
    root = str(config.root)
    return sharded_images(root, test="val") if holds_shards(root) else image_folder(root, validation=(), test="val")


def _cifar(config: "DataConfig") -> "Source":
    from nasb.data._named_sets import cifar

    return cifar(config.name, str(config.root), download=config.download)


def _fashion_mnist(config: "DataConfig") -> "Source":
    from nasb.data._named_sets import fashion_mnist

    return fashion_mnist(str(config.root), download=config.download)


_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

DATASETS.register("digits")(
    DataSetEntry(
        description="scikit-learn's 1,797 grey digits of 8x8 pixels, 10 classes; nothing to download",
        image_size=8,
        channels=1,
        mean=(0.3053,),
        std=(0.3761,),
        flip=False,
        needs_root=False,
        open=_digits,
    )
)
DATASETS.register("folder")(
    DataSetEntry(
        description="your own images: root/train/<class>/*, optionally root/val/ and root/test/; or their shards",
        image_size=224,
        channels=3,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        from_files=True,
        open=_folder,
    )
)
DATASETS.register("imagenet")(
    DataSetEntry(
        description="ImageNet (ILSVRC 2012): root/train/<wnid>/*, root/val/<wnid>/* (the test set); or their shards",
        image_size=224,
        channels=3,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        photos=True,
        from_files=True,
        open=_imagenet,
    )
)
for _name, _classes in (("cifar10", 10), ("cifar100", 100)):
    DATASETS.register(_name)(
        DataSetEntry(
            description=f"CIFAR-{_classes}: 60,000 RGB images of 32x32 pixels, {_classes} classes; torchvision's files",
            image_size=32,
            channels=3,
            mean=_CIFAR_MEAN,
            std=_CIFAR_STD,
            downloadable=True,
            open=_cifar,
        )
    )
DATASETS.register("fashion-mnist")(
    DataSetEntry(
        description="Fashion-MNIST: 70,000 grey images of 28x28 pixels, 10 classes of clothing; IDX files",
        image_size=28,
        channels=1,
        mean=(0.2860,),
        std=(0.3530,),
        downloadable=True,
        open=_fashion_mnist,
    )
)
