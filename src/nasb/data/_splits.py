"""Stratified choices: each class keeps its share, and which images are chosen is a function of the seed."""

import numpy as np

from nasb.data._draws import draw_bits, splitmix64
from nasb.data._sources import Integers
from nasb.seeding import derive_seed


def stratified_choice(
    targets: Integers, count: int, *, seed: int, purpose: str, at_least: int = 0, leave: int = 0
) -> Integers:
    """Choose `count` images so that each class has the same share, up to rounding.

    Args:
        targets: class number of each image.
        count: images to choose.
        seed: the run's seed.
        purpose: what the choice is for; choices for different purposes are independent.
        at_least: images of each class to choose at least (or all, where it has fewer).
        leave: images of each class not to choose.
    Returns:
        Indices in rising order. Fewer than `count` where `leave` does not allow more.
    """
    if targets.size == 0:
        return np.zeros(0, dtype=np.int64)
    sizes = np.bincount(targets)
    lowest = np.minimum(at_least, sizes)
    quota = _quotas(sizes, count, lowest, np.maximum(sizes - leave, lowest), derive_seed(seed, purpose, "ties"))
    bits_N = draw_bits(np.arange(targets.size), seed, purpose)
    order_N = np.lexsort((bits_N, targets))  # class by class, in random order within each
    first = np.cumsum(sizes) - sizes
    place_N = np.arange(targets.size) - first[targets[order_N]]
    return np.sort(order_N[place_N < quota[targets[order_N]]]).astype(np.int64)


def complement(count: int, chosen: Integers) -> Integers:
    """Return the numbers of 0..count-1 that are not in `chosen`, in rising order."""
    return np.setdiff1d(np.arange(count, dtype=np.int64), chosen, assume_unique=True)


def _quotas(
    sizes: Integers,
    count: int,
    lowest: Integers,
    highest: Integers,
    tie_seed: int,
) -> Integers:
    """Share `count` among the classes in proportion to their sizes, by largest remainders; ties fall at random."""
    share = sizes * (count / sizes.sum())
    ties = splitmix64(tie_seed, np.arange(sizes.size)) / 2.0**64
    quota: Integers = np.clip(np.floor(share).astype(np.int64), lowest, highest)
    count = int(np.clip(count, lowest.sum(), highest.sum()))
    while quota.sum() < count:
        lack = np.where(quota < highest, share - quota + 1e-6 * ties, -np.inf)
        quota[np.argmax(lack)] += 1
    while quota.sum() > count:
        excess = np.where(quota > lowest, quota - share + 1e-6 * ties, -np.inf)
        quota[np.argmax(excess)] -= 1
    return quota
