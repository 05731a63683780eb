"""Shards: the folder's images and classes in the folder's batches; readable by webdataset; damage is told by name."""

import shutil
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nasb.cli import main
from nasb.data import DataConfig, ImageData, load_image, open_data
from nasb.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # on one core

MakeFolder = Callable[..., Path]


@pytest.fixture
def root(make_folder: MakeFolder) -> Path:
    return make_folder({"train": 9, "val": 3, "test": 2}, classes=("ant", "bee", "cow"), side=lambda n: (20, 24 + n))


@pytest.fixture
def shards(root: Path, tmp_path: Path) -> Path:
    """Several shards: each is closed after about 10 images of 1.5 kB."""
    from nasb.data._folders import image_folder
    from nasb.data._shards import write_shards

    source = image_folder(str(root), validation=("val",), test="test")
    assert write_shards(source, tmp_path / "shards", shard_bytes=15_000, seed=0) == {"train": 3, "val": 1, "test": 1}
    return tmp_path / "shards"


def opened(root: Path, **values: object) -> ImageData:
    settings = {"name": "folder", "root": str(root), "image_size": 16, "batch_size": 8, "in_memory": False} | values
    return open_data(DataConfig(**settings), seed=0)  # type: ignore[arg-type]


def equal(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in pairs)


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_give_the_batches_of_the_folder(root: Path, shards: Path, workers: int) -> None:
    folder, packed = opened(root), opened(shards, workers=workers)
    assert packed.class_names == ("ant", "bee", "cow")
    assert packed.describe().replace("2 worker processes", "the main process") == folder.describe()
    for part in ("train", "weights"):
        batches = list(folder.train_batches(part, seed=1, epoch=3))
        assert len(batches) > 0
        assert equal(batches, list(packed.train_batches(part, seed=1, epoch=3)))
    for part in ("train", "validation", "test"):
        assert equal(list(folder.evaluation_batches(part)), list(packed.evaluation_batches(part)))


def test_shards_are_split_exactly_over_ranks(shards: Path) -> None:
    whole = [target for _, targets in opened(shards).train_batches("train", seed=1, epoch=0) for target in targets]
    images = [x for x, _ in opened(shards).train_batches("train", seed=1, epoch=0)]
    shares = [list(opened(shards).train_batches("train", seed=1, epoch=0, rank=r, world_size=3)) for r in range(3)]
    for step, batch in enumerate(images):
        assert torch.equal(torch.cat([share[step][0] for share in shares]), batch)
    assert sum(len(targets) for share in shares for _, targets in share) == len(whole)


def test_imagenet_s_val_shards_are_its_test_set(root: Path, shards: Path) -> None:
    data = opened(shards, name="imagenet", in_memory=None, validation_fraction=0.2)
    assert {part: data.size(part) for part in ("train", "validation", "test")} == {
        "train": 22, "validation": 5, "test": 9,
    }  # fmt: skip


def test_the_order_in_the_shards_is_shuffled_and_seeded(root: Path, tmp_path: Path) -> None:
    def keys(out: str, seed: int) -> list[str]:
        assert main(["shards", str(root), "-o", str(tmp_path / out), "--seed", str(seed)]) == 0
        with tarfile.open(tmp_path / out / "train-000000.tar") as tar:
            return tar.getnames()

    first, again, other = keys("a", 0), keys("b", 0), keys("c", 1)
    assert first == again != other
    assert sorted(first) == sorted(other) != first
    assert (tmp_path / "a" / "train-000000.tar").read_bytes() == (tmp_path / "b" / "train-000000.tar").read_bytes()


