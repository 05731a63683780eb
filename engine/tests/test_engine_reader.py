"""The loader: every form of a sound file gives the same network; damage is refused with what and where."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import nasb_engine
from tiny_models import MODELS, classifier, linear, operators

ENGINE = Path(__file__).resolve().parents[1]


def load(model: ModelProto | bytes) -> "nasb_engine.Session":
    data = model if isinstance(model, bytes) else model.SerializeToString(deterministic=True)
    return nasb_engine.Session(data, threads=1)


def images(session: "nasb_engine.Session", count: int = 2) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((count, *session.input_shape), np.float32)


def logits(model: ModelProto | bytes) -> np.ndarray:
    session = load(model)
    return session.run(images(session))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_engine_equals_the_onnx_reference(name: str) -> None:
    functions = pytest.importorskip("nasb.deploy.functions", reason="nasb defines the operators for other runtimes")
    from onnx.reference import ReferenceEvaluator

    model = MODELS[name]()
    model.functions.extend(functions.functions())
    if not any(opset.domain == "nasb" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("nasb", 1))
    session = load(model)
    x = images(session, 3)
    (expected,) = ReferenceEvaluator(model).run(None, {"images": x})
    np.testing.assert_allclose(session.run(x), expected, rtol=1e-4, atol=1e-4)


def test_data_fields_equal_raw_data() -> None:
    model = operators()
    expected = logits(model)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).ravel().tolist()
        tensor.ClearField("raw_data")
        (tensor.float_data if tensor.data_type == TensorProto.FLOAT else tensor.int64_data).extend(values)
    assert np.array_equal(logits(model), expected)


def test_int32_data_holds_uint8() -> None:
    model = classifier()
    expected = logits(model)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.UINT8:
            values = list(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.int32_data.extend(values)
    assert np.array_equal(logits(model), expected)
    next(tensor for tensor in model.graph.initializer if tensor.int32_data).int32_data[0] = 300
    with pytest.raises(nasb_engine.EngineError, match="300 is not a uint8"):
        load(model)


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def number_field(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value & (2**64 - 1))


def split(data: bytes) -> list[tuple[int, bytes]]:
    """Return a message's top-level length-delimited and varint fields: number and the whole field."""
    parts, at = [], 0

    def read() -> int:
        nonlocal at
        shift = value = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        start = at
        tag = read()
        size = read()
        if tag & 7 == 2:
            at += size
        parts.append((tag >> 3, data[start:at]))
    return parts


def test_packed_dims_and_unknown_fields_are_read() -> None:
    """protobuf lets a writer pack repeated numbers, and lets fields come that a reader does not know."""
    model = linear()
    expected = logits(model)
    packed = []
    for tensor in model.graph.initializer:
        dims = list(tensor.dims)
        tensor.ClearField("dims")
        packed.append(tensor.SerializeToString() + field(1, b"".join(map(varint, dims))) + number_field(99, 7))
    del model.graph.initializer[:]
    graph = model.graph.SerializeToString() + b"".join(field(5, tensor) for tensor in packed) + field(77, b"later")
    model.ClearField("graph")
    data = (
        model.SerializeToString() + field(7, graph) + varint(88 << 3 | 5) + b"abcd" + varint(89 << 3 | 1) + b"abcdefgh"
    )
    assert np.array_equal(logits(data), expected)


def test_initializers_among_the_inputs_as_in_old_files() -> None:
    model = linear()
    expected = logits(model)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    assert np.array_equal(logits(model), expected)


def test_ai_onnx_is_the_standard_domain() -> None:
    model = linear()
    expected = logits(model)
    for node in model.graph.node:
        node.domain = "ai.onnx"
    model.opset_import[0].domain = "ai.onnx"
    assert np.array_equal(logits(model), expected)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "not an ONNX file"),
        (b"hello, world, this is no model", "not an ONNX file"),
        (bytes(100), "field number 0"),
        (b"\x08" + b"\xff" * 11, "more than"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "more than 64 bits"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "18446744073709551615 bytes, but only 0 are left"),
        (b"\x3a\x05\x0a", "5 bytes, but only 1 are left"),
        (b"\x08\x09\x3b\x3c", "wire type 3"),
        (b"\x08\x09\x38\x01", "is a varint, not a length and bytes"),
        (field(7, b"") * 2, "two graphs"),
        (field(7, field(1, field(4, b"\xc3("))), "not text in UTF-8"),
    ],
)
def test_what_is_not_protobuf_or_not_onnx_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(nasb_engine.EngineError, match=re.escape(says)):
        load(data)


def test_many_nested_graphs_are_refused_without_recursion() -> None:
    inner = b""
    for _ in range(20000):
        inner = field(1, field(4, b"If") + field(2, b"y") + field(5, field(1, b"b") + field(6, inner)))
        if len(inner) > 1 << 22:
            break
    with pytest.raises(nasb_engine.EngineError, match="sub-graph"):
        load(number_field(1, 9) + field(7, inner))


@pytest.mark.parametrize("name", ["linear", "classifier"])
def test_a_file_cut_at_any_byte_is_refused(name: str) -> None:
    model = MODELS[name]()
    del model.metadata_props[:]  # the last fields: without some of them the file is sound
    data = model.SerializeToString(deterministic=True)
    load(data)
    for size in range(len(data)):
        with pytest.raises(nasb_engine.EngineError):
            load(data[:size])


def test_any_changed_byte_is_refused_or_harmless() -> None:
    data = linear().SerializeToString(deterministic=True)
    refused = 0
    for at in range(len(data)):
        for value in (0, 0x7F, 0xFF, data[at] ^ 1):
            try:
                session = load(data[:at] + bytes([value]) + data[at + 1 :])
            except nasb_engine.EngineError:
                refused += 1
            else:
                if np.prod(session.input_shape) < 1 << 20:
                    session.run(images(session, 1))
    assert refused > len(data)


def test_memory_follows_the_size_of_the_file() -> None:
    """A file of many empty things must not become one of gigabytes: measured in a process of its own."""
    code = """
import resource, sys, nasb_engine
def field(number, payload):
    size, out = len(payload), bytearray([number << 3 | 2])
    while size >= 128:
        out.append(size & 127 | 128); size >>= 7
    return bytes(out) + bytes([size]) + payload
kinds = {
    "node": field(1, b""),
    "input": field(1, field(4, b"A") + field(1, b"") * 50000),
    "dims": field(5, b"\\x08\\x01" * 50000),
}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for graph in kinds.values():
    data = b"\\x08\\x09" + field(7, graph * (4_000_000 // len(graph)))
    try:
        nasb_engine.Session(data)
    except nasb_engine.EngineError:
        pass
    else:
        sys.exit("not refused")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300_000  # kB, for files of 4 MB


def test_corpus_holds_the_seeds(tmp_path: Path) -> None:

    subprocess.run([sys.executable, ENGINE / "fuzz/make_corpus.py", tmp_path], check=True)
    for path in tmp_path.iterdir():
        assert (ENGINE / "fuzz/corpus" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_corpus_under_address_sanitizer(sanitized: Path) -> None:
    files = sorted((ENGINE / "fuzz/corpus").iterdir())
    assert len(files) > 40
    done = subprocess.run(
        [sanitized / "nasb-fuzz-loader", *files], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count(" bytes\n") == len(files)
