"""From a host to a graph of known layers: torch.fx, torch.export where fx cannot, and what makes their graphs alike.

The graph is that of evaluation: what a host computes only in training (auxiliary classifiers) is left out. torch.fx
keeps the host's layers, but cannot follow a forward that decides by a shape, or asks what its input is;
torch.export can, since it runs the forward (nasb.networks.exported). Then

- numbers that follow from the size of the images alone (``x.shape[2] // 2``) become constants, assertions go;
- calls with weights (``F.conv2d(x, self.weight)``) and random ones (dropout) become layers
  (nasb.networks.functional_layers);
- chunks and splits of channels become slices.
"""

import json
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from nasb.errors import UserError
from nasb.networks import known
from nasb.networks.arguments import trace_images
from nasb.networks.exported import exported
from nasb.networks.functional_layers import functions_to_layers
from nasb.networks.known import matches, place_of

BATCHES = (2, 3)
"""Images in the two runs that tell what depends on their number."""
SPLITS = {torch.chunk, torch.split, torch.tensor_split, "chunk", "split", "tensor_split"}
TOLERANCE = 1e-4
"""Between the values of host and graph, relative to the largest."""


class _Tracer(torch.fx.Tracer):
    def __init__(self, keep_real: tuple[str, ...] = ()) -> None:  # without: torch.load of a whole network
        super().__init__()
        self.keep_real = keep_real

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            isinstance(m, known.LEAVES)
            or type(m).__name__ == known.DROP_PATH
            or matches(module_qualified_name, self.keep_real)
            or super().is_leaf_module(m, module_qualified_name)
        )


