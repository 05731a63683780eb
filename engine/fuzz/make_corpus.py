"""Write the seeds of the fuzzing corpus: tiny models, cut ones, ones with a byte or a field changed, ones that ask for
much out of little, and metadata by themselves.

    python engine/fuzz/make_corpus.py engine/fuzz/corpus

Deterministic; what libFuzzer adds later keeps the names that it gives (hashes).
"""

import json
import sys
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from large_graphs import (
    binarizations,
    convolutions,
    joined,
    joins_of_joins,
    large_map,
    large_maps,
    tall_kernel,
    wide_constants,
)
from tiny_models import CLASSES, MODELS, PREPROCESSING, Builder, linear

TEXTS = {
    "preprocessing": json.dumps(PREPROCESSING),
    "class_names": json.dumps(CLASSES),
    "escapes": r'{"a": ["\u00e9\ud83d\ude00\n", -1.5e-3, true, null, {}]}',
    "enlarged": json.dumps(PREPROCESSING | {"resize": 65536}),
    "nested": "[" * 40,
}
"""What stands in metadata."""


def variants() -> dict[str, ModelProto]:
    """Return models with another form or a fault in one place."""
    made = {}
    tensor = linear()
    matrix = tensor.graph.initializer[0]
    values = np.frombuffer(matrix.raw_data, np.float32).tolist()
    matrix.ClearField("raw_data")
    matrix.float_data.extend(values)
    made["float_data"] = tensor
    huge = linear()
    huge.graph.initializer[0].dims[:] = [2**62, 2**62]
    made["huge_dims"] = huge
    constant = linear()
    constant.graph.node.insert(
        0, helper.make_node("Constant", [], ["c"], value=helper.make_tensor("t", TensorProto.INT64, [2], [1, -1]))
    )
    made["constant"] = constant
    branch = linear()
    branch.graph.node[0].attribute.append(helper.make_attribute("body", linear().graph))
    made["sub_graph"] = branch
    shape = linear()
    shape.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2**40
    made["huge_input"] = shape
    return made


def sign_readers() -> dict[str, ModelProto]:
    """Return models whose signs reach a binary convolution, or a real one, by way of other layers."""

    def model(between: str) -> ModelProto:
        b = Builder()
        signs = b.binarize(b.conv("images", 3, 32), 32)
        if between == "joined":
            read = b.node("Concat", signs, b.binarize(b.conv("images", 3, 32), 32), axis=1)
        elif between == "pooled":
            read = b.node("MaxPool", signs, kernel_shape=[2, 2])
        elif between == "flat":
            read = b.node("Reshape", b.node("Flatten", signs), b.integers(0, 32, 8, 8))
        else:
            return b.model(b.head(signs, 32))
        channels = 64 if between == "joined" else 32
        return b.model(b.head(b.binary_conv(read, channels, 16), 16))

    return {f"signs_{between}": model(between) for between in ("joined", "pooled", "flat", "real")}


def large() -> dict[str, ModelProto]:
    """Return models that took a loader long, or much memory."""
    return {
        "joined": joined(1000, 80),
        "joined_more": joined(4000, 700),
        "joins_of_joins": joins_of_joins(40),
        "convolutions": convolutions(300),
        "binarizations": binarizations(300),
        "wide_constants": wide_constants(500),
        "large_map": large_map(16384),
        "large_maps": large_maps(20, 16384),
        "tall_kernel": tall_kernel(40),
    }


def main(folder: Path) -> None:
    """Write the files."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for name, make in MODELS.items():
        data = make().SerializeToString(deterministic=True)
        (folder / f"{name}.onnx").write_bytes(data)
        for number in range(4):
            (folder / f"{name}.cut{number}.onnx").write_bytes(data[: int(generator.integers(1, len(data)))])
            changed = bytearray(data)
            for at in generator.integers(0, len(data), 1 + number):
                changed[at] = int(generator.integers(0, 256))
            (folder / f"{name}.changed{number}.onnx").write_bytes(bytes(changed))
    for name, model in (variants() | sign_readers() | large()).items():
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))
    for name, text in TEXTS.items():
        (folder / f"{name}.json").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
