"""count(): MACs, numbers and bits of a network, measured by one forward with a hook on every layer.

One MAC = one operation. FLOPs = real MACs; BOPs = binary MACs; OPs = FLOPs + BOPs / 64. Batch norm, activations,
element-wise additions and products, and pooling are no operations.

Memory is that of the deployed network: 1 bit per binary weight, 32 bits per other number. A batch norm is folded to one
scale and one bias per channel (also one without gamma and beta), and takes up the bias or weight scale of a layer if it
reads the output of each of that layer's calls. Thresholds are stored numbers, fixed ones too, except 0.

Binary layers count as binary in every phase of training. The logits alpha of a searchable network are no part of what
is deployed and are left out. What could not be counted is part of the answer: see `Count.uncounted`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from nasb.cells.searchable import SearchableEdge
from nasb.cost import layers as costs
from nasb.errors import UserError

BOPS_PER_FLOP = 64
"""Binary MACs that are taken to cost as much as one real MAC."""


@dataclass(frozen=True, kw_only=True)
class LayerCount:
    """What one layer costs; MACs are of all its calls in one forward of one image."""

    name: str
    """Qualified name in the network (the class's name for the network itself)."""
    kind: str
    """Name of the layer's class."""
    output_shape: tuple[int, ...]
    """Of the first call, without the batch axis: [C, H, W] or [features]; empty if the output is no tensor."""
    flops: int
    """Real MACs."""
    bops: int
    """Binary MACs."""
    parameters: int
    """Numbers that the deployed layer stores, binary ones included."""
    binary_parameters: int
    """Those of them that take 1 bit."""
    memory_bits: int
    """Bits that they take."""
    calls: int
    """How often the layer ran in one forward."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """What one forward of one image costs, in all and layer by layer."""

    layers: tuple[LayerCount, ...]
    """Every layer that ran, in the order of the first call."""
    uncounted: tuple[str, ...]
    """What is missing from the numbers, one line each: name, class, the parameters and MACs that were seen there."""

    @property
    def flops(self) -> int:
        """Real MACs."""
        return sum(layer.flops for layer in self.layers)

    @property
    def bops(self) -> int:
        """Binary MACs."""
        return sum(layer.bops for layer in self.layers)

    @property
    def ops(self) -> float:
        """OPs = FLOPs + BOPs / 64."""
        return self.flops + self.bops / BOPS_PER_FLOP

    @property
    def parameters(self) -> int:
        """Numbers that the deployed network stores, binary ones included."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def binary_parameters(self) -> int:
        """Those of them that take 1 bit."""
        return sum(layer.binary_parameters for layer in self.layers)

    @property
    def memory_bits(self) -> int:
        """Bits that the numbers take."""
        return sum(layer.memory_bits for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return the totals, the layers and what is uncounted as plain JSON values."""
        totals = ("flops", "bops", "ops", "memory_bits", "parameters", "binary_parameters")
        return {
            **{key: getattr(self, key) for key in totals},
            "layers": [{**asdict(layer), "output_shape": list(layer.output_shape)} for layer in self.layers],
            "uncounted": list(self.uncounted),
        }


def count(module: nn.Module, input_shape: Sequence[int]) -> Count:
    """Count a network by one forward in evaluation mode on zeros; afterwards it is as it was before.

    Every MAC that `torch.utils.flop_counter` sees and no known layer accounts for is reported in `Count.uncounted`.

    Args:
        module: any network or layer. A searchable network counts as what it runs now: a fresh one, the full mixture.
        input_shape: of one image, without the batch axis: [channels, height, width].

    Raises:
        UserError: a size in `input_shape` is no whole number above 0, the network does not run on that shape, or it has
            parameters whose shapes are not known yet (lazy modules).
    """
    shape = tuple(input_shape)
    if not shape or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape):
        raise UserError(f"count: input_shape is {shape}; give whole numbers above 0: channels, height, width")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise UserError(f"count: {name} has no shape yet (lazy module); run the network once before")
    tally = _Tally(module)
    # Tensors of inference mode have no versions, by which in-place operations are seen.
    with _unchanged(module), torch.inference_mode(False), torch.no_grad(), tally.hooks():
        try:
            module(_zeros(module, shape))
        except Exception as error:
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            kind = type(module).__name__
            raise UserError(f"count: {kind} does not run on an input of shape {shape}: {first_line}") from error
    return tally.result()


def _zeros(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device)
    return torch.zeros(1, *shape)


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Run in evaluation mode; put back the mode of each part by itself (some may be frozen) and every buffer."""
    modes = [(part, part.training) for part in module.modules()]
    buffers = [
        (part, key, buffer, buffer._version, buffer.clone())
        for part in module.modules()
        for key, buffer in part.named_buffers(recurse=False)
    ]
    try:
        module.eval()
        yield
    finally:
        module.train(modes[0][1])
        for part, mode in modes:
            part.training = mode
        with torch.no_grad():
            for part, key, buffer, version, before in buffers:
                part._buffers[key] = buffer
                if buffer._version != version:
                    buffer.copy_(before)


@dataclass
class _Seen:
    """What the hooks saw of one module."""

    calls: int = 0
    output_shape: tuple[int, ...] = ()
    counted: int = 0
    """MACs by the closed formula of a known layer."""
    measured: int = 0
    """MACs by the FLOP counter, without those of the modules inside."""
    folded_calls: int = 0
    """Calls whose output a batch norm read."""


@dataclass
class _Tally:
    """Collects what each module of a network does during one forward."""

    network: nn.Module
    names: dict[nn.Module, str] = field(default_factory=dict)
    seen: dict[nn.Module, _Seen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._enter(self.network, "")
        self._counter = FlopCounterMode(display=False)
        self._open: list[tuple[int, int]] = []  # of each running module: MACs at its start, MACs of the modules inside
        self._foldable: dict[int, tuple[Tensor, int, nn.Module]] = {}  # by id; keeping the tensor keeps its id its own

    def _enter(self, module: nn.Module, name: str) -> None:
        """Name a module and those inside, but not what is inside a layer (e.g. a parametrization)."""
        if module in self.names:
            return
        self.names[module] = name or type(module).__name__
        if not costs.is_layer(module):
            for key, child in module.named_children():
                self._enter(child, f"{name}.{key}" if name else key)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Watch every module of the network."""
        handles = []
        try:
            for module in self.names:
                handles.append(module.register_forward_pre_hook(self._before, prepend=True))
                handles.append(module.register_forward_hook(self._after, with_kwargs=True))
            with self._counter:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _macs_so_far(self) -> int:
        return self._counter.get_total_flops() // 2  # the FLOP counter takes one MAC for two operations

    def _before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._open.append((self._macs_so_far(), 0))

    def _after(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        start, inside = self._open.pop()
        macs = self._macs_so_far() - start
        if self._open:
            outer_start, outer_inside = self._open[-1]
            self._open[-1] = (outer_start, outer_inside + macs)
        seen = self.seen.setdefault(module, _Seen())
        seen.calls += 1
        seen.measured += macs - inside
        if isinstance(output, Tensor):
            if seen.calls == 1:
                seen.output_shape = tuple(output.shape[1:])
            seen.counted += costs.macs(module, output)
            if costs.can_fold(module, output) and any(part.foldable for part in costs.stored(module) or ()):
                self._foldable[id(output)] = (output, output._version, module)
        if isinstance(module, _BatchNorm):
            read = (*inputs, *named.values())[0]
            tensor, version, source = self._foldable.pop(id(read), (None, 0, module))
            # An in-place operation between the two (relu_) leaves the tensor the same object, of another version.
            if tensor is not None and tensor._version == version:
                self.seen[source].folded_calls += 1

    def result(self) -> Count:
        """Return what was counted and what was not."""
        rows, uncounted = [], []
        shared: set[int] = set()
        never = [module for module in self.names if module not in self.seen]
        for module in (*self.seen, *never):
            seen = self.seen.get(module)
            line = self._missing(module, seen)
            if line:
                uncounted.append(f"{self.names[module]} ({type(module).__name__}): {line}")
            if seen is not None and costs.is_layer(module) and costs.stored(module) is not None:
                rows.append(self._row(module, seen, shared))
        return Count(layers=tuple(rows), uncounted=tuple(uncounted))

    def _row(self, layer: nn.Module, seen: _Seen, shared: set[int]) -> LayerCount:
        numbers = {costs.BINARY_BITS: 0, costs.REAL_BITS: 0}
        folded = seen.folded_calls == seen.calls
        for part in costs.stored(layer) or ():
            if (part.foldable and folded) or (part.source is not None and id(part.source) in shared):
                continue
            numbers[part.bits_each] += part.numbers
            if part.source is not None:
                shared.add(id(part.source))
        binary = costs.is_binary(layer)
        return LayerCount(
            name=self.names[layer],
            kind=type(layer).__name__,
            output_shape=seen.output_shape,
            flops=0 if binary else seen.counted,
            bops=seen.counted if binary else 0,
            parameters=sum(numbers.values()),
            binary_parameters=numbers[costs.BINARY_BITS],
            memory_bits=sum(bits * n for bits, n in numbers.items()),
            calls=seen.calls,
        )

    def _missing(self, module: nn.Module, seen: _Seen | None) -> str:
        """Return what is not counted of a module, without the modules inside; empty if nothing."""
        layer = costs.is_layer(module)
        own = sum(parameter.numel() for parameter in module.parameters(recurse=layer))
        if isinstance(module, SearchableEdge):
            own -= module.alpha.numel()
        parts = []
        if layer and seen is None:
            return f"never called, {own} parameters" if own else ""
        if own and not layer:
            parts.append(f"{own} parameters of its own")
        elif own and costs.stored(module) is None:
            parts.append(f"{own} parameters of a layer that is not known")
        more = 0 if seen is None else seen.measured - seen.counted
        if more > 0:
            parts.append(f"{more} MACs in functional calls")
        return ", ".join(parts)
