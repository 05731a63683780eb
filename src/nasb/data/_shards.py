"""Shards: image folders packed into tar files, as the WebDataset library reads and writes them, and their index.

A shard holds for each image two files of one key, the image (``000012.jpg``) and its class number (``000012.cls``).
``index.npz`` beside the shards tells where each image's bytes stand, in the order of the keys; a shard's keys are the
images' numbers in the folder. So training reads shards exactly as it reads the folder: the same images in the same
batches, for any number of ranks and workers, and it can begin at any step. It reads them at random places, which local
disks and parallel file systems serve well; an object store or a lone spinning disk does not.

The format: https://github.com/webdataset/webdataset.
"""

import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nasb.data._draws import shuffled
from nasb.data._members import Members
from nasb.data._reading import known_extensions
from nasb.data._sources import FileImages, Integers, Source
from nasb.errors import UserError
from nasb.files import write_atomically, write_text

INDEX, CLASSES = "index.npz", "classes.txt"
VERSION = 1
PARTS = ("train", "val", "test")
_PART = re.compile(r"(?:^|[-_.])(train|validation|val|test)(?=[-_.])")


def holds_shards(root: str) -> bool:
    """Return whether a folder holds shards with their index; False also of one that cannot be read."""
    return os.path.isfile(Path(root).expanduser() / INDEX)  # noqa: PTH113 - which raises nothing


def sharded_images(root: str, *, test: str) -> Source:
    """List the images of shards, from their index.

    Args:
        root: the folder with the shards and index.npz.
        test: the part that is the test set; "val" is the validation part where it is not the test set.
    Raises:
        UserError: the index is damaged, or a shard is not the one that was indexed.
    """
    folder = Path(root).expanduser()
    try:
        with (folder / INDEX).open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            values = dict(stored)
        if int(values["version"]) != VERSION:
            raise UserError(f'"{folder / INDEX}" has version {values["version"]}; {_again(folder)}')
        shards = tuple(str(folder / name) for name in values["shards"].tolist())
        class_names = tuple(map(str, values["class_names"].tolist()))
        parts: dict[str, FileImages] = {}
        for name, part in (("train", "train"), ("val", "validation"), (test, "test")):
            if f"{name}.class" in values:
                place = (values[f"{name}.{key}"].astype(np.int64) for key in ("shard", "offset", "size"))
                parts[part] = FileImages(Members(shards, *place), values[f"{name}.class"].astype(np.int64))
        if test == "val":
            parts.pop("validation", None)
        sizes = values["shard_bytes"].tolist()
    except UserError:
        raise
    except Exception as error:  # a damaged archive may raise anything
        raise UserError(f'"{folder / INDEX}" cannot be read ({error}); {_again(folder)}') from None
    for shard, size in zip(shards, sizes, strict=True):
        found = os.stat(shard).st_size if os.path.isfile(shard) else None  # noqa: PTH113, PTH116 - thousands of files
        if found != size:
            state = "is missing" if found is None else f"has {found:,} bytes"
            raise UserError(f'shard "{shard}" {state}, but {size:,} bytes were indexed; {_again(folder)}')
    if "train" not in parts:
        raise UserError(f'"{folder}" has no shards of "train"; their names tell the part, e.g. train-000000.tar')
    if len(class_names) < 2:
        raise UserError(f'"{folder}" has shards of {len(class_names)} class; at least two are needed')
    return Source(class_names, parts)


def _again(folder: Path) -> str:
    return f"write the index again: nasb shards --index {folder}"


def write_shards(source: Source, out: Path, *, shard_bytes: int, seed: int) -> dict[str, int]:
    """Pack the images of a folder into shards, in random order, and index them.

    Args:
        source: from `image_folder`.
        out: a folder that is empty, or not there yet.
        shard_bytes: a shard is closed once it holds that many bytes of images.
        seed: of the order.
    Returns:
        Number of shards of each part.
    Raises:
        UserError: the folder is in use or cannot be written, an image cannot be read, or a class's name is no line of
            classes.txt.
    """
    for name in source.class_names:
        if not name or name.splitlines() != [name]:
            raise UserError(f"the class {name!r} cannot be told in {CLASSES}, a line each; rename its folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f'"{out}" is not an empty folder; give another one, or empty it')
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'"{out}" cannot be made a folder: {error.strerror or error}') from None
    shards = {}
    for part, images in source.parts.items():
        assert isinstance(images, FileImages)
        name = "val" if part == "validation" else part
        order = shuffled(len(images.targets), seed, "shards", part)
        shards[name] = 0
        for numbers in _filling(images.paths, order, shard_bytes):
            path = out / f"{name}-{shards[name]:06}.tar"
            write_atomically(path, partial(_pack, images, numbers))
            shards[name] += 1
    write_text(out / CLASSES, "".join(f"{name}\n" for name in source.class_names))
    write_index(out)
    return shards


