"""What a network computes, as a torch.fx graph: layers as leaves, cells traced through, a shape and a name per value.

A layer's value is called after the layer. Any other value (an addition, a concatenation) is called after the module
whose result it is, else after the module in which it is computed and the operation, e.g. ``layer1.0.conv1.add``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from nasb.errors import UserError
from nasb.networks.arguments import trace_images

BATCH = 3
"""Images in the run that measures shapes; what has another first axis has mixed the images."""


@dataclass
class Trace:
    """A traced network."""

    module: torch.fx.GraphModule
    names: dict[torch.fx.Node, str] = field(default_factory=dict)
    """What each value wants to be called."""
    shapes: dict[torch.fx.Node, tuple[int, ...]] = field(default_factory=dict)
    """Shapes [N, ...] of all values that are tensors, N = `BATCH`."""
    constants: dict[torch.fx.Node, Tensor] = field(default_factory=dict)
    """The values that do not depend on the images."""
    kinds: dict[torch.fx.Node, str] = field(default_factory=dict)
    """For the values of functions: the class of the module in which they are computed."""

    def layer(self, node: torch.fx.Node) -> nn.Module | None:
        """Return the layer that a node calls, if it calls one."""
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None


class _Tracer(torch.fx.Tracer):
    def __init__(self, is_leaf: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self._is_leaf = is_leaf
        self.results: dict[torch.fx.Node, str] = {}
        self.failed: nn.Module | None = None
        """The innermost module that could not be traced."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, nn.Identity):
            return False
        return self._is_leaf(m) or super().is_leaf_module(m, module_qualified_name)

    def to_bool(self, obj: torch.fx.Proxy) -> bool:
        # What a layer does to its gradients does not concern a network that will not be trained.
        if isinstance(obj, torch.fx.proxy.Attribute) and obj.attr == "requires_grad":
            return False
        return super().to_bool(obj)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            result = super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or m
            raise
        if isinstance(result, torch.fx.Proxy) and not isinstance(m, nn.Identity):
            self.results.setdefault(result.node, self.path_of_module(m))
        return result


class _Shapes(torch.fx.Interpreter):
    """Runs a traced network and keeps the shapes of its values."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[torch.fx.Node, tuple[int, ...]] = {}
        self.constants: dict[torch.fx.Node, Tensor] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op != "output":
            if n.op in ("placeholder", "call_module") or not self.constants.keys() >= set(n.all_input_nodes):
                self.shapes[n] = tuple(value.shape)
            else:
                self.constants[n] = value.detach()
        return value


def trace(network: nn.Module, input_shape: tuple[int, int, int], is_leaf: Callable[[nn.Module], bool]) -> Trace:
    """Trace a network in evaluation mode and run it once to learn the shapes.

    Args:
        network: as it will be used.
        input_shape: [channels, height, width] of one image.
        is_leaf: which modules besides those of torch.nn are layers.

    Raises:
        UserError: it cannot be traced, does not run on that shape, or computes across the images of a batch.
    """
    kind = type(network).__name__
    tracer = _Tracer(is_leaf)
    try:
        graph = trace_images(tracer, network)
    except UserError:
        raise
    except Exception as error:
        if tracer.failed is not None:
            kind = f"{tracer.path_of_module(tracer.failed)} (a {type(tracer.failed).__name__})"
        raise UserError(f"export: {kind} cannot be traced by torch.fx: {_first_line(error)}") from None
    found = Trace(torch.fx.GraphModule(network, graph))
    runner = _Shapes(found.module)
    try:
        with torch.no_grad():
            runner.run(torch.zeros(BATCH, *input_shape))
    except Exception as error:
        raise UserError(f"export: {kind} does not run on images of shape {input_shape}: {_first_line(error)}") from None
    found.shapes, found.constants = runner.shapes, runner.constants
    for node in graph.nodes:
        scopes = list(node.meta.get("nn_module_stack", {}).values())
        path, module_kind = scopes[-1] if scopes else ("", type(network))
        found.kinds[node] = module_kind.__name__
        operation = str(getattr(node.target, "__name__", node.target)).strip("_")
        inside = f"{path}.{operation}" if path else operation
        found.names[node] = str(node.target) if node.op == "call_module" else tracer.results.get(node, inside)
        shape = found.shapes.get(node)
        if shape is not None and (not shape or shape[0] != BATCH):
            raise UserError(f"export: {found.names[node]} computes across the images of a batch; shape {shape}")
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
