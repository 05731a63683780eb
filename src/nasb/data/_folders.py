"""Folders of images: root/<part>/<class>/..., listed and checked before any image is opened."""

import os
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from nasb.data._reading import known_extensions
from nasb.data._sources import FileImages, Source
from nasb.errors import UserError
from nasb.files import is_text

VALIDATION = ("val", "valid", "validation")
"""Names that a validation folder may have."""
BESIDE = ("", ".txt", ".md", ".csv", ".json", ".xml", ".yaml", ".yml", ".html", ".db", ".ini")
"""Endings of files that often lie beside images."""


def image_folder(root: str, *, validation: tuple[str, ...], test: str) -> Source:
    """List the images under root/train and, where they exist, a validation folder and a test folder.

    Hidden files and folders (".DS_Store", ".ipynb_checkpoints") and files whose ending is no image's are left
    out.

    Args:
        root: the folder; "~" is the home folder.
        validation: names that the validation folder may have (one of them, or none).
        test: name of the test folder.
    Raises:
        UserError: no root, no train/, no classes, an empty class, or a part whose classes are not those of train/.
    """
    try:
        return _listed(root, validation, test)
    except OSError as error:
        raise UserError(f'"{error.filename}" cannot be read: {error.strerror or error}') from None


def _listed(root: str, validation: tuple[str, ...], test: str) -> Source:
    folder = existing_folder(root)
    if not (folder / "train").is_dir():
        if any(folder.glob("*.tar")):
            raise UserError(f'data.root "{root}" holds shards without an index; write it: nasb shards --index {root}')
        raise UserError(f'data.root "{root}" has no folder train/; put the training images into train/<class>/')
    class_names = _class_names(folder / "train")
    if len(class_names) < 2:
        found = f'only the class "{class_names[0]}"' if class_names else "no class folders"
        raise UserError(f'"{folder / "train"}" has {found}; put the images of each class into train/<class>/')
    names = {"train": "train"}
    present = [name for name in validation if (folder / name).is_dir()]
    if len(present) > 1:
        raise UserError(f'data.root "{root}" has both {"/ and ".join(present)}/; keep one of them for validation')
    if present:
        names["validation"] = present[0]
    if (folder / test).is_dir():
        names["test"] = test
    for name in names.values():
        _check_same_classes(folder / name, class_names)
    return Source(class_names, {part: _list_images(folder / name, class_names) for part, name in names.items()})


def existing_folder(root: str) -> Path:
    """Return the folder `root`.

    Raises:
        UserError: there is none.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f'data.root "{root}" {problem}; give the folder that holds the data')
    return folder


def _class_names(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        if not is_text(name):
            raise UserError(f'the name of the folder {name!r} in "{folder}" is not valid UTF-8; rename it')
    return tuple(names)


def _check_same_classes(folder: Path, class_names: tuple[str, ...]) -> None:
    found = _class_names(folder)
    extra, missing = sorted(set(found) - set(class_names)), sorted(set(class_names) - set(found))
    if extra:
        raise UserError(
            f'"{folder}" has the class "{extra[0]}", which train/ has not; every part needs the same classes'
        )
    if missing:
        raise UserError(f'"{folder}" lacks the class "{missing[0]}" of train/; every part needs the same classes')


def _list_images(folder: Path, class_names: tuple[str, ...]) -> FileImages:
    paths: list[str] = []
    counts_C = []
    others: Counter[str] = Counter()
    for name in class_names:
        found = _image_files(folder / name, others)
        if not found:
            raise UserError(f'class "{name}" in "{folder}" has no images; add some, or remove the folder')
        paths += found
        counts_C.append(len(found))
    if others:
        endings = ", ".join(f"{ending} {count:,}" for ending, count in sorted(others.items(), key=_most)[:5])
        warnings.warn(
            f'left out {others.total():,} files in "{folder}", whose endings are those of no image that Pillow reads: '
            f"{endings}",
            stacklevel=4,
        )
    return FileImages(paths, np.repeat(np.arange(len(class_names), dtype=np.int64), counts_C))


def _most(entry: tuple[str, int]) -> tuple[int, str]:
    return -entry[1], entry[0]


def _leads_back(folder: Path) -> bool:
    """Return whether a folder is a link to one that it lies in: its images would come again and again."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _raise(error: OSError) -> None:
    raise error


def _image_files(folder: Path, others: Counter[str]) -> list[str]:
    """Return the paths of all images in a folder and the folders in it, in one order on every machine.

    The endings of other files are counted into `others`, but for those that are known to lie beside images.
    """
    endings = known_extensions()
    found = []
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".") and not _leads_back(Path(place, name))]
        for name in files:
            ending = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a million files
            if name.startswith("."):
                continue
            if ending in endings:
                found.append(f"{place}{os.sep}{name}")
            elif ending not in BESIDE:
                others[ending] += 1
    return sorted(found)
