"""Start the processes of a run, one a device, and watch over them: torchrun's own agent, with errors of one line.

A process that fails or is killed ends all of them. What the first of them has to say is said once.
"""

import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nasb.errors import StoppedError, UserError
from nasb.training.config import HardwareConfig

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

MESSAGES = "NASB_RANK_MESSAGES"
"""Environment variable: the folder in which a launched process leaves its last message."""
WITHIN = 45
"""Seconds in which processes have to end (their step, their checkpoint) once one has failed or all are to stop."""
PORT = "29500"
PR_SET_PDEATHSIG = 1
FEW = 4
"""Processes that any machine may start, though it have fewer processors."""


def is_launched() -> bool:
    """Return whether this is one of the processes that `launch` or torchrun has started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def end_with_launcher() -> None:
    """Let Linux stop this process by SIGTERM once its launcher is killed: it would train on, and hold the lock."""
    if sys.platform == "linux" and MESSAGES in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def leave_message(message: str, kind: str) -> bool:
    """Leave an error message to the launcher; return False where there is none."""
    folder = os.environ.get(MESSAGES)
    if folder is None:
        return False
    text = json.dumps({"kind": kind, "message": message})
    Path(folder, f"{os.environ['RANK']}.json").write_text(text, encoding="utf-8")
    return True


def launch(arguments: Sequence[str], hardware: HardwareConfig, out: Path) -> None:
    """Run ``python -m nasb`` with the arguments in `hardware.devices` processes, of `hardware.nodes` machines.

    With several machines, each runs this; MASTER_ADDR is the name of the first one, NODE_RANK (or Slurm's
    SLURM_NODEID) its own number, MASTER_PORT a free port of the first one (29500 by default).

    Raises:
        UserError: more processes than this machine has processors; what the processes have failed from.
        StoppedError: SIGINT or SIGTERM came.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if hardware.devices > max(processors, FEW):
        raise UserError(
            f"hardware.devices is {hardware.devices}, one process each, but this machine has {processors} processors"
        )
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="nasb-ranks-") as folder:
        config = LaunchConfig(
            min_nodes=hardware.nodes,
            max_nodes=hardware.nodes,
            nproc_per_node=hardware.devices,
            run_id=os.environ.get("SLURM_JOB_ID", "nasb") if hardware.nodes > 1 else uuid.uuid4().hex,
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            **_meeting(hardware.nodes),  # type: ignore[arg-type]
        )
        if hasattr(config, "shutdown_timeout"):  # older torch waits 30 seconds
            config.shutdown_timeout = WITHIN
        os.environ[MESSAGES] = folder
        logging.disable(logging.ERROR)  # the agent's own report of a failure
        try:
            elastic_launch(config, sys.executable)("-m", "nasb", *arguments)
        except ChildFailedError as error:
            rank = _first(error.failures)
            raise UserError(_told(Path(folder)) or _died(rank, error.failures[rank], Path(folder), out)) from None
        except SignalException:
            raise StoppedError(_told(Path(folder)) or f"stopped; {going_on(out)}") from None
        finally:
            logging.disable(logging.NOTSET)
            del os.environ[MESSAGES]


def going_on(out: Path) -> str:
    """Say how a run that has been cut short goes on."""
    return f"{out}: the same command goes on from the last checkpoint, on any number of processes"


def _meeting(nodes: int) -> dict[str, object]:
    """Return where the machines find each other."""
    if nodes == 1:
        return {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
    address, number = os.environ.get("MASTER_ADDR"), os.environ.get("NODE_RANK", os.environ.get("SLURM_NODEID"))
    if address is None or number is None or not number.isdecimal() or not int(number) < nodes:
        raise UserError(
            f"hardware.nodes is {nodes}: set MASTER_ADDR to the first machine's name and NODE_RANK to this one's "
            f"number, 0 to {nodes - 1}, on each of them (given: {address}, {number})"
        )
    port = os.environ.get("MASTER_PORT", PORT)
    return {
        "rdzv_backend": "static",
        "rdzv_endpoint": f"{address}:{port}",
        "rdzv_configs": {"rank": int(number), "timeout": 900},
    }


def _first(failures: "dict[int, ProcessFailure]") -> int:
    """Return the rank with which it began: killed; else failed; the agent itself ends the others by SIGTERM."""
    return min(failures, key=lambda rank: ((code := failures[rank].exitcode) == -signal.SIGTERM, code >= 0, rank))


def _told(folder: Path, *, lost: bool = False) -> str | None:
    """Return the message of the lowest rank that has an error of its own; or, if `lost`, from another rank's end."""
    for path in sorted(folder.glob("*.json"), key=lambda path: int(path.stem)):
        entry = json.loads(path.read_text(encoding="utf-8"))
        if (entry["kind"] == "LostRankError") == lost:
            return str(entry["message"])
    return None


def _died(rank: int, failure: "ProcessFailure", folder: Path, out: Path) -> str:
    """Say how a process has ended that has left no error of its own."""
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        hint = " (by the system, if it was short of memory)" if name == "SIGKILL" else ""
        return f"rank {rank} (process {failure.pid}) was ended by {name}{hint}; all were stopped. {going_on(out)}"
    return _told(folder, lost=True) or (
        f"rank {rank} (process {failure.pid}) has failed with exit code {failure.exitcode}, see above; {going_on(out)}"
    )
