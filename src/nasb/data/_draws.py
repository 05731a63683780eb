"""Random numbers as a pure function of (seed, place in the run, image index): a hash, not a generator that advances.

So a batch can be made again without making those before it, in any process, and the numbers do not change with the
version of NumPy or torch. The hash is SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014): output i of the stream whose state starts at the derived seed.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from nasb.data._sources import Integers
from nasb.seeding import derive_seed

Bits = npt.NDArray[np.uint64]


def splitmix64(start: int, positions: npt.NDArray[Any]) -> Bits:
    """Return the outputs at `positions` (0 is the first) of the SplitMix64 stream that starts at `start`."""
    # Unsigned array arithmetic wraps modulo 2**64, as the method asks.
    mixed = (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def draw_bits(indices: npt.NDArray[Any], seed: int, *place: int | str) -> Bits:
    """Return 64 random bits for each image index, at a place in the run such as ``"augment", epoch``."""
    return splitmix64(derive_seed(seed, *place), indices)


def shuffled(count: int, seed: int, *place: int | str) -> Integers:
    """Return the numbers 0..count-1 in random order."""
    return np.argsort(draw_bits(np.arange(count), seed, *place), kind="stable").astype(np.int64)
