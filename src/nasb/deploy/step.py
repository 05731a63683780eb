"""The registries of layers and operations that the file can hold, and `Step`, which their lowering functions get.

A lowering function emits nodes and returns the name of its output tensor. The last node it emits is called after the
layer; nodes before it, after the layer and their operator.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.fx
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nasb.deploy.folding import Affine, affine_of_batch_norm
from nasb.deploy.graph import Array, GraphBuilder
from nasb.deploy.tracing import Trace
from nasb.errors import UserError
from nasb.registry import Registry

Lower = Callable[["Step"], str]


@dataclass(frozen=True)
class Layer:
    """A kind of layer that the file can hold."""

    kind: type[nn.Module]
    lower: Lower


LAYERS: Registry[Layer] = Registry("layer")
"""By the name of the class; exactly this class, since a subclass may compute something else."""
OPERATIONS: Registry[Lower] = Registry("operation")
"""Functions and methods on tensors, by name without underscores at its ends (``F.relu`` and ``relu_``: ``relu``)."""
TORCH = ("torch", "_operator", "builtins")


def layer(*kinds: type[nn.Module]) -> Callable[[Lower], Lower]:
    """Return a decorator that registers a lowering function for kinds of layer."""

    def enter(lower: Lower) -> Lower:
        for kind in kinds:
            LAYERS.register(kind.__name__)(Layer(kind, lower))
        return lower

    return enter


def operation(*names: str) -> Callable[[Lower], Lower]:
    """Return a decorator that registers a lowering function for functions and methods."""

    def enter(lower: Lower) -> Lower:
        for name in names:
            OPERATIONS.register(name)(lower)
        return lower

    return enter


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one of the registered layers."""
    name = type(module).__name__
    return name in LAYERS and LAYERS[name].kind is type(module)


@dataclass
class Step:
    """One layer or operation while it is lowered."""

    trace: Trace
    graph: GraphBuilder
    node: torch.fx.Node
    module: Any
    """The layer; for a function that has a layer of its own (``F.relu``), that layer."""
    inputs: list[str]
    """The tensors that it reads, in the order of its arguments."""
    folded: set[torch.fx.Node]
    """Batch norms that have been taken up by the layer before them."""

    @property
    def name(self) -> str:
        """What the step's value wants to be called."""
        return self.trace.names[self.node]

    @property
    def x(self) -> str:
        """The first tensor that it reads."""
        return self.inputs[0]

    @property
    def in_shape(self) -> tuple[int, ...]:
        """The shape [N, ...] of the first tensor that it reads."""
        return next(self.trace.shapes[node] for node in self.node.all_input_nodes if node in self.trace.shapes)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The shape [N, ...] of its value."""
        return self.trace.shapes[self.node]

    @property
    def in_place(self) -> bool:
        """Whether it overwrites the first tensor that it reads."""
        name = str(getattr(self.node.target, "__name__", self.node.target))
        written = getattr(self.module, "inplace", False) or self.node.kwargs.get("inplace", False)
        return bool(written) or (self.node.op != "call_module" and (name.endswith("_") or name in ("iadd", "imul")))

    def find(self) -> Lower:
        """Return the lowering function.

        Raises:
            UserError: there is none.
        """
        if self.node.op == "call_module":
            if not is_layer(self.module):
                raise self.refusal(f"is a {type(self.module).__name__}, which the file cannot hold; it holds", LAYERS)
            return LAYERS[type(self.module).__name__].lower
        target = self.node.target
        name = str(getattr(target, "__name__", target)).strip("_")
        home = "torch" if isinstance(target, str) else str(getattr(target, "__module__", None) or "torch")
        if name not in OPERATIONS or home.split(".")[0] not in TORCH:
            kind = self.trace.kinds[self.node]
            raise self.refusal(
                f"is the operation {name} (in a {kind}), which the file cannot hold; it holds", OPERATIONS
            )
        return OPERATIONS[name]

    def refusal(self, problem: str, known: Registry[Any] | None = None) -> UserError:
        """Return an error that names the layer."""
        names = "" if known is None else " " + ", ".join(known)
        return UserError(f"export: {self.name} {problem}{names}")

    def emit(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        part = f"{self.name}.{operator.lower()}"
        return self.graph.node(operator, inputs, part, domain=domain, **attributes)

    def weight(self, key: str, values: Tensor | Array) -> str:
        """Add a constant, rounded to float32 unless it is of bits; return its name, the layer's with `key`.

        Raises:
            UserError: a value is not finite, or overflows float32.
        """
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
        if array.dtype != np.uint8:
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
            if not np.isfinite(array).all():
                raise self.refusal(f"has numbers that are not finite ({key}); was the training stable?")
        return self.graph.initializer(np.ascontiguousarray(array), f"{self.name}.{key}")

    def per_channel(self, key: str, values: Tensor | Array) -> str:
        """Add one number per channel, [C, 1, 1] for an image-shaped value and [C] for a flat one."""
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
        return self.weight(key, array.reshape(-1, *(1,) * (len(self.out_shape) - 2)))

    def take_batch_norm(self) -> Affine | None:
        """Return the batch norm that is the only reader of this step's value, which this step takes up; else None."""
        if len(self.node.users) != 1:
            return None
        reader = next(iter(self.node.users))
        norm = self.trace.layer(reader)
        if not isinstance(norm, _BatchNorm) or not is_layer(norm) or norm.running_mean is None:
            return None
        self.folded.add(reader)
        return affine_of_batch_norm(norm)
