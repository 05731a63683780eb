"""nasb run, search, pretrain, finetune."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nasb.cli.parsing import parse_run
from nasb.errors import UserError

if TYPE_CHECKING:
    from torch import nn


def run_command(arguments: Sequence[str]) -> None:
    """Run all stages, evaluate, draw."""
    _run("run", "All stages: search, pretrain, finetune; then evaluation, summary.json and a drawing.", arguments, None)


def search_command(arguments: Sequence[str]) -> None:
    """Run the search."""
    _run("search", "Stage 1 alone: find the architecture.", arguments, "search")


def pretrain_command(arguments: Sequence[str]) -> None:
    """Run the pretraining."""
    _run("pretrain", "Stage 2 alone: train the derived network with real weights.", arguments, "pretrain")


def finetune_command(arguments: Sequence[str]) -> None:
    """Run the finetuning."""
    _run("finetune", "Stage 3 alone: binarize; then evaluation and summary.json.", arguments, "finetune")


def _run(command: str, description: str, arguments: Sequence[str], stage: str | None) -> None:
    config, out = parse_run(command, description, arguments)
    if stage in config.stages()[1:] and not (out / "config.yaml").exists():
        earlier = config.stages()[0]
        raise UserError(
            f"{out}: is no run directory, and {stage} needs {earlier}; run `nasb {earlier} --out {out}` first"
        )
    from nasb.training.launch import end_with_launcher, is_launched, launch

    if config.hardware.devices * config.hardware.nodes > 1 and not is_launched():
        launch([command, *arguments], config.hardware, out)
        return
    end_with_launcher()
    from nasb.training.pipeline import Pipeline

    with Pipeline(config, out) as pipeline:
        first = pipeline.fabric.is_global_zero
        if first:
            print(pipeline.data.describe(), file=sys.stderr)
            print(pipeline.describe_network(), file=sys.stderr)
            for line in pipeline.describe_budget():
                print(line, file=sys.stderr)
            teachers = ", ".join(f"{stage} {name}" for stage, name in pipeline.teachers().items())
            print(f"teachers: {teachers}", file=sys.stderr)
            _print_refusal(pipeline.networks.backbone(), pipeline.data.input_shape)
        pipeline.run_stages(pipeline.stages() if stage is None else [stage])
        if stage in ("search", None) and first and pipeline.networks.plan is not None:
            from nasb.cells.draw import draw_architecture

            draw_architecture(pipeline.architecture(), out / "architecture.svg")
        if stage == "search" and first:
            print(pipeline.describe_architecture())
        if stage in ("finetune", None):
            summary = pipeline.summarize()
            if first:
                _print_summary(summary, str(out))


def _print_refusal(network: "nn.Module", input_shape: tuple[int, int, int]) -> None:
    """Say it before days of training if the network cannot be exported."""
    from nasb.deploy.export import refusal

    reason = refusal(network, input_shape)
    if reason is not None:
        print(f"note: nasb export will refuse this network: {reason}", file=sys.stderr)


def _print_summary(summary: dict[str, object], out: str) -> None:
    def percent(key: str) -> str:
        value = summary[key]
        return f"{value:.2f}%" if isinstance(value, float) else "not evaluated"

    predicted = f"; {summary['predicted_ms']:.4g} ms predicted" if "predicted_ms" in summary else ""
    print(
        f"{out}: Top-1 test {percent('test_top1')}, validation {percent('validation_top1')}; "
        f"{summary['ops']:.4g} OPs ({summary['ops_ratio']:.3f} of the backbone, "
        f"{summary['added_binary_macs']:+.0%} binary MACs), {summary['memory_bits'] / 8000:.4g} kB{predicted}"  # type: ignore[operator]
    )