def test_webdataset_reads_the_same_images_and_classes(root: Path, shards: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        webdataset = pytest.importorskip("webdataset")
        urls = [str(path) for path in sorted(shards.glob("train-*.tar"))]
        pipeline = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("pil")
        found = {row["__key__"]: (np.asarray(row["png"]), row["cls"]) for row in pipeline}
    paths = sorted((root / "train").rglob("*.png"))
    assert len(found) == len(paths) == 27
    for number, path in enumerate(paths):
        pixels, target = found[f"{number:09}"]
        assert np.array_equal(pixels, np.asarray(Image.open(path)))
        assert target == ("ant", "bee", "cow").index(path.parent.name)


def test_shards_of_others_are_indexed(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names and keys as other tools write them; further members are left alone."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for part in ("train", "validation"):
        with tarfile.open(theirs / f"set-{part}-00.tar", "w") as tar:
            for name in ("ant", "bee"):
                path = root / "train" / name / "03.png"
                tar.add(path, f"{name}/x.png")
                for ending, text in (("cls", str(ord(name[0]) - ord("a"))), ("json", "{}")):
                    (tmp_path / ending).write_text(text)
                    tar.add(tmp_path / ending, f"{name}/x.{ending}")
    with pytest.raises(UserError, match=r"holds shards without an index; write it: nasb shards --index"):
        opened(theirs)
    assert main(["shards", "--index", str(theirs)]) == 0
    assert "train 2 images, val 2 images" in capsys.readouterr().out
    data = opened(theirs)
    assert data.class_names == ("0", "1")
    (images, targets), = data.evaluation_batches("validation")  # fmt: skip
    assert targets.tolist() == [0, 1]
    assert torch.equal(images[1], data.preprocessing(load_image(root / "train" / "bee" / "03.png")))
    (theirs / "classes.txt").write_text("Ant\nBee\n")
    assert main(["shards", "--index", str(theirs)]) == 0
    assert opened(theirs).class_names == ("Ant", "Bee")
    (theirs / "classes.txt").write_text("Ant\n")
    assert main(["shards", "--index", str(theirs)]) == 2
    assert "names 1 classes, but the shards have the class number 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("missing", r'shard ".*train-000001\.tar" is missing, but .* bytes were indexed; write .* nasb shards --index'),
        ("shorter", r'shard ".*train-000001\.tar" has 1,000 bytes, but .* were indexed'),
        ("index", r'index\.npz" cannot be read .*; write the index again: nasb shards --index'),
        ("version", r'index\.npz" has version 7; write the index again'),
        ("one class", r"has shards of 1 class; at least two are needed"),
        ("no train", r'has no shards of "train"; their names tell the part, e\.g\. train-000000\.tar'),
    ],
)
def test_damaged_shards_are_named(shards: Path, damage: str, says: str) -> None:
    path, index = shards / "train-000001.tar", shards / "index.npz"
    values = dict(np.load(index))
    if damage == "missing":
        path.unlink()
    elif damage == "shorter":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "index":
        index.write_bytes(index.read_bytes()[:100])
    elif damage == "version":
        np.savez(index, **(values | {"version": np.int64(7)}))
    elif damage == "one class":
        np.savez(index, **(values | {"class_names": values["class_names"][:1]}))
    else:
        np.savez(index, **{key: value for key, value in values.items() if not key.startswith("train")})
    with pytest.raises(UserError, match=says):
        opened(shards)


def test_an_unreadable_image_within_a_shard_is_named(shards: Path) -> None:
    path = shards / "train-000001.tar"
    with tarfile.open(path) as tar:
        place = next(member for member in tar if member.name.endswith(".png"))
    data = bytearray(path.read_bytes())
    data[place.offset_data : place.offset_data + place.size] = bytes(place.size)
    path.write_bytes(data)
    end = place.offset_data + place.size
    message = (
        rf'train-000001\.tar, bytes {place.offset_data} to {end}" cannot be read: not an image that Pillow decodes'
    )
    with pytest.raises(UserError, match=message):
        list(opened(shards, validation_fraction=0).evaluation_batches("train"))
    with pytest.warns(UserWarning, match="left out 1 of 42 images that cannot be read: .*train-000001"):
        assert opened(shards, unreadable="skip").size("train") == 26


def test_a_part_may_lack_a_class_where_unreadable_images_are_left_out(shards: Path) -> None:
    index = dict(np.load(shards / "index.npz"))
    index["class_names"] = np.append(index["class_names"], "rare")
    np.savez(shards / "index.npz", **index)
    assert opened(shards, unreadable="skip").num_classes == len(index["class_names"])


@pytest.mark.parametrize(
    ("name", "members", "says"),
    [
        ("a.tar", {}, "its name has to tell the part (train, val or test), e.g. train-000000.tar"),
        ("train-val-0.tar", {}, "its name has to tell the part"),
        ("train-0.tar", {}, "holds no images"),
        ("train-0.tar", {"1.png": b"x"}, "the image 1 has no class number (1.cls)"),
        ("train-0.tar", {"1.png": b"x", "1.cls": b"ant"}, "1.cls is b'ant', not a class number"),
        ("train-0.tar", None, "cannot be read"),
        (None, {}, "holds no shards (*.tar)"),
    ],
)
def test_what_cannot_be_indexed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str | None, members: dict[str, bytes] | None, says: str
) -> None:
    from nasb.data._shards import _add

    if name is not None and members is None:
        (tmp_path / name).write_bytes(b"no tar file" * 100)
    elif name is not None:
        with tarfile.open(tmp_path / name, "w") as tar:
            for member, data in (members or {}).items():
                _add(tar, member, data)
    assert main(["shards", "--index", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err


def test_shards_are_not_packed_again(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", str(shards), "-o", str(tmp_path / "again")]) == 2
    assert "holds shards already; give the folder of images" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("name", ["a\nb", "a\u2028b", "a\r"])
def test_a_class_whose_name_is_no_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    copy = shutil.copytree(root, tmp_path / "copy")
    for part in copy.iterdir():
        (part / "ant").rename(part / name)
    assert main(["shards", str(copy), "-o", str(tmp_path / "out")]) == 2
    assert f"the class {name!r} cannot be told in classes.txt" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "give either --output, the folder of the shards to write, or --index, for shards that exist"),
        (["--index", "-o", "x"], "give either --output"),
        (["-o", "x", "--megabytes", "0"], "--megabytes is 0; it must be at least 1"),
        (["-o", "{root}"], "is not an empty folder; give another one, or empty it"),
        (["-o", "{root}/train/ant/00.png/x"], "cannot be made a folder: Not a directory"),
    ],
)
def test_wrong_flags(root: Path, capsys: pytest.CaptureFixture[str], flags: list[str], says: str) -> None:
    assert main(["shards", str(root), *[flag.format(root=root) for flag in flags]]) == 2
    assert says in capsys.readouterr().err
