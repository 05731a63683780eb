"""Models that are damaged in one place: each is refused with what is wrong, and where."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper

import nasb_engine
from tiny_models import Builder, linear


def load(model: ModelProto | bytes) -> "nasb_engine.Session":
    data = model if isinstance(model, bytes) else model.SerializeToString(deterministic=True)
    return nasb_engine.Session(data, threads=1)


def change_matrix(model: ModelProto) -> TensorProto:
    return model.graph.initializer[0]


def shorter(model: ModelProto) -> None:
    change_matrix(model).raw_data = change_matrix(model).raw_data[:-4]


def huge(model: ModelProto) -> None:
    change_matrix(model).dims[:] = [2**62, 4]


def huge_and_empty(model: ModelProto) -> None:
    change_matrix(model).dims[:] = [0, 2**62, 2**62]


def negative(model: ModelProto) -> None:
    change_matrix(model).dims[:] = [-2, -4]


def many_dims(model: ModelProto) -> None:
    change_matrix(model).dims[:] = [1] * 9


def half(model: ModelProto) -> None:
    change_matrix(model).data_type = TensorProto.FLOAT16


def untyped(model: ModelProto) -> None:
    change_matrix(model).data_type = 0


def external(model: ModelProto) -> None:
    change_matrix(model).data_location = TensorProto.EXTERNAL


def both_data(model: ModelProto) -> None:
    change_matrix(model).float_data.extend([1.0] * 8)


def wrong_data(model: ModelProto) -> None:
    change_matrix(model).ClearField("raw_data")
    change_matrix(model).int64_data.extend([1] * 8)


def twice(model: ModelProto) -> None:
    model.graph.initializer.append(change_matrix(model))


def nameless(model: ModelProto) -> None:
    change_matrix(model).name = ""


def sparse(model: ModelProto) -> None:
    model.graph.sparse_initializer.add()


def undefined_input(model: ModelProto) -> None:
    model.graph.node[1].input[0] = "nowhere"


def used_before(model: ModelProto) -> None:
    nodes = [*model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))


def defined_twice(model: ModelProto) -> None:
    model.graph.node[1].output[0] = model.graph.node[0].output[0]


def redefines_input(model: ModelProto) -> None:
    model.graph.node[0].output[0] = "images"


def no_such_output(model: ModelProto) -> None:
    model.graph.output[0].name = "scores"


def outputs_twice(model: ModelProto) -> None:
    model.graph.output.append(model.graph.output[0])


def inputs_twice(model: ModelProto) -> None:
    model.graph.input.append(model.graph.input[0])


def no_output(model: ModelProto) -> None:
    del model.graph.node[0].output[:]


def no_operator(model: ModelProto) -> None:
    model.graph.node[0].op_type = ""


def sub_graph(model: ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("body", linear().graph))


def attribute_twice(model: ModelProto) -> None:
    model.graph.node[1].attribute.append(model.graph.node[1].attribute[0])


def texts(model: ModelProto) -> None:
    model.graph.node[1].attribute.append(helper.make_attribute("words", ["a", "b"]))


def reference(model: ModelProto) -> None:
    model.graph.node[1].attribute.append(AttributeProto(name="x", type=AttributeProto.INT, ref_attr_name="y"))


def wrong_type(model: ModelProto) -> None:
    model.graph.node[1].attribute[0].type = AttributeProto.FLOAT


def wrong_attribute(model: ModelProto) -> None:
    del model.graph.node[1].attribute[:]
    model.graph.node[1].attribute.append(helper.make_attribute("transB", 1.0))


def control_character(model: ModelProto) -> None:
    model.graph.node[0].name = "line\nbreak"


def no_opset(model: ModelProto) -> None:
    del model.opset_import[:]


def foreign_opset(model: ModelProto) -> None:
    model.graph.node[0].domain = "com.example"


def opset_twice(model: ModelProto) -> None:
    model.opset_import.append(model.opset_import[0])


def no_ir_version(model: ModelProto) -> None:
    model.ClearField("ir_version")


def no_graph(model: ModelProto) -> None:
    model.ClearField("graph")


def metadata_twice(model: ModelProto) -> None:
    for value in "ab":
        model.metadata_props.add(key="nasb.version", value=value)


def sequence_input(model: ModelProto) -> None:
    model.graph.input[0].type.ClearField("tensor_type")
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT


def double_input(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def unknown_operator(model: ModelProto) -> None:
    model.graph.node[0].op_type = "Einsum"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shorter, ('initializer "constant0"', "32 bytes expected, 28 found", "byte")),
        (huge, ("constant0", "too large")),
        (huge_and_empty, ("constant0", "too large")),
        (negative, ("constant0", "a dimension is -2")),
        (many_dims, ("initializer", "more than 8 dimensions")),
        (half, ("constant0", "float16", "float32, uint8 and int64")),
        (untyped, ("constant0", "no data type")),
        (external, ("constant0", "in another file")),
        (both_data, ("constant0", "data twice")),
        (wrong_data, ("constant0", "is float32, but has int64_data")),
        (twice, ("constant0", "is there twice")),
        (nameless, ("initializer", "no name")),
        (sparse, ("sparse",)),
        (undefined_input, ('node "layer1" (Gemm)', '"nowhere" is not defined before it')),
        (used_before, ("layer1", '"layer0" is not defined before it')),
        (defined_twice, ("layer1", '"layer0" is defined before')),
        (redefines_input, ("layer0", '"images" is defined before')),
        (no_such_output, ('output "scores"', "no node computes it")),
        (outputs_twice, ('output "layer1"', "twice")),
        (inputs_twice, ('input "images"', "twice")),
        (no_output, ("layer0", "no output")),
        (no_operator, ("layer0", "no operator")),
        (sub_graph, ("layer0", '"body"', "sub-graph")),
        (attribute_twice, ("layer1", '"transB" twice')),
        (texts, ("layer1", '"words"', "type 8 is not supported")),
        (reference, ("layer1", "refers to an attribute of a function")),
        (wrong_type, ("layer1", '"transB"', "its value is of another")),
        (wrong_attribute, ("layer1", '"transB" is not an integer')),
        (control_character, ("control character",)),
        (no_opset, ("no opset",)),
        (foreign_opset, ("layer0", 'no opset of the domain "com.example"')),
        (opset_twice, ("opset", "twice")),
        (no_ir_version, ("ir_version",)),
        (no_graph, ("no graph",)),
        (metadata_twice, ('metadata "nasb.version"', "twice")),
        (sequence_input, ('input "images"', "not a tensor")),
        (double_input, ('input "images"', "float64")),
        (unknown_operator, ("layer0", "Einsum")),
    ],
)
def test_damage_is_refused_with_what_and_where(
    damage: Callable[[ModelProto], None], says: tuple[str, ...], tmp_path: Path
) -> None:
    model = linear()
    damage(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    with pytest.raises(nasb_engine.EngineError) as refusal:
        nasb_engine.Session(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for part in says:
        assert part in message


def other_kernel(b: Builder) -> str:
    weights = b.reals(4, 3, 3, 3)
    return b.node("Conv", "images", weights, pads=[1] * 4, kernel_shape=[5, 5])


def many_outputs(b: Builder) -> str:
    return b.node("Conv", "images", b.reals(70_000, 3, 1, 1))


def uneven_groups(b: Builder) -> str:
    return b.node("Conv", "images", b.reals(4, 2, 1, 1), group=2)


def constant_of_more_axes(b: Builder) -> str:
    pooled = b.node("Flatten", b.node("GlobalAveragePool", "images"))
    return b.node("Add", pooled, b.reals(1, 1, 1))


def sliced_twice(b: Builder) -> str:
    whole, part = (0, 0), (8, 4)
    return b.node("Slice", "images", b.integers(*whole), b.integers(*part), b.integers(2, 2))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (other_kernel, 'layer0" (Conv): attribute kernel_shape is not that of its weight, 3 x 3'),
        (many_outputs, 'layer0" (Conv): has 70000 output channels; the engine computes 1 to 65536'),
        (uneven_groups, "group 2 does not divide 3 input and 4 output channels"),
        (constant_of_more_axes, 'layer2" (Add): input 1 has 3 axes, its other one has 2'),
        (sliced_twice, "an axis is named twice"),
    ],
)
def test_what_contradicts_itself_is_refused(build: Callable[[Builder], str], says: str) -> None:
    b = Builder()
    with pytest.raises(nasb_engine.EngineError, match=re.escape(says)):
        load(b.model(build(b), metadata={}))


def test_the_byte_in_a_message_is_where_the_fault_is() -> None:
    model = linear()
    shorter(model)
    data = model.SerializeToString(deterministic=True)
    with pytest.raises(nasb_engine.EngineError) as refusal:
        load(data)
    at = int(re.search(r"\(byte (\d+)\)", str(refusal.value))[1])
    assert data[at] == 9 << 3 | 2  # the tag of raw_data
    assert data[at + 1] == 28
