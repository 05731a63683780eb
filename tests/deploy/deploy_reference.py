"""What the tests of the export share: a run by ONNX's own reference evaluator, and networks that are not trivial."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from nasb.cells.architecture import Architecture, Edge
from nasb.cells.config import CellConfig
from nasb.deploy import Export, export_onnx
from nasb.deploy._interpreter import Interpreter, Values

TOLERANCE = 1e-4
"""Of logits, and of values around a threshold, relative to the largest: what rounding explains."""

OPERATIONS = [
    ("identity", "bin_conv_1x1"),
    ("avg_pool_3x3", "bin_conv_3x3"),
    ("max_pool_3x3", "bin_conv_5x5"),
    ("avg_pool_3x3", "dil_bin_conv_3x3"),
    ("max_pool_3x3", "dil_bin_conv_5x5"),
]
CELLS = [f"layer{stage}.{block}.conv{number}" for stage in (1, 2, 3) for block in range(3) for number in (1, 2)]


def evaluate(path: Path, images: Tensor) -> Tensor:
    """The logits by the reference evaluator, which runs the functions' bodies."""
    (logits,) = ReferenceEvaluator(str(path)).run(None, {"images": images.numpy()})
    return torch.from_numpy(np.asarray(logits))


def export(network: nn.Module, path: Path, shape: tuple[int, int, int], **options: Any) -> tuple[Export, Any]:
    """Export, and check what every file has to be; return the report and the model."""
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [part.training for part in network.modules()]
    result = export_onnx(network, path, shape, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert [part.training for part in network.modules()] == modes
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [18]
    assert [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == ["batch", *shape]
    assert (graph.input[0].name, graph.output[0].name) == ("images", "logits")
    assert not {"Constant", "Identity", "Dropout", "BatchNormalization"} & {node.op_type for node in graph.node}
    read = {name for node in graph.node for name in node.input} | {"logits"}
    assert {tensor.name for tensor in graph.initializer} <= read, "a dead initializer"
    assert {name for node in graph.node for name in node.output} <= read, "a dead node"
    assert all(list(node.output) == [node.name] for node in graph.node[:-1])
    assert result.file_bytes == path.stat().st_size == sum(result.parts.values())
    return result, model


def agree(network: nn.Module, path: Path, shape: tuple[int, int, int], count: int = 3) -> None:
    """The reference evaluator and torch give the same logits, for one image and for several."""
    network.eval()
    for number in (1, count):
        images = torch.randn(number, *shape, generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            expected = network(images)
        found = evaluate(path, images)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def first_flips(interpreter: Interpreter, own: Mapping[str, np.ndarray], torchs: Values) -> np.ndarray:
    """Which images have a sign that differs from torch's; the first of each must lie within rounding of its threshold.

    One value is on each side of the threshold, so neither is further from it than from the other.

    Args:
        interpreter: of the file.
        own: the tensors that another runtime has computed; at least those that the Binarize nodes read and write.
        torchs: the interpreter's own.
    """
    count = len(torchs.tensors["images"])
    flipped = np.zeros(count, bool)
    for node in interpreter.graph.node:
        if node.op_type != "Binarize":
            continue
        x, own_x = torchs.tensors[node.input[0]].numpy(), own[node.input[0]]
        differs = (torchs.tensors[node.output[0]].numpy() != own[node.output[0]]).reshape(count, -1)
        gaps = np.abs(x - own_x).reshape(count, -1)
        for image in np.flatnonzero(differs.any(1) & ~flipped):
            assert gaps[image][differs[image]].max() <= TOLERANCE * np.abs(x[image]).max(), f"{node.name}: no rounding"
        flipped |= differs.any(1)
    return flipped


def zoo(*, nodes: int = 1, width: int = 4, size: int = 16, **cell: Any) -> Architecture:
    """A ResNet-20 with a free and a paid operation on every edge, all operations in turn."""
    cells, number = {}, 0
    for name in CELLS:
        edges = []
        for target in range(1, nodes + 2):
            for source in range(target):
                free, paid = OPERATIONS[number % len(OPERATIONS)]
                number += 1
                if free == "identity" and (source, target) == (0, nodes + 1):
                    free = "avg_pool_3x3"
                edges += [Edge(source, target, free), Edge(source, target, paid)]
        cells[name] = tuple(sorted(edges))
    return Architecture(
        host="resnet20",
        options={"width": width, "stem_stride": 2},
        num_classes=10,
        input_shape=(3, size, size),
        cell=CellConfig(nodes=nodes, **cell),
        cells=cells,
    )


def steady(network: nn.Module, shape: tuple[int, int, int], seed: int = 0) -> nn.Module:
    """Give a network batch norms and thresholds that are not trivial, and values that stay near 1 through its depth."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d)]
        for norm in norms:
            norm.momentum = None
            norm.reset_running_stats()
        network.train()(torch.randn(8, *shape, generator=generator))
    return network.eval()
