"""Tiny hosts, their searchable networks and the OPs of their backbones."""

from itertools import pairwise

import torch
from torch import nn

from nasb.cells import CellConfig
from nasb.cost import count
from nasb.networks.convert import convert

SHAPE = (1, 8, 8)


def chain(*widths, stride=2):
    """A stem 1x1 (so that cells cost most), a convolution 3x3 for each further width, a classifier."""
    layers = [nn.Conv2d(1, widths[0], 1, bias=False), nn.BatchNorm2d(widths[0])]
    for index, (before, after) in enumerate(pairwise(widths)):
        layers += [nn.Conv2d(before, after, 3, stride if index == 0 else 1, 1, bias=False), nn.BatchNorm2d(after)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 2))


def searchable(*widths, nodes=1, operations=None, stride=2, **config):
    """Return (searchable network, OPs of the backbone alone, host, config of the cells)."""
    torch.manual_seed(0)
    host, cell = chain(*widths, stride=stride), CellConfig(nodes=nodes, **config)
    network = convert(host, SHAPE, cell=cell, search=True, operations=operations)
    return network, count(convert(host, SHAPE, cell=cell), SHAPE).ops, host, cell
