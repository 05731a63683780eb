"""Preprocessing is equal, to the last bit, to nasb's own and to the C++ twin behind the C API."""

import ctypes
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

import nasb_engine
from nasb_engine._images import load_image
from tiny_models import Builder

PILLOW = int(PIL.__version__.split(".")[0])
SIZES = [(8, 8), (10, 10), (10, 31), (33, 17), (64, 48), (7, 5), (1, 1), (300, 40), (9, 200)]
STEPS = [(8, 8), (8, 10), (8, 9), (13, 20)]


def steps_of(channels: int, size: int, resize: int) -> nasb_engine.Preprocessing:
    mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
    return nasb_engine.Preprocessing(channels, size, resize, mean, std)


def image_of(width: int, height: int, mode: str = "RGB") -> Image.Image:
    random = np.random.default_rng(width * 1000 + height)
    bands = {"RGB": 3, "L": 1, "RGBA": 4, "LA": 2, "LAB": 3}[mode]
    pixels = random.integers(0, 256, (height, width, bands), np.uint8)
    pixels[: height // 2] = np.where(pixels[: height // 2] > 127, 255, 0)  # extremes, where rounding clips
    return Image.fromarray(pixels[:, :, 0] if bands == 1 else pixels, mode)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "LAB"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "resize"), STEPS)
def test_equals_nasb(mode: str, channels: int, size: int, resize: int) -> None:
    pytest.importorskip("torch")
    data = pytest.importorskip("nasb.data")
    steps = steps_of(channels, size, resize)
    theirs = data.Preprocessing(channels=channels, size=size, resize=resize, mean=steps.mean, std=steps.std)
    for width, height in SIZES:
        image = image_of(width, height, mode)
        assert np.array_equal(steps.pixels(image), theirs.pixels(image))
        assert np.array_equal(steps(image), theirs(image).numpy())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_palette_and_16_bits_equal_nasb(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    data = pytest.importorskip("nasb.data")
    files = {"palette.png": image_of(20, 14).convert("P"), "clear.gif": image_of(20, 14).quantize(16)}
    files["deep.png"] = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (14, 20)).astype(np.uint16))
    files["one.png"] = image_of(20, 14, "L").convert("1")
    steps = steps_of(3, 8, 10)
    theirs = data.Preprocessing(channels=3, size=8, resize=10, mean=steps.mean, std=steps.std)
    for name, image in files.items():
        path = tmp_path / name
        image.save(path, **({"transparency": 3} if name == "clear.gif" else {}))
        assert np.array_equal(steps(load_image(path)), theirs(data.load_image(path)).numpy()), name


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "resize"), STEPS)
def test_cpp_twin_equals_pillow(native: Path, mode: str, channels: int, size: int, resize: int) -> None:
    library = ctypes.CDLL(str(native / "libnasb.so"))
    steps = steps_of(channels, size, resize)
    b = Builder()
    metadata = {"nasb.preprocessing": _json(steps)}
    data = b.model(b.head(b.conv("images", channels, 4), 4), (channels, size, size), 4, metadata).SerializeToString()
    session = ctypes.c_void_p()
    assert library.nasb_create_from_memory(data, ctypes.c_size_t(len(data)), None, ctypes.byref(session)) == 0
    for width, height in SIZES:
        image = image_of(width, height, mode)
        pixels = np.ascontiguousarray(np.asarray(image))
        found = np.empty((channels, size, size), np.float32)
        status = library.nasb_preprocess(
            session, pixels.ctypes.data_as(ctypes.c_void_p), width, height, 1 if mode == "L" else 3,
            found.ctypes.data_as(ctypes.c_void_p),
        )  # fmt: skip
        assert status == 0
        if PILLOW >= 13:
            assert np.array_equal(found, steps(image)), (width, height)
        else:  # tall images: the other order of the passes
            np.testing.assert_allclose(found, steps(image), atol=1.01 / 255 / min(steps.std))
    library.nasb_destroy(session)


def _json(steps: nasb_engine.Preprocessing) -> str:
    import json
    from dataclasses import asdict

    return json.dumps(asdict(steps))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((2, 8, 8, (0, 0), (1, 1)), "channels is 2"),
        ((3, 0, 8, (0,) * 3, (1,) * 3), "size is 0"),
        ((3, 8, 7, (0,) * 3, (1,) * 3), "resize is 7"),
        ((3, 8, 10**12, (0,) * 3, (1,) * 3), "resize is 1000000000000; give at most 65,536"),
        ((3, 8, 8, (0,), (1,) * 3), "mean is"),
        ((3, 8, 8, (0,) * 3, (1, 1, float("nan"))), "std is"),
        ((3, 8, 8, (0,) * 3, (1, 1, 0)), "above 0"),
        ((3, 8, 8, (0,) * 3, (1, 1, 1e-50)), "above 0 in fp32"),
        ((3, 8, 8, (0, 0, 1e39), (1,) * 3), "mean is"),
        ((3, 8, 8, (0, 0, 10**400), (1,) * 3), "mean is"),
        ((True, 8, 8, (0,), (1,)), "channels is True"),
    ],
)
def test_values_are_checked(values: tuple[object, ...], says: str) -> None:
    with pytest.raises(nasb_engine.EngineError, match=says):
        nasb_engine.Preprocessing(*values)  # type: ignore[arg-type]


def test_batch() -> None:
    steps = steps_of(3, 8, 10)
    images = [image_of(20, 14), image_of(9, 30)]
    assert np.array_equal(steps.batch(images), np.stack([steps(image) for image in images]))
    assert steps.batch([]).shape == (0, 3, 8, 8)


def test_an_image_that_would_be_enormous_is_refused_as_by_the_c_api(native: Path) -> None:
    steps = steps_of(3, 224, 256)
    assert steps.resized(1, 5461) == (256, 1_398_016)  # just below 1 GiB
    with pytest.raises(nasb_engine.EngineError, match=r"1 x 5,462 pixels cannot be resized to 256 x 1,398,272, which"):
        steps(Image.new("RGB", (1, 5462)))
    library = ctypes.CDLL(str(native / "libnasb.so"))
    library.nasb_last_error.restype = ctypes.c_char_p
    b = Builder()
    metadata = {"nasb.preprocessing": _json(steps)}
    data = b.model(b.head(b.conv("images", 3, 4), 4), (3, 224, 224), 4, metadata).SerializeToString()
    session = ctypes.c_void_p()
    assert library.nasb_create_from_memory(data, ctypes.c_size_t(len(data)), None, ctypes.byref(session)) == 0
    found, pixels = np.empty((3, 224, 224), np.float32), np.zeros((1, 1, 3), np.uint8)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (pixels, found)]
    for width, height, says in [
        (1, 5462, "more than 1 GiB"),
        (5462, 1, "more than 1 GiB"),
        (2**30, 2**30, "cannot be"),
    ]:
        # Refused before one pixel is read: there is one alone.
        assert library.nasb_preprocess(session, pointers[0], width, height, 3, pointers[1]) != 0
        assert says in library.nasb_last_error().decode()
    library.nasb_destroy(session)


def test_reading_threads_leave_the_filters_of_warnings_as_they_were(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(60)]
    for path in paths:
        Image.new("RGB", (40, 40)).save(path)
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            list(pool.map(load_image, paths))
    assert warnings.filters == before


def test_a_large_image_is_read_without_a_warning_and_a_huge_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (10, 10)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # Pillow warns above, and refuses above twice as many
    assert load_image(path).size == (10, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(
        nasb_engine.EngineError, match=r'large\.png" cannot be read: Image size \(100 pixels\) exceeds limit'
    ):
        load_image(path)
