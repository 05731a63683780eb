"""Every random number of a run follows from its one seed and from where in the run it is drawn.

No generator's state is carried along: the seed of a step is a hash of (seed, stage, epoch, step), so that a run which
is stopped and resumed at any step draws what the uninterrupted run draws.
"""

import hashlib


def derive_seed(seed: int, *place: int | str) -> int:
    """Return a seed in [0, 2**63) for a place in the run, e.g. ``derive_seed(0, "pretrain", epoch, step)``."""
    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
