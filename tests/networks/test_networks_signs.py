"""No sign sees an input of one side only, also after training has begun."""

import pytest
import torch
import torch.nn.functional as F

from nasb.binary import Binarize
from nasb.cost import count
from nasb.networks import create_network
from nasb.search import SearchConfig
from nasb.search.searcher import Searcher

SHAPE = (3, 8, 8)


def sides(network, x):
    """For each sign the shares of +1 of its channels' inputs, in all."""
    seen = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda module, inputs, name=name: seen.__setitem__(name, float((inputs[0] >= 0).double().mean()))
        )
        for name, layer in network.named_modules()
        if isinstance(layer, Binarize)
    ]
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    return seen


def train(network, parameters, before_step, steps=50):
    """Train on random images with random labels."""
    generator = torch.Generator().manual_seed(5)
    optimizer = torch.optim.Adam(parameters, lr=5e-3)
    network.train()
    for _ in range(steps):
        x = torch.randn(32, *SHAPE, generator=generator)
        target = torch.randint(0, 10, (32,), generator=generator)
        before_step(generator)
        optimizer.zero_grad()
        F.cross_entropy(network(x), target).backward()
        optimizer.step()


@pytest.mark.parametrize("activation", ["none", "prelu", "rprelu"])
def test_no_sign_of_a_hand_made_network_is_one_sided_after_50_steps(activation):
    network = create_network("bireal_resnet20", input_shape=SHAPE, width=8, activation=activation)
    train(network, network.parameters(), lambda generator: None)
    for mode in (True, False):
        seen = sides(network.train(mode), torch.randn(32, *SHAPE))
        assert len(seen) == 18
        assert all(0.02 < share < 0.98 for share in seen.values()), seen


def test_no_sign_of_a_searchable_network_is_one_sided_after_50_steps():
    network = create_network("nasb_resnet20", input_shape=SHAPE, width=8, activation="prelu", nodes=1)
    backbone = count(create_network("bireal_resnet20", input_shape=SHAPE, width=8, activation="prelu"), SHAPE).ops
    searcher = Searcher(network, backbone, SearchConfig(budget=1.5))
    train(network, searcher.weights(), lambda generator: searcher.select_for_weights(generator, warmup=False))
    for edge in searcher.edges:
        edge.select(None)  # every candidate, so that every sign is reached
    seen = sides(network, torch.randn(32, *SHAPE))
    assert len(seen) == 36
    assert all(0.02 < share < 0.98 for share in seen.values()), seen
