"""Strategy regression: effects against a Gaussian process written out, and what a search makes of them."""

import math

import pytest
import torch
from search_hosts import searchable

from nasb.cells import CellConfig
from nasb.cells.adapt import ConvShape
from nasb.cells.operations import NONE
from nasb.cells.searchable import SearchableEdge
from nasb.search import Regression, SearchConfig
from nasb.search.searcher import Searcher
from nasb.search.strategies import Compared

FREE, PAID = (NONE, "avg_pool_3x3", "max_pool_3x3"), (NONE, "bin_conv_1x1", "bin_conv_3x3")


def regression_of(cells=6, config=None):
    """Edges 0 -> 1 (free) and 0 -> 2 (paid) of cells of two shapes in turn."""
    edges = []
    for index in range(cells):
        channels = 4 + 4 * (index % 2)
        shape = ConvShape(
            in_channels=channels, out_channels=channels, kernel_size=(3, 3), padding=(1, 1), in_size=(6, 6)
        )
        edges += [
            SearchableEdge(names, shape, CellConfig(), key)
            for names, key in ((FREE, (0, 1, False)), (PAID, (0, 2, True)))
        ]
    starts = [edge.alpha.detach().softmax(0) for edge in edges]
    return Regression(edges, starts, config or SearchConfig(strategy="regression"))


def compared(paths, losses):
    """Paths of which every edge matters."""
    return [
        Compared(tuple(path), (True,) * len(path), float(loss), 0.0) for path, loss in zip(paths, losses, strict=True)
    ]


def watch(strategy, effects, *, batches, noise, seed=0, paths=4):
    """Give a strategy losses that are linear in what is chosen; return (x, y), centred within each batch."""
    generator = torch.Generator().manual_seed(seed)
    rows, values = [], []
    for _ in range(batches):
        chosen = torch.randint(0, 3, (paths, len(strategy.edges)), generator=generator)
        one_hot = torch.nn.functional.one_hot(chosen, 3)[..., 1:].flatten(1).double()
        y = one_hot @ effects + noise * torch.randn(paths, generator=generator).double()
        y = y + torch.randn((), generator=generator)  # of the batch
        strategy.observe(compared(chosen.tolist(), y), 1.0)
        rows.append(one_hot - one_hot.mean(0))
        values.append(y - y.mean())
    return torch.cat(rows), torch.cat(values)


def test_effects_are_found_and_the_operations_ranked_by_them():
    strategy = regression_of()
    effects = torch.randn(24, generator=torch.Generator().manual_seed(3)).double()
    watch(strategy, effects, batches=2000, noise=0.5)
    found, tau = strategy.effects()
    torch.testing.assert_close(found, effects, rtol=0, atol=0.1)
    assert 0.2 < tau < 1.5
    evidence = torch.stack(strategy.evidence())
    assert (evidence[:, 0] == 0).all()
    torch.testing.assert_close(evidence[:, 1:].flatten().double(), -found / (tau * math.sqrt(3)), rtol=1e-5, atol=1e-5)


def test_noise_alone_tells_nothing():
    strategy = regression_of()
    watch(strategy, torch.zeros(24).double(), batches=300, noise=1.0)
    found, tau = strategy.effects()
    assert found.abs().max() < 0.15
    assert tau < 0.1


def test_cells_learn_from_each_other():
    """What is seen of one operation in eleven cells is expected of the twelfth, where it was never chosen."""
    strategy = regression_of(cells=12)
    effects = torch.tensor([0.0, -1.0, 0.0, 0.0] * 12).double()
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):
        chosen = torch.randint(0, 3, (4, 24), generator=generator)
        chosen[:, -2:] = 0
        y = torch.nn.functional.one_hot(chosen, 3)[..., 1:].flatten(1).double() @ effects
        strategy.observe(compared(chosen.tolist(), y + 0.3 * torch.randn(4, generator=generator)), 1.0)
    found = strategy.effects()[0].reshape(12, 4)
    assert found[-1, 1] < -0.5
    assert found[-1, [0, 2, 3]].abs().max() < 0.2


