"""Architectures as choices: there and back, what matters on them, and how one is made to fit the budget."""

import pytest
import torch
from search_hosts import searchable

from nasb.search import SearchConfig
from nasb.search.derive import IDLE
from nasb.search.searcher import Searcher


def space_of(nodes=1, budget=1.6, **options):
    network, backbone, _, _ = searchable(4, 6, 6, nodes=nodes)
    return Searcher(network, backbone, SearchConfig(budget=budget, **options)).space


def random_choice(space, generator):
    return tuple(int(torch.randint(len(names), (), generator=generator)) for names in space.names)


@pytest.mark.parametrize("nodes", [0, 1, 2])
def test_a_choice_and_its_cells_are_one(nodes):
    space, generator = space_of(nodes), torch.Generator().manual_seed(nodes)
    for _ in range(20):
        cells = space.cells(random_choice(space, generator))
        choice = space.choice(cells)
        assert space.cells(choice) == cells
        space.select(choice)
        assert space.selected() == choice
        for name, cell in space.cost.cells.items():
            assert {(*k[:2], cell.edge(k).names[cell.edge(k).selected()]) for k in cell.live_edges()} == {
                (e.source, e.target, e.operation) for e in cells[name]
            }


@pytest.mark.parametrize("nodes", [0, 1, 2])
def test_what_matters_is_what_can_be_seen(nodes):
    """An edge matters if any operation on it would be part of the network, whatever stands there now."""
    space, generator = space_of(nodes), torch.Generator().manual_seed(nodes)
    seen = set()
    for _ in range(20):
        choice = random_choice(space, generator)
        for at, matters in enumerate(space.relevant(choice)):
            index = choice[at] or 1
            there = space.choice(space.cells((*choice[:at], index, *choice[at + 1 :])))[at] == index
            assert matters == there
            seen.add(matters)
    assert seen == ({True} if nodes == 0 else {True, False})


def test_what_fits_stays_and_what_does_not_is_brought_to_the_budget():
    space, generator = space_of(), torch.Generator().manual_seed(0)
    for _ in range(10):
        noise = space.noise(generator)
        drawn = space.draw(generator)
        assert space.fit(drawn, noise) == drawn
        dear = tuple(len(names) - 1 for names in space.names)  # 5x5 with dilation everywhere
        assert space.cost.of(space.cells(dear)) > space.budget
        for fill in (True, False):
            fitted = space.cells(space.fit(dear, noise, fill=fill))
            assert space.cost.of(fitted) <= space.budget
        nothing = (0,) * len(dear)
        assert space.fit(nothing, noise, fill=False) == nothing
        filled = space.cost.of(space.cells(space.fit(nothing, noise)))
        assert (1 - 2 * IDLE) * space.budget <= filled <= space.budget


def test_what_is_to_be_kept_goes_last():
    space, generator = space_of(), torch.Generator().manual_seed(1)
    *_, at = (at for at, (_, key, _) in enumerate(space.named) if key == (0, 2, True))
    fits = space.names[at].index("bin_conv_3x3")
    dear = [len(names) - 1 for names in space.names]
    dear[at] = fits
    stays, kept = [], []
    for _ in range(8):
        noise = space.noise(generator)
        stays.append(space.fit(dear, noise)[at] == fits)
        kept.append(space.fit(dear, noise, keep=(at,))[at] == fits)
    assert all(kept)
    assert not all(stays)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_an_architecture_is_drawn_for_any_budget(share):
    space = space_of(budget=1.8)
    budget = space.cost.backbone + share * (space.budget - space.cost.backbone)
    costs = [
        space.cost.of(space.cells(space.draw(torch.Generator().manual_seed(seed), budget=budget))) for seed in range(5)
    ]
    assert max(costs) <= budget
    assert min(costs) >= 0.9 * budget
