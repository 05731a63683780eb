"""A file that was written once and for all: its layout cannot change unseen.

tests/golden/layout1.onnx is the export of `network()`. If the layout has to change, its version changes with it, and
this file stays: every engine reads every older layout.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from nasb.binary import Binarize, BinaryConv2d
from nasb.deploy import export_onnx
from nasb.deploy._interpreter import Interpreter

GOLDEN = Path(__file__).parents[1] / "golden" / "layout1.onnx"
SHAPE = (20, 1, 3)
# One row for each output channel and column of the kernel: 10 channels of the group; "-" is a stored 1.
SIGNS = ["-++--++++-", "++++++++++", "----------", "+-+-+-+-+-"]
BYTES = [[0b00011001, 0b10], [0, 0], [0b11111111, 0b11], [0b10101010, 0b10]]


def network():
    """Two groups of 10 channels, kernel 1x2, border +1, a threshold of 0.5, scale and bias."""
    conv = BinaryConv2d(20, 2, (1, 2), 1, (0, 1), 1, 2, bias=True, pad_value=1, scale="learned")
    with torch.no_grad():
        for row, signs in enumerate(SIGNS):
            conv.weight[row // 2, :, 0, row % 2] = torch.tensor([-0.5 if sign == "-" else 0.25 for sign in signs])
        conv.learned_scale.copy_(torch.tensor([0.5, -2.0]))
        conv.bias.copy_(torch.tensor([1.0, 0.25]))
    return nn.Sequential(Binarize(initial=0.5), conv, nn.Flatten()).eval()


def by_hand(images):
    """The logits, written as a sum over everything."""
    logits = np.zeros((len(images), 2, 4))
    for n, image in enumerate(images):
        for o in range(2):
            for column in range(4):
                total = 0
                for x in range(2):
                    for c in range(10):
                        weight = -1 if SIGNS[2 * o + x][c] == "-" else 1
                        at = column + x - 1
                        inside = 0 <= at < 3
                        total += weight * ((1 if image[10 * o + c, 0, at] >= 0.5 else -1) if inside else 1)
                logits[n, o, column] = (0.5, -2.0)[o] * total + (1.0, 0.25)[o]
    return logits.reshape(len(images), 8)


def test_the_golden_file_means_what_it_meant():
    images = np.random.default_rng(0).uniform(0, 1, (3, *SHAPE)).astype(np.float32)
    images[0, :5] = 0.5  # at the threshold: +1
    (logits,) = ReferenceEvaluator(str(GOLDEN)).run(None, {"images": images})
    np.testing.assert_array_equal(logits, by_hand(images))
    values = Interpreter(GOLDEN.read_bytes()).run(torch.from_numpy(images))
    np.testing.assert_array_equal(values.tensors["logits"].numpy(), by_hand(images))


def test_the_golden_bytes_are_those_of_the_document():
    model = onnx.load(GOLDEN)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert stored["1.W"].dtype == np.uint8
    assert stored["1.W"].shape == (2, 1, 2, 2)
    assert stored["1.W"].reshape(4, 2).tolist() == BYTES
    assert stored["1.scale"].tolist() == [0.5, -2.0]
    assert stored["1.bias"].tolist() == [1.0, 0.25]


def test_the_export_still_writes_the_golden_file(tmp_path):
    export_onnx(network(), tmp_path / "m.onnx", SHAPE, class_names=list("abcdefgh"))
    model, golden = onnx.load(tmp_path / "m.onnx"), onnx.load(GOLDEN)
    for one in (model, golden):  # the version of nasb that wrote it may differ
        one.producer_version = ""
        for entry in list(one.metadata_props):
            if entry.key == "nasb.version":
                one.metadata_props.remove(entry)
    assert model == golden
