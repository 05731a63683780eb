"""Session: what it takes without copying, what it refuses, threads, inner tensors, profile."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, helper

import nasb_engine
from tiny_models import CLASSES, MODELS, Builder, binary_zoo, classifier, linear


def session_of(model: ModelProto, **options: object) -> nasb_engine.Session:
    return nasb_engine.Session(model.SerializeToString(), **options)


@pytest.fixture(scope="module")
def session() -> nasb_engine.Session:
    return session_of(classifier(), threads=2)


@pytest.fixture(scope="module")
def x_NCHW() -> np.ndarray:  # noqa: N802
    return np.random.default_rng(1).standard_normal((5, 3, 8, 8), np.float32)


def wide(size: int = 64, channels: int = 64) -> ModelProto:
    """A model whose run takes long enough to be watched."""
    b = Builder(4)
    x = b.conv("images", 3, channels)
    for _ in range(3):
        x = b.conv(x, channels, channels)
    return b.model(b.head(x, channels), (3, size, size), metadata={})


def test_properties(session: nasb_engine.Session) -> None:
    assert session.input_shape == (3, 8, 8)
    assert session.output_shape == (4,)
    assert session.class_names == CLASSES
    assert session.threads == 2
    assert session.metadata["nasb.layout_version"] == "1"
    assert session.preprocessing == nasb_engine.Preprocessing(3, 8, 10, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    assert session.workspace_bytes > 0
    assert "input_shape=(3, 8, 8)" in repr(session)


def test_a_file_without_metadata(model_file: object) -> None:
    session = nasb_engine.Session(model_file("linear"))  # type: ignore[operator]
    assert session.class_names == ()
    assert session.preprocessing is None


def test_path_text_and_bytes_give_the_same(tmp_path: Path, x_NCHW: np.ndarray) -> None:  # noqa: N803
    data = classifier().SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    results = [nasb_engine.Session(model).run(x_NCHW) for model in (path, str(path), data, memoryview(data))]
    for result in results[1:]:
        assert np.array_equal(result, results[0])


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        nasb_engine.Session(tmp_path / "nothing.onnx")
    with pytest.raises(IsADirectoryError):
        nasb_engine.Session(tmp_path)


def test_batches_equal_single_images(session: nasb_engine.Session, x_NCHW: np.ndarray) -> None:  # noqa: N803
    whole = session.run(x_NCHW)
    assert whole.shape == (5, 4)
    assert whole.dtype == np.float32
    for index in range(5):
        assert np.array_equal(session.run(x_NCHW[index : index + 1])[0], whole[index])
    assert session.run(x_NCHW[:0]).shape == (0, 4)


def test_contiguous_arrays_and_tensors_are_not_copied(session: nasb_engine.Session, x_NCHW: np.ndarray) -> None:  # noqa: N803
    assert np.shares_memory(session._images(x_NCHW), x_NCHW)
    assert np.shares_memory(session._images(memoryview(x_NCHW)), x_NCHW)
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(x_NCHW.copy())
    assert session._images(tensor).ctypes.data == tensor.data_ptr()
    assert np.array_equal(session.run(tensor), session.run(x_NCHW))
    read_only = x_NCHW.copy()
    read_only.flags.writeable = False
    assert np.array_equal(session.run(read_only), session.run(x_NCHW))


def test_other_numpy_arrays_are_converted(session: nasb_engine.Session, x_NCHW: np.ndarray) -> None:  # noqa: N803
    expected = session.run(x_NCHW)
    channels_last = np.ascontiguousarray(x_NCHW.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not channels_last.flags.c_contiguous
    assert np.array_equal(session.run(channels_last), expected)
    assert np.array_equal(session.run(x_NCHW.astype(np.float64)), expected)
    assert np.array_equal(session.run(x_NCHW.astype(">f4")), expected)
    raw = np.zeros(x_NCHW.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(x_NCHW.shape)
    unaligned[:] = x_NCHW
    assert np.array_equal(session.run(unaligned), expected)


@pytest.mark.parametrize(
    ("images", "error", "says"),
    [
        (np.zeros((1, 3, 8, 8), np.uint8), TypeError, "uint8"),
        (np.zeros((1, 3, 8, 8), np.complex64), TypeError, "complex64"),
        ([[1.0]], TypeError, "images is list"),
        (None, TypeError, "NoneType"),
        ("cat.jpg", TypeError, "images is str"),
        (np.zeros((3, 8, 8), np.float32), ValueError, r"\[3, 8, 8\]; this network takes \[N, 3, 8, 8\]; add the batch"),
        (np.zeros((1, 8, 8, 3), np.float32), ValueError, r"\[1, 8, 8, 3\]"),
        (np.zeros((1, 3, 8, 9), np.float32), ValueError, r"\[1, 3, 8, 9\]"),
        (np.float32(1), ValueError, r"shape \[\]"),
        (memoryview(np.zeros((1, 3, 8, 8))), TypeError, "float64; give float32"),
    ],
)
def test_other_images_are_refused(session: nasb_engine.Session, images: object, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        session.run(images)


def test_tensors_that_would_need_a_copy_are_refused(session: nasb_engine.Session) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"torch.Tensor\) is of float64; give float32"):
        session.run(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"not contiguous .*\.contiguous\(\)"):
        session.run(torch.zeros(2, 3, 8, 8).to(memory_format=torch.channels_last))
    with pytest.raises(TypeError, match="detached"):
        session.run(torch.zeros(1, 3, 8, 8, requires_grad=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threads": -1}, "threads is -1"),
        ({"threads": 1.5}, "threads is 1.5"),
        ({"threads": True}, "threads is True"),
        ({"threads": "two"}, "threads is 'two'"),
        ({"threads": 257}, r"threads is 257; give an integer from 0 \(all that there are\) to 256"),
        ({"threads": 10**12}, "threads is 1000000000000"),
        ({"kernel": 3}, "kernel is 3"),
        ({"kernel": "sse9"}, "sse9"),
    ],
)
def test_options_are_checked(options: dict[str, object], says: str) -> None:
    with pytest.raises(nasb_engine.EngineError, match=says):
        session_of(linear(), **options)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("nasb.class_names", "[1, 2, 3, 4]", "not a list of texts"),
        ("nasb.class_names", '["cat"]', r"1 names, but the network's output is \[4\]"),
        ("nasb.class_names", "{", "not a list"),
        ("nasb.class_names", '["cat", "dog", "cat", "cow"]', "names 'cat' twice"),
        ("nasb.preprocessing", "[]", "a table of channels"),
        ("nasb.preprocessing", "{", "not valid JSON"),
        ("nasb.preprocessing", '{"channels": 3}', 'lacks the key "size"'),
        (
            "nasb.preprocessing",
            '{"channels": 3, "size": 9, "resize": 9, "mean": [0, 0, 0], "std": [1, 1, 1]}',
            r"makes images \[3, 9, 9\], but the network takes \[3, 8, 8\]",
        ),
        ("nasb.preprocessing", '{"channels": 3, "size": 8, "resize": 8, "mean": [0, 0, 0], "std": [1, 0, 1]}', "std"),
    ],
)
def test_damaged_metadata_are_refused(key: str, value: str, says: str) -> None:
    model = classifier()
    helper.set_model_props(model, {entry.key: entry.value for entry in model.metadata_props} | {key: value})
    session = session_of(model)
    with pytest.raises(nasb_engine.EngineError, match=says):
        getattr(session, key.removeprefix("nasb."))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_kernel_and_thread_count_gives_the_same(name: str) -> None:
    data = MODELS[name]().SerializeToString()
    usable = [kernel.name for kernel in nasb_engine.kernels() if kernel.verified]
    assert "reference" in usable
    images = np.random.default_rng(2).standard_normal((7, *nasb_engine.Session(data).input_shape), np.float32)
    expected = nasb_engine.Session(data, threads=1, kernel="reference").run(images)
    for kernel in usable:
        for threads in (1, 2, 3):
            found = nasb_engine.Session(data, threads=threads, kernel=kernel).run(images)
            assert np.array_equal(found, expected), f"{kernel}, {threads} threads"


def test_inner_tensors(session: nasb_engine.Session, x_NCHW: np.ndarray) -> None:  # noqa: N803
    logits = session.run(x_NCHW)
    names = session.tensor_names
    found = session.run(x_NCHW, outputs=names)
    assert set(found) == set(names)
    last = [name for name in names if found[name].shape == logits.shape]
    assert any(np.array_equal(found[name], logits) for name in last)
    with pytest.raises(nasb_engine.EngineError, match="outputs holds 1; give names"):
        session.run(x_NCHW, outputs=[1])  # type: ignore[list-item]
    with pytest.raises(nasb_engine.EngineError, match="nowhere"):
        session.run(x_NCHW, outputs=["nowhere"])
    with pytest.raises(TypeError, match="list of names"):
        session.run(x_NCHW, outputs="layer1")


def test_accumulators_are_whole_numbers(session: nasb_engine.Session, x_NCHW: np.ndarray) -> None:  # noqa: N803
    names = [name for name in session.tensor_names if name.endswith(":accumulators")]
    assert names
    for values in session.run(x_NCHW, outputs=names).values():
        assert np.array_equal(values, np.round(values))
        assert np.abs(values).max() <= 8 * 9


@pytest.mark.parametrize("behind", ["PRelu", "Relu", ""])
@pytest.mark.parametrize("kind", ["grouped", "shortcut first", "shortcut second", "real"])
def test_joined_parts_equal_those_computed_one_by_one(kind: str, behind: str) -> None:
    """Parts of a concatenation may be written in place: all of them or none, whatever is fused into their steps."""
    b = Builder(1)
    x = b.conv("images", 3, 12)
    signs = b.binarize(x, 12)
    part = b.conv(x, 12, 12, group=4) if kind == "real" else b.binary_conv(signs, 12, 12, group=4)
    if kind != "grouped":
        part = b.node("Add", *((part, x) if kind == "shortcut second" else (x, part)))
    y = b.node("Concat", part, b.binary_conv(signs, 12, 8), axis=1)
    if behind:
        y = b.node(behind, y, *([b.reals(20, 1, 1)] if behind == "PRelu" else []))
    session = session_of(b.model(b.head(y, 20)), threads=1)
    images = np.random.default_rng(5).standard_normal((2, 3, 8, 8), np.float32)
    names = [name for name in session.tensor_names if not name.endswith(":accumulators")]
    apart = session.run(images, outputs=names)  # every tensor is kept, so nothing is fused
    np.testing.assert_allclose(session.run(images), apart[names[-1]], rtol=1e-5, atol=1e-5)


def test_accumulators_of_two_convolutions_with_one_name_are_not_offered(x_NCHW: np.ndarray) -> None:  # noqa: N803
    model = binary_zoo()
    first, second, *others = [node for node in model.graph.node if node.op_type == "BinaryConv2d"]
    second.name = first.name
    session = session_of(model)
    assert [name for name in session.tensor_names if name.endswith(":accumulators")] == [
        f"{node.name}:accumulators" for node in others
    ]
    name = f"{others[0].name}:accumulators"
    found = session.run(x_NCHW, outputs=[name])[name]
    assert np.array_equal(found, session_of(binary_zoo()).run(x_NCHW, outputs=[name])[name])


def test_many_threads_give_the_same_results() -> None:
    session = session_of(binary_zoo(), threads=2)
    random = np.random.default_rng(3)
    batches = [random.standard_normal((1 + index % 4, 3, 8, 8), np.float32) for index in range(40)]
    expected = [session.run(batch) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            for result, right in zip(pool.map(session.run, batches), expected, strict=True):
                assert np.array_equal(result, right)


def test_running_releases_the_gil() -> None:
    """While a thread is in the engine, this one goes on: a held GIL would let it run once before and once after."""
    session = session_of(wide(), threads=1)
    images = np.zeros((1, 3, 64, 64), np.float32)
    start = time.perf_counter()
    session.run(images)
    count = max(4, round(0.5 / (time.perf_counter() - start)))
    images = np.zeros((count, 3, 64, 64), np.float32)
    started, done = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        session.run(images)
        done.set()

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    turns = 0
    while not done.is_set():
        turns += 1
        time.sleep(0.005)
    thread.join()
    assert sys.getswitchinterval() == interval
    assert turns > 10


def test_profile_names_what_ran() -> None:
    session = session_of(classifier(), threads=1)
    layers = session.profile(repeats=3)
    assert sum(layer.share for layer in layers) == pytest.approx(1)
    binary = [layer for layer in layers if layer.binary]
    assert [layer.macs for layer in binary] == [8 * 8 * 8 * 8 * 9]
    assert "BinaryConv2d" in binary[0].operation
    assert binary[0].kernel
    assert sum(layer.macs for layer in layers if not layer.binary) == 8 * 8 * 8 * 3 * 9 + 8 * 4
    assert all(layer.milliseconds >= 0 and layer.threads >= 1 for layer in layers)
    for repeats in (0, 1.5, 10**12, "a", None):
        with pytest.raises(nasb_engine.EngineError, match=f"repeats is {repeats!r}; give an integer from 1 to 1000000"):
            session.profile(repeats)  # type: ignore[arg-type]
    assert len(session.profile(np.int32(1))) == len(layers)


def test_threads_of_a_profile_are_its_own() -> None:
    """The first step has one item of work, so one thread, however many other calls have had in the pool."""
    b = Builder(8)
    x = b.node("GlobalAveragePool", "images")
    x = b.node("Pad", x, b.integers(0, 0, 20, 20, 0, 0, 20, 20))
    session = session_of(b.model(b.head(b.conv(b.conv(x, 3, 64), 64, 64), 64), metadata={}), threads=2)
    images = np.zeros((1, 3, 8, 8), np.float32)
    most = 1
    for _ in range(50):
        with ThreadPoolExecutor(1) as other:
            other.submit(session.run, images).result()
        session.run(images)
        first, *rest = session.profile(1)
        assert first.threads == 1
        most = max(most, *(step.threads for step in rest))
    assert most == 2


def test_integers_of_numpy_are_integers() -> None:
    assert session_of(linear(), threads=np.int64(2)).threads == 2


def test_kernels_and_cpu() -> None:
    kernels = {kernel.name: kernel for kernel in nasb_engine.kernels()}
    assert kernels["reference"].verified
    assert kernels["portable"].verified
    for kernel in kernels.values():
        assert kernel.verified <= (kernel.compiled and kernel.supported)
        assert kernel.verified or kernel.note
    assert nasb_engine.cpu_name()
