import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasb.data._draws import draw_bits, shuffled, splitmix64
from nasb.data._splits import complement, stratified_choice


def test_splitmix64_is_the_published_generator() -> None:
    # First outputs for the state 1234567, from the generator's reference implementation (Vigna, splitmix64.c).
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(1234567, np.arange(5)).tolist() == expected


def test_draws_follow_from_seed_place_and_index_alone() -> None:
    bits = draw_bits(np.arange(100), 3, "augment", 7)
    assert draw_bits(np.array([42, 5]), 3, "augment", 7).tolist() == [bits[42], bits[5]]
    assert (draw_bits(np.arange(100), 3, "augment", 8) != bits).all()
    assert (draw_bits(np.arange(100), 4, "augment", 7) != bits).all()


def test_shuffled_is_a_permutation_that_depends_on_the_place() -> None:
    first, second = shuffled(1000, 0, "train", 0), shuffled(1000, 0, "train", 1)
    assert sorted(first) == list(range(1000))
    assert (first == second).mean() < 0.01


@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
    leave=st.integers(0, 1),
)
def test_stratified_choice_gives_each_class_its_share(counts: list[int], share: float, seed: int, leave: int) -> None:
    targets = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    count = round(share * targets.size)
    chosen = stratified_choice(targets, count, seed=seed, purpose="test", leave=leave)
    taken = np.bincount(targets[chosen], minlength=len(counts))
    most = np.array(counts) - leave

    assert len(set(chosen.tolist())) == len(chosen) == min(count, most.sum())
    assert (taken <= most).all()
    if (taken < most).all():  # else what a class could not give was shared among the others
        assert (np.abs(taken - np.array(counts) * count / targets.size) <= 1).all()
    assert sorted([*chosen, *complement(targets.size, chosen)]) == list(range(targets.size))


def test_at_least_one_of_a_rare_class() -> None:
    targets = np.repeat(np.arange(3), [100, 100, 2])
    chosen = stratified_choice(targets, 4, seed=0, purpose="limit", at_least=1)
    assert sorted(np.bincount(targets[chosen])) == [1, 1, 2]


def test_choices_differ_by_seed_and_by_purpose_and_repeat() -> None:
    targets = np.repeat(np.arange(10), 50)
    choices = [
        stratified_choice(targets, 100, seed=seed, purpose=purpose).tolist()
        for seed in (0, 1)
        for purpose in ("a", "b")
    ]
    assert len({tuple(choice) for choice in choices}) == 4
    assert choices[0] == stratified_choice(targets, 100, seed=0, purpose="a").tolist()


@pytest.mark.parametrize("count", [0, 10])
def test_nothing_to_choose_from(count: int) -> None:
    assert stratified_choice(np.zeros(0, np.int64), count, seed=0, purpose="a").size == 0
