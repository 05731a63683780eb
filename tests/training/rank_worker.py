"""What one rank measures for a test: gradients, losses, counts of an evaluation. Started by torchrun, or called.

torchrun --nproc-per-node 2 rank_worker.py TASK FOLDER
"""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nasb.binary import set_phase
from nasb.cells.architecture import Edge
from nasb.files import save_safetensors
from nasb.model_file import BINARY
from nasb.seeding import derive_seed
from nasb.training.config import DataConfig, HardwareConfig, NetworkConfig, RunConfig, SearchConfig
from nasb.training.evaluation import evaluate
from nasb.training.loop import Stage
from nasb.training.pipeline import Pipeline
from nasb.training.search_stage import SearchStage

STEPS, BATCH = 20, 33  # a batch of 33 cannot be halved: one share has 16 images, the other 17


def config(accumulate: int = 1, batch_size: int = BATCH, precision: str = "32-true") -> RunConfig:
    return RunConfig(
        architecture="backbone",
        network=NetworkConfig(options={"width": 4}),
        data=DataConfig(batch_size=batch_size, train_limit=BATCH * STEPS),
        search=SearchConfig(strategy="gumbel", warmup_epochs=0, budget=1.3, derive_candidates=4, race_epochs=1),
        hardware=HardwareConfig(accelerator="cpu", threads=1, accumulate=accumulate, precision=precision),
    )


def stages(pipeline: Pipeline) -> Iterator[Stage]:
    yield pipeline.search_stage()
    for name, phase in (("pretrain", {"weights": "real", "activations": "hardtanh"}), ("finetune", BINARY)):
        network = pipeline._derived()
        set_phase(network, **phase)
        yield pipeline.train_stage(name, network)


def first_step(stage: Stage, batch: Any) -> dict[str, Tensor]:
    """Return the gradients of a step: of the weights, and (from Adam's first moment) of alpha."""
    stage.begin_epoch(0)
    torch.manual_seed(derive_seed(0, "step"))
    stage.step(0, 0, batch)
    network = stage.network  # type: ignore[attr-defined]
    found = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    if isinstance(stage, SearchStage):
        for name, parameter in network.named_parameters():
            state = stage.searcher.optimizer.state.get(parameter)
            if state:
                found[name] = state["exp_avg"] / (1 - 0.5)
    return found


def train(pipeline: Pipeline) -> dict[str, Tensor]:
    """Return the gradients of each stage's first step, and the losses of the real-valued stage's first steps."""
    found: dict[str, Tensor] = {}
    for stage in stages(pipeline):
        batches = stage.batches(0, 0)
        found |= {f"{stage.name}.{n}": gradient for n, gradient in first_step(stage, next(batches)).items()}
        if stage.name == "pretrain":
            losses = [stage.score.take().loss]  # type: ignore[attr-defined]
            for step, batch in enumerate(batches, 1):
                stage.step(0, step, batch)
                losses.append(stage.score.take().loss)  # type: ignore[attr-defined]
            found["losses"] = torch.tensor(losses, dtype=torch.float64)
            buffers = stage.network.named_buffers()  # type: ignore[attr-defined]
            found |= {f"statistics.{n}": b.clone() for n, b in buffers if n.endswith("running_var")}
    return found


def count(pipeline: Pipeline) -> dict[str, Tensor]:
    """Return how many images of each part are told right, by a network whose batch norms have seen images."""
    network = pipeline._derived().train()
    for images, _ in islice(pipeline.data.evaluation_batches("train"), 8):
        network(images)
    results = {part: evaluate(network, pipeline.data, part, pipeline.fabric) for part in ("validation", "test")}
    return {f"count.{part}": torch.tensor([r.correct, r.images]) for part, r in results.items()}


def race(pipeline: Pipeline) -> dict[str, Tensor]:
    """Return loss and counts of each of two architectures after a race, the same when asked again."""
    assert pipeline.networks.plan is not None
    names = ("bin_conv_1x1", "bin_conv_3x3")
    cells = [dict.fromkeys(pipeline.networks.plan.becoming("cell"), (Edge(0, 2, name),)) for name in names]
    results = pipeline.race().results(cells)
    again = pipeline.race().results(cells)  # rank 0 has a file of them, the others have not
    assert again == results
    return {"race": torch.tensor([(r.loss, r.correct, r.images) for r in results], dtype=torch.float64)}


def unlike(pipeline: Pipeline) -> dict[str, Tensor]:
    """Return alpha after a step before which that of rank 1 was a little different, as by other rounding."""
    stage = pipeline.search_stage()
    with torch.no_grad():
        for alpha in stage.searcher.alphas():
            alpha.add_(1e-6 * pipeline.fabric.global_rank)
    stage.begin_epoch(0)
    stage.step(0, 0, next(stage.batches(0, 0)))
    return {f"alpha.{index}": alpha.detach().clone() for index, alpha in enumerate(stage.searcher.alphas())}


def everything(pipeline: Pipeline) -> dict[str, Tensor]:
    return train(pipeline) | count(pipeline) | race(pipeline) | unlike(pipeline)


TASKS = {"everything": everything, "count": count}


def main(task: str, folder: str) -> None:
    with Pipeline(config(), Path(folder) / "run") as pipeline:
        found = TASKS[task](pipeline)
        rank = pipeline.fabric.global_rank
    save_safetensors(Path(folder) / f"rank{rank}.safetensors", found, {})


if __name__ == "__main__":
    main(*sys.argv[1:])
