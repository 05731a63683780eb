"""Plugin: what the claim's study trains as it is, beside conversions of hosts; their branches start with a gain.

- ``real_resnet20``: the real ResNet-20.
- ``study_NAME``: the hand-made binary network NAME.

``branch_gain`` is for them what `cell.branch_gain` is for conversions: the start of gamma of each batch norm whose
output is added to a shortcut (1, as published, by default). XNOR-Net's branches end in the convolution instead: the
gain is its scale's, which is the mean of the absolute weights; so its weights begin smaller, and flip more easily.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from nasb.binary import RPReLU
from nasb.networks.hosts import CIFAR
from nasb.networks.registry import create_host, register_rival
from nasb.networks.resnet_cifar import BasicBlock
from nasb.networks.rivals._resnet import BinaryUnit
from nasb.networks.rivals.abcnet import AbcBlock
from nasb.networks.rivals.bnn import BasicBlock as BnnBlock
from nasb.networks.rivals.groupnet import Branch
from nasb.networks.rivals.xnornet import PreActivationBlock

NAMES = ("abcnet_resnet20", "bnn_resnet20", "groupnet_resnet20", "irnet_resnet20", "reactnet_resnet20", "xnor_resnet20")


def ends_of_branches(network: nn.Module) -> Iterator[Tensor]:
    """Yield what scales the output of each branch: what `branch_gain` multiplies."""
    for module in network.modules():
        match module:
            case BasicBlock() | BnnBlock():
                yield module.bn2.weight
            case BinaryUnit():
                yield module.bn.weight
            case AbcBlock():
                yield module.layer2.bn.weight
            case Branch():
                yield module.layer1.bn.weight
                yield module.layer2.bn.weight
            case PreActivationBlock():
                yield module.conv2.weight


def start_branches(network: nn.Module, gain: float) -> nn.Module:
    """Multiply the start of each branch's output by `gain`; return the network."""
    with torch.no_grad():
        for scale in ends_of_branches(network):
            scale.mul_(gain)
    return network


def _builder(name: str) -> Callable[..., nn.Module]:
    def build(
        num_classes: int, in_channels: int, branch_gain: float = 1.0, slope: float = 0.25, **options: object
    ) -> nn.Module:
        network = create_host(name, num_classes=num_classes, in_channels=in_channels, options=options)
        for module in network.modules():
            if isinstance(module, RPReLU):
                nn.init.constant_(module.slope, slope)
        return start_branches(network, branch_gain)

    build.__doc__ = f"{name}, its branches started with a gain, its RPReLU with a slope."
    return build


register_rival("real_resnet20", input_shape=CIFAR, num_classes=10)(_builder("resnet20"))
for name in NAMES:
    register_rival(f"study_{name}", input_shape=CIFAR, num_classes=10)(_builder(name))
