import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nasb.data import DataConfig, ImageData, load_image, open_data
from nasb.data._augmentation import CropResizeFlip, ShiftFlip
from nasb.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # on one core

MakeFolder = Callable[..., Path]


def open_folder(root: Path, **values: object) -> ImageData:
    return open_data(DataConfig(**{"name": "folder", "root": str(root), "image_size": 8} | values), seed=0)  # type: ignore[arg-type]


def test_parts_and_classes(make_folder: MakeFolder) -> None:
    data = open_folder(make_folder({"train": 10, "val": 2, "test": 3}))
    assert data.class_names == ("ant", "bee")
    assert data.num_classes == 2
    assert data.input_shape == (3, 8, 8)
    assert {part: data.size(part) for part in ("train", "weights", "alpha", "validation", "test")} == {
        "train": 20,
        "weights": 10,
        "alpha": 10,
        "validation": 4,
        "test": 6,
    }
    assert data.describe() == (
        "folder: 2 classes, 3x8x8, train 20 (weights 10, alpha 10), validation 4, test 6; "
        "training images in memory (0.0 MB)"
    )


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_the_validation_folder_may_have_other_names(make_folder: MakeFolder, name: str) -> None:
    assert open_folder(make_folder({"train": 4, name: 2})).size("validation") == 4


@pytest.mark.parametrize("place", ["train", "train/bee"])
def test_a_folder_that_may_not_be_read_is_named(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    root, scandir = make_folder({"train": 4}), os.scandir

    def refuse(path: Any) -> Any:  # a test may run as root, who may read everything
        if Path(path) == root / place:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=f'"{root / place}" cannot be read: Permission denied'):
        open_folder(root)


def test_without_val_and_test_folders(make_folder: MakeFolder) -> None:
    data = open_folder(make_folder({"train": 10}), validation_fraction=0.2)
    assert (data.size("train"), data.size("validation"), data.size("test")) == (16, 4, 0)
    with pytest.raises(UserError, match='data set "folder" has no images in "test"; add the folder test/'):
        data.evaluation_batches("test")
    data = open_folder(Path(str(make_folder({"train": 2}, name="other"))), validation_fraction=0)
    with pytest.raises(UserError, match=r'has no images in "validation"; set data\.validation_fraction above 0'):
        data.evaluation_batches("validation")


def test_nested_hidden_and_foreign_files(make_folder: MakeFolder) -> None:
    root = make_folder({"train": 4})
    nested = root / "train" / "ant" / "a" / "b"
    nested.mkdir(parents=True)
    shutil.move(root / "train" / "ant" / "00.png", nested / "UPPER.PNG")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "train" / "ant" / ".hidden").mkdir()
    shutil.copy(nested / "UPPER.PNG", root / "train" / "ant" / ".hidden" / "x.png")
    shutil.copy(nested / "UPPER.PNG", root / "train" / "ant" / "._x.png")
    for name in ("Thumbs.db", "notes.txt", "plan.pdf", "figure.eps"):
        (root / "train" / "ant" / name).write_text("x")
    with pytest.warns(UserWarning, match=r"^left out 2 files in .*train\", whose endings .*: \.eps 1, \.pdf 1$"):
        data = open_folder(root, validation_fraction=0)
    assert (data.size("train"), data.num_classes) == (8, 2)


def test_a_link_to_a_folder_around_it_is_not_followed(make_folder: MakeFolder) -> None:
    root = make_folder({"train": 4})
    (root / "train" / "ant" / "loop").symlink_to("..")
    assert open_folder(root, validation_fraction=0).size("train") == 8


def test_imagenet_tests_on_val(make_folder: MakeFolder) -> None:
    root = make_folder({"train": 10, "val": 3}, classes=("n01", "n02"), side=40)
    data = open_data(DataConfig(name="imagenet", root=str(root), image_size=32), seed=0)
    assert (data.size("train"), data.size("validation"), data.size("test")) == (18, 2, 6)
    assert data.preprocessing.resize == 37
    assert isinstance(data._augmentation, CropResizeFlip)
    assert "read from files by the main process" in data.describe()


def test_small_images_of_one_size_are_shifted_and_kept(make_folder: MakeFolder) -> None:
    root = make_folder({"train": 4})
    for in_memory, place in ((None, "in memory"), (False, "read from files")):
        data = open_folder(root, in_memory=in_memory)
        assert data._augmentation == ShiftFlip(1, True)
        assert data.preprocessing.resize == 8
        assert place in data.describe()
    assert open_folder(root, augmentation="none")._augmentation is None


def one_odd_size(number: int) -> tuple[int, int]:
    return (9, 8) if number == 3 else (8, 8)


@pytest.mark.parametrize("side", [9, one_odd_size])
@pytest.mark.parametrize("in_memory", [None, False])
def test_other_and_mixed_sizes_are_photos(make_folder: MakeFolder, side: int, in_memory: bool | None) -> None:
    data = open_folder(make_folder({"train": 4}, side=side), validation_fraction=0, in_memory=in_memory)
    assert data._augmentation == CropResizeFlip(8)
    assert data.preprocessing.resize == 9
    assert "read from files" in data.describe()


