"""Searcher: where alpha starts, its objective, what it reports, and random search from draw to derivation."""

import math

import pytest
import torch
from search_hosts import searchable

from nasb.cells.operations import NONE
from nasb.errors import UserError
from nasb.search import SearchConfig
from nasb.search.searcher import Searcher


def searcher_of(*widths, nodes=1, operations=None, **options):
    network, backbone, _, _ = searchable(*(widths or (4, 6, 6)), nodes=nodes, operations=operations)
    return Searcher(network, backbone, SearchConfig(**({"strategy": "gumbel"} | options)))


@pytest.mark.parametrize("nodes", [0, 1, 2])
@pytest.mark.parametrize("budget", [1.05, 1.1, 1.3, 1.5])
def test_the_start_meets_the_budget(nodes, budget):
    searcher = searcher_of(nodes=nodes, budget=budget)
    assert searcher.expected_cost() == pytest.approx(searcher.budget, rel=1e-3)
    assert searcher.report().ops_ratio == pytest.approx(budget, rel=1e-3)


@pytest.mark.parametrize("free_share", [0.0, 0.25, 0.9])
def test_at_the_start_operations_are_alike_and_free_edges_are_connected_by_their_share(free_share):
    searcher = searcher_of(nodes=2, budget=1.1, free_share=free_share)
    for _, (_, _, paid), edge in searcher.named:
        p = edge.alpha.detach().softmax(0)
        torch.testing.assert_close(p[1:], p[1].expand(len(p) - 1))
        if not paid:
            assert 1 - float(p[0]) == pytest.approx(free_share, abs=1e-4)
    paid_none = {round(float(e.alpha.detach().softmax(0)[0]), 4) for _, key, e in searcher.named if key[2]}
    assert len(paid_none) == 1


def test_a_network_that_cannot_be_searched_is_refused():
    with pytest.raises(UserError, match="no searchable edges"):
        searcher_of(operations=[NONE])


def test_weights_and_alphas_are_all_parameters_and_share_none():
    searcher = searcher_of()
    weights, alphas = {id(p) for p in searcher.weights()}, {id(p) for p in searcher.alphas()}
    assert weights | alphas == {id(p) for p in searcher.network.parameters()}
    assert not weights & alphas
    assert len(alphas) == len(searcher.edges)


def gradients_of(searcher, epoch=0, progress=0.5, loss=None):
    """The gradients of alpha in one step, by edge."""
    caught = []
    searcher.optimizer.step = lambda: caught.extend(a.grad for a in searcher.alphas() if a.grad is not None)
    zero = torch.zeros((), requires_grad=True)
    searcher.alpha_step(
        loss or (lambda: zero * 1.0),
        torch.Generator().manual_seed(0),
        progress=progress,
        epoch=epoch,
    )
    return caught


def set_none(searcher, logit):
    for _, (_, _, paid), edge in searcher.named:
        edge.alpha.data.zero_()
        edge.alpha.data[0] = logit if paid else 0.0


@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("above", [True, False])
def test_the_budget_pulls_from_both_sides(above, weight):
    searcher = searcher_of(nodes=0, operations=["bin_conv_1x1", "bin_conv_3x3"], budget=1.1, budget_weight=weight)
    set_none(searcher, -2.0 if above else 6.0)
    assert (searcher.expected_cost() > searcher.budget) is above
    found = gradients_of(searcher)
    alphas = [torch.nn.Parameter(alpha.detach().clone()) for alpha in searcher.alphas()]
    spent = searcher.cost.backbone
    for alpha, edge in zip(alphas, searcher.edges, strict=True):
        spent = spent + alpha.softmax(0) @ torch.tensor(edge.bops, dtype=torch.float32) / 64
    side = 1 if above else -1
    expected = torch.autograd.grad(side * weight * (spent / searcher.budget).log(), alphas)
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
        # A step goes against the gradient: none gains above the budget, the dearest operation below it.
        assert bool(one[0] < 0) is above
        assert bool(one[2] > 0) is above


def test_without_weight_the_budget_does_not_pull():
    searcher = searcher_of(nodes=0, budget_weight=0.0)
    set_none(searcher, -2.0)
    assert all(not gradient.any() for gradient in gradients_of(searcher))