def _filling(paths: Sequence[Any], order: Integers, shard_bytes: int) -> Iterator[list[int]]:
    """Yield the image numbers of one shard after the other."""
    numbers: list[int] = []
    held = 0
    for number in order.tolist():
        numbers.append(number)
        held += os.path.getsize(paths[number])  # noqa: PTH202 - a million files
        if held >= shard_bytes:
            yield numbers
            numbers, held = [], 0
    if numbers:
        yield numbers


def _pack(images: FileImages, numbers: Sequence[int], path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in numbers:
            source = str(images.paths[number])
            ending = os.path.splitext(source)[1].lower()  # noqa: PTH122
            _add(tar, f"{number:09}{ending}", Path(source).read_bytes())
            _add(tar, f"{number:09}.cls", str(images.targets[number]).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def write_index(folder: Path) -> dict[str, int]:
    """Index all shards in a folder, whoever has written them, and return the number of images in each part.

    Raises:
        UserError: there are none; a name does not tell the part; an image has no class number, or one that is none.
    """
    shards = sorted(path.name for path in folder.glob("*.tar"))
    if not shards:
        raise UserError(f'"{folder}" holds no shards (*.tar)')
    found: dict[str, list[tuple[str, int, int, int, int]]] = {}
    for number, name in enumerate(shards):
        parts = _PART.findall(name)
        if len(set(parts)) != 1:
            raise UserError(
                f'shard "{folder / name}": its name has to tell the part (train, val or test), e.g. train-000000.tar'
            )
        part = "val" if parts[0] == "validation" else parts[0]
        entries = found.setdefault(part, [])
        entries += [(key, number, *place) for key, *place in _entries(folder / name)]  # type: ignore[misc]
    columns: dict[str, Any] = {}
    for part, entries in found.items():
        entries.sort()  # by key
        for column, name in enumerate(("shard", "offset", "size", "class"), 1):
            columns[f"{part}.{name}"] = np.array([entry[column] for entry in entries], dtype=np.int64)
    class_names = _class_names(folder, max(int(columns[f"{part}.class"].max()) for part in found) + 1)
    columns |= {
        "version": np.int64(VERSION),
        "shards": np.array(shards),
        "shard_bytes": np.array([(folder / name).stat().st_size for name in shards], dtype=np.int64),
        "class_names": np.array(class_names),
    }

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.savez_compressed(stream, **columns)

    write_atomically(folder / INDEX, write)
    return {part: len(entries) for part, entries in found.items()}


def _entries(shard: Path) -> Iterator[tuple[str, int, int, int]]:
    """Yield (key, first byte, bytes, class number) of each image in a shard."""
    images: dict[str, tuple[int, int]] = {}
    classes: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                key = f"{folder}/{stem}"
                if not member.isfile():
                    continue
                if f".{ending.lower()}" in known_extensions():
                    images[key] = member.offset_data, member.size
                elif ending == "cls":
                    stream = tar.extractfile(member)
                    text = b"" if stream is None else stream.read()
                    if not text.strip().isdigit():
                        raise UserError(f'shard "{shard}": {member.name} is {text[:20]!r}, not a class number')
                    classes[key] = int(text)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f'shard "{shard}" cannot be read: {error}') from None
    if not images:
        raise UserError(f'shard "{shard}" holds no images')
    for key, place in images.items():
        if key not in classes:
            raise UserError(f'shard "{shard}": the image {key.lstrip("/")} has no class number ({key.lstrip("/")}.cls)')
        yield key, *place, classes[key]


def _class_names(folder: Path, count: int) -> list[str]:
    """Return the names in classes.txt, one a line; the numbers where there is no such file."""
    path = folder / CLASSES
    if not path.is_file():
        return [str(number) for number in range(count)]
    names = path.read_text(encoding="utf-8").split("\n")
    names = names[:-1] if names[-1] == "" else names
    if len(names) < count:
        raise UserError(f'"{path}" names {len(names)} classes, but the shards have the class number {count - 1}')
    return names
