"""What this CPU has, and which kernels this build contains."""

from dataclasses import dataclass
from pathlib import Path

from nasb_engine import _core

# The flags of /proc/cpuinfo that matter to kernels of this kind.
_FLAGS = (
    *("sse4_2", "popcnt", "avx", "f16c", "fma", "avx2"),
    *("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vbmi", "avx512_bitalg", "avx512_vpopcntdq"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "sve", "sve2"),
)


@dataclass(frozen=True)
class Kernel:
    """A set of micro-kernels for binary convolutions."""

    name: str
    """What `Session(kernel=...)` takes."""
    compiled: bool
    """Whether this build contains it."""
    supported: bool
    """Whether this CPU can run it."""
    verified: bool
    """Whether it was equal to the reference kernel in this process's self-check."""
    note: str
    """Why it cannot be used, if so."""


def kernels() -> list[Kernel]:
    """Return all kernels that the engine knows, checked against the reference where this CPU can run them."""
    return [Kernel(**record) for record in _core.kernels()]


def cpu_name() -> str:
    """Return the CPU's name."""
    return _core.cpu_name()


def instruction_sets() -> list[str]:
    """Return those of the CPU's instruction sets that matter here, as Linux calls them; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            found = set(value.split())
            return [flag for flag in _FLAGS if flag in found]
    return []
