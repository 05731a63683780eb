"""Random weights for timing: every branch of a network alive, as after training."""

import torch
from torch import nn

from nasb.binary import Binarize, RPReLU
from nasb.networks import create_network


def random_network(name: str, seed: int = 0) -> nn.Module:
    """Return a registered network for 224x224 in evaluation mode, all its parameters and statistics random."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = create_network(name).eval()
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.normal_(0, 0.2, generator=generator)
        for layer in network.modules():
            if isinstance(layer, Binarize | RPReLU):
                for parameter in layer.parameters():
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        # Running statistics of its own signals, so that no layer drowns in the shortcut.
        for norm in norms:
            norm.momentum, norm.training = 1.0, True
        network(torch.randn(4, 3, 224, 224, generator=generator))
    return network.eval()
