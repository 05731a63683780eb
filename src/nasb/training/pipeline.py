"""The three stages as one resumable pipeline: data + CNN in, a trained binary network in a run directory out."""

import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nasb.binary import set_phase, start_scales
from nasb.cells.architecture import Architecture, Edge
from nasb.cost import Count, count
from nasb.data import ImageData, open_data
from nasb.errors import UserError
from nasb.files import save_safetensors, write_text
from nasb.model_file import BINARY, load_model, save_model
from nasb.networks import register_factory
from nasb.networks.convert import convert
from nasb.plugin import load_plugin
from nasb.search.front import write_front
from nasb.search.population import PopulationStrategy
from nasb.search.space import Cells
from nasb.seeding import derive_seed
from nasb.training.config import RunConfig, StageConfig
from nasb.training.evaluation import evaluate
from nasb.training.fabric import create_fabric
from nasb.training.launch import going_on
from nasb.training.loop import run_stage
from nasb.training.networks import RunNetworks
from nasb.training.race import Race
from nasb.training.ranks import LostRankError, is_lost_rank
from nasb.training.run_directory import LATENCY_TABLE, RunDirectory
from nasb.training.search_stage import SearchStage
from nasb.training.train_stage import TrainStage

if TYPE_CHECKING:
    from lightning_fabric import Fabric

MOST_CHECKED = 20_000
"""Images of a part that are decoded before a run begins: some seconds to a minute."""


