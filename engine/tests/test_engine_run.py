"""nasb-run: the static program, here, on older CPUs and for aarch64 under qemu."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nasb_engine
from convolution_cases import CORNERS, LEVELS, by_definition, covering, model
from tiny_models import linear

ModelFile = Callable[[str], Path]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(params=["native", "aarch64"])
def nasb_run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    found = request.getfixturevalue(request.param)
    # NEON by its name: where its self-check fails, the portable kernel must not pass the test instead.
    command: Sequence[str] = [str(found / "nasb-run")] if isinstance(found, Path) else [*found, "--kernel", "neon"]

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        words = [*command, *map(str, arguments)]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode == 0 and "--json" in arguments and "--kernel" not in arguments:
            best = nasb_engine.Session(linear().SerializeToString()).kernel
            assert json.loads(done.stdout)["kernel"] == ("neon" if request.param == "aarch64" else best)
        return done

    return run


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.ppm"
    pixels = np.random.default_rng(0).integers(0, 256, (21, 30, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def scores(done: "subprocess.CompletedProcess[str]") -> np.ndarray:
    """Return [N, classes], in the order of the classes."""
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    return np.array([[c["score"] for c in sorted(best, key=lambda c: c["index"])] for best in results], np.float32)


@pytest.mark.parametrize("name", ["binary_zoo", "classifier", "operators"])
def test_pixels_give_what_python_gives(nasb_run: Run, model_file: ModelFile, picture: Path, name: str) -> None:
    session = nasb_engine.Session(model_file(name))
    image = Image.open(picture)
    assert session.preprocessing is not None
    expected = session.run(session.preprocessing(image)[None])
    found = scores(nasb_run(model_file(name), picture, "--json", "--top", 0))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.save(picture.with_suffix(".npy"), np.asarray(image))
    again = scores(nasb_run(model_file(name), picture.with_suffix(".npy"), "--json", "--top", 0, "--threads", 2))
    assert np.array_equal(again, found)


@pytest.mark.parametrize(("cpu", "kernel"), [("Nehalem", "portable"), ("Haswell", "avx2")])
def test_cpus_without_newer_instructions(
    native: Path, model_file: ModelFile, picture: Path, cpu: str, kernel: str
) -> None:
    emulator = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if platform.machine() != "x86_64" or emulator is None:
        pytest.skip("qemu-x86_64 is missing (apt-get install qemu-user), or this is no x86-64")
    path = model_file("binary_zoo")
    command = [emulator, "-cpu", cpu, native / "nasb-run", path, picture, "--json", "--top", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    found = scores(done)  # an instruction that the CPU has not would have ended it
    assert json.loads(done.stdout)["kernel"] == kernel
    session = nasb_engine.Session(path)
    assert session.preprocessing is not None
    expected = session.run(session.preprocessing(Image.open(picture))[None])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_grey_pictures(nasb_run: Run, model_file: ModelFile, picture: Path) -> None:
    session = nasb_engine.Session(model_file("classifier"))
    grey = Image.open(picture).convert("L")
    assert session.preprocessing is not None
    expected = session.run(session.preprocessing(grey)[None])
    path = picture.with_suffix(".pgm")
    grey.save(path)
    commented = path.read_bytes().replace(b"P5\n", b"P5 # made by a camera\n# twice\n", 1)
    path.write_bytes(commented)
    found = scores(nasb_run(model_file("classifier"), path, "--json", "--top", 0))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_prepared_batches(nasb_run: Run, model_file: ModelFile, tmp_path: Path) -> None:
    x_NCHW = np.random.default_rng(1).standard_normal((3, 3, 8, 8), np.float32)
    expected = nasb_engine.Session(model_file("classifier")).run(x_NCHW)
    np.save(tmp_path / "batch.npy", x_NCHW)
    np.save(tmp_path / "one.npy", x_NCHW[1])
    found = scores(nasb_run(model_file("classifier"), "batch.npy", "--json", "--top", 0))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(scores(nasb_run(model_file("classifier"), "one.npy", "--json", "--top", 0))[0], found[1])


def test_text(nasb_run: Run, model_file: ModelFile, picture: Path) -> None:
    session = nasb_engine.Session(model_file("classifier"))
    assert session.preprocessing is not None
    best = session.class_names[int(session.run(session.preprocessing(Image.open(picture))[None]).argmax())]
    done = nasb_run(model_file("classifier"), picture, "--top", 2, "--repeat", 3, "--kernel", "reference")
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{picture}: {best} ")
    assert first.count("%") == 2
    assert "3 runs" in second
    assert second.endswith(", kernel reference")
    assert nasb_run("--version").stdout == f"nasb-run {nasb_engine.__version__}\n"
    assert "--threads N" in nasb_run("--help").stdout
    for kernel in nasb_engine.kernels():
        assert kernel.name in nasb_run("--help").stdout


def test_wrong_inputs_are_one_line(nasb_run: Run, model_file: ModelFile, tmp_path: Path, picture: Path) -> None:
    model = model_file("classifier")
    header = b"\x93NUMPY\x01\x00"
    files = {
        "empty.npy": b"",
        "cut.npy": header + b"\xff\xff{",
        "dict.npy": header + b"\x10\x00{'descr': '<f4'}\n",
        "cut.ppm": b"P6 30 20 255\nabc",
        "huge.ppm": b"P6 65536 65536 255\nabc",
        "deep.ppm": b"P6 1 1 65535\nabcdef",
        "size.ppm": b"P6 0 20 255\n",
        "comment.ppm": b"P6 1 1 255# a comment\nabc",
        "other.jpg": b"\xff\xd8\xff",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    damaged = np.zeros((2, 3, 8, 8), np.float32)
    damaged[1, 0, 0, 0] = np.nan
    np.save(tmp_path / "nan.npy", damaged)
    damaged[1, 0, 0, 0] = np.inf
    np.save(tmp_path / "infinite.npy", damaged)
    np.save(tmp_path / "double.npy", np.zeros((3, 8, 8)))
    np.save(tmp_path / "fortran.npy", np.asfortranarray(np.zeros((3, 8, 8), np.float32)))
    np.save(tmp_path / "shape.npy", np.zeros((3, 9, 8), np.float32))
    np.save(tmp_path / "none.npy", np.zeros((0, 3, 8, 8), np.float32))
    np.save(tmp_path / "four.npy", np.zeros((8, 8, 4), np.uint8))
    for arguments, says in [
        ((), "MODEL.onnx"),
        ((model,), "one IMAGE"),
        ((model, picture, "--fast"), "--fast"),
        ((model, picture, "--top"), "--top"),
        ((model, picture, "--top", "many"), '"many"'),
        ((model, picture, "--repeat", "0"), "--repeat"),
        ((model, picture, "--kernel", "sse9"), "sse9"),
        (("nothing.onnx", picture), "nothing.onnx: cannot be read: No such file or directory"),
        ((tmp_path, picture), f"{tmp_path}: cannot be read: Is a directory"),
        ((picture, picture), f"{picture}: "),
        ((model, "nothing.ppm"), "nothing.ppm: cannot be read: No such file or directory"),
        ((model, tmp_path), f"{tmp_path}: cannot be read: Is a directory"),
        ((model, "nan.npy"), "the score of class 0 is NaN for image 1"),
        ((model, "nan.npy", "--json"), "the score of class 0 is NaN for image 1"),
        ((model, "infinite.npy"), "for image 1; the image or the file's weights are not finite"),
        ((model, picture, "--threads", "257"), "threads is 257"),
        ((model, "empty.npy"), "neither .npy"),
        ((model, "cut.npy"), "cut off"),
        ((model, "dict.npy"), "lacks"),
        ((model, "cut.ppm"), "1800 bytes of pixels expected, 3 found"),
        ((model, "huge.ppm"), "12884901888 bytes"),
        ((model, "deep.ppm"), "8 bits"),
        ((model, "size.ppm"), "width"),
        ((model, "comment.ppm"), "not followed by one white space and the pixels"),
        ((model, "other.jpg"), "nasb-engine predict"),
        ((model, "double.npy"), "<f8"),
        ((model, "fortran.npy"), "ascontiguousarray"),
        ((model, "shape.npy"), "its images are [3, 9, 8]; the network takes [3, 8, 8]"),
        ((model, "none.npy"), "is empty"),
        ((model, "four.npy"), "[H, W, 3]"),
        ((model_file("linear"), picture), "nasb.preprocessing"),
    ]:
        done = nasb_run(*arguments)
        assert done.returncode == 2, (arguments, done)
        assert done.stdout == ""
        assert done.stderr.startswith("nasb-run: ")
        assert len(done.stderr.splitlines()) == 1
        assert says in done.stderr, (arguments, done.stderr)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_result_that_cannot_be_written_is_an_error(native: Path, model_file: ModelFile, picture: Path) -> None:
    command = [native / "nasb-run", model_file("classifier"), picture]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "nasb-run: the result cannot be written: No space left on device\n")


def test_json_is_utf8_whatever_the_path(native: Path, model_file: ModelFile, picture: Path) -> None:
    strange = picture.with_name(os.fsdecode(b'caf\xe9 \xed\xa0\x80 "\x01 \xf0\x9f\x90\x88.ppm'))
    picture.rename(strange)
    command = [native / "nasb-run", model_file("classifier"), strange, "--json"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert Path(json.loads(done.stdout)["image"]).name == 'caf\ufffd \ufffd\ufffd\ufffd "\x01 \N{CAT}.ppm'


SMALL = [case for case in (*CORNERS, *covering(LEVELS, 1_000_000)[::7]) if case.macs <= 3_000_000]
"""A part of test_exact_convolutions.py's: an emulator is slow, and each is a process of its own."""
CHUNKS = 4


