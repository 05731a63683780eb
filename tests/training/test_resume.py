"""A run that is killed at any moment and started again gives what the uninterrupted one gives, to the last bit."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nasb.training.config import STAGES

SAME = ("architecture.json", "metrics.jsonl", "pretrained.safetensors", "model.safetensors")
COMMAND = [sys.executable, "-c", "import sys; from nasb.cli import main; sys.exit(main(sys.argv[1:]))"]


def start(config: Path, out: Path, *flags: str, command: str = "run") -> subprocess.Popen[str]:
    arguments = [*COMMAND, command, "--config", str(config), "--out", str(out), *flags]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


def kill_in_stage(config: Path, out: Path, stage: str, number: int, seen_checkpoints: int) -> None:
    """Start the run and send the signal when the stage has written that many checkpoints."""
    process = start(config, out)
    file = out / "checkpoints" / f"{stage}.pt"
    written: set[int] = set()
    deadline = time.monotonic() + 300
    while len(written) < seen_checkpoints:
        assert time.monotonic() < deadline
        assert process.poll() is None, f"ended before it could be stopped in {stage}: {process.communicate()[1]}"
        if file.exists():
            with contextlib.suppress(FileNotFoundError):
                written.add(file.stat().st_mtime_ns)
        time.sleep(0.002)
    os.kill(process.pid, number)
    process.communicate(timeout=300)
    assert process.returncode != 0


@pytest.mark.slow
def test_killed_in_each_stage_equals_uninterrupted(tiny: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(tiny, whole))
    for stage, checkpoints in zip(STAGES, (3, 8, 2), strict=True):
        kill_in_stage(tiny, killed, stage, signal.SIGKILL, checkpoints)
        assert not (killed / "summary.json").exists()
    log = finish(start(tiny, killed))
    assert "finetune: going on at epoch" in log
    for name in SAME:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    summaries = [json.loads((run / "summary.json").read_text()) for run in (whole, killed)]
    for summary in summaries:
        assert set(summary.pop("seconds")) == set(STAGES)
    assert summaries[0] == summaries[1]


@pytest.mark.slow
def test_stopped_politely_writes_a_checkpoint_and_goes_on(tiny: Path, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    text = tiny.read_text().replace("checkpoint_minutes: 0", "checkpoint_minutes: 60")
    tiny.write_text(text.replace("epochs: 2,", "epochs: 3,"))
    process = start(tiny, stopped)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("search epoch 0"):
            process.send_signal(signal.SIGTERM)
            break
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "the same command goes on from here" in errors
    assert "search: going on at epoch 1" in finish(start(tiny, stopped))


@pytest.mark.slow
def test_same_seed_same_result_other_seed_other_result(tiny: Path, tmp_path: Path) -> None:
    for out, flags in (("a", ()), ("b", ()), ("c", ("--seed", "1"))):
        finish(start(tiny, tmp_path / out, "--architecture", "backbone", *flags))
    a, b, c = ((tmp_path / out / "model.safetensors").read_bytes() for out in "abc")
    assert a == b
    assert a != c
