"""Data sets by name or folder; augmentation; splits.

Importing this package loads neither torch nor torchvision: the configuration and the names of the data sets are at hand
at once, everything else is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from nasb.data._catalog import DATASETS, DataSetEntry, dataset_names
from nasb.data.config import DataConfig

if TYPE_CHECKING:
    from nasb.data._image_data import ImageData
    from nasb.data._open import open_data
    from nasb.data._preprocessing import Preprocessing
    from nasb.data._reading import load_image, preparing

__all__ = [
    "DATASETS",
    "DataConfig",
    "DataSetEntry",
    "ImageData",
    "Preprocessing",
    "dataset_names",
    "load_image",
    "open_data",
    "preparing",
]

_LAZY = {
    "ImageData": "nasb.data._image_data",
    "Preprocessing": "nasb.data._preprocessing",
    "load_image": "nasb.data._reading",
    "preparing": "nasb.data._reading",
    "open_data": "nasb.data._open",
}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
