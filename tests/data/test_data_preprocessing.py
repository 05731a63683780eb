import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from nasb.data import Preprocessing, load_image
from nasb.errors import UserError

PHOTOS = Preprocessing(3, 24, 28, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GOOD = PHOTOS.to_dict()


def image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("sides", [(40, 40), (50, 31), (31, 50), (28, 28), (10, 12), (29, 200)])
def test_photos_are_resized_and_cropped_as_torchvision_does(sides: tuple[int, int]) -> None:
    reference = v2.Compose(
        [
            v2.Resize(28),
            v2.CenterCrop(24),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(PHOTOS.mean, PHOTOS.std),
        ]
    )
    picture = image(*sides)
    assert PHOTOS(picture).dtype == torch.float32
    torch.testing.assert_close(PHOTOS(picture), reference(picture).as_subclass(torch.Tensor), rtol=0, atol=1e-6)


def test_equal_resize_and_size_stretches_the_whole_image() -> None:
    whole = Preprocessing(3, 8, 8, (0.0,) * 3, (1.0,) * 3)
    reference = np.asarray(image(16, 12).resize((8, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert (whole.pixels(image(16, 12)) == reference).all()
    assert (whole.pixels(image(8, 8)) == np.asarray(image(8, 8)).transpose(2, 0, 1)).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_image_gets_the_network_s_channels(mode: str, channels: int) -> None:
    preprocessing = Preprocessing(channels, 8, 8, (0.5,) * channels, (0.5,) * channels)
    picture = image(8, 8, mode)
    result = preprocessing(picture)
    assert result.shape == (channels, 8, 8)
    expected = np.asarray(picture.convert("RGB" if channels == 3 else "L"), dtype=np.float32).reshape(8, 8, channels)
    np.testing.assert_allclose(result.numpy(), (expected.transpose(2, 0, 1) / 255 - 0.5) / 0.5, atol=1e-6)


def test_lab_colours_become_grey() -> None:
    grey = Preprocessing(1, 8, 8, (0.5,), (0.5,)).pixels(Image.new("LAB", (8, 8), (128, 128, 128)))
    assert grey.shape == (1, 8, 8)


def test_a_palette_with_transparency_is_read_quietly(tmp_path: Path) -> None:
    picture = image(8, 8).quantize(8)
    picture.save(tmp_path / "a.png", transparency=bytes([0, 255, 128]))
    result = Preprocessing(3, 8, 8, (0.0,) * 3, (1.0,) * 3).pixels(load_image(tmp_path / "a.png"))
    assert (result == np.asarray(picture.convert("RGB")).transpose(2, 0, 1)).all()


def test_record_goes_through_json() -> None:
    record = json.loads(json.dumps(GOOD))
    assert record == {
        "channels": 3,
        "size": 24,
        "resize": 28,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    assert Preprocessing.from_dict(record) == PHOTOS


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "preprocessing is []; give a table of channels, size, resize, mean, std"),
        (GOOD | {"crop": 3}, 'preprocessing has the unknown key "crop"; known: channels'),
        ({"channels": 3}, 'preprocessing lacks the key "size"; needed: channels'),
        (GOOD | {"channels": 2}, "preprocessing.channels is 2; give 1 (grey) or 3 (RGB)"),
        (GOOD | {"size": "24"}, "preprocessing.size is '24'; give an integer >= 1"),
        (GOOD | {"size": 0}, "preprocessing.size is 0; give an integer >= 1"),
        (GOOD | {"resize": 10**12}, "preprocessing.resize is 1000000000000; give at most 65,536"),
        (GOOD | {"resize": 23}, "preprocessing.resize is 23; give an integer >= preprocessing.size (24)"),
        (GOOD | {"mean": [0.5]}, "preprocessing.mean is [0.5]; give 3 finite number(s)"),
        (GOOD | {"mean": 0.5}, "preprocessing.mean is 0.5; give 3 finite number(s)"),
        (GOOD | {"std": [1, 1, "1"]}, "preprocessing.std is [1, 1, '1']; give 3 finite number(s)"),
        (GOOD | {"std": [1, 1, float("nan")]}, "preprocessing.std is [1, 1, nan]; give 3 finite number(s)"),
        (GOOD | {"std": [1, 1, 1e-50]}, "each standard deviation must be above 0 in fp32"),
        (GOOD | {"mean": [1, 1, 1e39]}, "give 3 finite number(s)"),
        (GOOD | {"mean": [1, 1, 10**400]}, "give 3 finite number(s)"),
        (GOOD | {"std": [1, 1, 0]}, "preprocessing.std is (1.0, 1.0, 0.0); each standard deviation must be above 0"),
    ],
)
def test_refused_records_are_named(record: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        Preprocessing.from_dict(record)


def test_an_image_that_would_be_enormous_is_refused() -> None:
    steps = Preprocessing.from_dict(GOOD | {"size": 224, "resize": 256})
    assert steps.resized(1, 5461) == (256, 1_398_016)
    message = "an image of 5,462 x 1 pixels cannot be resized to 1,398,272 x 256, which takes more than 1 GiB"
    with pytest.raises(UserError, match=message):
        steps.pixels(Image.new("RGB", (5462, 1)))


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896], [65535, 128, 129]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(load_image(tmp_path / "a.png")).tolist() == [[0, 1, 128], [255, 0, 1]]


def test_unreadable_images_are_named(tmp_path: Path, truncate: Callable[[Path], None]) -> None:
    truncate(tmp_path / "cut.jpg")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "program.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    expected = {
        "cut.jpg": 'cut.jpg" cannot be read: .*truncated.*; replace or remove it',
        "text.png": 'text.png" cannot be read: not an image that Pillow decodes',
        "empty.png": 'empty.png" cannot be read: not an image that Pillow decodes',
        "program.jpg": 'program.jpg" cannot be read: not an image that Pillow decodes',
        "float.tif": r'float.tif" cannot be read: its 32-bit pixels \(mode F\) have no fixed range',
        "missing.png": 'missing.png" does not exist',
        ".": "cannot be read: ",
    }
    for name, message in expected.items():
        with pytest.raises(UserError, match=message):
            load_image(tmp_path / name)