class _Values(torch.fx.Interpreter):
    """Runs a graph and keeps the shape of each tensor and the value of anything else."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False  # our errors are one line
        self.found: dict[torch.fx.Node, Any] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        if n.op != "output":
            self.found[n] = value.shape if isinstance(value, Tensor) else value
            n.meta["is_tensor"] = isinstance(value, Tensor)
            n.meta["is_size"] = _is_number(value) or isinstance(value, torch.Size | torch.device | torch.dtype)
        return value


@torch.no_grad()
def trace(host: nn.Module, input_shape: tuple[int, int, int], keep_real: tuple[str, ...] = ()) -> torch.fx.GraphModule:
    """Trace a host, which is changed by it: its layers become the graph's.

    Every tensor's shape is written into its node, and the output's into the module (``meta["shape"]``).

    Args:
        host: any module of images [N, C, H, W] that returns one tensor [N, classes].
        input_shape: [channels, height, width] of one image.
        keep_real: shell wildcards of qualified names of what need not be known. A module that one of them matches is a
            layer, where the host cannot be traced otherwise.

    Raises:
        UserError: the host's forward cannot be traced or run at that input shape, has something that is not known, or
            does not compute what was traced.
    """
    kind = type(host).__name__
    training = host.training
    names = [name for name, _ in host.named_modules()]
    host.eval()
    try:
        images_NCHW = torch.randn(BATCHES[0], *input_shape, generator=torch.Generator().manual_seed(0))
    except RuntimeError as error:
        raise UserError(f"convert: images of shape {tuple(input_shape)} cannot be made: {_first_line(error)}") from None
    wanted = _run(host, host, images_NCHW)
    traced = _graph_of(host, input_shape, keep_real)
    _without_assertions(traced)
    _refuse_unread(traced)
    functions_to_layers(traced)
    first, second = (_values(traced, host, torch.zeros(images, *input_shape)) for images in BATCHES)
    _fold_constants(traced, first, second)
    _splits_to_slices(traced, first)
    _join_means(traced, first)
    traced.graph.eliminate_dead_code()
    traced = torch.fx.GraphModule(traced, traced.graph, class_name=kind)  # without what is not read any more
    for node, value in _values(traced, host, images_NCHW).items():
        if node.meta["is_tensor"]:
            node.meta["shape"] = tuple(value)
    names += [place_of(node) for node in traced.graph.nodes]
    for pattern in keep_real:
        if not any(matches(name, (pattern,)) for name in names):
            raise UserError(f'convert: keep_real: "{pattern}" matches no layer and no operation of {kind}')
    _refuse_unknown(traced, keep_real)
    _check_output(traced, kind)
    found = traced(images_NCHW)
    if wanted.isnan().any():
        raise UserError(f"convert: the output of {kind} is not a number; are its weights damaged?")
    if not torch.allclose(found, wanted, 0, TOLERANCE * float(wanted.abs().max())):
        raise UserError(
            f"convert: {kind} computes something else than what was traced of it; does its forward draw at random in "
            "evaluation, or keep a state?"
        )
    return traced.train(training)


def _graph_of(host: nn.Module, input_shape: tuple[int, int, int], keep_real: tuple[str, ...]) -> torch.fx.GraphModule:
    """Trace by torch.fx; then with the modules that are kept as layers; then by torch.export."""
    reason = ""
    for kept in dict.fromkeys(((), keep_real)):
        try:
            return torch.fx.GraphModule(host, trace_images(_Tracer(kept), host))
        except Exception as error:
            reason = _first_line(error)
    try:
        return exported(host, input_shape)
    except Exception as error:
        raise UserError(
            f"convert: {type(host).__name__} can be traced neither by torch.fx ({reason}) nor by torch.export "
            f"({_first_line(error)}); keep_real leaves the module that is to blame as it is"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _values(traced: torch.fx.GraphModule, host: nn.Module, images_NCHW: Tensor) -> dict[torch.fx.Node, Any]:  # noqa: N803
    """Return the shape of each tensor of a graph, and the value of anything else."""
    runner = _Values(traced)
    _run(runner.run, host, images_NCHW)
    return runner.found


def _run(forward: Callable[[Tensor], Any], host: nn.Module, images_NCHW: Tensor) -> Any:  # noqa: N803
    try:
        return forward(images_NCHW)
    except Exception as error:
        raise UserError(
            f"convert: {type(host).__name__} does not run on an input of shape {tuple(images_NCHW.shape[1:])}: "
            f"{_first_line(error)}"
        ) from None


def _without_assertions(traced: torch.fx.GraphModule) -> None:
    for node in list(traced.graph.nodes):
        if node.target is torch._assert:
            traced.graph.erase_node(node)


def _refuse_unread(traced: torch.fx.GraphModule) -> None:
    """Refuse what works in place and is not read: it would be lost.

    Raises:
        UserError: names the node.
    """
    for node in traced.graph.nodes:
        if node.op in ("placeholder", "output", "get_attr") or node.users:
            continue
        name = str(getattr(node.target, "__name__", node.target))
        layer = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        if (
            name.endswith(("_", "_.default"))
            or name in ("iadd", "imul", "setitem")
            or node.kwargs.get("inplace", False)
            or getattr(layer, "inplace", False)
        ):
            raise UserError(
                f"convert: the result of {node.name} is not used; where it works in place, write x = {node.name}(x)"
            )


def _fold_constants(
    traced: torch.fx.GraphModule, first: dict[torch.fx.Node, Any], second: dict[torch.fx.Node, Any]
) -> None:
    """Put numbers in place of the nodes that compute them, unless they depend on the number of images; x + 0 is x."""
    for node in list(traced.graph.nodes):
        value = first.get(node)
        if node.op != "placeholder" and not node.meta.get("is_tensor", True) and _is_constant(value):
            if value == second[node]:
                _replace(node, value)
        elif node.target in known.ADDITIONS and 0 in node.args and not node.kwargs:
            others = [argument for argument in node.args if isinstance(argument, torch.fx.Node)]
            if len(others) == 1:
                node.replace_all_uses_with(others[0])
    traced.graph.eliminate_dead_code()


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _is_constant(value: object) -> bool:
    return _is_number(value) or (isinstance(value, tuple) and all(_is_number(part) for part in value))


def _replace(node: torch.fx.Node, value: Any) -> None:
    value = tuple(value) if isinstance(value, tuple) else value  # a torch.Size is no argument

    def put(argument: Any) -> Any:
        return value if argument is node else argument

    for user in list(node.users):
        user.args = torch.fx.node.map_aggregate(user.args, put)
        user.kwargs = torch.fx.node.map_aggregate(user.kwargs, put)


def _splits_to_slices(traced: torch.fx.GraphModule, shapes: dict[torch.fx.Node, Any]) -> None:
    """Read each part of a split tensor by a slice, ``x[:, 8:16]``."""
    for node in list(traced.graph.nodes):
        if node.op not in ("call_function", "call_method") or node.target not in SPLITS:
            continue
        source = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("tensor"))
        axis = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
        parts_alone = all(user.target is operator.getitem and isinstance(user.args[1], int) for user in node.users)
        if source not in shapes or axis not in (1, 1 - len(shapes[source])) or not parts_alone:
            continue  # refused by its name
        begin = [0]
        for part in shapes[node]:
            begin.append(begin[-1] + int(part.shape[1]))
        for user in list(node.users):
            number = user.args[1] % (len(begin) - 1)
            user.args = (source, (slice(None), slice(begin[number], begin[number + 1])))


def _join_means(traced: torch.fx.GraphModule, shapes: dict[torch.fx.Node, Any]) -> None:
    """Read ``x.mean(3).mean(2)`` as ``x.mean((2, 3))``."""

    def source_and_axis(node: object) -> tuple[torch.fx.Node, int] | None:
        if not isinstance(node, torch.fx.Node) or node.target not in ("mean", torch.mean):
            return None
        values: list[Any] = [*node.args, *node.kwargs.values()]
        if len(values) != 2 or not set(node.kwargs) <= {"dim"} or not isinstance(values[1], int):
            return None
        source, axis = values
        return (source, axis % len(shapes[source])) if isinstance(source, torch.fx.Node) else None

    for node in list(traced.graph.nodes):
        outer = source_and_axis(node)
        inner = None if outer is None else source_and_axis(outer[0])
        if outer is None or inner is None or len(outer[0].users) > 1:
            continue
        axes = list(range(len(shapes[inner[0]])))
        first, second = axes.pop(inner[1]), axes[outer[1]]
        node.args, node.kwargs = (inner[0], tuple(sorted((first, second)))), {}


def unknown_nodes(traced: torch.fx.GraphModule) -> dict[torch.fx.Node, str]:
    """Return the nodes that convert() does not know, each with what it is."""
    found = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            layer = traced.get_submodule(str(node.target))
            if not known.knows(layer):
                found[node] = type(layer).__name__
        elif node.op == "get_attr":
            found[node] = "tensor"
        elif node.op in ("call_function", "call_method") and not node.meta["is_size"]:
            names = known.FUNCTIONS if node.op == "call_function" else known.METHODS
            if node.target not in names or (node.target in known.ADDITIONS and node.kwargs):
                found[node] = str(getattr(node.target, "__name__", node.target))
    return found


def _patterns(names: list[str], others: list[str]) -> list[str]:
    """Return the names, or, of more than four, wildcards of their last parts that match none of the others."""
    if len(names) <= 4:
        return names
    patterns: list[str] = []
    for name in names:
        if matches(name, tuple(patterns)):
            continue
        parts = name.split(".")
        endings = (f"*{'.'.join(parts[-count:])}" for count in range(1, len(parts)))
        patterns.append(next((e for e in endings if not any(matches(other, (e,)) for other in others)), name))
    return patterns


def _refuse_unknown(traced: torch.fx.GraphModule, keep_real: tuple[str, ...]) -> None:
    """Refuse, by name, every layer and operation that convert() does not know and is not asked to keep.

    Raises:
        UserError: names the first one, and what would keep all of them.
    """
    left = {node: kind for node, kind in unknown_nodes(traced).items() if not matches(place_of(node), keep_real)}
    for node, kind in left.items():
        name, others = place_of(node), len(left) - 1
        what = f"it and {others} more as they are" if others else "it as it is"
        names = [place_of(each) for each in left]
        known_names = [place_of(each) for each in traced.graph.nodes if each not in left]
        keep = f"; to leave {what}: keep_real: {json.dumps(_patterns(names, known_names))}"
        if node.op == "call_module":
            layers = ", ".join(sorted(module.__name__ for module in known.MODULES))
            raise UserError(f"convert: layer {name} is a {kind}, which is not known; known: {layers}{keep}")
        if node.op == "get_attr":
            raise UserError(f"convert: the host's forward reads the tensor {name}, which is not in a known layer{keep}")
        if node.target in known.ADDITIONS:
            raise UserError(
                f"convert: the addition {node.name} has the arguments {dict(node.kwargs)}; only x + y is known{keep}"
            )
        raise UserError(f"convert: the operation {kind} (node {node.name}) of the host's forward is not known{keep}")


def _check_output(traced: torch.fx.GraphModule, kind: str) -> None:
    (result,) = next(node for node in traced.graph.nodes if node.op == "output").args
    if not isinstance(result, torch.fx.Node) or len(result.meta.get("shape", ())) != 2:
        shape = result.meta.get("shape") if isinstance(result, torch.fx.Node) else None
        what = f"values of shape {shape}" if shape else f"a {type(result).__name__.removeprefix('immutable_')}"
        raise UserError(f"convert: {kind} returns {what}; it must return one tensor [N, classes]")
    traced.meta["shape"] = result.meta["shape"]
