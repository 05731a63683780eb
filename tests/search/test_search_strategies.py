"""Gradients of alpha against the written formulas, and what each strategy selects."""

import pytest
import torch
from search_hosts import searchable

from nasb.cells import CellConfig
from nasb.cells.adapt import ConvShape
from nasb.cells.operations import NONE
from nasb.cells.searchable import SearchableEdge, named_edges
from nasb.errors import UserError
from nasb.search import STRATEGIES, SearchConfig
from nasb.search.strategies import Strategy

NAMES = (NONE, "bin_conv_1x1", "bin_conv_3x3", "dil_bin_conv_3x3")


def edge_of(alpha=None):
    shape = ConvShape(in_channels=4, out_channels=4, kernel_size=(3, 3), padding=(1, 1), in_size=(6, 6))
    edge = SearchableEdge(NAMES, shape, CellConfig()).eval()
    edge.alpha.data.copy_(torch.randn(4) if alpha is None else torch.tensor(alpha))
    return edge


def strategy_of(name, edges, **options):
    starts = [edge.alpha.detach().softmax(0) for edge in edges]
    return STRATEGIES[name](edges, starts, SearchConfig(strategy=name, **options))


def values_of(edge, b, direction):
    """The scalar L_j = <y_j, direction> of each candidate; 0 for none."""
    values = [torch.zeros(())]
    values += [(edge.candidates[name](b) * direction).sum().detach() for name in NAMES[1:]]
    return torch.stack(values)


def gradient(edge, b, direction):
    y = edge(lambda: b)
    if y is None:
        return None, None
    value = (y * direction).sum()
    return torch.autograd.grad(value, edge.alpha, allow_unused=True)[0], value.detach()


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_gumbel_is_the_formula_under_the_same_noise(progress):
    edge = edge_of()
    strategy = strategy_of("gumbel", [edge], temperature=2.0, final_temperature=0.5)
    temperature = {0.0: 2.0, 0.5: 1.0, 1.0: 0.5}[progress]
    b, direction = torch.randn(2, 4, 6, 6).sign(), torch.randn(2, 4, 6, 6)
    values = values_of(edge, b, direction)
    chosen_of_all = set()
    for seed in range(12):
        strategy.select_for_alpha(torch.Generator().manual_seed(seed), progress)
        uniform = torch.rand(4, generator=torch.Generator().manual_seed(seed))
        noisy = edge.alpha.detach() - (-uniform.log()).log()
        chosen = int(noisy.argmax())
        chosen_of_all.add(chosen)
        found, value = gradient(edge, b, direction)
        if chosen == 0:
            assert found is None
            continue
        soft = (noisy / temperature).softmax(0)
        one = torch.nn.functional.one_hot(torch.tensor(chosen), 4)
        torch.testing.assert_close(value, values[chosen], rtol=1e-4, atol=1e-4)
        expected = values[chosen] * soft[chosen] * (one - soft) / temperature
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert len(chosen_of_all) > 1


def test_gumbel_samples_softmax_of_alpha():
    edge = edge_of([1.0, 0.0, -0.5, 0.3])
    strategy = strategy_of("gumbel", [edge])
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(4)
    for _ in range(4000):
        strategy.select_for_alpha(generator, 0.5)
        counts[edge.active[0]] += 1
    torch.testing.assert_close(counts / 4000, edge.alpha.detach().softmax(0), rtol=0, atol=0.03)


def test_gates_are_the_formula_of_proxylessnas():
    edge = edge_of()
    strategy = strategy_of("gates", [edge], pair_share=1.0)
    b, direction = torch.randn(2, 4, 6, 6).sign(), torch.randn(2, 4, 6, 6)
    values = values_of(edge, b, direction)
    pairs, ran = set(), set()
    for seed in range(30):
        strategy.select_for_alpha(torch.Generator().manual_seed(seed), 0.3)
        pair = list(edge.active)
        assert len(set(pair)) == 2
        pairs.add(tuple(sorted(pair)))
        found, value = gradient(edge, b, direction)
        open_gate = [j for j in pair if float(edge.gates[j].detach().round()) == 1]
        assert len(open_gate) == 1
        ran.add(open_gate[0])
        torch.testing.assert_close(value, values[open_gate[0]], rtol=1e-4, atol=1e-4)
        p = edge.alpha.detach()[pair].softmax(0)
        expected = torch.zeros(4)
        for i in range(2):
            for j in range(2):
                expected[pair[i]] += values[pair[j]] * p[j] * (float(i == j) - p[i])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert len(pairs) > 3
    assert len(ran) > 2


def test_gates_compare_the_share_of_edges_that_was_asked():
    edges = [edge_of([0.0, 0.0, 0.0, 0.0]) for _ in range(400)]
    strategy_of("gates", edges, pair_share=0.25).select_for_alpha(torch.Generator().manual_seed(0), 0.0)
    paired = sum(len(edge.active) == 2 for edge in edges)
    assert 70 < paired < 130
    assert all(edge.gates is None for edge in edges if len(edge.active) == 1)


