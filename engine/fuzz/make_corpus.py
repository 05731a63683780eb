"""Write the seeds of the fuzzing corpus: tiny models, cut ones, and ones with a byte or a field changed.

    python engine/fuzz/make_corpus.py engine/fuzz/corpus

Deterministic; what libFuzzer adds later keeps the names that it gives (hashes).
"""

import sys
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from tiny_models import MODELS, linear


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
    for name, model in variants().items():
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