def test_the_small_cases_cover_what_they_should() -> None:
    for name in ("kernel", "stride", "dilation", "pads", "pad_value", "batch", "groups"):
        assert {getattr(case, name) for case in SMALL} >= set(LEVELS[name]), name
    assert max(case.inputs for case in SMALL) >= 600
    assert len(SMALL) > 80


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_neon_gives_the_exact_sums(aarch64: Sequence[str], tmp_path: Path, chunk: int) -> None:
    for case in SMALL[chunk::CHUNKS]:
        images, weights = case.data()
        (tmp_path / "conv.onnx").write_bytes(model(case, weights).SerializeToString())
        np.save(tmp_path / "signs.npy", images)
        words = [*aarch64, "--kernel", "neon", "--threads", "1", "--json", "--top", "0", "conv.onnx", "signs.npy"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, f"{case}: {done.stderr}"
        assert json.loads(done.stdout)["kernel"] == "neon"
        expected = by_definition(case, images, weights).reshape(case.batch, -1)
        assert np.array_equal(scores(done), expected), str(case)


@pytest.mark.parametrize("part", ["epilogue", "sums", "gemm", "winograd", "winograd_inputs", "pool", "depthwise"])
def test_a_fault_of_neon_is_found(aarch64: Sequence[str], model_file: ModelFile, tmp_path: Path, part: str) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 8), np.float32))
    words = [*aarch64, str(model_file("classifier")), str(tmp_path / "x.npy"), "--json"]
    environment = os.environ | {"NASB_TEST_FAULT": f"neon:{part}"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["kernel"] == "portable"
    assert done.stderr.startswith('nasb: kernel "neon" failed its self-check and is not used: ')
    words += ["--kernel", "neon"]
    assert subprocess.run(words, env=environment, capture_output=True, check=False).returncode == 2


def test_program_is_static(native: Path) -> None:
    data = (native / "nasb-run").read_bytes()
    offset, size, count = (int.from_bytes(data[a:b], "little") for a, b in ((32, 40), (54, 56), (56, 58)))
    kinds = {int.from_bytes(data[offset + i * size :][:4], "little") for i in range(count)}
    assert 3 not in kinds  # PT_INTERP: the dynamic loader


@pytest.mark.slow
def test_wrong_inputs_under_address_sanitizer(sanitized: Path, model_file: ModelFile, tmp_path: Path) -> None:
    """Images cut at every length."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.ppm")
    np.save(tmp_path / "whole.npy", pixels)
    model = model_file("classifier")
    for name in ("whole.ppm", "whole.npy"):
        data = (tmp_path / name).read_bytes()
        for size in [*range(0, len(data), 11), len(data)]:
            (tmp_path / "cut").write_bytes(data[:size])
            words = [sanitized / "nasb-run", model, tmp_path / "cut", "--threads", "1"]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert done.returncode == (0 if size == len(data) else 2), done.stderr
