"""nasb-engine in a process that can import neither torch nor nasb, as on a board."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image, ImageFile

import nasb_engine
from engine_places import Engine
from nasb_engine import cli
from nasb_engine.evaluation import _ranks, evaluate, softmax
from tiny_models import CLASSES, PREPROCESSING

ModelFile = Callable[[str], Path]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    random = np.random.default_rng(0)
    paths = []
    for index in range(3):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(random.integers(0, 256, (12 + index, 20, 3), np.uint8)).save(paths[-1])
    return paths


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """photos/<class>/: 5 images for each of three classes of four, and what is left out."""
    random = np.random.default_rng(1)
    root = tmp_path / "photos"
    for name in ("cat", "dog", "émeu"):
        (root / name / "more").mkdir(parents=True)
        for index in range(5):
            place = root / name / ("more" if index == 0 else "")
            Image.fromarray(random.integers(0, 256, (16, 14, 3), np.uint8)).save(place / f"{index}.png")
    (root / ".hidden").mkdir()
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "cat" / ".DS_Store").write_bytes(b"x")
    (root / "cat" / "loop").symlink_to("..")
    return root


def expected_scores(model: Path, paths: list[Path]) -> np.ndarray:
    session = nasb_engine.Session(model)
    assert session.preprocessing is not None
    return session.run(session.preprocessing.batch(Image.open(path) for path in paths))


def test_predict(engine: Engine, model_file: ModelFile, pictures: list[Path]) -> None:
    model = model_file("classifier")
    probabilities = softmax(expected_scores(model, pictures))
    done = engine("predict", model, *pictures, "--top", 2, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == [str(path) for path in pictures]
    for path, row in zip(pictures, probabilities, strict=True):
        best = np.argsort(-row)[:2]
        assert list(found[str(path)]) == [CLASSES[index] for index in best]
        assert list(found[str(path)].values()) == pytest.approx(row[best].tolist())
    lines = engine("predict", model, *pictures, "--threads", 1, "--kernel", "reference").stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(path) for path in pictures]
    assert lines[0].count("%") == 3


def test_predict_goes_on_after_an_unreadable_image(engine: Engine, model_file: ModelFile, pictures: list[Path]) -> None:
    pictures[1].write_bytes(pictures[1].read_bytes()[:50])
    done = engine("predict", model_file("classifier"), *pictures, "nothing.jpg")
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 2
    first, second, last = done.stderr.splitlines()
    assert f'image "{pictures[1]}" cannot be read' in first
    assert 'image "nothing.jpg" does not exist' in second
    assert last == "nasb-engine: 2 of 4 images have no prediction"


def test_images_without_a_prediction(
    model_file: ModelFile, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (1, 40_000)).save(pictures[0])
    model = onnx.load(model_file("classifier"))
    steps = dict(PREPROCESSING, resize=10_000)
    helper.set_model_props(model, {"nasb.preprocessing": json.dumps(steps)})
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.array([0, np.nan, 0, 0], np.float32), "last"))
    model.graph.node[-1].input[2] = "last"
    path = pictures[0].parent / "damaged.onnx"
    onnx.save(model, path)
    assert cli.main(["predict", str(path), *map(str, pictures[:2]), "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {}
    long, nan, _ = err.splitlines()
    assert f'image "{pictures[0]}" cannot be prepared: an image of 1 x 40,000 pixels cannot be resized to' in long
    assert nan.endswith(f'image "{pictures[1]}": the score of class 1 is nan; the file\'s weights are damaged')


def test_an_image_for_which_there_is_no_memory_is_left_out(
    model_file: ModelFile, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: Image.Image) -> None:
        if self.size == (14, 16):
            raise MemoryError
        original(self)

    original = ImageFile.ImageFile.load
    Image.new("RGB", (20, 20)).save(folder / "cat" / "small.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    found = evaluate(nasb_engine.Session(model_file("classifier")), folder)
    assert found.images == 1
    assert all(
        reason.endswith("cannot be read: not enough memory; replace or remove it")
        for reason in found.unreadable.values()
    )


def test_names_that_the_output_cannot_show(engine: Engine, model_file: ModelFile, pictures: list[Path]) -> None:
    strange = pictures[0].with_name(os.fsdecode(b"caf\xe9.png"))
    pictures[0].rename(strange)
    done = engine("predict", model_file("classifier"), strange)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(pictures[0].parent / r"caf\udce9.png: "))
    assert engine("evaluate", model_file("classifier"), "~nobody-of-that-name").returncode == 2


def test_a_closed_output_is_no_traceback(model_file: ModelFile) -> None:
    command = f'"{sys.executable}" -m nasb_engine info "{model_file("classifier")}" >&-'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_listed_is_not_passed_over(
    model_file: ModelFile,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def scandir(path: object) -> object:
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    original = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    assert cli.main(["evaluate", str(model_file("classifier")), str(folder)]) == 2
    assert capsys.readouterr().err == f"nasb-engine: {folder}/cat/more: Permission denied\n"


def test_evaluate(engine: Engine, model_file: ModelFile, folder: Path) -> None:
    model = model_file("classifier")
    paths = sorted(folder.rglob("*.png"))
    scores_NC = expected_scores(model, paths)
    targets = [CLASSES.index(path.relative_to(folder).parts[0]) for path in paths]
    right = 100 * float((scores_NC.argmax(1) == targets).mean())
    done = engine("evaluate", model, folder, "--json", "--batch", 4)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["top1"] == pytest.approx(right)
    assert found["top5"] is None  # of four classes
    assert found["images"] == 15
    assert found["images_per_second"] > 0
    assert found["unreadable"] == []
    text = engine("evaluate", model, folder).stdout
    assert text.startswith(f"Top-1 {right:.2f}%, 15 images\n")
    assert "images/s" in text


def test_evaluate_leaves_out_what_cannot_be_read(engine: Engine, model_file: ModelFile, folder: Path) -> None:
    broken = folder / "dog" / "1.png"
    broken.write_bytes(b"\x89PNG broken")
    done = engine("evaluate", model_file("classifier"), folder, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["unreadable"] == [str(broken)]
    assert json.loads(done.stdout)["images"] == 14
    assert f'left out: image "{broken}" cannot be read' in done.stderr
    assert "1 unreadable images left out" in engine("evaluate", model_file("classifier"), folder).stdout


def test_evaluate_tells_classes_without_images(engine: Engine, model_file: ModelFile, folder: Path) -> None:
    done = engine("evaluate", model_file("classifier"), folder, "--json")
    assert done.stderr == "nasb-engine: no images of 1 classes: horse\n"
    assert json.loads(done.stdout)["missing_classes"] == ["horse"]
    (folder / "horse").mkdir()
    Image.new("RGB", (9, 9)).save(folder / "horse" / "1.png")
    assert engine("evaluate", model_file("classifier"), folder).stderr == ""


def test_evaluate_takes_the_test_part(model_file: ModelFile, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    session = nasb_engine.Session(model_file("classifier"))
    whole = evaluate(session, folder)
    folder.rename(tmp_path / "data" / "val")
    assert evaluate(session, tmp_path / "data").top1 == whole.top1
    (tmp_path / "data" / "test").mkdir()
    (tmp_path / "data" / "val" / "cat").rename(tmp_path / "data" / "test" / "cat")
    assert evaluate(session, tmp_path / "data").images == 5


def test_ranks_are_those_of_a_stable_sort() -> None:
    random = np.random.default_rng(0)
    scores_NC = random.integers(0, 4, (50, 7)).astype(np.float32)  # with ties
    target_N = random.integers(0, 7, 50)
    order_NC = np.argsort(-scores_NC, axis=1, kind="stable")
    assert np.array_equal(_ranks(scores_NC, target_N), np.argwhere(order_NC == target_N[:, None])[:, 1])
    scores_NC[3, 2] = np.nan
    assert _ranks(scores_NC, target_N)[3] == 7


def test_top5_of_more_classes(folder: Path, tmp_path: Path) -> None:
    from tiny_models import PREPROCESSING, Builder

    names = ["cat", "dog", "émeu", *(f"other {index}" for index in range(9))]
    b = Builder(9)
    metadata = {"nasb.class_names": json.dumps(names), "nasb.preprocessing": json.dumps(PREPROCESSING)}
    data = b.model(b.head(b.conv("images", 3, 4), 4, 12), classes=12, metadata=metadata).SerializeToString()
    session = nasb_engine.Session(data)
    result = evaluate(session, folder)
    paths = sorted(folder.rglob("*.png"))
    assert session.preprocessing is not None
    scores_NC = session.run(session.preprocessing.batch(Image.open(path) for path in paths))
    best_N5 = np.argsort(-scores_NC, axis=1)[:, :5]
    targets = np.array([names.index(path.relative_to(folder).parts[0]) for path in paths])
    assert result.top5 == pytest.approx(100 * (best_N5 == targets[:, None]).any(1).mean())
    assert result.top1 == pytest.approx(100 * (best_N5[:, 0] == targets).mean())


def test_info(engine: Engine, model_file: ModelFile) -> None:
    machine = json.loads(engine("info", "--json").stdout)
    assert {kernel["name"] for kernel in machine["kernels"]} >= {"reference", "portable", "avx2", "neon"}
    assert machine["usable_cpus"] >= 1
    found = json.loads(engine("info", model_file("classifier"), "--json").stdout)["model"]
    assert found["file_bytes"] == model_file("classifier").stat().st_size
    assert found["input_shape"] == [3, 8, 8]
    assert found["classes"] == list(CLASSES)
    assert found["binary_macs"] == 8 * 8 * 8 * 8 * 9
    assert found["ops"] == found["real_macs"] + found["binary_macs"] / 64
    assert found["metadata"]["nasb.layout_version"] == "1"
    text = engine("info", model_file("classifier")).stdout
    assert "reference           compiled, supported by this CPU, equal to the reference" in text
    assert "4 classes: cat, dog, horse, émeu" in text


def test_help_tells_defaults(engine: Engine) -> None:
    for command in ("predict", "evaluate", "info", "bench"):
        done = engine(command, "--help")
        assert done.returncode == 0
        assert "(default: " in done.stdout
    assert engine("--version").stdout == f"nasb-engine {nasb_engine.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "COMMAND"),
        (("prophesy",), "prophesy"),
        (("predict",), "MODEL"),
        (("predict", "nothing.onnx", "0.png"), "nothing.onnx: No such file or directory"),
        (("predict", ".", "0.png"), "Is a directory"),
        (("predict", "0.png", "0.png"), "0.png: "),
        (("predict", "classifier.onnx", "0.png", "--top", "0"), "--top is 0"),
        (("predict", "classifier.onnx", "0.png", "--threads", "-2"), "threads is -2"),
        (("predict", "classifier.onnx", "0.png", "--threads", "two"), "'two'"),
        (("predict", "classifier.onnx", "0.png", "--kernel", "sse9"), "sse9"),
        (("predict", "linear.onnx", "0.png"), "nasb.preprocessing"),
        (("evaluate", "classifier.onnx", "nowhere"), '"nowhere" does not exist'),
        (("evaluate", "classifier.onnx", "0.png"), '"0.png" is not a folder'),
        (("evaluate", "classifier.onnx", "empty"), "no class folders"),
        (("evaluate", "classifier.onnx", "cows"), '"cow", which is none of the model\'s classes'),
        (("evaluate", "classifier.onnx", "bare"), "hold no images"),
        (("evaluate", "classifier.onnx", "broken"), "none of its 1 images can be read"),
        (("evaluate", "classifier.onnx", "photos", "--batch", "0"), "batch is 0"),
        (("info", "nothing.onnx"), "nothing.onnx"),
        (("bench", "classifier.onnx", "--against", "tensorflow"), 'unknown peer "tensorflow"'),
        (("bench", "classifier.onnx", "--against", "onnxruntime-int8"), "--real-model"),
        (("bench", "classifier.onnx", "--real-model", "classifier.onnx"), "give --against onnxruntime or"),
        (("bench", "classifier.onnx", "--rounds", "0"), "rounds is 0"),
        (("bench", "classifier.onnx", "--threads", "0"), "threads is 0"),
    ],
)
def test_wrong_inputs_are_one_line(
    engine: Engine,
    model_file: ModelFile,
    pictures: list[Path],
    folder: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    for name in ("classifier", "linear"):
        model_file(name)
    for name in ("empty", "cows/cow", "bare/cat", "broken/cat"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "broken/cat/1.png").write_bytes(b"")
    done = engine(*arguments)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("nasb-engine: ")
    assert says in done.stderr
