"""Binary convolutions for tests: a covering design over their shapes, their models, and two oracles."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper, numpy_helper

Real = npt.NDArray[np.float32]

LEVELS: dict[str, Sequence[Any]] = {
    "inputs": (*range(1, 10), 16, 31, 32, 33, 48, 63, 64, 65, 100, 127, 128, 130, 192, 255, 256, 300, 511, 512, 600),
    "outputs": (1, 2, 3, 7, 8, 31, 32, 33, 48, 63, 64, 65, 96, 100, 127, 128, 130, 200),
    "groups": (1, 1, 2, 3, 4, 8, 32),
    "size": ((1, 1), (1, 2), (2, 1), (3, 3), (4, 5), (7, 7), (8, 9), (1, 40), (33, 1), (13, 14), (14, 14), (28, 28),
             (31, 17), (56, 56)),
    "kernel": ((1, 1), (3, 3), (5, 5), (7, 7), (1, 3), (3, 1), (2, 2), (5, 3)),
    "stride": ((1, 1), (2, 2), (1, 2), (2, 1), (3, 3)),
    "dilation": ((1, 1), (2, 2), (1, 2)),
    "pads": ((0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3), (0, 1, 2, 3), (3, 0, 0, 1), (0, 0, 1, 1),
             (1, 0, 0, 0), (0, 3, 1, 0)),
    "pad_value": (-1, 0, 1),
    "batch": (1, 2, 5),
}  # fmt: skip
"""`groups` is the number that is wished for; channels are rounded up to multiples of it."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A binary convolution; sizes are [height, width], pads [top, left, bottom, right]."""

    inputs: int
    outputs: int
    groups: int = 1
    size: tuple[int, int] = (8, 8)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    pad_value: int = 0
    batch: int = 1

    def __str__(self) -> str:
        values = (getattr(self, field.name) for field in fields(self))
        return "-".join("x".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values)

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the output; not positive where the kernel is larger than the padded input."""
        height, width = (
            (n + self.pads[axis] + self.pads[axis + 2] - d * (k - 1) - 1) // s + 1
            for axis, (n, k, s, d) in enumerate(zip(self.size, self.kernel, self.stride, self.dilation, strict=True))
        )
        return height, width

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole batch."""
        height, width = self.out_size
        taps = self.kernel[0] * self.kernel[1]
        return self.batch * height * width * self.outputs * (self.inputs // self.groups) * taps

    def random(self) -> np.random.Generator:
        """The case's own source of random numbers, the same in every run."""
        return np.random.default_rng([ord(letter) for letter in str(self)])

    def data(self) -> tuple[Real, Real]:
        """Inputs [N, C, H, W] and weights [C_out, C / groups, kH, kW] of -1 and +1."""
        random = self.random()
        b_NCHW = random.choice([-1.0, 1.0], (self.batch, self.inputs, *self.size))
        w_OIHW = random.choice([-1.0, 1.0], (self.outputs, self.inputs // self.groups, *self.kernel))
        return b_NCHW.astype(np.float32), w_OIHW.astype(np.float32)


def covering(levels: Mapping[str, Sequence[Any]], largest_macs: int, seed: int = 0) -> list[Case]:
    """Cases that together hold every pair of levels that a case within `largest_macs` can hold.

    Greedy: of some random cases around a pair that is still missing, the one that covers most of what is missing.
    """
    draw = random.Random(seed)
    names = list(levels)
    missing = {
        (first, second, a, b)
        for first, second in combinations(names, 2)
        for a in range(len(levels[first]))
        for b in range(len(levels[second]))
    }
    cases: list[Case] = []
    while missing:
        wanted = min(missing)
        best: tuple[int, Case, set[tuple[str, str, int, int]]] | None = None
        for _ in range(25):
            at = {name: draw.randrange(len(levels[name])) for name in names}
            at[wanted[0]], at[wanted[1]] = wanted[2], wanted[3]
            case = _case({name: levels[name][index] for name, index in at.items()})
            if min(case.out_size) < 1 or case.macs > largest_macs:
                continue
            pairs = {(first, second, at[first], at[second]) for first, second in combinations(names, 2)} & missing
            if best is None or len(pairs) > best[0]:
                best = len(pairs), case, pairs
        if best is None:
            missing.remove(wanted)  # too large, or a kernel larger than the image, whatever else is chosen
        else:
            cases.append(best[1])
            missing -= best[2]
    return list(dict.fromkeys(cases))


def _case(values: dict[str, Any]) -> Case:
    groups = values["groups"]
    values["inputs"], values["outputs"] = (-(-values[name] // groups) * groups for name in ("inputs", "outputs"))
    return Case(**values)


CORNERS = (
    Case(inputs=64, outputs=64, size=(56, 56)),
    Case(inputs=128, outputs=128, size=(28, 28)),
    Case(inputs=256, outputs=256, size=(14, 14)),
    Case(inputs=512, outputs=512, size=(7, 7)),
    Case(inputs=64, outputs=128, size=(56, 56), stride=(2, 2)),
    Case(inputs=16, outputs=16, size=(56, 56), kernel=(1, 1), pads=(0, 0, 0, 0)),
    Case(inputs=16, outputs=16, size=(3, 1100)),
    Case(inputs=600, outputs=64, size=(7, 7), kernel=(7, 7), pads=(3, 3, 3, 3)),
    Case(inputs=600, outputs=600, size=(1, 1), kernel=(1, 1), pads=(0, 0, 0, 0), batch=5),
    Case(inputs=2048, outputs=65, size=(2, 2), kernel=(1, 1), pads=(0, 0, 0, 0)),
    Case(inputs=1, outputs=1, size=(1, 1), kernel=(1, 1), pads=(0, 0, 0, 0)),
    Case(inputs=1, outputs=1, size=(1, 1), kernel=(7, 7), pads=(3, 3, 3, 3)),
    Case(inputs=96, outputs=96, groups=96, size=(9, 9)),
    Case(inputs=96, outputs=192, groups=96, size=(9, 9), pad_value=-1),
    Case(inputs=256, outputs=256, groups=8, size=(14, 14), kernel=(5, 5), pads=(2, 2, 2, 2)),
    Case(inputs=33, outputs=97, size=(6, 6), kernel=(1, 1), pads=(1, 0, 2, 3), pad_value=-1),
    Case(inputs=33, outputs=97, size=(6, 6), kernel=(1, 1), stride=(2, 2), pads=(0, 0, 0, 0)),
    Case(inputs=40, outputs=8, size=(5, 5), pads=(9, 0, 7, 8)),  # windows that see nothing of the image
    Case(inputs=40, outputs=8, size=(5, 5), pads=(9, 0, 7, 8), pad_value=-1),
    Case(inputs=32, outputs=32, size=(57, 55), stride=(2, 2), batch=2),
    Case(inputs=12, outputs=20, size=(40, 40), dilation=(6, 5), pads=(6, 5, 6, 5)),
)  # fmt: skip


def model(case: Case, w_OIHW: Real, scale: Real | None = None, bias: Real | None = None) -> ModelProto:  # noqa: N803
    """Binarize and one BinaryConv2d called "conv", whose output is the model's; without scale and bias, 1 and 0."""
    packed = np.packbits(w_OIHW.transpose(0, 2, 3, 1) < 0, axis=-1, bitorder="little")
    constants = {
        "threshold": np.zeros(1, np.float32),
        "W": packed,
        "scale": np.ones(case.outputs, np.float32) if scale is None else scale,
        "bias": np.zeros(case.outputs, np.float32) if bias is None else bias,
    }
    nodes = [
        helper.make_node("Binarize", ["images", "threshold"], ["signs"], "signs", domain="nasb"),
        helper.make_node(
            "BinaryConv2d",
            ["signs", "W", "scale", "bias"],
            ["conv"],
            "conv",
            domain="nasb",
            strides=case.stride,
            dilations=case.dilation,
            pads=case.pads,
            group=case.groups,
            channels=case.inputs // case.groups,
            pad_value=float(case.pad_value),
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", case.inputs, *case.size])],
        [helper.make_tensor_value_info("conv", TensorProto.FLOAT, ["batch", case.outputs, *case.out_size])],
        [numpy_helper.from_array(np.ascontiguousarray(values), name) for name, values in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nasb", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def by_torch(case: Case, b_NCHW: Real, w_OIHW: Real) -> Real:  # noqa: N803
    """The sums by torch's real convolution: exact, since all partial sums are integers below 2^24."""
    import torch
    import torch.nn.functional as F

    top, left, bottom, right = case.pads
    padded = F.pad(torch.from_numpy(b_NCHW), (left, right, top, bottom), value=float(case.pad_value))
    y_NCHW = F.conv2d(padded, torch.from_numpy(w_OIHW), stride=case.stride, dilation=case.dilation, groups=case.groups)
    return y_NCHW.numpy()  # type: ignore[no-any-return]


def by_definition(case: Case, b_NCHW: Real, w_OIHW: Real) -> npt.NDArray[np.int64]:  # noqa: N803
    """The sums in integers, one tap after the other."""
    top, left, bottom, right = case.pads
    border = ((0, 0), (0, 0), (top, bottom), (left, right))
    padded = np.pad(b_NCHW.astype(np.int64), border, constant_values=case.pad_value)
    weights = w_OIHW.astype(np.int64)
    height, width = case.out_size
    sums = np.zeros((case.batch, case.outputs, height, width), np.int64)
    own_in, own_out = case.inputs // case.groups, case.outputs // case.groups
    for group in range(case.groups):
        reads, writes = slice(group * own_in, (group + 1) * own_in), slice(group * own_out, (group + 1) * own_out)
        for ky, kx in np.ndindex(case.kernel):
            rows = slice(
                ky * case.dilation[0], ky * case.dilation[0] + (height - 1) * case.stride[0] + 1, case.stride[0]
            )
            columns = slice(
                kx * case.dilation[1], kx * case.dilation[1] + (width - 1) * case.stride[1] + 1, case.stride[1]
            )
            sums[:, writes] += np.einsum(
                "nchw,oc->nohw", padded[:, reads, rows, columns], weights[writes, :, ky, kx], optimize=True
            )
    return sums
