"""Freed memory is kept: a process that frees and asks again gets no new pages."""

import subprocess
import sys

import pytest

CODE = """
import resource
from nasb.training.memory import keep_freed_memory

def step():
    return len([bytearray(b"x") * size for size in (2**25, 2**23, 2**24, 2**23)])  # written to, then freed

kept = keep_freed_memory() if {keep} else None
step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*, keep: bool) -> tuple[str, int]:
    code = CODE.format(keep=keep)
    kept, faults = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    return kept, int(faults)


def test_freed_memory_is_kept_with_glibc() -> None:
    kept, faults = page_faults(keep=True)
    if kept == "False":
        pytest.skip("not glibc")
    assert faults < 100
    assert page_faults(keep=False)[1] > 1000
