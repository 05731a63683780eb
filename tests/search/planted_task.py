"""A task of which the one operation that solves it is known.

Pixels are +1 or -1 (and a little noise), each as likely as the other and each pair of neighbours independent, in both
classes. Only pixels four columns apart tell the classes: they are equal in class 1 and opposite in class 0 (with
probability 0.9). A dilated convolution 3x3 has taps four columns apart; a plain 3x3, of the same cost, reaches two at
most, a 1x1 none, and the host is made of 1x1 convolutions.
"""

import torch
import torch.nn.functional as F
from torch import nn

from nasb.cells import CellConfig
from nasb.cells.operations import NONE
from nasb.cost import count
from nasb.networks.convert import convert
from nasb.search import SearchConfig
from nasb.search.searcher import Searcher

SHAPE = (1, 6, 16)
OPERATIONS = [NONE, "bin_conv_1x1", "bin_conv_3x3", "dil_bin_conv_3x3"]
NEEDED, BLIND = "dil_bin_conv_3x3", "bin_conv_3x3"
CHANNELS = 8


def batch(generator, *, planted=True, images=64):
    """Return (images [N, 1, H, W], classes [N]); not `planted`: the labels are drawn apart from the images."""
    _, height, width = SHAPE
    labels = torch.randint(0, 2, (images,), generator=generator)
    kept = torch.rand(images, 1, height, width, generator=generator) < 0.9
    link = torch.where(kept, 1.0, -1.0) * (2.0 * labels - 1).view(-1, 1, 1, 1)
    x = torch.where(torch.rand(images, 1, height, width, generator=generator) < 0.5, 1.0, -1.0)
    for column in range(4, width):
        x[..., column] = x[..., column - 4] * link[..., column]
    x = x + 0.1 * torch.randn(x.shape, generator=generator)
    return x, (labels if planted else torch.randint(0, 2, (images,), generator=generator))


def search_of(strategy, seed=0):
    """Return a searcher over one cell with one paid edge, whose budget is exactly one convolution 3x3."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS)]
    layers += [nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU()]
    host = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 2))
    cell = CellConfig(nodes=0, activation="prelu", activation_slope=0.25, branch_gain=1.0)
    network = convert(host, SHAPE, cell=cell, search=True, operations=OPERATIONS)
    backbone = count(convert(host, SHAPE, cell=cell), SHAPE).ops
    budget = 1 + SHAPE[1] * SHAPE[2] * CHANNELS**2 * 9 / 64 / backbone
    judged = {"trials": 16, "population": 8, "tournament": 3, "at_once": 4}
    config = SearchConfig(strategy=strategy, budget=budget, temperature=1.0, pair_share=0.5, **judged)
    return Searcher(network, backbone, config)


def search(searcher, *, planted, steps, seed=0):
    """Train weights and alpha in turn, as the search stage does; return the derived operations."""
    network = searcher.network.train()
    generator = torch.Generator().manual_seed(100 + seed)
    optimizer = torch.optim.Adam(searcher.weights(), lr=1e-2)
    for step in range(steps):
        warmup = step < steps // 4
        x, target = batch(generator, planted=planted)
        searcher.select_for_weights(generator, warmup=warmup)
        optimizer.zero_grad()
        F.cross_entropy(network(x), target).backward()
        optimizer.step()
        if not warmup and searcher.strategy.trains_alpha:
            x, target = batch(generator, planted=planted)
            searcher.alpha_step(
                lambda x=x, target=target: F.cross_entropy(network(x), target),
                generator,
                progress=step / steps,
                epoch=0,
            )
            if step % 25 == 24:
                searcher.end_epoch()

    @torch.no_grad()
    def judge(choices):
        losses = []
        for choice in choices:
            searcher.space.select(choice)
            x, target = batch(torch.Generator().manual_seed(300 + seed), planted=planted, images=512)
            losses.append(float(F.cross_entropy(network(x), target)))
        return losses

    searcher.finish(judge, seed=seed)
    (edges,) = searcher.derive().values()
    return [edge.operation for edge in edges]


def accuracy_with(operation, *, planted, steps=80, seed=0):
    """Train with that operation alone on the edge; return the Top-1 on new images."""
    searcher = search_of("gumbel", seed)
    (edge,) = searcher.edges
    edge.select([edge.names.index(operation)])
    network = searcher.network.train()
    generator = torch.Generator().manual_seed(200 + seed)
    optimizer = torch.optim.Adam(searcher.weights(), lr=1e-2)
    for _ in range(steps):
        x, target = batch(generator, planted=planted)
        optimizer.zero_grad()
        F.cross_entropy(network(x), target).backward()
        optimizer.step()
    with torch.no_grad():
        x, target = batch(generator, planted=planted, images=1024)
        return float((network.eval()(x).argmax(1) == target).double().mean())
