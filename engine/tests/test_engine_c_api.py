"""The C API: the program of docs/c-api.md, every refusal by its number and text, nothing but the API visible."""

import ctypes
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import nasb_engine
from engine_places import ROOT

OK, FILE, UNSUPPORTED, ARGUMENT = 0, 1, 2, 3
HEADER = ROOT / "engine/include/nasb.h"

ModelFile = Callable[[str], Path]


@pytest.fixture(scope="module")
def library(native: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(native / "libnasb.so"))
    for name in ("nasb_last_error", "nasb_version", "nasb_class_name", "nasb_metadata", "nasb_kernel"):
        getattr(loaded, name).restype = ctypes.c_char_p
    for name in ("nasb_input_size", "nasb_output_size", "nasb_class_count"):
        getattr(loaded, name).restype = ctypes.c_size_t
    return loaded


def create(library: ctypes.CDLL, path: object, options: object = None) -> tuple[int, ctypes.c_void_p]:
    session = ctypes.c_void_p(1)
    status = library.nasb_create_from_file(str(path).encode(), options, ctypes.byref(session))
    return status, session


class Options(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("threads", ctypes.c_int32), ("kernel", ctypes.c_char_p)]


def compiler() -> str:
    found = shutil.which("cc") or shutil.which("gcc")
    if found is None:
        pytest.skip("no C compiler")
    return found


def example() -> str:
    text = (ROOT / "docs/c-api.md").read_text(encoding="utf-8")
    block = text[text.index("    #include <stdio.h>") :]
    block = block[: re.search(r"^\S", block, re.MULTILINE).start()]  # type: ignore[union-attr]
    program = "\n".join(line.removeprefix("    ") for line in block.splitlines())
    return program[: program.rindex("\n}") + 3]


