"""Hosts that convert() refuses: by the name of what it does not know."""

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from plain_hosts import SHAPE, Host, conv
from torch import nn

from nasb.errors import UserError
from nasb.networks.convert import convert


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.fc = conv(3, 8), conv(), nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv1(x)
        return self.fc((self.conv2(x) if x.sum() > 0 else x).mean((2, 3)))


class OwnTensor(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.fc = conv(3, 8), conv(), nn.Linear(8, 5)
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.fc(self.conv2(self.conv1(x) + self.shift).mean((2, 3)))


REFUSED = {
    "a layer": (
        Host(lambda s, x: s.norm(s.conv1(x)), conv1=conv(), norm=nn.GroupNorm(2, 8)),
        "layer norm is a GroupNorm, which is not known; known: .*BatchNorm2d",
    ),
    "a function": (Host(lambda s, x: torch.sin(s.conv1(x)), conv1=conv()), r"operation sin \(node sin"),
    "a method": (Host(lambda s, x: s.conv1(x).abs(), conv1=conv()), "operation abs"),
    "several functions": (
        Host(lambda s, x: torch.sin(torch.cos(s.conv1(x))), conv1=conv()),
        r'operation cos .*; to leave it and 1 more as they are: keep_real: \["cos", "sin"\]',
    ),
    "many layers": (
        Host(
            lambda s, x: s.norms(s.conv1(x)),
            conv1=conv(),
            norms=nn.Sequential(*(nn.Sequential(OrderedDict(norm=nn.GroupNorm(2, 8))) for _ in range(5))),
        ),
        r'to leave it and 4 more as they are: keep_real: \["\*norm"\]',
    ),
    "many layers whose last names others have": (
        Host(
            lambda s, x: s.blocks(x),
            blocks=nn.Sequential(*(nn.Sequential(conv(), nn.GroupNorm(2, 8)) for _ in range(5))),
        ),
        r'more as they are: keep_real: \["\*0\.1", "\*1\.1", "\*2\.1", "\*3\.1", "\*4\.1"\]',
    ),
    "a slice of the parts of a tensor": (
        Host(lambda s, x: torch.cat(torch.chunk(s.conv1(x), 4, dim=1)[::-1], 1), conv1=conv()),
        "operation chunk",
    ),
    "the parts of a tensor by keywords": (
        Host(lambda s, x: torch.cat(torch.chunk(input=s.conv1(x), chunks=2, dim=1), 1), conv1=conv()),
        "operation chunk",
    ),
    "control flow": (Branching(), "Branching can be traced neither by torch.fx .* nor by torch.export"),
    "a tensor": (OwnTensor(), "reads the tensor shift"),
    "a layer that is called twice at two sizes": (
        Host(lambda s, x: s.conv1(F.avg_pool2d(s.conv1(x), 2)), conv1=conv()),
        "layer conv1 is called 2 times, each time otherwise",
    ),
    "a layer that is called with two batch norms": (
        Host(
            lambda s, x: s.bn2(s.conv1(s.bn1(s.conv1(x)))), conv1=conv(), bn1=nn.BatchNorm2d(8), bn2=nn.BatchNorm2d(8)
        ),
        r'keep_real: \["conv1"\]',
    ),
    "nothing to binarize": (Host(lambda s, x: x), "the host has no convolution that could be binarized"),
    "only a depthwise convolution": (Host(lambda s, x: s.conv1(x), conv1=conv(groups=8)), "no convolution that could"),
    "padding by reflection": (
        Host(lambda s, x: s.conv1(x), conv1=conv(padding_mode="reflect")),
        r"layer conv1 pads by \(1, 1\) \(reflect\)",
    ),
    "padding that differs between the sides": (
        Host(lambda s, x: s.conv1(x), conv1=nn.Conv2d(8, 8, 4, padding="same")),
        "layer conv1 pads by 'same'",
    ),
    "a sigmoid before a sign": (
        Host(lambda s, x: s.conv1(s.sigmoid(x)), conv1=conv(), sigmoid=nn.Sigmoid()),
        r"sign in conv1\.binarize\.0 sees an input of one side only",
    ),
    "a ReLU before a sigmoid before a sign": (
        Host(lambda s, x: s.conv1(s.sigmoid(F.relu(x))), conv1=conv(), sigmoid=nn.Sigmoid()),
        r"sign in conv1\.binarize\.0 sees an input of one side only",
    ),
    "a softmax before a sign": (
        Host(lambda s, x: s.conv1(F.softmax(x, 1)), conv1=conv()),
        r"sign in conv1\.binarize\.0 sees an input of one side only",
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_known_is_refused_by_name(case):
    host, message = REFUSED[case]
    before = copy.deepcopy(host.state_dict())
    with pytest.raises(UserError, match=message):
        convert(host, SHAPE)
    assert all(torch.equal(value, before[key]) for key, value in host.state_dict().items())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 0, 8), (3, 8)])
def test_an_input_shape_that_does_not_fit_is_refused(shape):
    with pytest.raises(UserError, match="Host does not run on an input of shape"):
        convert(Host(lambda s, x: s.conv1(x), conv1=conv()), shape)


def test_images_that_no_machine_holds_are_refused():
    with pytest.raises(UserError, match=r"images of shape \(3, 10000000, 10000000\) cannot be made"):
        convert(Host(lambda s, x: s.conv1(x), conv1=conv()), (3, 10_000_000, 10_000_000))


def test_weights_that_are_no_numbers():
    host = Host(lambda s, x: s.conv1(x), conv1=conv())
    nn.init.constant_(host.conv1.weight, float("nan"))
    with pytest.raises(UserError, match="the output of Host is not a number; are its weights damaged"):
        convert(host, SHAPE)


@pytest.mark.parametrize("layer", ["conv1", "norm"])
def test_hooks_are_not_lost_without_a_word(layer):
    host = Host(lambda s, x: s.norm(s.conv1(x)), conv1=conv(), norm=nn.BatchNorm2d(8))
    host.get_submodule(layer).register_forward_hook(lambda module, inputs, output: output * 2)
    host.stem.register_forward_hook(lambda module, inputs, output: output + 1)  # stays, with its layer
    with pytest.raises(
        UserError, match=rf"{layer} has forward hooks, .* leave the convolution conv1 real \(keep_real\)"
    ):
        convert(host, SHAPE)
    host.get_submodule(layer)._forward_hooks.clear()
    x = torch.zeros(1, *SHAPE)
    found = convert(host, SHAPE).eval()
    assert torch.equal(found.stem(x), torch.ones(1, 8, *SHAPE[1:]))