def test_photos_are_kept_where_asked_for(make_folder: MakeFolder) -> None:
    root = make_folder({"train": 4, "test": 2}, side=lambda number: (20, 12 + number))
    data = open_folder(root, in_memory=True, validation_fraction=0)
    assert data._augmentation == ShiftFlip(1, True)
    assert "in memory" in data.describe()
    streamed = next(open_folder(root).evaluation_batches("test"))
    kept = next(data.evaluation_batches("test"))
    assert all((a == b).all() for a, b in zip(streamed, kept, strict=True))


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("side", [8, 13])
def test_evaluation_gives_what_preprocessing_gives_for_the_file(
    make_folder: MakeFolder, side: int, in_memory: bool
) -> None:
    root = make_folder({"train": 3, "test": 3}, side=side)
    Image.open(root / "test" / "ant" / "01.png").convert("L").save(root / "test" / "ant" / "01.png")
    data = open_folder(root, in_memory=in_memory, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert data.preprocessing.mean == (0.1, 0.2, 0.3)
    images, classes = next(data.evaluation_batches("test"))
    files = sorted((root / "test").glob("*/*.png"))
    assert classes.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(images, torch.stack([data.preprocessing(load_image(file)) for file in files]))


def test_missing_folders_are_named(tmp_path: Path, make_folder: MakeFolder) -> None:
    def refused(root: Path, message: str) -> None:
        with pytest.raises(UserError, match=re.escape(message)):
            open_folder(root)

    refused(tmp_path / "no", f'data.root "{tmp_path / "no"}" does not exist; give the folder that holds the data')
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "is not a folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, f'data.root "{empty}" has no folder train/; put the training images into train/<class>/')
    (empty / "train").mkdir()
    refused(empty, '/train" has no class folders; put the images of each class into train/<class>/')
    refused(make_folder({"train": 2}, classes=("ant",), name="one"), 'has only the class "ant"')
    refused(make_folder({"train": 2, "val": 2, "validation": 2}, name="two"), "has both val/ and validation/; keep one")

    root = make_folder({"train": 2, "test": 2}, name="classes")
    (root / "train" / "cow").mkdir()
    refused(root, '/test" lacks the class "cow" of train/; every part needs the same classes')
    (root / "test" / "cow").mkdir()
    refused(root, 'class "cow" in "')
    (root / "train" / "cow").rmdir()
    refused(root, '/test" has the class "cow", which train/ has not; every part needs the same classes')


@pytest.mark.parametrize(("in_memory", "workers"), [(True, 0), (True, 2), (False, 0), (False, 2)])
def test_an_unreadable_image_is_an_error_that_names_it(
    make_folder: MakeFolder, truncate: Callable[[Path], None], in_memory: bool, workers: int
) -> None:
    root = make_folder({"train": 4})
    bad = root / "train" / "bee" / "01.png"
    truncate(bad)
    says = r".*truncated.*remove it; --data\.unreadable skip leaves such images out"
    message = f'^image "{re.escape(str(bad))}" cannot be read: {says}$'
    with pytest.raises(UserError, match=message):
        list(
            open_folder(root, in_memory=in_memory, workers=workers, validation_fraction=0).train_batches(
                "train", seed=0, epoch=0
            )
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_left_out_where_asked_for(
    make_folder: MakeFolder, truncate: Callable[[Path], None], workers: int
) -> None:
    root = make_folder({"train": 6, "test": 3})
    for place in ("train/ant/00.png", "train/bee/02.png", "train/bee/03.png", "test/ant/02.png"):
        truncate(root / place)
    with pytest.warns(UserWarning, match=r"left out 4 of 18 images that cannot be read: .*ant/00.png, .*03.png, ...$"):
        data = open_folder(root, unreadable="skip", validation_fraction=0, workers=workers)
    assert (data.size("train"), data.size("test")) == (9, 5)
    assert data.describe().endswith("; 4 unreadable images left out")
    assert next(data.train_batches("train", seed=0, epoch=0))[0].shape == (9, 3, 8, 8)


def test_a_class_whose_name_is_no_text_is_refused(make_folder: MakeFolder) -> None:
    root = make_folder({"train": 2})
    os.rename(root / "train" / "bee", os.fsencode(root / "train") + b"/caf\xe9")  # noqa: PTH104 - bytes
    with pytest.raises(
        UserError, match=r"the name of the folder 'caf\\udce9' in \".*train\" is not valid UTF-8; rename"
    ):
        open_folder(root)


def test_a_class_that_is_unreadable_altogether_is_an_error(
    make_folder: MakeFolder, truncate: Callable[[Path], None]
) -> None:
    root = make_folder({"train": 2, "test": 1})
    truncate(root / "test" / "bee" / "00.png")
    with pytest.raises(
        UserError, match=r'no image of class "bee" among the test images can be read, e.g. ".*bee/00.png'
    ):
        open_folder(root, unreadable="skip")


def test_train_limit_keeps_classes_and_validation(make_folder: MakeFolder) -> None:
    root = make_folder({"train": 20})
    data = open_folder(root, train_limit=6)
    assert (data.size("train"), data.size("validation")) == (6, 4)
    classes = torch.cat([targets for _, targets in data.evaluation_batches("train")])
    assert np.bincount(classes.numpy()).tolist() == [3, 3]
    for limit in (1, 37):
        message = re.escape(f"data.train_limit is {limit}; give a number from 2 (one image per class) to 36")
        with pytest.raises(UserError, match=message):
            open_folder(root, train_limit=limit)


def test_a_large_image_is_read_without_a_warning_and_a_huge_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (10, 10)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # Pillow warns above, and refuses above twice as many
    assert load_image(path).size == (10, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(UserError, match=r'large\.png" cannot be read: Image size \(100 pixels\) exceeds limit'):
        load_image(path)