def test_example_of_the_documentation(native: Path, model_file: ModelFile, tmp_path: Path) -> None:
    source, program, model = tmp_path / "classify.c", tmp_path / "classify", model_file("classifier")
    source.write_text(example(), encoding="utf-8")
    (command,) = re.findall(r"^    cc (.*)$", (ROOT / "docs/c-api.md").read_text(encoding="utf-8"), re.MULTILINE)
    command = command.replace("classify.c", str(source)).replace("-o classify", f"-o {program}")
    strict = f"{compiler()} -std=c99 -pedantic -Wall -Wextra -Werror {command}"
    subprocess.run(strict, shell=True, cwd=native.parents[1], check=True)
    done = subprocess.run([program, model], capture_output=True, text=True, check=True)

    session = nasb_engine.Session(model)
    pixels = (np.arange(16 * 16 * 3) * 7 % 256).astype(np.uint8).reshape(16, 16, 3)
    from PIL import Image

    assert session.preprocessing is not None
    scores = session.run(session.preprocessing(Image.fromarray(pixels))[None])[0]
    name, score = done.stdout.split()
    assert name == session.class_names[int(scores.argmax())]
    assert float(score) == pytest.approx(float(scores.max()), abs=1e-3)

    failed = subprocess.run([program, tmp_path / "nothing"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr == f"{tmp_path}/nothing: cannot be read: No such file or directory\n"


@pytest.mark.parametrize("language", ["c", "c++"])
def test_header_stands_alone(language: str) -> None:
    flags = ["-std=c99"] if language == "c" else ["-std=c++11"]
    command = [compiler(), "-x", language, *flags, "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", HEADER]
    if language == "c++" and shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    subprocess.run(command, check=True)


def test_only_the_api_is_visible(native: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    lines = subprocess.run(
        ["nm", "-D", "--defined-only", native / "libnasb.so"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    visible = {line.split()[-1] for line in lines}
    declared = set(re.findall(r"NASB_API [\w *]*?(nasb_\w+)\(", HEADER.read_text(encoding="utf-8")))
    assert visible == declared


def test_files_of_one_instruction_set_leave_nothing_behind_for_others(native: Path) -> None:
    """An inline function compiled for AVX-512 must not be the copy that the linker keeps for everyone."""
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    objects = sorted(native.rglob("*_avx*.o"))
    for path in objects:
        lines = subprocess.run(["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True)
        weak = [line for line in lines.stdout.splitlines() if re.search(r" [WVu] ", line)]
        assert [line for line in weak if not line.endswith("DW.ref.__gxx_personality_v0")] == [], path


def test_results_and_texts(library: ctypes.CDLL, model_file: ModelFile) -> None:
    path = model_file("classifier")
    options = Options(ctypes.sizeof(Options), 2, b"reference")
    status, session = create(library, path, ctypes.byref(options))
    assert status == OK
    assert library.nasb_api_version() == 1
    assert library.nasb_version().decode() == nasb_engine.__version__
    assert library.nasb_threads(session) == 2
    assert library.nasb_kernel(session) == b"reference"
    shape = (ctypes.c_int64 * 3)()
    assert library.nasb_input_shape(session, shape) == OK
    assert list(shape) == [3, 8, 8]
    assert library.nasb_input_size(session) == 192
    assert library.nasb_output_size(session) == library.nasb_class_count(session) == 4
    assert [library.nasb_class_name(session, index).decode() for index in range(4)] == ["cat", "dog", "horse", "émeu"]
    assert library.nasb_class_name(session, ctypes.c_size_t(4)) is None
    assert library.nasb_metadata(session, b"nasb.layout_version") == b"1"
    assert library.nasb_metadata(session, b"other") is None

    x_NCHW = np.random.default_rng(0).standard_normal((3, 3, 8, 8), np.float32)
    y = np.empty((3, 4), np.float32)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (x_NCHW, y)]
    assert library.nasb_run(session, pointers[0], ctypes.c_size_t(3), pointers[1]) == OK
    assert np.array_equal(y, nasb_engine.Session(path, kernel="reference").run(x_NCHW))
    assert library.nasb_run(session, None, ctypes.c_size_t(0), None) == OK
    assert library.nasb_run(session, None, ctypes.c_size_t(1), pointers[1]) == ARGUMENT
    library.nasb_destroy(session)


def test_refusals(library: ctypes.CDLL, model_file: ModelFile, tmp_path: Path) -> None:
    def says() -> str:
        return library.nasb_last_error().decode()

    status, session = create(library, tmp_path / "nothing.onnx")
    assert (status, session.value) == (FILE, None)
    assert says() == f"{tmp_path}/nothing.onnx: cannot be read: No such file or directory"
    assert create(library, tmp_path)[0] == FILE
    assert says() == f"{tmp_path}: cannot be read: Is a directory"
    (tmp_path / "text.onnx").write_text("no model")
    assert create(library, tmp_path / "text.onnx")[0] == FILE
    assert says().startswith(f"{tmp_path}/text.onnx: ")
    path = model_file("classifier")
    data = path.read_bytes().replace(b"GlobalAveragePool", b"GlobalMaximumPool")
    (tmp_path / "other.onnx").write_bytes(data)
    assert create(library, tmp_path / "other.onnx")[0] == UNSUPPORTED
    assert "GlobalMaximumPool" in says()
    (tmp_path / "names.onnx").write_bytes(path.read_bytes().replace(b'["cat", "dog", ', b'["cat",        '))
    assert create(library, tmp_path / "names.onnx")[0] == FILE
    assert "nasb.class_names" in says()
    (tmp_path / "twice.onnx").write_bytes(path.read_bytes().replace(b'"dog"', b'"cat"'))
    assert create(library, tmp_path / "twice.onnx")[0] == FILE
    assert says().endswith('metadata "nasb.class_names": names "cat" twice')
    assert create(library, path, ctypes.byref(Options(3, 0, None)))[0] == ARGUMENT
    assert "NASB_OPTIONS_DEFAULT" in says()
    assert create(library, path, ctypes.byref(Options(ctypes.sizeof(Options), -1, None)))[0] == ARGUMENT
    assert create(library, path, ctypes.byref(Options(ctypes.sizeof(Options), 257, None)))[0] == ARGUMENT
    assert "threads is 257; 0 (as many as the process may use) to 256" in says()
    assert create(library, path, ctypes.byref(Options(ctypes.sizeof(Options), 0, b"sse9")))[0] == ARGUMENT
    assert "sse9" in says()
    assert library.nasb_create_from_file(None, None, ctypes.byref(session)) == ARGUMENT
    assert library.nasb_create_from_file(b"x", None, None) == ARGUMENT
    assert library.nasb_create_from_memory(None, ctypes.c_size_t(3), None, ctypes.byref(session)) == ARGUMENT
    assert library.nasb_create_from_memory(b"", ctypes.c_size_t(0), None, ctypes.byref(session)) == FILE
    library.nasb_destroy(None)
    assert library.nasb_kernel(None) is None
    assert library.nasb_input_size(None) == library.nasb_class_count(None) == library.nasb_threads(None) == 0

    status, session = create(library, model_file("linear"))
    assert status == OK
    buffer = (ctypes.c_float * 100)()
    pixels = (ctypes.c_uint8 * 100)()
    assert library.nasb_preprocess(session, pixels, 2, 2, 3, buffer) == ARGUMENT
    assert "nasb.preprocessing" in says()
    library.nasb_destroy(session)
    status, session = create(library, path)
    for width, height, channels in [(0, 2, 3), (2, -1, 3), (2, 2, 4)]:
        assert library.nasb_preprocess(session, pixels, width, height, channels, buffer) == ARGUMENT
    library.nasb_destroy(session)


def test_the_last_error_belongs_to_its_thread(library: ctypes.CDLL, tmp_path: Path) -> None:
    create(library, tmp_path / "mine.onnx")
    theirs = []

    def fail() -> None:
        theirs.append(library.nasb_last_error())
        create(library, tmp_path / "theirs.onnx")
        theirs.append(library.nasb_last_error())

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert theirs[0] == b""
    assert b"theirs.onnx" in theirs[1]
    assert b"mine.onnx" in library.nasb_last_error()
