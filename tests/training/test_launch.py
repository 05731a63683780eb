"""`nasb run --devices 2`: stopped politely, killed, gone on with by another number of ranks; one line of errors."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from nasb.cli import main
from nasb.errors import UserError
from nasb.training import launch
from nasb.training.config import HardwareConfig


def start(config: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nasb", "run", "--config", str(config), "--out", str(out), "--devices", "2"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def when(process: subprocess.Popen[str], there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 900
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def last_line(process: subprocess.Popen[str], code: int = 2) -> str:
    """Return the line of the error; check that it is said once, and that nothing was killed without a word."""
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    lines = errors.splitlines()
    assert [line for line in lines if line.startswith("nasb: ")] == lines[-1:], errors
    return lines[-1]


def rank_pid(process: subprocess.Popen[str], rank: int) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        if f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError(children)


@pytest.mark.slow
def test_stopped_killed_and_gone_on_with_by_one_process(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(tiny, out)
    when(process, (out / "checkpoints" / "search.pt").exists)
    process.send_signal(signal.SIGTERM)
    assert "stopped in stage search" in (line := last_line(process, 130)), line
    assert line.endswith("the same command goes on from here")
    assert not (out / "stages.json").exists()

    process = start(tiny, out)
    when(process, (out / "checkpoints" / "pretrain.pt").exists)
    killed = rank_pid(process, 1)
    os.kill(killed, signal.SIGKILL)
    began = time.monotonic()
    line = last_line(process)
    assert time.monotonic() - began < 60
    assert f"rank 1 (process {killed}) was ended by SIGKILL" in line
    assert line.endswith("goes on from the last checkpoint, on any number of processes")
    assert set(json.loads((out / "stages.json").read_text())) == {"search"}

    assert main(["run", "--out", str(out), "--devices", "1"]) == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    stages = ("search", "pretrain", "finetune")
    assert [(row["stage"], row["epoch"]) for row in rows] == [(stage, epoch) for stage in stages for epoch in (0, 1)]
    assert (out / "summary.json").exists()


@pytest.mark.slow
def test_ranks_end_when_their_launcher_is_killed(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(tiny, out)
    when(process, (out / "checkpoints" / "search.pt").exists)
    process.kill()
    process.communicate(timeout=60)  # the ranks hold the other ends of its pipes
    assert main(["search", "--config", str(tiny), "--out", str(out)]) == 0


def leave(folder: Path, rank: int, kind: str, message: str) -> None:
    (folder / f"{rank}.json").write_text(json.dumps({"kind": kind, "message": message}))


def test_a_rank_leaves_its_message_to_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "1")
    assert main(["pack"]) == 2
    assert capsys.readouterr().err.startswith('nasb: rank 1: unknown command "pack"'), "torchrun has no such launcher"
    monkeypatch.setenv(launch.MESSAGES, str(tmp_path))
    assert main(["pack"]) == 2
    assert capsys.readouterr().err == ""
    assert launch._told(tmp_path) == json.loads((tmp_path / "1.json").read_text())["message"]


def test_the_first_rank_with_an_error_of_its_own_is_quoted(tmp_path: Path) -> None:
    assert launch._told(tmp_path) is None
    leave(tmp_path, 0, "LostRankError", "rank 0 has lost another rank")
    assert launch._told(tmp_path) is None
    failure = SimpleNamespace(pid=7, exitcode=2)
    assert launch._died(0, failure, tmp_path, Path("run")) == "rank 0 has lost another rank"  # type: ignore[arg-type]
    leave(tmp_path, 10, "UserError", "ten")
    leave(tmp_path, 2, "UserError", "two")
    assert launch._told(tmp_path) == "two"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (-9, "rank 3 (process 7) was ended by SIGKILL (by the system, if it was short of memory); all were stopped."),
        (-11, "rank 3 (process 7) was ended by SIGSEGV; all were stopped."),
        (1, "rank 3 (process 7) has failed with exit code 1, see above;"),
    ],
)
def test_what_is_said_of_a_rank_that_left_no_message(tmp_path: Path, code: int, says: str) -> None:
    failure = SimpleNamespace(pid=7, exitcode=code)
    message = launch._died(3, failure, tmp_path, Path("run"))  # type: ignore[arg-type]
    assert message == f"{says} run: the same command goes on from the last checkpoint, on any number of processes"


def test_it_began_with_the_rank_that_was_killed() -> None:
    def first(*codes: int) -> int:
        failures = {rank: SimpleNamespace(exitcode=code) for rank, code in enumerate(codes)}
        return launch._first(failures)  # type: ignore[arg-type]

    assert first(-signal.SIGTERM, 2, -signal.SIGKILL) == 2
    assert first(-signal.SIGTERM, 2, 1) == 1
    assert first(-signal.SIGTERM, -signal.SIGTERM) == 0


A = {"MASTER_ADDR": "a"}


def test_more_processes_than_processors_are_not_started(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hardware\.devices is 100000, .* this machine has \d+ processors"):
        launch.launch(["run"], HardwareConfig(devices=100_000), tmp_path)


@pytest.mark.parametrize("variables", [{}, A, {"NODE_RANK": "0"}, {**A, "NODE_RANK": "2"}, {**A, "NODE_RANK": "x"}])
def test_several_machines_need_to_find_each_other(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("MASTER_ADDR", "NODE_RANK", "SLURM_NODEID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    message = r"hardware\.nodes is 2: set MASTER_ADDR to the first machine's name and NODE_RANK to .* 0 to 1, on each"
    with pytest.raises(UserError, match=message):
        launch.launch(["run"], HardwareConfig(nodes=2), tmp_path)


def test_slurm_tells_the_number_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NODE_RANK", raising=False)
    for name, value in {"MASTER_ADDR": "node7", "MASTER_PORT": "1234", "SLURM_NODEID": "3"}.items():
        monkeypatch.setenv(name, value)
    meeting = launch._meeting(4)
    assert meeting["rdzv_endpoint"] == "node7:1234"
    assert meeting["rdzv_configs"] == {"rank": 3, "timeout": 900}
