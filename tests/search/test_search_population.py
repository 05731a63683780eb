"""Strategies that judge whole architectures: budgets, resuming, what random search and evolution propose."""

import json

import pytest
import torch
from judging import Oracle, judging_searcher

from nasb.errors import UserError
from nasb.search import STRATEGIES
from nasb.search.population import Judged

JUDGING = [name for name in STRATEGIES if STRATEGIES[name].judges]


def population_of(strategy, folder=None, oracle_seed=0, seed=5, **options):
    """Search; return (searcher, oracle)."""
    searcher = judging_searcher(strategy, **options)
    oracle = Oracle(searcher, oracle_seed)
    searcher.finish(oracle, seed=seed, folder=folder)
    return searcher, oracle


def test_these_are_the_strategies_that_judge():
    assert JUDGING == ["evolution", "nsga2", "random", "tpe"]
    assert all(not STRATEGIES[name].trains_alpha for name in JUDGING)


@pytest.mark.parametrize("strategy", JUDGING)
def test_all_are_within_the_budget_and_the_best_is_derived(strategy):
    searcher, oracle = population_of(strategy)
    space, population = searcher.space, searcher.strategy.population
    assert len(population) == searcher.judged_in_all() == 20
    assert len(oracle.asked) == len(set(oracle.asked))  # none is judged twice
    for judged in population:
        cells = space.cells(judged.choice)
        assert space.choice(cells) == judged.choice
        assert judged.loss == oracle.loss(judged.choice)
        assert judged.costs == space.costs_of(cells)
        assert judged.costs["ops"] <= searcher.budget
    best = min(population, key=lambda judged: judged.loss)
    derived = searcher.derive()
    if strategy == "nsga2":  # a point of the front, filled up
        assert set(space.cells(best.choice)) == set(derived)
        assert searcher.cost.of(derived) >= best.costs["ops"]
    else:
        assert space.choice(derived) == best.choice
        assert all(judged.costs["ops"] >= 0.95 * searcher.budget for judged in population)
    assert 0.95 * searcher.budget <= searcher.cost.of(derived) <= searcher.budget


@pytest.mark.parametrize("strategy", JUDGING)
def test_a_search_that_was_cut_off_anywhere_proposes_the_same(strategy, tmp_path):
    whole, oracle = population_of(strategy, tmp_path)
    expected = whole.strategy.population
    file = tmp_path / whole.strategy.file
    content = file.read_bytes()
    lines = content.splitlines(keepends=True)
    first = len(lines) - 20  # the journal names the study first
    for done, torn in ((6, b'{"number"'), (8, b""), (20, b"\xff")):
        file.write_bytes(b"".join(lines[: first + done]) + torn)
        searcher, again = population_of(strategy, tmp_path)
        assert searcher.strategy.population == expected
        assert again.asked == [choice for choice in oracle.asked if choice not in {j.choice for j in expected[:done]}]
        assert searcher.derive() == whole.derive()
    if strategy in ("random", "evolution"):
        assert file.read_bytes() == content
    else:  # trials have the time in them
        assert len(file.read_bytes().splitlines()) == len(lines)


@pytest.mark.parametrize("strategy", JUDGING)
def test_another_seed_is_another_search(strategy, tmp_path):
    searcher, _ = population_of(strategy, tmp_path)
    other, _ = population_of(strategy, seed=6)
    assert searcher.strategy.population != other.strategy.population
    with pytest.raises(UserError, match=f"{searcher.strategy.file} in the run directory is of another search"):
        population_of(strategy, tmp_path, seed=6)


def test_a_damaged_line_is_named(tmp_path):
    population_of("evolution", tmp_path)
    file = tmp_path / "population.jsonl"
    lines = file.read_text().splitlines()
    row = json.loads(lines[0])
    assert row["number"] == 0
    assert set(row) == {"number", "loss", "ops", "memory", "cells"}
    for damaged in ("{", json.dumps({"loss": 1.0}), json.dumps({"loss": 1.0, "cells": [1]}), "3"):
        file.write_text("\n".join([lines[0], damaged, *lines[2:]]) + "\n")
        with pytest.raises(UserError, match=r"population\.jsonl: line 2 is damaged"):
            population_of("evolution", tmp_path)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    for strategy, file in (("random", "population.jsonl"), ("tpe", "optuna.journal")):
        with pytest.raises(UserError, match=f"{file}: cannot be written"):
            population_of(strategy, tmp_path / "missing")


