"""Strategy reinforce: the estimate against the exact gradient of the expected reward, and what it learns from."""

import itertools
import math

import pytest
import torch
from search_hosts import searchable

from nasb.search import SearchConfig
from nasb.search.searcher import Searcher
from nasb.search.strategies import Compared


def searcher_of(**options):
    network, backbone, _, _ = searchable(4, 6, nodes=1, operations=["identity", "bin_conv_1x1", "bin_conv_3x3"])
    return Searcher(network, backbone, SearchConfig(strategy="reinforce", **({"budget": 1.6} | options)))


def test_the_estimate_is_the_written_formula():
    searcher = searcher_of(paths=3)
    count = len(searcher.edges)
    choices = [(0,) * count, (1,) * count, (0, 1) * (count // 2) + (0,) * (count % 2)]
    relevant = [(True,) * count, (True, False) * (count // 2) + (True,) * (count % 2), (True,) * count]
    losses, penalties = [1.0, 3.0, 2.5], [0.5, 0.0, 0.25]
    compared = [Compared(*row) for row in zip(choices, relevant, losses, penalties, strict=True)]
    surrogate = searcher.strategy.observe(compared, 0.5)
    found = torch.autograd.grad(surrogate, searcher.alphas())
    rewards = [-(a + b) for a, b in zip(losses, penalties, strict=True)]
    for at, (edge, gradient) in enumerate(zip(searcher.edges, found, strict=True)):
        expected = torch.zeros(len(edge.names))
        for i, reward in enumerate(rewards):
            baseline = sum(r for j, r in enumerate(rewards) if j != i) / 2
            one = torch.nn.functional.one_hot(torch.tensor(choices[i][at]), len(edge.names))
            if relevant[i][at]:
                expected += (baseline - reward) * (one - edge.alpha.detach().softmax(0)) / 3
        torch.testing.assert_close(gradient, expected)


def test_the_estimate_is_unbiased():
    """Its mean over many steps is the gradient of the expected objective, summed over all architectures."""
    searcher = searcher_of(paths=4, budget_weight=0.7)
    with torch.no_grad():
        for edge in searcher.edges:
            edge.alpha.copy_(torch.randn(len(edge.names)) * 0.7)
    effects = [torch.randn(len(names)) for names in searcher.space.names]

    def loss_of(choice):
        live = searcher.space.choice(searcher.space.cells(choice))
        return sum(float(effect[i]) for effect, i in zip(effects, live, strict=True))

    alphas = searcher.alphas()
    logs = [alpha.log_softmax(0) for alpha in alphas]
    exact = torch.zeros(())
    for choice in itertools.product(*(range(len(names)) for names in searcher.space.names)):
        cost = searcher.cost.of(searcher.space.cells(choice))
        value = loss_of(choice) + 0.7 * abs(math.log(cost / searcher.budget))
        exact = exact + value * torch.stack([log[i] for log, i in zip(logs, choice, strict=True)]).sum().exp()
    expected = torch.cat(torch.autograd.grad(exact, alphas))

    generator, estimates = torch.Generator().manual_seed(0), []

    def descend(surrogate):
        gradients = torch.autograd.grad(surrogate, alphas, allow_unused=True, materialize_grads=True)
        estimates.append(torch.cat(gradients))

    searcher._descend = descend
    for _ in range(2500):
        searcher.alpha_step(lambda: torch.tensor(loss_of(searcher.space.selected())), generator, progress=0.5, epoch=0)
    estimates = torch.stack(estimates)
    error = estimates.std(0) / math.sqrt(len(estimates))
    assert ((estimates.mean(0) - expected).abs() <= 4 * error + 1e-6).all()
    assert (expected.abs() > 6 * error).sum() > len(expected) / 3  # most of it stands out of the noise


def test_a_step_moves_alpha_to_what_lowers_the_loss_and_leaves_the_weights():
    searcher = searcher_of(budget_weight=0.0)
    good = next(at for at, (_, key, _) in enumerate(searcher.named) if key == (0, 2, True))
    edge, weights = searcher.edges[good], [p.detach().clone() for p in searcher.weights()]
    generator = torch.Generator().manual_seed(0)
    before = edge.alpha.detach().softmax(0)[2]
    for _ in range(60):
        searcher.alpha_step(
            lambda: torch.tensor(-1.0 * (searcher.space.selected()[good] == 2)), generator, progress=0.5, epoch=0
        )
    assert edge.alpha.detach().softmax(0)[2] > max(0.9, before)
    assert all(torch.equal(a, b) for a, b in zip(weights, searcher.weights(), strict=True))


def test_the_budget_is_part_of_the_reward():
    searcher = searcher_of(budget_weight=2.0, budget=1.15)
    with torch.no_grad():
        for edge in searcher.edges:
            edge.alpha.zero_()[-1] = 2.0
    generator = torch.Generator().manual_seed(0)
    dear = searcher.expected_cost()
    assert dear > 1.2 * searcher.budget
    for _ in range(80):
        searcher.alpha_step(lambda: torch.tensor(1.0), generator, progress=0.5, epoch=0)
    assert searcher.expected_cost() == pytest.approx(searcher.budget, rel=0.15)
