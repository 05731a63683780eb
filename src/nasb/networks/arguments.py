"""What a forward takes besides images: arguments with defaults, which a traced network keeps at these."""

import inspect
from typing import Any

import torch.fx
from torch import nn

_CONSTANTS = (type(None), bool, int, float, str)


def trace_images(tracer: torch.fx.Tracer, network: nn.Module) -> torch.fx.Graph:
    """Trace a network as it is called with images alone: ``if targets is not None`` is then no branch any more.

    torch.fx would take every argument for a value that is there.
    """
    parameters = list(inspect.signature(network.forward).parameters.values())[1:]
    defaults: dict[str, Any] = {p.name: p.default for p in parameters if isinstance(p.default, _CONSTANTS)}
    graph = tracer.trace(network, defaults or None)
    named = {f"{name}_{number}" for number, name in enumerate(defaults, 1)}  # as torch.fx calls them
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.target in named:
            _erase(graph, node)
    return graph


def _erase(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """Take out a value with what reads it: assertions that it has the default."""
    for user in list(node.users):
        _erase(graph, user)
    graph.erase_node(node)