def test_a_loss_that_is_not_a_number_counts_as_the_worst():
    for strategy in JUDGING:
        searcher = judging_searcher(strategy)
        oracle = Oracle(searcher)
        searcher.finish(lambda choices, o=oracle: [float("nan") if o.loss(c) < -1 else o.loss(c) for c in choices])
        assert any(judged.loss == float("inf") for judged in searcher.strategy.population)
        best = searcher.strategy.best(1)[0]
        assert oracle.loss(best) >= -1


def test_nothing_of_a_round_is_judged_before_all_of_it_is_proposed():
    for strategy in JUDGING:
        one, _ = population_of(strategy, at_once=20, population=20)
        assert len(one.strategy.population) == 20
        rounds = population_of(strategy, at_once=5)[1].rounds
        assert len(rounds) == 4
        assert max(rounds) <= 5


def test_evolution_draws_mutates_and_lets_the_oldest_die():
    searcher, _ = population_of("evolution", trials=40)
    space, population = searcher.space, searcher.strategy.population
    changed = []
    for number in range(8, 40):
        start = number // 4 * 4
        living = population[max(0, start - 8) : start]
        differences = {
            parent.choice: sum(a != b for a, b in zip(parent.choice, population[number].choice, strict=True))
            for parent in living
        }
        assert 0 not in differences.values() or len({j.choice for j in population[:number]}) < number
        changed.append(min(differences.values()))
    assert sum(changed) / len(changed) < 4  # of 12 edges; the rest is what the budget asks
    dead = population[0].choice
    searcher.strategy.population = [Judged(dead, -100.0), *population[1:]]
    children = searcher.strategy.propose(range(40, 44))
    searcher.strategy.population = population
    assert children == searcher.strategy.propose(range(40, 44))  # the best of all is dead: nothing follows from it
    assert all(space.cost.of(space.cells(child)) <= searcher.budget for child in children)


def test_a_parent_is_the_best_of_those_that_are_drawn():
    searcher, _ = population_of("evolution", tournament=8)
    parents = []
    searcher.strategy.mutate = lambda parent, generator: parents.append(parent) or parent
    searcher.strategy.propose(range(20, 24))
    best = min(searcher.strategy.population[-8:], key=lambda judged: judged.loss)
    assert parents == [best.choice] * 4


@pytest.mark.parametrize("strategy", ["evolution", "tpe", "nsga2"])
def test_later_architectures_are_better_than_random_ones(strategy):
    for seed in (0, 1):
        searcher, _ = population_of(strategy, oracle_seed=seed, trials=64, population=16)
        losses = [judged.loss for judged in searcher.strategy.population]
        assert sum(losses[-16:]) / 16 < sum(losses[:16]) / 16 - 0.5


def test_candidates_are_the_best_ones_and_differ():
    searcher, _ = population_of("evolution")
    found = searcher.candidates(4, torch.Generator().manual_seed(0))
    assert [searcher.space.choice(cells) for cells in found] == searcher.strategy.best(4)
    assert found[0] == searcher.derive()


def test_candidates_of_alpha_use_the_budget_and_differ():
    searcher = judging_searcher("gumbel")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for edge in searcher.edges:
            edge.alpha += torch.randn(edge.alpha.shape, generator=generator)
    found = searcher.candidates(4, torch.Generator().manual_seed(0))
    assert found[0] == searcher.derive()
    assert len({searcher.space.choice(cells) for cells in found}) == 4
    assert all(0.95 * searcher.budget <= searcher.cost.of(cells) <= searcher.budget for cells in found)
    scores = [searcher.score(cells) for cells in found]
    drawn = [searcher.score(searcher.draw(generator)) for _ in range(4)]
    assert sum(scores) / 4 > sum(drawn) / 4 + 2.0  # near what alpha says
    assert len(searcher.candidates(1, torch.Generator())) == 1