def test_the_entropy_bonus_decays_and_raises_the_entropy():
    searcher = searcher_of(nodes=0, budget_weight=0.0, entropy_weight=2.0, entropy_decay=3.0)
    for edge in searcher.edges:
        edge.alpha.data.copy_(torch.randn(len(edge.names)))
    alphas = [torch.nn.Parameter(alpha.detach().clone()) for alpha in searcher.alphas()]
    entropies = [-(a.softmax(0) * a.log_softmax(0)).sum() for a in alphas]
    for epoch in (0, 6):
        bonus = 2.0 * math.exp(-epoch / 3) * sum(entropies) / len(entropies)
        expected = torch.autograd.grad(-bonus, alphas, retain_graph=True)
        for one, other in zip(gradients_of(searcher, epoch), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    searcher = searcher_of(nodes=0, budget_weight=0.0, entropy_weight=1.0)
    before = searcher.report().entropy
    zero = torch.zeros((), requires_grad=True)
    for _ in range(5):
        searcher.alpha_step(lambda: zero * 1.0, torch.Generator().manual_seed(0), progress=0.0, epoch=0)
    assert searcher.report().entropy > before


def test_an_alpha_step_moves_alpha_alone_and_returns_the_cross_entropy():
    searcher = searcher_of(strategy="darts")
    weights = [p.detach().clone() for p in searcher.weights()]
    alphas = [a.detach().clone() for a in searcher.alphas()]
    x = torch.randn(4, 1, 8, 8)
    target = torch.tensor([0, 1, 0, 1])
    losses = []

    def loss():
        losses.append(torch.nn.functional.cross_entropy(searcher.network(x), target))
        return losses[-1]

    value = searcher.alpha_step(loss, torch.Generator().manual_seed(0), progress=0.0, epoch=0)
    assert value == float(losses[0].detach())
    assert all(torch.equal(a, b) for a, b in zip(weights, searcher.weights(), strict=True))
    assert all(p.grad is None for p in searcher.network.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(alphas, searcher.alphas(), strict=True))


@pytest.mark.parametrize(("share", "explored"), [(0.0, 0), (0.2, 100), (1.0, 500)])
@pytest.mark.parametrize("warmup", [True, False])
def test_one_path_in_five_is_drawn_for_exploration(share, explored, warmup):
    searcher = searcher_of(uniform_paths=share)
    calls = []
    searcher.strategy.select_for_weights = lambda generator, explore: calls.append(explore)
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):
        searcher.select_for_weights(generator, warmup=warmup)
    if warmup:
        assert all(calls)
    else:
        assert sum(calls) == pytest.approx(explored, abs=25)


def test_random_search_derives_its_best_candidate_within_the_budget():
    searcher = searcher_of(nodes=1, strategy="random", budget=1.5, candidates=12)
    seen = []

    def judge(choices):
        losses = [float(torch.rand((), generator=torch.Generator().manual_seed(len(seen) + i))) for i in range(8)]
        seen.extend(zip(losses, choices, strict=False))
        return losses[: len(choices)]

    searcher.finish(judge, seed=3)
    assert len(seen) == searcher.judged_in_all() == 12
    assert len({choice for _, choice in seen}) == 12
    derived = searcher.derive()
    assert searcher.cost.of(derived) <= searcher.budget
    assert searcher.space.choice(derived) == min(seen)[1]


def test_the_score_is_the_log_probability_under_what_alpha_has_gained():
    searcher = searcher_of(nodes=1, budget=1.5)
    cells = searcher.draw(torch.Generator().manual_seed(1))
    even = -sum(math.log(len(edge.names)) for edge in searcher.edges)
    assert searcher.score(cells) == pytest.approx(even, rel=1e-5)  # alpha is where it began, whatever the budget
    (cell, (source, target, _), edge) = searcher.named[0]
    before = [e.operation for e in cells[cell] if (e.source, e.target) == (source, target)]
    index = next((edge.names.index(name) for name in before if name in edge.names), 0)
    with torch.no_grad():
        edge.alpha[index] += 1.0
    count = len(edge.names)
    expected = even + math.log(count) + 1 - math.log(math.e + count - 1)
    assert searcher.score(cells) == pytest.approx(expected, rel=1e-5)


