"""When binary pays, in small and with accuracies of our own: thin real ResNet-20s as fast, or as small, as NASB's.

    build/peers/env/bin/python studies/thin_real.py measure        # which widths; results/thin-real.csv
    # put the methods that it prints into studies/claim_methods.py; then
    python studies/claim.py run --cifar10 DATA --out RUNS          # trains them as any other method
    python studies/claim.py final --cifar10 DATA --out RUNS        # their test images
    build/peers/env/bin/python studies/thin_real.py int8 --cifar10 DATA --part test    # results/thin-real-int8.csv
    python studies/when_binary_pays.py --page                      # the page's last table

`measure` times what the search found for CIFAR-10, each seed's network, and the hand-made one in our engine, and the
real ResNet-20 with the strided stem of every width up to the host's in ONNX Runtime, fp32 and int8, as
studies/when_binary_pays.py does. For each precision it picks the widest network that takes no longer than NASB's, and
the widest whose file is no larger.
`int8` quantizes the exported files in results/models of those that are trained (static, per channel, calibrated on
training images as they are evaluated) and reads their Top-1 in ONNX Runtime, beside that of the file itself.
"""

import argparse
import csv
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from binary_pays_page import DATA, widths
from claim import ARCHITECTURES, FINAL, RESULTS, ROOT, Job, chosen_trial, key_of, run_flags
from claim_methods import METHODS
from result_rows import append, rows
from when_binary_pays import FIELDS, Runner, conditions, in_engine, onnx_runtime, real_files

SHAPE = (3, 32, 32)
OURS = ("nasb-1.37", "nasb-1.10", "bireal")
"""The first one is what the others are compared with."""
WIDTHS = range(2, 17)
MEASURED = ROOT / "results" / "thin-real.csv"
INT8 = ROOT / "results" / "thin-real-int8.csv"
INT8_FIELDS = (
    "set",
    "method",
    "seed",
    "part",
    "top1",
    "fp32_top1",
    "images",
    "calibration_images",
    "versions",
    "commit",
)
CALIBRATION_BATCHES = 4


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("measure", "int8"))
    parser.add_argument("--rounds", type=int, default=30, help="(default: %(default)s)")
    parser.add_argument("--note", default="", help="a word on the machine's state, into every row")
    parser.add_argument("--cifar10", metavar="FOLDER", help="where CIFAR-10 is, for int8")
    parser.add_argument("--part", default="validation", choices=("validation", "test"), help="(default: %(default)s)")
    given = parser.parse_args()
    if given.command == "int8":
        if given.cifar10 is None:
            parser.error("int8 needs --cifar10")
        int8(given.cifar10, given.part)
        return
    found = measure(given.rounds, given.note)
    with MEASURED.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(found)
    print("\n".join(method_lines(widths(found))))


def measure(rounds: int, note: str) -> list[dict[str, Any]]:
    """Return the rows of all networks: fields as in results/when-binary-pays.csv, real ones named real-WIDTH."""
    from nasb_engine import bench

    with tempfile.TemporaryDirectory(prefix="nasb-thin-") as folder:
        runners, facts = prepare(Path(folder))
        found = bench.compare(runners, rounds=rounds, seconds=0.02, clock=time.thread_time)
    common = conditions() | {
        "rounds": rounds, "threads": 1, "held_to": "", "note": note, "load": f"{os.getloadavg()[0]:.1f}"
    }  # fmt: skip
    of_first = len(files(OURS[0]))
    return [
        facts[one.name] | common | _spread("ms", one.milliseconds, 1 / len(files(one.name)), 4)
        | _spread("ratio", one.ratio, of_first / len(files(one.name)), 3)
        for one in found
    ]  # fmt: skip


def _spread(name: str, found: Any, factor: float, digits: int) -> dict[str, str]:
    parts = {name: found.median, f"{name}_q1": found.lower_quartile, f"{name}_q3": found.upper_quartile}
    return {key: f"{value * factor:.{digits}f}" for key, value in parts.items()}


def files(name: str) -> list[Path | None]:
    """Return a method's architectures, one for each seed; of a network that is not searched, the one None."""
    return sorted((ARCHITECTURES / DATA).glob(f"{name}-seed*.json")) if name.startswith("nasb") else [None]


def _binary(architecture: Path | None) -> Any:
    from nasb.cells.architecture import Architecture
    from nasb.networks import create_network

    if architecture is None:
        return create_network("bireal_resnet20", stem_stride=2, shortcut="adapt")
    return Architecture.load(architecture).build()


def _in_turn(calls: Sequence[Runner]) -> Runner:
    return lambda: [call() for call in calls]