def test_effects_are_the_mean_of_a_gaussian_process_whose_evidence_is_the_greatest():
    strategy = regression_of(cells=4)
    effects = torch.randn(16, generator=torch.Generator().manual_seed(1)).double()
    x, y = watch(strategy, effects, batches=1, noise=0.5, paths=30)
    kinds = [("free", a) for a in (1, 2)] + [("paid", a) for a in (1, 2)]
    names = [(kind, cell % 2, cell) for cell in range(4) for kind in kinds]
    prior = torch.tensor([[(a[0] == b[0]) + (a[:2] == b[:2]) + (a == b) for b in names] for a in names]).double()
    basis = torch.linalg.eigh(torch.eye(30).double() - 1 / 30)[1][:, 1:]  # of what is left without the batch's mean
    x, y = basis.T @ x, basis.T @ y
    signal, best = x @ prior @ x.T, None
    for power in range(-16, 17):
        covariance = torch.eye(29).double() + 4.0**power * signal
        noise = float(y @ torch.linalg.solve(covariance, y)) / 29
        density = torch.distributions.MultivariateNormal(torch.zeros(29).double(), noise * covariance).log_prob(y)
        if best is None or density > best[0]:
            mean = 4.0**power * prior @ x.T @ torch.linalg.solve(covariance, y)
            best = float(density), math.sqrt(4.0**power * noise), mean
    found, tau = strategy.effects()
    assert tau == pytest.approx(best[1])
    torch.testing.assert_close(found, best[2])


def test_later_paths_weigh_more_and_the_state_comes_back():
    strategy, other = regression_of(), regression_of()
    seen = compared([[1] + [0] * 11, [0] * 12], [1.0, 2.0])
    strategy.observe(seen, 0.5)
    other.observe(seen, 1.0)
    assert torch.equal(2 * strategy.moment, other.moment)
    other.load_state_dict(strategy.state_dict())
    strategy.observe(seen, 1.0)
    other.observe(seen, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(strategy.evidence(), other.evidence(), strict=True))


def test_without_observations_alpha_stays_where_it_began():
    strategy = regression_of()
    assert all(not gain.any() for gain in strategy.evidence())


@pytest.fixture
def searcher():
    network, backbone, _, _ = searchable(4, 8, 8, nodes=1)
    return Searcher(network, backbone, SearchConfig(strategy="regression", budget=1.3))


def test_dead_edges_are_not_observed(searcher, monkeypatch):
    seen = []
    monkeypatch.setattr(searcher.strategy, "observe", lambda compared, progress: seen.append(compared))
    live = []

    def loss():
        live.append([len(cell.live_edges()) for cell in searcher.cost.cells.values()])
        return torch.tensor(float(len(live)))

    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        mean = searcher.alpha_step(loss, generator, progress=0.5, epoch=0)
        assert mean == sum(path.loss for path in seen[-1]) / searcher.config.paths
    observed = [sum(map(bool, path.live())) for paths in seen for path in paths]
    assert observed == [sum(cells) for cells in live]
    assert len(observed) == 20 * searcher.config.paths
    assert max(observed) > 0


def test_alpha_goes_to_what_helps_and_the_cost_stays(searcher):
    generator = torch.Generator().manual_seed(0)
    good = next(index for index, (_, _, edge) in enumerate(searcher.named) if "bin_conv_1x1" in edge.names)
    edge = searcher.named[good][2]
    column = edge.names.index("bin_conv_1x1")
    for _ in range(300):
        searcher.strategy.select_for_weights(generator, explore=False)
        paths = [[e.selected() for e in searcher.edges]]
        searcher.strategy.select_for_weights(generator, explore=False)
        paths.append([e.selected() for e in searcher.edges])
        searcher.strategy.observe(compared(paths, [-1.0 * (path[good] == column) for path in paths]), 1.0)
    before = edge.alpha.detach().softmax(0)[column]
    searcher.end_epoch()
    assert edge.alpha.detach().softmax(0)[column] > before
    assert searcher.expected_cost() == pytest.approx(searcher.budget, rel=1e-4)
    chosen = searcher.derive()[searcher.named[good][0]]
    assert (searcher.named[good][1][0], searcher.named[good][1][1], "bin_conv_1x1") in {
        (e.source, e.target, e.operation) for e in chosen
    }
    state, alphas = searcher.state_dict(), [e.alpha.detach().clone() for e in searcher.edges]
    searcher.load_state_dict(state)
    searcher.end_epoch()
    for e, alpha in zip(searcher.edges, alphas, strict=True):
        torch.testing.assert_close(e.alpha.detach(), alpha)
