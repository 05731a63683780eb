"""Verification: a file is compared with the network it was made of, before it appears.

An interpreter runs the file's bytes. Then, on the same images:

1. Layer by layer, each layer of the network gets the *file's* input of that layer, so that errors do not add up.
   Binarizations and accumulators of binary convolutions must be equal bit for bit. Real values may differ by rounding.
2. The whole network runs on its own. Where no sign differs, the logits must agree to 1e-4 of the largest one. Where a
   sign differs, the values on both sides of its threshold must lie within rounding of each other at the first such
   binarization, 1e-4 of the largest terms (see below) so far; behind it the two follow different paths, which 1. has
   compared layer by layer.

What rounding allows in 1.: let u = 2^-24. The network computes ``s * (sum + b - mean) + beta`` and rounds each time;
the file's scale, bias and folded weights are rounded once. A sum of K products in fp32, in whatever order, errs by
about ``sqrt(K) * u * sum |w x|`` (rounding errors are independent; the certain bound is K * u, never seen), every
other step by u of its own size. So each value may differ by ``TOLERANCE = 1e-5`` (170 u: sqrt(K) for the largest sum
in use, VGG's 25,088, and a few roundings) of ``|s| * (sum |w x| + |b| + |mean|) + |beta|``, the sum of the sizes of
its terms. The size of the value itself would be no measure: the terms may cancel. A wrong fold (another epsilon, a
forgotten bias) is 1e-3 or more.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nasb.binary import AbcConv2d, Binarize, BinaryConv2d, BinaryLinear
from nasb.deploy._interpreter import Interpreter, Values
from nasb.deploy.graph import OUTPUT
from nasb.deploy.lowering import Lowering
from nasb.errors import UserError

TOLERANCE = 1e-5
"""Of one layer, relative to the size of the terms of its sums."""
WHOLE_TOLERANCE = 1e-4
"""Of the logits, relative to the largest one; of values around a threshold, relative to the largest terms so far."""


@dataclass(frozen=True)
class Verification:
    """What was compared."""

    images: int
    """Images that were run."""
    flipped: int
    """Those of them in which a sign differed, by rounding."""
    logit_error: float
    """Largest difference of logits of the others, relative to the largest logit."""


def verify(data: bytes, lowering: Lowering, input_shape: tuple[int, int, int]) -> Verification:
    """Compare a file's bytes with the network of which they were made.

    Args:
        data: the file.
        lowering: how it was made: the traced network, and which tensor stands for which value.
        input_shape: [channels, height, width].

    Raises:
        UserError: a value differs by more than rounding, with the layer's name.
    """
    interpreter = Interpreter(data)
    count, flipped, error = 0, 0, 0.0
    for images in _images(input_shape):
        values = interpreter.run(images)
        with torch.no_grad():
            layers = _Layers(lowering, values)
            layers.run(images.clone())
            whole = _Whole(lowering, values, layers.largest)
            logits = whole.run(images.clone())
        size = logits.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        errors = (logits - values.tensors[OUTPUT]).abs().amax(1) / size
        errors = errors[~whole.flipped] if whole.flipped is not None else errors
        if not bool((errors <= WHOLE_TOLERANCE).all()):
            raise UserError(
                f"export: the file's logits differ from the network's by {errors.max():.1e} of the largest (allowed: "
                f"{WHOLE_TOLERANCE:.0e}), though each layer agrees; no file was written"
            )
        count, flipped = count + len(images), flipped + len(images) - len(errors)
        error = max(error, float(errors.max())) if len(errors) else error
    return Verification(count, flipped, error)


def _images(input_shape: tuple[int, int, int]) -> Iterator[Tensor]:
    """Yield batches of normalized images: noise, and noise that stands at the border, or in the middle, alone.

    Batches of different sizes, so that a fixed batch size in the file is found out.
    """
    generator = torch.Generator().manual_seed(0)
    rounds = 2 if input_shape[1] * input_shape[2] > 128 * 128 else 4
    for number in range(rounds):
        noise = torch.randn(2 + number % 2, *input_shape, generator=generator)
        edge = max(min(input_shape[1:]) // 8, 1)
        if number == 0:
            noise[-1, :, edge:-edge, edge:-edge] = 0
        elif number == 1:
            inside = noise[-1, :, edge:-edge, edge:-edge].clone()
            noise[-1] = 0
            noise[-1, :, edge:-edge, edge:-edge] = inside
            noise[0] = noise[0, :, :1, :1].expand(input_shape)
        yield noise


class _Layers(torch.fx.Interpreter):
    """Runs the network layer by layer on the file's values, and compares."""

    def __init__(self, lowering: Lowering, values: Values) -> None:
        super().__init__(lowering.trace.module)
        self.extra_traceback = False  # our errors are one line
        self.lowering, self.values = lowering, values
        self.sizes: dict[torch.fx.Node, Tensor] = {}
        """Of values that a batch norm behind them took up: the sizes of their terms."""
        self.largest: dict[torch.fx.Node, Tensor] = {}
        """The size of the largest terms of all values up to each step."""
        self._so_far = torch.zeros(())

    def run_node(self, n: torch.fx.Node) -> Any:
        step = self.lowering.steps.get(n)
        if step is None:
            return super().run_node(n)
        for parent, name in step.reads.items():
            before = self.lowering.steps.get(parent)
            if before is None or before.writes is not None:
                self.env[parent] = self.values.tensors[name].clone()  # the network may work in place
        inputs = [self.env[parent] for parent in step.reads]
        layer = self.lowering.trace.layer(n)
        size = self._size(n, layer, inputs)
        self._so_far = self.largest[n] = torch.maximum(self._so_far, size.max())
        if isinstance(layer, BinaryConv2d | BinaryLinear):
            self._compare_sums(n, layer, inputs, step.made)
        value: Tensor = super().run_node(n)
        if step.writes is None:
            self.sizes[n] = size
            return value
        other = self.values.tensors[step.writes]
        if isinstance(layer, Binarize):
            self._compare_exactly(n, value, other, "signs")
        limit = TOLERANCE * torch.maximum(size, value.abs())
        if value.shape != other.shape or not bool(((value - other).abs() <= limit).all()):
            raise UserError(
                f"export: {self.lowering.trace.names[n]}: the file's value differs from the network's by more than "
                "rounding; no file was written"
            )
        return value

    def _compare_sums(
        self, n: torch.fx.Node, layer: BinaryConv2d | BinaryLinear, inputs: list[Tensor], made: tuple[str, ...]
    ) -> None:
        """Compare the accumulators of a binary layer's nodes, one or (ABC-Net) several, in order."""
        if not all(bool((value.abs() == 1).all()) for value in inputs):
            raise UserError(
                f"export: {self.lowering.trace.names[n]}: its input is not signs (-1 and +1), which alone a binary "
                "layer computes with; put a Binarize in front of it"
            )
        found = [self.values.accumulators[name] for name in made if name in self.values.accumulators]
        if not isinstance(layer, AbcConv2d):
            for sums in found:
                self._compare_exactly(n, layer.accumulate(inputs[0]), sums, "accumulators")
            return
        wanted = layer.accumulators(*inputs)
        for sums in found:  # bases that coincide may be one node
            while len(wanted) > 1 and not torch.equal(wanted[0], sums):
                del wanted[0]
            self._compare_exactly(n, wanted[0], sums, "accumulators")

    def _compare_exactly(self, n: torch.fx.Node, value: Tensor, other: Tensor, what: str) -> None:
        if not torch.equal(value.flatten(), other.flatten()) or not torch.equal(value, value.round()):
            raise UserError(
                f"export: {self.lowering.trace.names[n]}: the file's {what} are not equal to the network's; no file "
                "was written"
            )

    def _size(self, n: torch.fx.Node, layer: nn.Module | None, inputs: list[Tensor]) -> Tensor:
        """Return the sum of the sizes of the terms of each value, or one number that is not below any of them."""
        x = inputs[0]
        if isinstance(layer, BinaryConv2d | BinaryLinear):
            return _binary_size(layer, inputs)
        if isinstance(layer, nn.Conv2d):
            sizes: Tensor = layer._conv_forward(
                x.abs(), layer.weight.abs(), None if layer.bias is None else layer.bias.abs()
            )
            return sizes
        if isinstance(layer, nn.Linear):
            return F.linear(x.abs(), layer.weight.abs(), None if layer.bias is None else layer.bias.abs())
        if isinstance(layer, _BatchNorm):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            one = torch.ones_like(layer.running_var)
            gamma, beta = (one, 0 * one) if layer.weight is None else (layer.weight.abs(), layer.bias.abs())
            before = self.sizes.get(n.all_input_nodes[0], x.abs())
            return F.batch_norm(before, -layer.running_mean.abs(), layer.running_var, gamma, beta, False, 0, layer.eps)
        size = torch.stack([value.abs().max() for value in inputs]).sum()
        return size + 1 if "tanh" in str(n.target) or isinstance(layer, nn.Tanh) else size  # 2 sigmoid(2x) - 1