class Pipeline:
    """A run: its data, its directory, and its stages in order.

    Args:
        config: the run's config.
        out: the run directory.

    Raises:
        UserError: whatever the config, the data or the directory have wrong.
    """

    def __init__(self, config: RunConfig, out: str | Path) -> None:
        self.config = config
        if config.plugin is not None:
            load_plugin(config.plugin)
        if config.network.factory is not None:
            register_factory(config.network.factory)
        self.fabric: Fabric = create_fabric(config.hardware)
        self.data: ImageData = open_data(config.data, seed=config.seed, alpha_share=config.search.alpha_share)
        # Every fault of what the user gave shows before anything is written.
        if config.architecture == "search" and not self.data.size("alpha"):
            raise UserError(
                f"search.alpha_share is {config.search.alpha_share:g}: of {self.data.size('train')} training images "
                "none are left to judge architectures by; set it higher, or add images"
            )
        for part in ("train", *(("weights", "alpha") if config.architecture == "search" else ())):
            self.data.check_shared(part, self.fabric.world_size)
        self.networks = RunNetworks(config, self.data, Path(out))
        if config.data.unreadable == "error" and not (Path(out) / "config.yaml").exists():
            # Read first when a network has been trained, one that cannot be would come late.
            for part in ("validation", *(("test",) if config.evaluate_test else ())):
                self.data.check_readable(part, MOST_CHECKED)
        writes = self.fabric.is_global_zero
        self.run = RunDirectory(out, config, writes=writes, images=self.data.census())
        try:
            self._begin()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def _begin(self) -> None:
        if self.run.writes:
            if self.networks.plan is not None:
                write_text(self.run / "plan.txt", f"{self.networks.plan}\n")
            if self.networks.table is not None:
                write_text(self.run / LATENCY_TABLE, self.networks.table.text)
        self.fabric.barrier()
        if not (self.run / "config.yaml").exists():
            raise UserError(
                f"{self.run.path}: {platform.node()}, which has rank {self.fabric.global_rank}, does not see the run "
                "directory of rank 0; give a directory on a file system that all machines share"
            )

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run.close()
        if error is not None and (told := self._told(error)) is not error:
            raise told from None

    def _told(self, error: BaseException) -> BaseException:
        """Return an error of one line for the end of another process, a rank's or a worker's; else the error itself."""
        reason = str(error).partition("\n")[0].strip()
        if is_lost_rank(error, self.fabric):
            return LostRankError(
                f"rank {self.fabric.global_rank} has lost another rank: {reason}; {going_on(self.run.path)}"
            )
        if isinstance(error, RuntimeError) and reason.startswith("DataLoader worker"):
            return UserError(
                f"{reason} Where the system was short of memory, lower data.workers; {going_on(self.run.path)}"
            )
        return error

    def describe_budget(self) -> list[str]:
        """Return what is to be said of a budget in milliseconds or memory; nothing of one on OPs."""
        table, search = self.networks.table, self.config.search
        if search.budget_memory is not None:
            return [f"budget: {search.budget_memory:g} of the backbone's memory; search.budget, on OPs, is not used"]
        if table is None or search.budget_ms is None:
            return []
        lines = [
            f"budget: {search.budget_ms:g} ms on {table.conditions}, where the backbone takes "
            f"{table.backbone_ms:g} ms; search.budget, on OPs, is not used"
        ]
        if table.device.get("threads") != 1:
            lines.append(
                f"note: the latency table was made with {table.device.get('threads')} threads of the engine; its "
                "milliseconds hold for as many"
            )
        return lines

    def describe_network(self) -> str:
        """Return one line: the host, and what becomes of its convolutions."""
        if self.networks.plan is None:
            return f"{self.config.network.name}: hand-made, nothing is converted; the options of `cell` are not used"
        cells, real = len(self.networks.plan.becoming("cell")), self.networks.plan.becoming("real")
        where, other = self.run / "plan.txt", self.networks.other_cells()
        unused = f"; its cells are used, not cell.{', cell.'.join(other)} of this run" if other else ""
        given = "" if self.networks.given is None else f"; {self.config.architecture}{unused}"
        return (
            f"{self.config.network.name}: {cells} cells; real stay {', '.join(real)} and the classifier; see {where}"
            f"{given}"
        )

    def teachers(self) -> dict[str, str]:
        """Return who teaches each stage: "init" (the user's CNN), "none", or the registered network that is named."""
        own = "none" if self.networks.untrained() else "init"
        named = {"pretrain": self.config.pretrain.teacher, "finetune": self.config.finetune.teacher}
        return {stage: own if name == "auto" else name for stage, name in named.items() if stage in self.stages()}

    def stages(self) -> list[str]:
        """Return the stages that this config has."""
        return self.config.stages()

    def run_stages(self, asked: Sequence[str]) -> None:
        """Run the asked stages that are not finished.

        Raises:
            UserError: a stage that an asked one builds on has not been run.
        """
        for stage in asked:
            if stage not in self.stages():
                raise UserError(f"the stage {stage} is not part of this run (see architecture and pretrain.epochs)")
            missing = [s for s in self.stages()[: self.stages().index(stage)] if s not in self.run.finished()]
            if missing:
                raise UserError(
                    f"{self.run.path}: {stage} needs {missing[0]}, which has not been finished in this run directory; "
                    f"run `nasb {missing[0]} --out {self.run.path}` first"
                )
            if stage in self.run.finished():
                self.fabric.print(f"{stage}: finished before, kept", file=sys.stderr)
                continue
            torch.manual_seed(derive_seed(self.config.seed, stage))
            {"search": self._search, "pretrain": self._pretrain, "finetune": self._finetune}[stage]()
            self.fabric.barrier()

    def search_stage(self) -> SearchStage:
        """Return the search as it stands before its first step."""
        config = self.config
        shape, host = self.data.input_shape, self.networks.host()
        backbone = count(self.networks.backbone(), shape)
        network = convert(
            host,
            shape,
            cell=config.cell,
            search=True,
            operations=config.search.operations,
            keep_real=config.network.keep_real,
        )
        set_phase(network, weights=config.search.weights, activations="sign")
        numbers = sum(parameter.numel() for parameter in network.parameters())
        self.fabric.print(
            f"search: {numbers:,} weights in all candidates: {16 * numbers / 1e9:.2g} GB with gradients and Adam's "
            "moments, and activations on top",
            file=sys.stderr,
        )
        return SearchStage(
            network,
            backbone.ops,
            self.data,
            config.search,
            self.fabric,
            seed=config.seed,
            table=self.networks.table,
            accumulate=config.hardware.accumulate,
            sync_batch_norm=config.hardware.sync_batch_norm,
            backbone_bits=backbone.memory_bits,
        )

    def race(self) -> Race:
        """Return what a search ends with where search.race_epochs asks for it."""
        folder = self.run.path if self.run.writes else None
        return Race(self._race_stage, self.fabric, seed=self.config.seed, folder=folder)

    def _search(self) -> None:
        stage = self.search_stage()
        seconds = run_stage(stage, self.run, self.fabric, seed=self.config.seed)
        began = time.perf_counter()
        folder = self.run.path if self.run.writes else None
        race = self.race()
        cells = stage.derive(folder, race if self.config.search.race_epochs else None)
        self._keep_architecture(cells)
        if self.run.writes:
            strategy = stage.searcher.strategy
            if isinstance(strategy, PopulationStrategy) and strategy.objectives():
                front_of = strategy.population, strategy.objectives()
                write_front(self.run.path, stage.searcher.space, *front_of, self.networks.architecture_of)
            save_safetensors(self.run / "supernet.safetensors", stage.network.state_dict(), {})
        self.run.finish_stage("search", seconds + race.earlier + time.perf_counter() - began)

    def _race_stage(self, cells: Cells) -> TrainStage:
        """Return the short training of an architecture in a race."""
        network = self.networks.architecture_of(cells).build(self.networks.host())
        set_phase(network, **BINARY)
        finetune, epochs = self.config.finetune, self.config.search.race_epochs
        config = replace(
            finetune, epochs=epochs, warmup_epochs=min(finetune.warmup_epochs, epochs / 4), schedule="cosine",
            milestones=(), ema=0.0,
        )  # fmt: skip
        return self._train_stage(Race.name, network, config, compiled=False, part=Race.part)

    def _keep_architecture(self, cells: Mapping[str, tuple[Edge, ...]]) -> Architecture:
        architecture = self.networks.architecture_of(cells)
        if self.run.writes:
            architecture.save(self.run / "architecture.json")
        return architecture

    def architecture(self) -> Architecture:
        """Return the run's architecture: searched, hand-made, or the file's that the config names.

        Raises:
            UserError: the file is of another host, or of other images.
        """
        kept = self.run / "architecture.json"
        if not kept.exists():
            if self.config.architecture == "search":
                raise UserError(
                    f"{kept}: is gone, though the search is finished; put it back, or begin in another directory"
                )
            if self.config.architecture == "backbone":
                names = [] if self.networks.plan is None else self.networks.plan.becoming("cell")
                return self._keep_architecture(dict.fromkeys(names, ()))
            given = self.networks.given
            assert given is not None
            if self.run.writes:
                given.save(kept)
            return given
        return Architecture.load(kept)

    def _derived(self) -> nn.Module:
        return self.architecture().build(self.networks.host())

    def _pretrain(self) -> None:
        config = self.config.pretrain
        network = self._derived()
        phase = {"weights": "real", "activations": config.activations}
        set_phase(network, **phase)
        self._train("pretrain", network, phase)

    def _finetune(self) -> None:
        network = self._derived()
        if "pretrain" in self.stages():
            network.load_state_dict(
                load_model(self.run / "pretrained.safetensors", host=self.networks.host()).network.state_dict()
            )
            start_scales(network)
        set_phase(network, **BINARY)
        self._train("finetune", network, BINARY)

    def train_stage(self, name: str, network: nn.Module) -> TrainStage:
        """Return pretrain or finetune as it stands before its first step."""
        config = self.config.pretrain if name == "pretrain" else self.config.finetune
        return self._train_stage(name, network, config, compiled=self.config.hardware.compile)

    def _train_stage(
        self, name: str, network: nn.Module, config: StageConfig, *, compiled: bool, part: str = "train"
    ) -> TrainStage:
        hardware = self.config.hardware
        return TrainStage(
            name, network, self.data, config, self.networks.teacher(config), self.fabric, seed=self.config.seed,
            compiled=compiled, accumulate=hardware.accumulate, sync_batch_norm=hardware.sync_batch_norm, part=part,
        )  # fmt: skip

    def _train(self, name: str, network: nn.Module, phase: dict[str, str]) -> None:
        stage = self.train_stage(name, network)
        seconds = run_stage(stage, self.run, self.fabric, seed=self.config.seed)
        if self.run.writes:
            file = "pretrained.safetensors" if name == "pretrain" else "model.safetensors"
            save_model(
                self.run / file,
                stage.trained(),
                self.architecture(),
                self.data.preprocessing,
                self.data.class_names,
                phase,
            )
        self.run.finish_stage(name, seconds)

    def summarize(self) -> dict[str, Any]:
        """Evaluate the finished network on validation and (unless the config says no) test images; write summary.json.

        Raises:
            UserError: the run has no finished finetune.
        """
        model = load_model(self.run / "model.safetensors", host=self.networks.host())
        architecture, shape = model.architecture, self.data.input_shape
        network = self.fabric.to_device(model.network).to(memory_format=torch.channels_last)
        asked = {"validation": True, "test": self.config.evaluate_test}
        results = {
            part: evaluate(network, self.data, part, self.fabric) if wanted and self.data.size(part) else None
            for part, wanted in asked.items()
        }
        cost = count(network, shape)
        backbone = count(self.networks.backbone(architecture.cell), shape)
        seconds = {stage: entry["seconds"] for stage, entry in self.run.finished().items()}
        summary = {
            **{f"{part}_top1": None if result is None else result.top1 for part, result in results.items()},
            **{f"{part}_top5": None if result is None else result.top5 for part, result in results.items()},
            **cost_summary(cost, backbone),
            **self._latency_summary(architecture, model.network),
            "parameters": cost.parameters,
            "uncounted": list(cost.uncounted),
            "host": architecture.host,
            "host_options": dict(architecture.options),
            "architecture": self.config.architecture,
            "strategy": self.config.search.strategy if self.config.architecture == "search" else None,
            "teachers": self.teachers(),
            "images": {part: self.data.size(part) for part in ("train", "validation", "test")},
            "seconds": seconds,
        }
        if self.run.writes:
            write_text(self.run / "summary.json", json.dumps(summary, indent=1) + "\n")
        return summary

    def describe_architecture(self) -> str:
        """Return in one line what the search found, and how to go on.

        Raises:
            UserError: the run has no finished search.
        """
        architecture, shape = self.architecture(), self.data.input_shape
        network = architecture.build(self.networks.host())
        cost, backbone = count(network, shape), count(self.networks.backbone(architecture.cell), shape)
        numbers = cost_summary(cost, backbone)
        predicted = self._latency_summary(architecture, network)
        latency = f"; {predicted['predicted_ms']:.4g} ms predicted" if predicted else ""
        edges = sum(len(edges) for edges in architecture.cells.values())
        front = "; front.csv has what else was found" if (self.run / "front.csv").exists() else ""
        return (
            f"{self.run / 'architecture.json'}: {edges:,} operations in {len(architecture.cells):,} cells, "
            f"{cost.ops:.4g} OPs ({numbers['ops_ratio']:.3f} of the backbone), {cost.memory_bits / 8000:.4g} kB"
            f"{latency}{front}. Go on with nasb run, or nasb pretrain and nasb finetune, and the same options"
        )

    def _latency_summary(self, architecture: Architecture, network: nn.Module) -> dict[str, Any]:
        """Return the predicted milliseconds and the device that they are for; nothing without a latency table."""
        if self.networks.table is None:
            return {}
        return {
            "predicted_ms": self.networks.table.predict_architecture(architecture, network, own=True),
            "backbone_ms": self.networks.table.backbone_ms,
            "budget_ms": self.config.search.budget_ms,
            "device": dict(self.networks.table.device),
        }


def cost_summary(cost: Count, backbone: Count) -> dict[str, float]:
    """Return the costs of a network, and how they stand to those of its backbone alone.

    ``added_binary_macs`` is the share of binary MACs over the backbone's: the real stem hides it in ``ops_ratio``.
    """
    return {
        "ops": cost.ops,
        "bops": cost.bops,
        "flops": cost.flops,
        "memory_bits": cost.memory_bits,
        "ops_ratio": cost.ops / backbone.ops,
        "memory_ratio": cost.memory_bits / backbone.memory_bits,
        "added_binary_macs": cost.bops / backbone.bops - 1 if backbone.bops else 0.0,
    }
