"""The plan of a conversion: what became of every convolution of the host, and why."""

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import GraphModule


@dataclass(frozen=True)
class PlanRow:
    """One layer of the host: its qualified name, what it is, what it becomes, and the reason."""

    layer: str
    kind: str
    becomes: str
    reason: str


@dataclass
class Plan:
    """All rows, in the order of execution, and the number of the network's outputs."""

    outputs: int
    rows: list[PlanRow] = field(default_factory=list)

    def add(self, layer: str, kind: str, becomes: str, reason: str) -> None:
        """Append a row."""
        self.rows.append(PlanRow(layer, kind, becomes, reason))

    def becoming(self, becomes: str) -> list[str]:
        """Return the layers that become that."""
        return [row.layer for row in self.rows if row.becomes == becomes]

    def __str__(self) -> str:
        table = [("layer", "is", "becomes", "because"), *((r.layer, r.kind, r.becomes, r.reason) for r in self.rows)]
        widths = [max(len(row[column]) for row in table) for column in range(4)]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in table
        )


def fingerprint(traced: "GraphModule") -> str:
    """Return a short text that tells what a traced host computes from what another one does, weights apart."""
    from torch.fx.node import map_arg

    numbers = {node: number for number, node in enumerate(traced.graph.nodes)}
    lines = []
    for node in traced.graph.nodes:
        what = str(getattr(node.target, "__name__", node.target))
        if node.op == "call_module":
            layer = traced.get_submodule(node.target)
            what = f"{type(layer).__name__}({layer.extra_repr()})"
        lines.append(f"{node.op} {what} {map_arg((node.args, node.kwargs), lambda n: f'%{numbers[n]}')}")
    text = re.sub(r" at 0x[0-9a-f]+", "", "\n".join(lines))  # where a function lies differs from process to process
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def host_of_network(network: "nn.Module") -> str | None:
    """Return the fingerprint of the host of a converted network; None of a network that was not converted."""
    found: str | None = getattr(network, "meta", {}).get("host")
    return found


def plan_of(network: "nn.Module") -> Plan:
    """Return the plan of a network that convert() has made."""
    return cast(Plan, cast("GraphModule", network).meta["plan"])