def test_gates_of_a_certain_edge_draw_its_operation():
    edge = edge_of([-300.0, -300.0, 300.0, -300.0])
    strategy_of("gates", [edge], pair_share=1.0).select_for_alpha(torch.Generator().manual_seed(0), 0.0)
    assert edge.active == (2,)


def test_darts_is_the_gradient_of_the_mixture():
    edge = edge_of()
    strategy_of("darts", [edge]).select_for_alpha(torch.Generator(), 0.5)
    b, direction = torch.randn(2, 4, 6, 6).sign(), torch.randn(2, 4, 6, 6)
    values, p = values_of(edge, b, direction), edge.alpha.detach().softmax(0)
    found, value = gradient(edge, b, direction)
    torch.testing.assert_close(value, p @ values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, p * (values - p @ values), rtol=1e-4, atol=1e-4)


def test_weights_see_no_gradient_of_alpha():
    for name in STRATEGIES:
        edge = edge_of([-30.0, 0.0, 0.0, 0.0])
        strategy_of(name, [edge]).select_for_weights(torch.Generator().manual_seed(0), explore=False)
        value = edge(lambda: torch.randn(2, 4, 6, 6).sign()).square().sum()
        assert torch.autograd.grad(value, edge.alpha, allow_unused=True)[0] is None


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "darts"])
@pytest.mark.parametrize("explore", [True, False])
def test_weights_are_trained_on_single_paths_from_the_start_or_from_alpha(name, explore):
    edge = edge_of([1.0, 0.0, -0.5, 0.3])
    strategy = strategy_of(name, [edge])
    start = edge.alpha.detach().softmax(0)
    edge.alpha.data.copy_(torch.tensor([-1.0, 2.0, 0.0, 0.0]))
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(4)
    for _ in range(4000):
        strategy.select_for_weights(generator, explore=explore)
        (chosen,) = edge.active
        counts[chosen] += 1
    expected = start if explore else edge.alpha.detach().softmax(0)
    torch.testing.assert_close(counts / 4000, expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_every_strategy_lets_the_network_run_in_both_steps(name):
    network, _, _, _ = searchable(4, 6, nodes=2, operations=["identity", "bin_conv_1x1"])
    edges = [edge for _, _, edge in named_edges(network)]
    strategy = strategy_of(name, edges, pair_share=0.5)
    assert isinstance(strategy, Strategy)
    assert strategy.description
    assert STRATEGIES[name].__doc__
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 1, 8, 8)
    for _ in range(5):
        strategy.select_for_weights(generator, explore=False)
        assert network(x).shape == (4, 2)
        strategy.select_for_alpha(generator, 0.5)
        assert network(x).isfinite().all()


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_equal_generators_select_equal_paths(name):
    """What all ranks rely on."""
    selected = []
    for _ in range(2):
        edges = [edge_of([0.5, 0.1, 0.0, 0.2]) for _ in range(20)]
        strategy = strategy_of(name, edges, pair_share=0.5)
        generator = torch.Generator().manual_seed(7)
        strategy.select_for_weights(generator, explore=True)
        first = [tuple(edge.active) for edge in edges]
        strategy.select_for_alpha(generator, 0.5)
        selected.append((first, [tuple(edge.active) for edge in edges]))
    assert selected[0] == selected[1]


WRONG = [
    ({"strategy": "gumbell"}, r'unknown search strategy "gumbell"; known: .*closest: gumbel'),
    ({"budget": 0.9}, "search.budget is 0.9"),
    ({"budget": float("nan")}, "search.budget is nan"),
    ({"weights": "float"}, "search.weights is 'float'; accepted: binary, real"),
    ({"epochs": 0}, "search.epochs is 0"),
    ({"epochs": 10, "warmup_epochs": 10}, "warmup_epochs is 10; accepted with 10 .* strategy regression: 0 to 9"),
    ({"epochs": 10, "warmup_epochs": 11, "strategy": "tpe"}, "accepted with 10 .* strategy tpe: 0 to 10"),
    ({"uniform_paths": 1.5}, "search.uniform_paths is 1.5"),
    ({"pair_share": -0.1}, "search.pair_share is -0.1"),
    ({"temperature": 0}, "search.temperature is 0"),
    ({"alpha_learning_rate": 0.0}, "search.alpha_learning_rate"),
    ({"entropy_weight": -1}, "search.entropy_weight is -1"),
    ({"entropy_weight": float("nan")}, "search.entropy_weight is nan"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[str(options) for options, _ in WRONG])
def test_errors_of_the_config_name_the_key(options, message):
    with pytest.raises(UserError, match=message):
        SearchConfig(**options)
