"""The command line `nasb-engine`: needs NumPy and Pillow, neither torch nor nasb."""

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from nasb_engine._core import EngineError
from nasb_engine._session import Session, __version__
from nasb_engine.latency import add_command as add_latency_table


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all other user errors."""

    def error(self, message: str) -> NoReturn:
        raise EngineError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None, program: str = "nasb-engine") -> int:
    """Run a command; return its exit code: 0, or 2 after a user error (one line on standard error).

    `program` is the name in front of messages: nasb calls this, too.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of names that the terminal or the locale cannot show
    try:
        try:
            values = _parser(program).parse_args(sys.argv[1:] if arguments is None else list(arguments))
            code: int = values.function(values)
            return code
        finally:
            if sys.stdout is not None:  # None: it was closed before the start
                sys.stdout.flush()
    except EngineError as error:
        return _fail(program, str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has gone
        return 0
    except OSError as error:
        return _fail(program, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except MemoryError:
        return _fail(program, "out of memory")
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        return 130


def _fail(program: str, message: str) -> int:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    print(f"{program}: {'; '.join(lines)}", file=sys.stderr)
    return 2


def _parser(program: str) -> argparse.ArgumentParser:
    p = _Parser(
        prog=program,
        description="Run binary CNNs, exported by nasb as 1-bit ONNX files, on CPUs.",
        allow_abbrev=False,
    )
    p.add_argument("--version", action="version", version=f"nasb-engine {__version__}")
    p.set_defaults(program=program)
    commands = p.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, text: str, model: bool = True) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(
            name,
            help=text,
            description=text,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        made.add_argument("model", metavar="MODEL", nargs=None if model else "?", help="ONNX file of nasb")
        made.add_argument("--kernel", default="", help='kernel of binary convolutions (nasb-engine info); "": the best')
        made.add_argument("--json", action="store_true", help="print JSON")
        return made

    threads = "threads; 0: as many as the process may use"
    made = command("predict", "Print the classes of images.")
    made.add_argument("images", metavar="IMAGE", nargs="+", help="image file")
    made.add_argument("--top", type=int, default=3, help="how many classes to print for each image")
    made.add_argument("--threads", type=int, default=0, help=threads)
    made.set_defaults(function=_predict)

    made = command("evaluate", "Print Top-1 and Top-5 over a folder of images.")
    made.add_argument(
        "folder", metavar="FOLDER", help="folder with one folder of images for each class, or with test/ or val/"
    )
    made.add_argument("--batch", type=int, default=32, help="images in one run of the engine")
    made.add_argument("--threads", type=int, default=0, help=threads)
    made.set_defaults(function=_evaluate)

    made = command(
        "info", "Print what this CPU has, which kernels this build contains, and what a model is.", model=False
    )
    made.add_argument("--threads", type=int, default=0, help=threads)
    made.set_defaults(function=_info)

    made = command("bench", "Time a model on one image beside other engines, in turns within one process.")
    made.add_argument("--against", default="", help="peers, separated by commas: onnxruntime, onnxruntime-int8")
    made.add_argument(
        "--real-model", default=None, help="real-valued ONNX file that the peers run; onnxruntime-int8 quantizes it"
    )
    made.add_argument("--threads", type=int, default=1, help="threads of every peer")
    made.add_argument("--rounds", type=int, default=30, help="rounds, each with a turn of every peer")
    made.add_argument("--layers", action="store_true", help="print the time of each layer, too")
    made.set_defaults(function=_bench)

    add_latency_table(commands)
    return p


def _predict(values: argparse.Namespace) -> int:
    from nasb_engine.evaluation import class_labels, predict, softmax

    if values.top < 1:
        raise EngineError(f"--top is {values.top}; it must be at least 1")
    session = Session(values.model, threads=values.threads, kernel=values.kernel)
    names = class_labels(session)
    found, failed = {}, 0
    for path, scores in zip(values.images, predict(session, values.images), strict=True):
        if isinstance(scores, EngineError):
            failed += 1
            print(f"{values.program}: {scores}", file=sys.stderr)
            continue
        probabilities = softmax(scores)
        best = (-probabilities).argsort(kind="stable")[: values.top]
        found[path] = {names[index]: float(probabilities[index]) for index in best.tolist()}
        if not values.json:
            print(f"{path}: " + ", ".join(f"{name} {value:.1%}" for name, value in found[path].items()))
    if values.json:
        print(json.dumps(found, indent=1))
    if failed:
        raise EngineError(f"{failed} of {len(values.images)} images have no prediction")
    return 0


def _evaluate(values: argparse.Namespace) -> int:
    from nasb_engine.evaluation import evaluate

    session = Session(values.model, threads=values.threads, kernel=values.kernel)
    result = evaluate(session, values.folder, batch=values.batch)
    for reason in result.unreadable.values():
        print(f"{values.program}: left out: {reason}", file=sys.stderr)
    if result.missing:
        names = ", ".join(result.missing[:5]) + (", ..." if len(result.missing) > 5 else "")
        print(f"{values.program}: no images of {len(result.missing):,} classes: {names}", file=sys.stderr)
    if values.json:
        record = {
            "top1": result.top1,
            "top5": result.top5,
            "images": result.images,
            "unreadable": sorted(result.unreadable),
            "missing_classes": list(result.missing),
            "seconds": result.seconds,
            "engine_seconds": result.engine_seconds,
            "images_per_second": result.images_per_second,
            "threads": session.threads,
        }
        print(json.dumps(record, indent=1))
        return 0
    top5 = "" if result.top5 is None else f", Top-5 {result.top5:.2f}%"
    left_out = f"; {len(result.unreadable):,} unreadable images left out" if result.unreadable else ""
    print(f"Top-1 {result.top1:.2f}%{top5}, {result.images:,} images{left_out}")
    print(
        f"{result.images_per_second:.1f} images/s with reading, {result.images / result.engine_seconds:.1f} in the "
        f"engine alone ({session.threads} threads)"
    )
    return 0


def _info(values: argparse.Namespace) -> int:
    from nasb_engine import _info as info

    machine = info.machine()
    model = None if values.model is None else info.model(values.model, values.threads, values.kernel)
    if values.json:
        print(json.dumps(machine | ({} if model is None else {"model": model}), indent=1))
        return 0
    print(info.describe_machine(machine))
    if model is not None:
        print(info.describe_model(model))
    return 0


def _bench(values: argparse.Namespace) -> int:
    from dataclasses import asdict

    from nasb_engine.bench import bench, describe, describe_layers

    against = [name.strip() for name in values.against.split(",") if name.strip()]
    record = bench(
        values.model,
        against,
        real_model=values.real_model,
        threads=values.threads,
        rounds=values.rounds,
        kernel=values.kernel,
    )
    layers = Session(values.model, threads=values.threads, kernel=values.kernel).profile() if values.layers else []
    if values.json:
        print(json.dumps(record | ({"layers": [asdict(layer) for layer in layers]} if layers else {}), indent=1))
        return 0
    print(describe(record))
    if layers:
        print(f"\n{describe_layers(layers)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