def test_a_selected_architecture_is_what_runs():
    searcher = searcher_of(nodes=1, budget=1.5)
    cells = searcher.draw(torch.Generator().manual_seed(1))
    searcher.space.select(searcher.space.choice(cells))
    for name, cell in searcher.cost.cells.items():
        ran = {(*key[:2], cell.edge(key).names[cell.edge(key).selected()]) for key in cell.live_edges()}
        assert ran == {(e.source, e.target, e.operation) for e in cells[name]}


def test_the_report_counts_the_derived_operations_and_the_entropy():
    searcher = searcher_of(4, 4, nodes=0, operations=["bin_conv_1x1", "dil_bin_conv_3x3"], budget=3.0)
    (edge,) = searcher.edges
    edge.alpha.data.copy_(torch.tensor([0.0, 0.0, 0.0]))
    assert searcher.report().entropy == pytest.approx(1.0)
    edge.alpha.data.copy_(torch.tensor([0.0, 0.0, 3.0]))
    report = searcher.report()
    p = torch.tensor([0.0, 0.0, 3.0]).softmax(0)
    assert report.entropy == pytest.approx(float(-(p * p.log()).sum()) / math.log(3), rel=1e-5)
    assert report.histogram == {"dil_bin_conv_3x3": 1}


def test_a_collapse_is_told():
    # Nothing fits: the cheapest operation is above the budget.
    searcher = searcher_of(4, 4, nodes=0, operations=["bin_conv_5x5"], budget=1.011)
    assert "no binary convolution besides its backbone" in searcher.report().warning

    # Alpha gives up all paid operations, but the derivation fills the budget.
    searcher = searcher_of(nodes=1, budget=1.2)
    assert searcher.report().warning is None
    set_none(searcher, 15.0)
    assert '"none"' in searcher.report().warning

    # A budget that no choice can use up.
    searcher = searcher_of(4, 4, nodes=0, operations=["bin_conv_1x1"], budget=2.0)
    assert "of the budget unspent" in searcher.report().warning

    # Every edge is certain.
    searcher = searcher_of(4, 4, nodes=0, operations=["bin_conv_1x1", "bin_conv_3x3"], budget=1.5)
    (edge,) = searcher.edges
    edge.alpha.data.copy_(torch.tensor([0.0, 0.0, 30.0]))
    ratio = searcher.expected_cost() / searcher.cost.backbone
    searcher.space.budget = searcher.cost.backbone * ratio
    assert "entropy" in searcher.report().warning


@pytest.mark.parametrize("strategy", ["gumbel", "gates", "darts"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_leaves_alpha_alone(strategy, value):
    searcher = searcher_of(strategy=strategy)
    before = [edge.alpha.detach().clone() for edge in searcher.edges]

    def loss():
        return sum(edge.alpha.sum() for edge in searcher.edges) * value

    found = searcher.alpha_step(loss, torch.Generator().manual_seed(0), progress=0.5, epoch=0)
    assert not math.isfinite(found)
    assert all(torch.equal(edge.alpha, old) for edge, old in zip(searcher.edges, before, strict=True))


@pytest.mark.parametrize("strategy", ["regression", "reinforce"])
def test_a_loss_that_is_no_number_moves_nothing(strategy):
    searcher = searcher_of(strategy=strategy)
    values = iter([1.0, math.inf, *[1.0] * 50])
    found = searcher.alpha_step(
        lambda: torch.tensor(next(values)), torch.Generator().manual_seed(0), progress=0.5, epoch=0
    )
    searcher.end_epoch()
    assert not math.isfinite(found)
    assert all(torch.equal(edge.gain(), torch.zeros_like(edge.alpha)) for edge in searcher.edges)
    assert searcher.expected_cost() == pytest.approx(searcher.budget, rel=1e-3)


def test_free_operations_alone_are_no_collapse():
    searcher = searcher_of(operations=["identity", "avg_pool_3x3"], budget=1.3)
    assert searcher.collapse_of(searcher.derive()) is None
