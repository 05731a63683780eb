"""A search over whole architectures without images: the loss of each is a sum of what stands on its edges."""

import torch
from search_hosts import SHAPE, searchable

from nasb.cost import count
from nasb.networks.convert import convert
from nasb.search import SearchConfig
from nasb.search.searcher import Searcher


class Oracle:
    """Judges architectures by made-up effects of their operations, and counts what it is asked."""

    def __init__(self, searcher, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.effects = [torch.randn(len(names), generator=generator).tolist() for names in searcher.space.names]
        self.asked = []
        self.rounds = []

    def loss(self, choice):
        return sum(effect[index] for effect, index in zip(self.effects, choice, strict=True))

    def __call__(self, choices):
        self.asked += choices
        self.rounds.append(len(choices))
        return [self.loss(choice) for choice in choices]


OPERATIONS = ("identity", "bin_conv_1x1", "bin_conv_3x3", "dil_bin_conv_3x3")


def judging_searcher(strategy, **options):
    """Return a searcher whose strategy judges whole architectures, few of them."""
    network, backbone, host, cell = searchable(4, 6, 6, nodes=1, operations=OPERATIONS)
    bits = count(convert(host, SHAPE, cell=cell), SHAPE).memory_bits
    few = {"budget": 1.6, "trials": 20, "candidates": 20, "population": 8, "tournament": 3, "at_once": 4}
    return Searcher(network, backbone, SearchConfig(strategy=strategy, **(few | options)), backbone_bits=bits)
