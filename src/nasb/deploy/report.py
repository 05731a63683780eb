"""What an exported file holds, in bytes: predicted and measured, bits and real numbers, what stayed real and why."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nasb.binary import Binarize, BinaryConv2d, BinaryLinear, RPReLU
from nasb.cells.adapt import ConvShortcut
from nasb.deploy.lowering import Lowering
from nasb.deploy.verify import Verification
from nasb.networks.plan import Plan

BINARY, SCALES, THRESHOLDS = "binary weights", "scales and biases", "thresholds"
REAL, NORMS, ACTIVATIONS, OTHER = "real layers", "batch norms", "activations", "graph and metadata"
REASONS = {
    BINARY: "1 bit each",
    SCALES: "one of each per binary channel; batch norm is folded into them",
    THRESHOLDS: "one per channel, if learned; 0 is stored once",
    NORMS: "no convolution in front could take them up",
    ACTIVATIONS: "slopes and shifts per channel",
    OTHER: "nodes, definitions of the two operators, metadata",
}


@dataclass(frozen=True)
class RealLayer:
    """A convolution or linear layer whose weights are not binary."""

    name: str
    kind: str
    bytes: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Export:
    """What has been written."""

    path: Path
    predicted_bytes: float
    """By `nasb.count`: the numbers that the network has to store, 1 bit or 32 bits each."""
    file_bytes: int
    parts: Mapping[str, int]
    """Bytes by kind of content; their sum is the size of the file."""
    real_layers: tuple[RealLayer, ...]
    verification: Verification

    def rows(self) -> list[tuple[str, int, str]]:
        """Return (part, bytes, reason) for every part that is there, with the real layers one by one."""
        rows = []
        for part, size in self.parts.items():
            if part == REAL:
                rows += [(f"{layer.name} (real)", layer.bytes, layer.reason) for layer in self.real_layers]
            elif size:
                rows.append((part, size, REASONS[part]))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "path": str(self.path),
            "predicted_bytes": self.predicted_bytes,
            "file_bytes": self.file_bytes,
            "parts": dict(self.parts),
            "real_layers": [asdict(layer) for layer in self.real_layers],
            "verification": asdict(self.verification),
        }


def contents(network: nn.Module, lowering: Lowering, model: ModelProto) -> tuple[dict[str, int], tuple[RealLayer, ...]]:
    """Return the bytes of each part of a file, and the layers that stayed real.

    Args:
        network: what was exported; if convert() made it, its plan says why a layer stayed real.
        lowering: how the file was made.
        model: the file.
    """
    sizes = {tensor.name: len(tensor.raw_data) for tensor in model.graph.initializer}
    constants = {node.output[0]: [name for name in node.input if name in sizes] for node in model.graph.node}
    plan = getattr(network, "meta", {}).get("plan")
    binary = any(isinstance(layer, BinaryConv2d | BinaryLinear) for layer in network.modules())
    parts = dict.fromkeys((BINARY, SCALES, THRESHOLDS, REAL, NORMS, ACTIVATIONS), 0)
    real = []
    for node, step in lowering.steps.items():
        layer = lowering.trace.layer(node)
        own = {name: sizes.pop(name) for made in step.made for name in constants.get(made, ()) if name in sizes}
        for name, size in own.items():
            part = _part(layer, name)
            if part in parts:
                parts[part] += size
        if type(layer) in (nn.Conv2d, nn.Linear) and own:
            name = str(node.target)
            reason = _reason(network, name, plan) if binary else "the network has no binary layers"
            real.append(RealLayer(name, type(layer).__name__, sum(own.values()), reason))
    parts[OTHER] = model.ByteSize() - sum(parts.values())
    return parts, tuple(real)


def _part(layer: nn.Module | None, initializer: str) -> str:
    if isinstance(layer, BinaryConv2d | BinaryLinear):
        return BINARY if initializer.endswith(".W") else SCALES
    kinds: dict[str, tuple[type[nn.Module], ...]] = {
        THRESHOLDS: (Binarize,),
        REAL: (nn.Conv2d, nn.Linear),
        NORMS: (_BatchNorm,),
        ACTIVATIONS: (nn.PReLU, RPReLU, nn.LeakyReLU),
    }
    return next((part for part, classes in kinds.items() if isinstance(layer, classes)), OTHER)


def _reason(network: nn.Module, name: str, plan: Plan | None) -> str:
    layer = network.get_submodule(name)
    row = None if plan is None else next((row for row in plan.rows if row.layer == name), None)
    if row is not None and row.becomes == "real":
        return row.reason
    if isinstance(network.get_submodule(name.rpartition(".")[0]), ConvShortcut):
        return "1x1 of a shortcut"
    if isinstance(layer, nn.Linear):
        return "classifier"
    return "real in the network as given"
