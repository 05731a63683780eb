"""The networks that a run is made of, and what is wrong with what the user gave for them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from nasb.cells.architecture import Architecture, Edge
from nasb.cells.config import CellConfig
from nasb.cells.operations import NONE, OPERATIONS
from nasb.cells.searchable import candidates, searchable_cells
from nasb.cost.latency import LatencyTable, network_key
from nasb.data import ImageData
from nasb.errors import UserError
from nasb.networks import create_host, is_rival
from nasb.networks.convert import convert
from nasb.networks.plan import Plan, plan_of
from nasb.search import STRATEGIES
from nasb.search.cost_model import check_table
from nasb.search.searcher import checked_budget_ms
from nasb.seeding import derive_seed
from nasb.training.config import RunConfig, StageConfig
from nasb.training.optimization import create_teacher, freeze, load_weights
from nasb.training.run_directory import LATENCY_TABLE


class RunNetworks:
    """Makes the host, the backbone and the teachers of a run, from its seed.

    Args:
        config: the run's config.
        data: its images.
        out: its directory, which may hold a latency table; nothing is written.

    Raises:
        UserError: whatever the config has wrong that concerns networks, or files that it names.
    """

    def __init__(self, config: RunConfig, data: ImageData, out: Path) -> None:
        self.config, self.data = config, data
        self._check_rival()
        self.given = self._given(out)
        """The architecture of the file that the config names."""
        self.cell = config.cell if self.given is None else self.given.cell
        backbone = self.backbone()
        self.plan: Plan | None = None if is_rival(config.network.name) else plan_of(backbone)
        """What becomes of the host's convolutions; None of a hand-made network."""
        self._check_runs(backbone)
        self._check_classes()
        self.table = self._latency_table(out, backbone)
        self._check_files(backbone)

    def host(self) -> nn.Module:
        """Return the host, freshly initialized from the seed, with the user's weights if there are any."""
        return self._host_and_untrained()[0]

    def untrained(self) -> list[str]:
        """Return the names of the host's tensors that the user's weights do not give; all of them without any."""
        return self._host_and_untrained()[1]

    def _host_and_untrained(self) -> tuple[nn.Module, list[str]]:
        """Return the host, and the names of its tensors that the user's weights do not give."""
        torch.manual_seed(derive_seed(self.config.seed, "host"))
        network = self.config.network
        host = create_host(
            network.name,
            num_classes=self.data.num_classes,
            in_channels=self.data.input_shape[0],
            options=network.options,
        )
        if self.config.init is None:
            return host, list(host.state_dict())
        return host, load_weights(
            host,
            self.config.init,
            partial=self.config.init_partial,
            hint=" --init_partial true leaves such layers (another classifier) as they are",
        )

    def backbone(self, cell: CellConfig | None = None) -> nn.Module:
        """Return the hand-made network: the converted host with every edge "none"; a rival is one as it is.

        Args:
            cell: of its cells; None: the run's.
        """
        host = self.host()
        if is_rival(self.config.network.name):
            return host
        return convert(host, self.data.input_shape, cell=cell or self.cell, keep_real=self.config.network.keep_real)

    def teacher(self, stage: StageConfig) -> nn.Module | None:
        """Return the teacher of a stage: the one that it names; by default the user's CNN, if all of it is trained."""
        if stage.teacher == "auto":
            host, untrained = self._host_and_untrained()
            return None if untrained else freeze(host)
        return create_teacher(stage, self.data.num_classes, self.data.input_shape[0])

    def architecture_of(self, cells: Mapping[str, tuple[Edge, ...]]) -> Architecture:
        """Return the architecture that has these edges in its cells."""
        return Architecture(
            host=self.config.network.name,
            options=self.config.network.options,
            num_classes=self.data.num_classes,
            input_shape=self.data.input_shape,
            cell=CellConfig() if self.plan is None else self.cell,
            cells=cells,
            keep_real=self.config.network.keep_real,
        )

    def _check_rival(self) -> None:
        """Refuse what a hand-made binary network has not: a search, a host's weights, milliseconds of operations."""
        name = self.config.network.name
        if not is_rival(name):
            return
        what = f"network.host: {name} is a hand-made binary network"
        if self.config.architecture != "backbone":
            raise UserError(f"{what}: there is nothing to search in it; give architecture: backbone")
        if self.config.init is not None:
            raise UserError(f"{what}, which starts from weights of its own; `init` is for hosts that are converted")
        if self.config.search.latency_table is not None:
            raise UserError(f"{what}: leave search.latency_table out, which is for networks that are searched")

    def _check_runs(self, network: nn.Module) -> None:
        """Refuse images that a hand-made network cannot take; conversion has seen to it for all others."""
        if self.plan is not None:
            return
        try:
            with torch.no_grad():
                network.eval()(torch.zeros(1, *self.data.input_shape))
        except (RuntimeError, ValueError) as error:
            size = "x".join(map(str, self.data.input_shape))
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{self.config.network.name}: does not run on images of {size} ({reason}); set another data.image_size"
            ) from None

    def _check_classes(self) -> None:
        """Refuse a network of the user's own that has another number of outputs than the data has classes."""
        if self.plan is not None and self.plan.outputs != self.data.num_classes:
            raise UserError(
                f"{self.config.network.name}: has {self.plan.outputs} outputs, the data {self.data.num_classes} "
                "classes; let its function take num_classes"
            )

    def _check_files(self, backbone: nn.Module) -> None:
        """Refuse names that a later stage would stumble over."""
        for name in self.config.search.operations or ():
            OPERATIONS[name]  # raises with the closest known names
        if self.config.architecture == "search":
            if self.config.search.operations is not None and set(self.config.search.operations) <= {NONE}:
                raise UserError(
                    f"search.operations is {list(self.config.search.operations)}: there is nothing to choose from; "
                    f"name operations besides {NONE}, or leave it out"
                )
            cells = searchable_cells(backbone).values()
            if not any(candidates(cell.shape, cell.config, self.config.search.operations) for cell in cells):
                raise UserError(
                    "search.operations: no edge of the network can have any of them; name others, or leave it out"
                )
            STRATEGIES[self.config.search.strategy].check_installed()
        for stage in (self.config.pretrain, self.config.finetune):
            self.teacher(stage)

    def _given(self, out: Path) -> Architecture | None:
        """Return the architecture that the config names by a file, None if it names none.

        A run that goes on has a copy of its own; the file may be gone by then, but not be another one.
        """
        if self.config.architecture in ("search", "backbone"):
            return None
        file, kept = Path(self.config.architecture), out / "architecture.json"
        goes_on = kept.is_file() and (out / "config.yaml").is_file()
        if not file.is_file() and not goes_on:
            raise UserError(
                f"architecture is {self.config.architecture!r}; accepted: search, backbone, or the path of an "
                "architecture.json"
            )
        given, network = Architecture.load(kept if goes_on else file), self.config.network
        if goes_on and file.is_file() and Architecture.load(file) != given:
            raise UserError(
                f"{out}: holds another run: {file} is not the architecture that it was begun with, of which {kept} is "
                "a copy. Give another directory to --out"
            )
        for key, theirs, ours in (
            ("host", given.host, network.name),
            ("options", dict(given.options), dict(network.options)),
            ("num_classes", given.num_classes, self.data.num_classes),
            ("input_shape", given.input_shape, self.data.input_shape),
            ("keep_real", given.keep_real, network.keep_real),
        ):
            if theirs != ours:
                raise UserError(f"{self.config.architecture}: {key} is {theirs!r}, but this run's is {ours!r}")
        given.build(self.host())  # refuses cells that the host has not
        return given

    def other_cells(self) -> list[str]:
        """Return the options of the config's cells that are not used, since the architecture's file has others."""
        ours, theirs, plain = (dataclasses.asdict(cell) for cell in (self.config.cell, self.cell, CellConfig()))
        return [key for key in ours if ours[key] not in (theirs[key], plain[key])]

    def _latency_table(self, out: Path, backbone: nn.Module) -> LatencyTable | None:
        """Return the latency table that the config names, checked; a run that goes on has a copy of its own."""
        search = self.config.search
        if search.latency_table is None:
            return None
        kept = out / LATENCY_TABLE
        if not kept.exists():
            table = LatencyTable.load(search.latency_table)
        else:
            table = LatencyTable.load(kept)
            given = Path(search.latency_table)
            if given.exists() and LatencyTable.load(given).text != table.text:
                raise UserError(
                    f"{out}: holds another run: {given} is not the latency table that it was begun with, of which "
                    f"{kept} is a copy. Give another directory to --out"
                )
        network = self.config.network
        table.check_network(
            network_key(
                network.name,
                network.options,
                self.data.num_classes,
                self.data.input_shape,
                self.cell,
                network.keep_real,
            ),
            own=kept.exists(),
        )
        if self.given is None:
            check_table(table, backbone, search.operations)
        else:
            table.predict(backbone, self.given.cells)  # refuses what it lacks
        if search.budget_ms is not None:
            checked_budget_ms(search.budget_ms, table)
        return table