def prepare(folder: Path) -> tuple[dict[str, Runner], dict[str, dict[str, Any]]]:
    """Return what to time, and what is known of it."""
    from nasb.networks import create_network
    from nasb.networks.random_numbers import randomize

    runners: dict[str, Runner] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name in OURS:
        if not files(name):
            raise SystemExit(f"{ARCHITECTURES / DATA / name}-seed0.json is not there: studies/claim.py run searches it")
        made = [in_engine(randomize(_binary(file), SHAPE), folder / "network.onnx", SHAPE) for file in files(name)]
        # All seeds' networks, one after the other, are one turn.
        runners[name] = _in_turn([call for call, _ in made])
        facts[name] = made[0][1] | {"network": name, "precision": "binary"}
        facts[name]["file_bytes"] = round(mean(known["file_bytes"] for _, known in made))
    for width in WIDTHS:
        network = randomize(create_network("resnet20", width=width, stem_stride=2), SHAPE)
        for precision, path in real_files(network, folder / f"real-{width}", SHAPE).items():
            key = f"real-{width} {precision}"
            runners[key] = onnx_runtime(path, SHAPE)
            facts[key] = {"network": f"real-{width}", "runtime": "ONNX Runtime", "precision": precision,
                          "file_bytes": path.stat().st_size}  # fmt: skip
    return runners, facts


def method_lines(chosen: Mapping[tuple[str, str], int]) -> Iterator[str]:
    """Yield what claim_methods.py needs to train the chosen widths."""
    for width in sorted(set(chosen.values())):
        why = ", ".join(f"{precision} by {what}" for (precision, what), found in chosen.items() if found == width)
        flags = f'_network("real_resnet20", width={width})'
        yield f'    "real-{width}": Method(label="real ResNet-20, width {width}", tier="B", flags={flags}),  # {why}'


def int8(root: str, part: str) -> None:
    """Write the Top-1 of each trained thin network, quantized, that has no row yet."""
    there = {(row["method"], row["seed"], row["part"]) for row in rows(INT8)}
    done, sealed = rows(RESULTS), {key_of(row) for row in rows(FINAL)}
    for name in dict.fromkeys(row["method"] for row in done if row["method"].startswith("real-")):
        trial = chosen_trial(done, DATA, name)
        for row in done:
            if trial is None or row["set"] != DATA or row["method"] != name:
                continue
            job = Job(DATA, name, *trial, int(row["seed"]))
            if job.row_key() != key_of(row) or (name, row["seed"], part) in there:
                continue
            if part == "test" and job.row_key() not in sealed:
                raise SystemExit(f"{job.folder()}: `claim.py final` has not read the test images for it yet")
            found = evaluate_int8(job, root, part)
            append(INT8, INT8_FIELDS, {"set": DATA, "method": name, "seed": row["seed"], "part": part} | found)
            print(f"{name}, seed {row['seed']}: {found['top1']} int8, {found['fp32_top1']} fp32", flush=True)


def evaluate_int8(job: Job, root: str, part: str) -> dict[str, Any]:
    """Quantize a run's exported network and return its Top-1, beside that of the file itself in the same runtime."""
    import numpy as np
    import onnxruntime
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from nasb.cli.parsing import parse_run
    from nasb.data import open_data

    flags = run_flags(job.set, root, METHODS[job.method], job.seed)
    words = [f"--{key}={value}" for key, value in flags.items() if key == "seed" or key.startswith("data.")]
    config, _ = parse_run("run", "", [*words, "--out", "nowhere"])  # nothing is written there
    data = open_data(config.data, seed=config.seed)
    batches = data.evaluation_batches("train")
    images = [next(batches)[0].numpy() for _ in range(CALIBRATION_BATCHES)]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter([{"images": one[None]} for batch in images for one in batch])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    def top1(path: Path) -> tuple[float, int]:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        right = seen = 0
        for x, target in data.evaluation_batches(part):
            for one, label in zip(x.numpy(), target.numpy(), strict=True):
                right += int(np.argmax(session.run(None, {"images": one[None]})[0]) == label)
                seen += 1
        return 100 * right / seen, seen

    with tempfile.TemporaryDirectory(prefix="nasb-int8-") as folder:
        plain, prepared, out = job.model(), Path(folder, "prepared.onnx"), Path(folder, "quantized.onnx")
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared), str(out), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip
        (accuracy, seen), (real, _) = top1(out), top1(plain)
    known = conditions()
    return {
        "top1": f"{accuracy:.2f}", "fp32_top1": f"{real:.2f}", "images": seen,
        "calibration_images": sum(map(len, images)), "versions": known["versions"], "commit": known["commit"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
