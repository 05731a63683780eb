"""Every strategy finds the operation that a task needs, among others of the same cost."""

import pytest
from planted_task import BLIND, NEEDED, OPERATIONS, accuracy_with, search, search_of

from nasb.search import STRATEGIES


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_every_strategy_finds_the_needed_operation(strategy):
    searcher = search_of(strategy)
    (edge,) = searcher.edges
    assert edge.names == tuple(OPERATIONS)
    assert edge.bops[OPERATIONS.index(NEEDED)] == edge.bops[OPERATIONS.index(BLIND)]
    before = edge.alpha.detach().softmax(0)
    assert float(before[OPERATIONS.index(NEEDED)]) < 0.4
    assert search(searcher, planted=True, steps=100) == [NEEDED]
    after = edge.alpha.detach().softmax(0)
    assert float(after[OPERATIONS.index(NEEDED)]) > 0.6


def test_the_task_needs_it():
    assert accuracy_with(NEEDED, planted=True) > 0.95
    for operation in OPERATIONS:
        if operation != NEEDED:
            # A mean over more or less alike pixels spreads more or less: that gives away a little, never a class.
            assert accuracy_with(operation, planted=True) < 0.75


def test_without_the_planted_pairs_it_is_at_chance():
    assert 0.42 < accuracy_with(NEEDED, planted=False) < 0.58


def test_a_search_that_learns_the_wrong_way_does_not_find_it():
    """Alpha that climbs the loss takes the other operation of the same cost: the budget alone does not decide."""
    searcher = search_of("gumbel")
    step = searcher.alpha_step
    searcher.alpha_step = lambda loss, *args, **options: step(lambda: -loss(), *args, **options)
    assert search(searcher, planted=True, steps=100) == [BLIND]
