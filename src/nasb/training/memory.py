"""Freed memory is kept for the next training step (Linux with glibc)."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Keep the memory that this process frees, for its own next use, instead of giving it back to the system.

    A training step frees what the next one asks for again. By default glibc gives large buffers back, or not, by a rule
    that depends on their order; each page that comes anew is a page fault, and first filled with zeros. What has been
    taken once stays with the process until it ends.

    Returns:
        Whether it took effect; it does not with other C libraries than glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_TRIM_THRESHOLD, -1) == 1 and mallopt(_M_MMAP_MAX, 0) == 1