def _binary_size(layer: BinaryConv2d | BinaryLinear, inputs: list[Tensor]) -> Tensor:
    """Return the sum of the sizes of the terms of each value of a binary layer."""
    bias = torch.zeros(()) if layer.bias is None else layer.bias.view(-1, *(1,) * (inputs[0].dim() - 2))
    if isinstance(layer, AbcConv2d):
        terms = zip(layer.pair_scale(), layer.accumulators(*inputs), strict=True)
        sizes = [(scale * sums).abs() for scale, sums in terms]
    else:
        sizes = [(layer(inputs[0]) - bias).abs()]
    return torch.stack(sizes).sum(0) + bias.abs()


class _Whole(torch.fx.Interpreter):
    """Runs the network on its own, and finds the images in which a sign differs from the file's."""

    def __init__(self, lowering: Lowering, values: Values, largest: dict[torch.fx.Node, Tensor]) -> None:
        super().__init__(lowering.trace.module)
        self.extra_traceback = False  # our errors are one line
        self.lowering, self.values, self.largest = lowering, values, largest
        self.flipped: Tensor | None = None
        """Whether a sign of an image has differed so far: [N]."""

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        step = self.lowering.steps.get(n)
        if step is not None and step.writes is not None and isinstance(self.lowering.trace.layer(n), Binarize):
            (read,) = step.reads
            self._compare(n, self.env[read], value, self.values.tensors[step.reads[read]], step.writes)
        return value

    def _compare(self, n: torch.fx.Node, x: Tensor, b: Tensor, file_x: Tensor, file_b: str) -> None:
        if self.flipped is None:
            self.flipped = torch.zeros(len(x), dtype=torch.bool)
        differs = (b != self.values.tensors[file_b]) & ~self.flipped.view(-1, *(1,) * (x.dim() - 1))
        if bool(differs.any()):
            # One value is on each side of the threshold, so neither is further from it than from the other.
            gap = (x - file_x).abs()[differs].max() / self.largest[n]
            if not gap <= WHOLE_TOLERANCE:
                raise UserError(
                    f"export: {self.lowering.trace.names[n]}: signs differ from the network's where values differ by "
                    f"{gap:.1e} of the largest terms (allowed: {WHOLE_TOLERANCE:.0e}); no file was written"
                )
            self.flipped |= differs.flatten(1).any(1)
