"""Building an ONNX graph: nodes and initializers with unique names, equal ones made once, dead ones left out."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from nasb.deploy.functions import DOMAIN, DOMAIN_VERSION, OPSET, functions

IR_VERSION = 9
INPUT, OUTPUT = "images", "logits"
Array = npt.NDArray[Any]


class GraphBuilder:
    """Collects the nodes of one graph with one input and one output.

    Args:
        reserved: names that are kept for the nodes that get them by `rename_last`.
    """

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self._taken = {INPUT, OUTPUT}
        self._reserved = set(reserved) - self._taken
        self._nodes: list[NodeProto] = []
        self._equal: dict[bytes, NodeProto] = {}
        self._initializers: dict[str, TensorProto] = {}
        self._contents: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def unique(self, name: str) -> str:
        """Return the name, or the name and ``#2``, ``#3``, ... where it is taken; it is taken from now on."""
        found, number = name, 1
        while found in self._taken or found in self._reserved:
            number += 1
            found = f"{name}#{number}"
        self._taken.add(found)
        return found

    def node(self, operator: str, inputs: Sequence[str], name: str, *, domain: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output, which is its own; an equal node is not made twice."""
        node = helper.make_node(operator, inputs, [], domain=domain, **attributes)
        key = node.SerializeToString(deterministic=True)
        if key not in self._equal:
            node.name = self.unique(name)
            node.output.append(node.name)
            self._nodes.append(node)
            self._equal[key] = node
        return str(self._equal[key].output[0])

    @property
    def outputs(self) -> list[str]:
        """The outputs of all nodes so far, in order."""
        return [node.output[0] for node in self._nodes]

    def rename_last(self, name: str) -> str:
        """Give the newest node, which nobody has read yet, a reserved name (numbered if it is given already)."""
        self._reserved.discard(name)
        name = self.unique(name)
        self._nodes[-1].name = self._nodes[-1].output[0] = name
        return name

    def initializer(self, values: Array, name: str) -> str:
        """Add a constant tensor and return its name; one of equal type, shape and bytes is not stored twice."""
        key = (str(values.dtype), values.shape, hashlib.sha256(values.tobytes()).digest())
        if key not in self._contents:
            self._contents[key] = self.unique(name)
            self._initializers[self._contents[key]] = numpy_helper.from_array(values, self._contents[key])
        return self._contents[key]

    def number(self, value: float, shape: tuple[int, ...] = (1,)) -> str:
        """Add a float32 constant of one element, called after its value."""
        array = np.full(shape, value, dtype=np.float32)
        return self.initializer(array, f"{'number' if shape else 'scalar'}.{float(array.item()):g}")

    def integers(self, *values: int) -> str:
        """Add a constant int64 vector, called after its values."""
        return self.initializer(np.array(values, dtype=np.int64), "ints." + "_".join(map(str, values)))

    def model(
        self, output: str, input_shape: Sequence[int], classes: int, metadata: Mapping[str, str], producer: str
    ) -> ModelProto:
        """Return the model whose output is the tensor of that name; the tensor is called "logits" from now on."""
        nodes = self._living(output)
        for node in nodes:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == output:
                        names[index] = OUTPUT
        used = {name for node in nodes for name in node.input}
        graph = helper.make_graph(
            nodes,
            "network",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", *input_shape])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", classes])],
            [tensor for name, tensor in self._initializers.items() if name in used],
        )
        called = {node.op_type for node in nodes if node.domain == DOMAIN}
        opsets = [helper.make_opsetid("", OPSET)]
        if called:
            opsets.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            functions=[function for function in functions() if function.name in called],
            ir_version=IR_VERSION,
            producer_name="nasb",
            producer_version=producer,
        )
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model)
        return model

    def _living(self, output: str) -> list[NodeProto]:
        """Return the nodes that the output depends on, in order."""
        wanted = {output}
        for node in reversed(self._nodes):
            if node.output[0] in wanted:
                wanted.update(node.input)
        return [node for node in self._nodes if node.output[0] in wanted]
