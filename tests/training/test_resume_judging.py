"""A search that is killed while it judges architectures goes on, and comes to the same front."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from nasb.training.run_directory import read_config
from tests.training.test_resume import finish, start

FRONT = ("front.csv", "front.json", "architecture.json", "candidates.csv", "metrics.jsonl", "supernet.safetensors")
TRIALS = 12


@pytest.mark.slow
def test_an_optuna_search_that_is_killed_resumes_to_the_same_front(tiny: Path, tmp_path: Path) -> None:
    judging = f"strategy: nsga2, trials: {TRIALS}, population: 4, at_once: 4, derive_candidates: 2"
    tiny.write_text(tiny.read_text().replace("search: {epochs: 2,", f"search: {{{judging}, epochs: 2,"))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for out in (whole, killed):
        process = start(tiny, out, command="search")
        journal = out / "optuna.journal"
        while out is killed and judged(journal) < TRIALS // 2:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.002)
        if out is killed:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate(timeout=300)
            assert TRIALS // 2 <= judged(journal) < TRIALS
            assert not (out / "front.csv").exists()
            process = start(tiny, out, command="search")
        finish(process)
        assert judged(journal) == TRIALS
    assert read_config(killed) == read_config(whole)
    for name in FRONT:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    points = sorted(path.name for path in (whole / "front").iterdir())
    assert points == sorted(path.name for path in (killed / "front").iterdir())
    assert len((whole / "front.csv").read_text().splitlines()) == 1 + len(points) > 1


def judged(journal: Path) -> int:
    """Return how many architectures the journal holds; its first line is the study."""
    with contextlib.suppress(FileNotFoundError):
        return max(0, len(journal.read_bytes().splitlines()) - 1)
    return 0
