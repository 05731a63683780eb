"""The claim's study: trains every method of claim_methods.py, a row in results/claim.csv for each finished run.

    python studies/claim.py run --cifar10 DATA --fashion-mnist DATA --out RUNS     # goes on where it stands
    python studies/claim.py status
    python studies/claim.py final --cifar10 DATA --fashion-mnist DATA --out RUNS   # reads the test images, once

Each run is a run directory of nasb under RUNS; a run that was killed goes on from its checkpoint. Of finished runs
the exported file stays in results/models, those of trials that were not chosen excepted: `final` reads these, so that a
study over many days can change its machine.
"""

import argparse
import dataclasses
import fcntl
import hashlib
import json
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml
from claim_methods import BASE, METHODS, RACE, SEARCH_EPOCHS, SEEDS, SETS, TRIALS, Method
from result_rows import append, put, rows

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "claim.csv"
FINAL = ROOT / "results" / "claim-test.csv"
ARCHITECTURES = ROOT / "results" / "architectures"
MODELS = ROOT / "results" / "models"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
COLUMNS = (
    "set", "method", "seed", "learning_rate", "branch_gain", "validation_top1", "ops", "ops_ratio", "added_binary_macs",
    "bops", "flops", "memory_bits", "parameters", "epochs", "search_epochs", "search_seconds", "train_seconds",
    "architecture_hash", "config_hash", "commit", "torch", "cpu", "threads",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One training: a method on a data set with one trial's settings and a seed."""

    set: str
    method: str
    learning_rate: float
    branch_gain: float
    seed: int

    def row_key(self) -> tuple[str, ...]:
        """Return what finds its row in the CSV."""
        return (self.set, self.method, str(self.seed), f"{self.learning_rate:g}", f"{self.branch_gain:.4f}")

    def model(self) -> Path:
        """Return where its exported network is kept."""
        return MODELS / f"{self.folder()}.onnx"

    def folder(self) -> str:
        """Return its run directory's name."""
        return f"{self.set}/{self.method}/lr{self.learning_rate:g}-gain{self.branch_gain:.2f}-seed{self.seed}"


def key_of(row: dict[str, str]) -> tuple[str, ...]:
    """Return the same of a row as `Job.row_key`."""
    return tuple(row[name] for name in ("set", "method", "seed", "learning_rate", "branch_gain"))


def chosen_trial(done: list[dict[str, str]], data: str, method: str) -> tuple[float, float] | None:
    """Return a method's settings: the trial that is best on validation at the first seed, None while one is missing.

    The trials are its own, or those of the method that it is trained as. One that as many seeds were trained with, and
    that is better by their mean, is taken before it.
    """
    if (other := METHODS[method].as_in) is not None:
        return chosen_trial(done, data, other)
    results = {}
    for trial in TRIALS:
        keys = [Job(data, method, *trial, seed).row_key() for seed in METHODS[method].all_seeds(data)]
        found = {key_of(row): float(row["validation_top1"]) for row in done if key_of(row) in keys}
        if keys[0] not in found:
            return None
        results[trial] = [found[key] for key in keys if key in found]
    best = max(results, key=lambda trial: results[trial][0])
    seeds = len(results[best])
    return max((t for t in results if len(results[t]) == seeds), key=lambda trial: statistics.mean(results[trial]))


def planned(sets: Iterable[str], names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the data sets and methods of the study among these."""
    for data in sets:
        yield from ((data, name) for name in names if data in METHODS[name].sets())


def pending(done: list[dict[str, str]], sets: list[str], names: list[str]) -> Iterator[Job]:
    """Yield what can run now, the first methods first: a method's trials, then, when they are done, its other seeds."""
    finished, sealed = ({key_of(row) for row in found} for found in (done, rows(FINAL)))
    for data, name in planned(sets, names):
        method, trial = METHODS[name], chosen_trial(done, data, name)
        if trial is not None:
            jobs = [Job(data, name, *trial, seed) for seed in method.all_seeds(data)]
            # A run whose exported network is lost before its test images are read is done again.
            ready = {job for job in jobs if job.model().exists() or job.row_key() in sealed}
            yield from (job for job in jobs if job.row_key() not in finished or job not in ready)
        elif method.as_in is None:
            jobs = [Job(data, name, *trial, SEEDS[0]) for trial in TRIALS]
            yield from (job for job in jobs if job.row_key() not in finished)


class Runner:
    """Runs jobs, several at once.

    Args:
        roots: the folder of each data set.
        out: where the run directories are.
        workers: runs at once.
    """

    def __init__(self, roots: dict[str, str], out: Path, workers: int) -> None:
        self.roots, self.out, self.workers = roots, out, workers
        self.lock, self.running = threading.Lock(), set[Job]()
        self.searching: dict[Path, threading.Lock] = {}
        self.held: dict[Job, TextIO] = {}

    def run(self, names: list[str]) -> None:
        """Run until nothing is left of these methods."""
        with ThreadPoolExecutor(self.workers) as pool:
            for future in [pool.submit(self._work, names) for _ in range(self.workers)]:
                future.result()

    def _work(self, names: list[str]) -> None:
        while (job := self._take(names)) is not None:
            with self.held[job]:
                row = self._train(job)
            with self.lock:
                put(RESULTS, COLUMNS, row, key_of)
                self.running.discard(job)
                drop_models(job.set, job.method)
            print(f"{job.folder()}: validation Top-1 {float(row['validation_top1']):.2f}", flush=True)

    def _take(self, names: list[str]) -> Job | None:
        with self.lock:
            for job in pending(rows(RESULTS), [name for name in SETS if name in self.roots], names):
                if job not in self.running and self._is_ours(job):
                    self.running.add(job)
                    return job
        return None

    def _is_ours(self, job: Job) -> bool:
        """Whether no other process has the job's run directory; then it is held while the job runs."""
        path = self.out / f"{job.folder()}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self.held[job] = file
        return True

    def _train(self, job: Job) -> dict[str, Any]:
        method = METHODS[job.method]
        flags = run_flags(job.set, self.roots[job.set], method, job.seed)
        flags |= method.settings(job.learning_rate, job.branch_gain)
        out, search_seconds = self.out / job.folder(), 0.0
        if method.budget is not None:
            searched, search_seconds = self._architecture(job, method)
            given = json.loads(searched.read_text())
            # The method's own cells: they may differ from those of the search whose architectures it shares.
            for key in [key for key in flags if key.startswith("cell.")]:
                given["cell"][key.removeprefix("cell.")] = yaml.safe_load(flags.pop(key))
            file = out.with_name(f"{out.name}.json")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(given, indent=1) + "\n")
            flags["architecture"] = str(file)
        nasb("run", flags, out)
        job.model().parent.mkdir(parents=True, exist_ok=True)
        plugin = [f"--plugin={flags['plugin']}"] if "plugin" in flags else []
        _call(out, [Path(sys.executable).parent / "nasb", "export", out, "--output", job.model(), *plugin])
        return result_row(job, method, out, search_seconds)

    def _architecture(self, job: Job, method: Method) -> tuple[Path, float]:
        """Return the architecture of a job's seed and the seconds of its search: searched, or drawn at random.

        One that is in results/architectures is not searched again; the rows tell the seconds.
        """
        name = method.architectures(job.method)
        folder = self.out / job.set / name / f"search-seed{job.seed}"
        with self.lock:
            turn = self.searching.setdefault(folder, threading.Lock())
        flags = search_flags(run_flags(job.set, self.roots[job.set], METHODS[name], job.seed), METHODS[name])
        flags |= method.settings(job.learning_rate, job.branch_gain)  # those of the race
        kept = ARCHITECTURES / job.set / f"{name}-seed{job.seed}.json"
        with turn:
            if kept.exists():
                of_same = [row for row in rows(RESULTS) if (row["set"], row["method"]) == (job.set, name)]
                known = [float(row["search_seconds"]) for row in of_same if row["seed"] == str(job.seed)]
                return kept, max(known, default=0.0)
            file, seconds = folder / "architecture.json", 0.0
            if not method.random:
                nasb("search", flags, folder)
                seconds = float(json.loads((folder / "stages.json").read_text())["search"]["seconds"])
            elif not file.exists():
                program = Path(__file__).parent / "random_architecture.py"
                _call(folder, [sys.executable, program, *_words(flags), "--out", folder])
            if method.raced:
                seconds = sum(float(row["seconds"]) for row in json.loads((folder / "race.json").read_text()))
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(file.read_text())
            return kept, seconds


def run_flags(data: str, root: str, method: Method, seed: int) -> dict[str, str]:
    """Return what a run of a method is told."""
    return BASE | SETS[data] | {"data.root": root, "seed": str(seed)} | dict(method.flags)


def search_flags(flags: dict[str, str], method: Method) -> dict[str, str]:
    """Return what its search, or its drawing of a random architecture, is told."""
    raced = method.raced or not method.random
    return flags | {
        "architecture": "search",
        "search.budget": str(method.budget),
        "search.epochs": str(SEARCH_EPOCHS),
        "search.derive_candidates": str(RACE[0] if raced else 1),
        "search.race_epochs": str(RACE[1] if raced else 0),
    }


def nasb(command: str, flags: dict[str, str], out: Path) -> None:
    """Run a command of nasb; its output goes into a file beside the run directory."""
    _call(out, [Path(sys.executable).parent / "nasb", command, *_words(flags), "--out", out])


def _words(flags: dict[str, str]) -> list[str]:
    return [f"--{key}={value}" for key, value in flags.items()]


def _call(out: Path, command: list[str | Path]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(out.name + ".log").open("a") as log:
        subprocess.run(command, stdout=log, stderr=log, env=os.environ | ENVIRONMENT, check=True)


def result_row(job: Job, method: Method, out: Path, search_seconds: float) -> dict[str, Any]:
    """Return the row of a finished run."""
    summary = json.loads((out / "summary.json").read_text())
    environment = json.loads((out / "environment.json").read_text())
    seconds = sum(summary["seconds"].get(stage, 0.0) for stage in ("pretrain", "finetune"))
    return {
        **dataclasses.asdict(job), "learning_rate": f"{job.learning_rate:g}", "branch_gain": f"{job.branch_gain:.4f}",
        "validation_top1": f"{summary['validation_top1']:.2f}",
        **{name: summary[name] for name in ("ops", "bops", "flops", "memory_bits", "parameters")},
        "ops_ratio": f"{summary['ops_ratio']:.4f}", "added_binary_macs": f"{summary['added_binary_macs']:.4f}",
        "epochs": (BASE | dict(method.flags))["finetune.epochs"], "search_epochs": method.search_epochs(),
        "search_seconds": f"{search_seconds:.1f}", "train_seconds": f"{seconds:.1f}",
        "architecture_hash": _hash((out / "architecture.json").read_bytes()), "config_hash": _config_hash(out),
        "commit": commit(), "torch": environment["versions"]["torch"], "cpu": environment["cpu"], "threads": 1,
    }  # fmt: skip


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:10]


def _config_hash(out: Path) -> str:
    """Return the hash of a run's options, its seed included, without what tells where files are."""
    config = yaml.safe_load((out / "config.yaml").read_text())
    for key in ("architecture", "out", "plugin"):
        config.pop(key, None)
    config["data"].pop("root", None)
    return _hash(json.dumps(config, sort_keys=True).encode())


def commit() -> str:
    """Return the commit of the tree, "-dirty" if more than results differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", ".", ":!results", ":!docs")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def drop_models(data: str, name: str) -> None:
    """Delete the exported networks of a method's trials that were not chosen, once one is."""
    trial = chosen_trial(rows(RESULTS), data, name)
    if trial is not None:
        for other in TRIALS:
            if other != trial:
                Job(data, name, *other, SEEDS[0]).model().unlink(missing_ok=True)


def status(names: list[str]) -> None:
    """Print what is done, and what is left."""
    done = rows(RESULTS)
    left = list(pending(done, list(SETS), names))
    print(f"{len(done)} runs are in {RESULTS.name}; {len(left)} can run now (more follow when trials are chosen)")
    for data in SETS:
        for name, method in METHODS.items():
            trial = chosen_trial(done, data, name)
            if trial is None:
                continue
            keys = {Job(data, name, *trial, seed).row_key() for seed in method.all_seeds(data)}
            found = [float(row["validation_top1"]) for row in done if key_of(row) in keys]
            if not found:
                continue
            spread = f" +- {statistics.stdev(found):.2f}" if len(found) > 1 else ""
            print(f"{data:14} {method.label:42} {statistics.mean(found):6.2f}{spread} (n {len(found)}), trial {trial}")


def final(runner: Runner, names: list[str]) -> None:
    """Evaluate the chosen runs of methods on the test images, each once; nothing of them may be left to train."""
    done, sealed = rows(RESULTS), {key_of(row) for row in rows(FINAL)}
    for job in pending(done, list(runner.roots), names):
        sys.exit(f"{job.folder()} is not trained yet: finish `claim.py run`, or name --methods that are finished")
    columns = ("set", "method", "seed", "learning_rate", "branch_gain", "test_top1", "commit")
    jobs = []
    for data, name in planned(runner.roots, names):
        trial = chosen_trial(done, data, name)
        if trial is None:
            sys.exit(f"{data}: {name} has the settings of {METHODS[name].as_in}, whose trials are not trained yet")
        jobs += [Job(data, name, *trial, seed) for seed in METHODS[name].all_seeds(data)]
    for job in jobs:
        if job.row_key() in sealed:
            continue
        flags = run_flags(job.set, runner.roots[job.set], METHODS[job.method], job.seed)
        flags = {key: value for key, value in flags.items() if key.startswith("data.")}
        words: list[str | Path] = ["evaluate", job.model(), "--part", "test", "--json", *_words(flags)]
        result = subprocess.run(
            [Path(sys.executable).parent / "nasb", *words],
            env=os.environ | ENVIRONMENT, check=True, capture_output=True, text=True,
        )  # fmt: skip
        top1 = json.loads(result.stdout)["top1"]
        append(FINAL, columns, dict(zip(columns, (*job.row_key(), f"{top1:.2f}", commit()), strict=True)))
        print(f"{job.folder()}: test Top-1 {top1:.2f}", flush=True)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "status", "final"))
    for name in SETS:
        parser.add_argument(f"--{name}", metavar="FOLDER", help=f"where {name} is; without it, it is left out")
    parser.add_argument("--out", type=Path, default=Path("runs/claim"), help="the run directories")
    parser.add_argument("--workers", type=int, default=2, help="runs at once, one thread each (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="(default: all)")
    arguments = parser.parse_args()
    if arguments.command == "status":
        status(arguments.methods)
        return
    given = {name: getattr(arguments, name.replace("-", "_")) for name in SETS}
    runner = Runner({name: root for name, root in given.items() if root}, arguments.out, arguments.workers)
    if arguments.command == "run":
        runner.run(arguments.methods)
    else:
        final(runner, arguments.methods)


if __name__ == "__main__":
    main()
