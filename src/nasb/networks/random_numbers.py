"""randomize(): numbers for a network that nobody has trained, so that it can be timed.

A fresh network is no measure of speed or file size: ReActNet's weights all start positive, so that their bits are equal
and stored once; and without statistics of its own signals a deep network's values grow or vanish.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nasb.binary import Binarize, BinaryConv2d, BinaryLinear, RPReLU

IMAGES = 4
"""From which the statistics of batch norms are taken."""


@torch.no_grad()
def randomize(network: nn.Module, input_shape: Sequence[int], seed: int = 0) -> nn.Module:
    """Draw binary weights, thresholds, and the numbers of batch norms and activations; return the network to evaluate.

    Args:
        network: it is changed. Real weights stay as they are.
        input_shape: [channels, height, width].
        seed: equal seeds draw equal numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = []
    for layer in network.modules():
        if isinstance(layer, BinaryConv2d | BinaryLinear):
            layer.weight.normal_(0, 0.1, generator=generator)
        elif isinstance(layer, Binarize | RPReLU | nn.PReLU):
            for parameter in layer.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        elif isinstance(layer, _BatchNorm):
            norms.append((layer, layer.momentum))
            layer.momentum = None  # a plain mean over the batches: of one, its own
            layer.reset_running_stats()
            if layer.affine:
                layer.weight.uniform_(0.5, 1.5, generator=generator)
                layer.bias.normal_(0, 0.2, generator=generator)
    network.train()(torch.randn(IMAGES, *input_shape, generator=generator))
    for layer, momentum in norms:
        layer.momentum = momentum
    return network.eval()
