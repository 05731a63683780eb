"""Accumulators equal the reference's bit for bit: every kernel that this CPU runs, over all shapes of convolutions."""

import numpy as np
import pytest

import nasb_engine
from convolution_cases import CORNERS, LEVELS, Case, by_definition, by_torch, covering, model

pytest.importorskip("torch")

KERNELS = [kernel.name for kernel in nasb_engine.kernels() if kernel.compiled and kernel.supported]
FAST = [name for name in KERNELS if name != "reference"]
LARGEST = 40_000_000
"""MACs of a case of the covering design; the corners are larger."""
LARGEST_REFERENCE = 2_000_000
CASES = (*CORNERS, *covering(LEVELS, LARGEST))
CHUNKS = 20


def session(case: Case, kernel: str, threads: int = 1, **parameters: np.ndarray) -> nasb_engine.Session:
    _, weights = case.data()
    return nasb_engine.Session(model(case, weights, **parameters).SerializeToString(), threads=threads, kernel=kernel)


def test_every_kernel_is_tried() -> None:
    assert {"reference", "portable"} <= set(KERNELS)
    assert all(kernel.verified for kernel in nasb_engine.kernels() if kernel.name in KERNELS)


def test_the_cases_cover_what_they_should() -> None:
    used = {name: {getattr(case, name) for case in CASES} for name in LEVELS}
    for name in ("size", "kernel", "stride", "dilation", "pads", "pad_value", "batch", "groups"):
        assert used[name] >= set(LEVELS[name])
    assert max(case.inputs for case in CASES) >= 600
    pairs = {(case.kernel, case.stride, case.pad_value) for case in CASES}
    assert len(pairs) > 100


def test_the_two_oracles_agree() -> None:
    for case in [*CORNERS, *CASES[:: len(CASES) // 40]]:
        if case.macs < LARGEST:
            assert np.array_equal(by_torch(case, *case.data()), by_definition(case, *case.data())), str(case)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_accumulators(chunk: int) -> None:
    for case in CASES[chunk::CHUNKS]:
        images, weights = case.data()
        expected = by_torch(case, images, weights)
        random = case.random()
        scale = random.normal(0, 1, case.outputs).astype(np.float32)
        bias = random.normal(0, 10, case.outputs).astype(np.float32)
        # One rounding after the product and one after the sum.
        affine = expected * scale[:, None, None] + bias[:, None, None]
        for kernel in KERNELS if case.macs <= LARGEST_REFERENCE else FAST:
            exact = session(case, kernel, scale=scale, bias=bias)
            assert np.array_equal(exact.run(images), affine), f"{kernel}: {case}"
            found = exact.run(images, ["conv:accumulators"])["conv:accumulators"]
            assert np.array_equal(found, expected), f"{kernel}: accumulators of {case}"
            assert exact.profile(1)[-1].macs * case.batch == case.macs


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("kernel", FAST)
def test_threads(kernel: str, threads: int) -> None:
    for case in [*CORNERS, *CASES[:: len(CASES) // 15]]:
        images, _ = case.data()
        expected = session(case, kernel).run(images[:1])
        assert np.array_equal(session(case, kernel, threads).run(images[:1]), expected), str(case)


@pytest.mark.parametrize("pad_value", [-1, 0, 1])
def test_the_bodies_in_the_file_give_the_same(pad_value: int) -> None:
    functions = pytest.importorskip("nasb.deploy.functions").functions
    reference = pytest.importorskip("onnx.reference").ReferenceEvaluator
    for case in (
        Case(inputs=9, outputs=6, groups=3, size=(5, 7), stride=(2, 1), pad_value=pad_value, batch=2),
        Case(inputs=13, outputs=5, size=(6, 6), dilation=(2, 2), pads=(2, 1, 0, 3), pad_value=pad_value),
        Case(inputs=8, outputs=33, size=(3, 3), kernel=(1, 1), pads=(1, 0, 0, 1), pad_value=pad_value),
    ):
        images, weights = case.data()
        file = model(case, weights)
        file.functions.extend(functions())
        (expected,) = reference(file).run(None, {"images": images})
        for kernel in KERNELS:
            found = nasb_engine.Session(file.SerializeToString(), 1, kernel).run(images)
            assert np.array_equal(found, expected), f"{kernel}: {case}"
