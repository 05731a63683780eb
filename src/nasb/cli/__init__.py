"""The command line: one function per sub-command, each in the file of its kind.

Imports stay light: torch is imported by the command that needs it, after OpenMP has been told not to spin.
"""

import os
import sys
import warnings
from collections.abc import Callable, Sequence

from nasb.errors import UserError

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("nasb.cli.stages", "all stages: search, pretrain, finetune, evaluation"),
    "search": ("nasb.cli.stages", "stage 1 alone: find the architecture"),
    "pretrain": ("nasb.cli.stages", "stage 2 alone: train the derived network with real weights"),
    "finetune": ("nasb.cli.stages", "stage 3 alone: binarize weights and activations"),
    "evaluate": ("nasb.cli.inference", "Top-1 of a trained network"),
    "predict": ("nasb.cli.inference", "classes of images"),
    "bench": ("nasb.cli.exported", "speed of an exported file beside other engines"),
    "export": ("nasb.cli.deploy", "ONNX file of a trained network, one bit per binary weight"),
    "shards": ("nasb.cli.shards", "pack a folder of images into tar files (WebDataset)"),
    "latency-table": ("nasb.cli.latency", "milliseconds of each operation of a search space on this device"),
    "summary": ("nasb.cli.inspection", "cost of a network, layer by layer"),
    "compare": ("nasb.cli.compare", "cost of several networks side by side, and their latency"),
    "plan": ("nasb.cli.inspection", "what conversion makes of each convolution of a host, and why"),
    "draw": ("nasb.cli.inspection", "picture of an architecture"),
    "list": ("nasb.cli.inspection", "networks, operations, strategies, datasets, recipes"),
    "info": ("nasb.cli.inspection", "versions and hardware; what an exported file is"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0; 2 after a user error (one line on standard error); 130 once stopped."""
    # A waiting OpenMP thread that spins costs a training with a busy neighbour many times its time.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    formatted = warnings.formatwarning
    warnings.formatwarning = _warning
    try:
        try:
            return _run(arguments)
        finally:
            warnings.formatwarning = formatted
            sys.stdout.flush()
    except UserError as error:
        _tell(_one_line(str(error)), type(error).__name__)
        return error.exit_code
    except KeyboardInterrupt:
        _tell("stopped", "KeyboardInterrupt")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has gone
        return 0


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"nasb {version('nasb')}")
        return 0
    return _find(arguments[0])(arguments[1:]) or 0


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning for the user as one line; others keep their place in the code."""
    place = "" if category is UserWarning else f"{filename}:{lineno}: {category.__name__}: "
    return f"warning: {place}{_one_line(str(message))}\n"


def _tell(message: str, kind: str) -> None:
    """Print an error's line; one of several ranks leaves it to what has launched them, or tells which it is."""
    where = ""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from nasb.training.launch import leave_message

        if leave_message(message, kind):
            return
        where = f"rank {os.environ['RANK']}: "
    print(f"nasb: {where}{message}", file=sys.stderr)


def _one_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines))


def _find(name: str) -> Callable[[Sequence[str]], int | None]:
    from importlib import import_module

    from nasb.errors import unknown_name

    if name not in COMMANDS:
        raise UserError(f"{unknown_name('command', name, COMMANDS)}; see nasb --help")
    function: Callable[[Sequence[str]], int | None] = getattr(
        import_module(COMMANDS[name][0]), f"{name.replace('-', '_')}_command"
    )
    return function


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: nasb COMMAND [options]; nasb COMMAND --help tells the options and their defaults",
            "",
            "Search, train and deploy binary convolutional neural networks.",
            "",
            *lines,
        ]
    )
