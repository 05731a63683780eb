"""Strategies tpe and nsga2: Optuna's samplers propose, the shared weights judge.

Every edge is one categorical parameter. What Optuna suggests is brought within the budget before it is judged (and up
to it, where the loss is the only objective), always by the same random logits, so that equal suggestions give equal
architectures; the first suggestions are random architectures, since uniformly drawn ones would cost many times the
budget.

With `objectives` (nsga2: by default the budget's own cost) loss and costs are minimized together, and what no other
judged architecture beats in all of them is the front.

Judged architectures are trials of an Optuna study in the run directory (optuna.journal), which Optuna's own tools can
read. A sampler keeps no state on disk: it is made anew for each trial, seeded by the trial's number, and learns from
the judged architectures alone; so a search that goes on suggests what the uninterrupted one suggests.

Source: Optuna (Akiba et al., KDD 2019, arXiv 1907.10902); TPE: Bergstra et al., NeurIPS 2011; NSGA-II: Deb et al., IEEE
Transactions on Evolutionary Computation 6 (2002).
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nasb.errors import UserError
from nasb.search.population import Judged, PopulationStrategy, cut_torn_line
from nasb.search.strategies import STRATEGIES
from nasb.seeding import derive_seed

if TYPE_CHECKING:
    import optuna

    from nasb.search.space import Choice, Space

STUDY = "search"


class OptunaStrategy(PopulationStrategy):
    """Proposes what an Optuna sampler suggests (see the module)."""

    file = "optuna.journal"

    @classmethod
    def check_installed(cls) -> None:
        """Refuse to search without Optuna.

        Raises:
            UserError: it is not installed.
        """
        if find_spec("optuna") is None:
            name = next(name for name in STRATEGIES if STRATEGIES[name] is cls)
            raise UserError(f"search.strategy: {name} needs Optuna, which is not installed: pip install 'nasb[optuna]'")

    def objectives(self) -> tuple[str, ...]:
        """Return the costs that are minimized beside the loss."""
        return self.config.objectives

    @abstractmethod
    def sampler(self, seed: int) -> "optuna.samplers.BaseSampler":
        """Return a fresh sampler."""

    def begin(self, space: "Space", seed: int) -> None:
        """Make an empty study, and what brings suggestions within the budget."""
        self.check_installed()
        import optuna

        super().begin(space, seed)
        with _quiet():
            self.study = optuna.create_study(directions=["minimize"] * (1 + len(self.objectives())))
        self.distributions: dict[str, optuna.distributions.BaseDistribution] = {
            f"{cell}.{key[0]}-{key[1]}-{'paid' if key[2] else 'free'}": (
                optuna.distributions.CategoricalDistribution(edge.names)
            )
            for cell, key, edge in space.named
        }
        self.noise = space.noise(self.generator("fit"))
        self._journal: optuna.Study | None = None

    def propose(self, numbers: range) -> list["Choice"]:
        """Ask the study."""
        proposed = []
        self.asked: list[optuna.Trial] = []
        for number in numbers:
            self.study.sampler = self.sampler(derive_seed(self.seed, "sampler", number) % 2**32)
            if number < self.config.population:
                self.study.enqueue_trial(self._first(number))
            trial = self.study.ask(self.distributions)
            indices = [names.index(trial.params[at]) for at, names in self._named()]
            self.asked.append(trial)
            proposed.append(self.space.fit(indices, self.noise, fill=not self.objectives()))
        return proposed

    def _named(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        return zip(self.distributions, self.space.names, strict=True)

    def _first(self, number: int) -> dict[str, str]:
        """Return a random architecture as parameters. For a front, every second one costs less than the budget."""
        import torch

        generator = self.generator("first", number)
        budget = None
        if self.objectives() and number % 2:
            backbone = self.space.cost.backbone
            budget = backbone + float(torch.rand((), generator=generator)) * (self.space.budget - backbone)
        choice = self.space.draw(generator, budget=budget)
        return {at: names[index] for (at, names), index in zip(self._named(), choice, strict=True)}

    def learn(self, judged: Sequence[Judged]) -> None:
        """Tell the study."""
        for trial, one in zip(self.asked, judged, strict=True):
            self.study.tell(trial, self._values(one))

    def _values(self, judged: Judged) -> list[float]:
        return [judged.loss, *(judged.costs[name] for name in self.objectives())]

    # The study on disk

    def restore(self, folder: Path) -> list[Judged]:
        """Return what was judged in earlier sittings.

        Raises:
            UserError: the journal is damaged.
        """
        path = folder / self.file
        (folder / f"{self.file}.lock").unlink(missing_ok=True)  # a kill leaves it; the run directory has a lock anyway
        if path.exists():
            cut_torn_line(path)
        try:
            trials = self._open(folder).get_trials(deepcopy=False)
            return [self.judged_of(trial.user_attrs["cells"], trial.values[0]) for trial in trials]
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
            raise UserError(f"{path}: is damaged. Delete it to judge the architectures anew") from None

    def _open(self, folder: Path) -> "optuna.Study":
        import optuna
        from optuna.storages.journal import JournalFileBackend

        if self._journal is None:
            with _quiet():
                self._journal = optuna.create_study(
                    storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / self.file))),
                    study_name=STUDY,
                    directions=["minimize"] * (1 + len(self.objectives())),
                    load_if_exists=True,
                )
        return self._journal

    def keep(self, folder: Path, judged: Judged, number: int) -> None:
        """Add a judged architecture to the study on disk, as a finished trial.

        Raises:
            UserError: it cannot be written.
        """
        import optuna

        study = self._open(folder)
        trial = self.asked[number - len(self.population)]
        attributes = {"cells": self.edges_of(judged.choice), **judged.costs}
        try:
            study.add_trial(
                optuna.create_trial(
                    values=self._values(judged),
                    params=trial.params,
                    distributions=self.distributions,
                    user_attrs=attributes,
                )
            )
        except OSError as error:
            path = folder / self.file
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from announcing each study."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


@STRATEGIES.register("tpe")
class Tpe(OptunaStrategy):
    """Optuna's tree-structured Parzen estimator, over all edges together (see the module)."""

    description = "architectures suggested by Optuna's TPE, judged with shared weights"

    def sampler(self, seed: int) -> "optuna.samplers.BaseSampler":
        """Return a fresh TPE sampler."""
        from optuna.samplers import TPESampler

        return TPESampler(seed=seed, multivariate=True, n_startup_trials=self.config.population)


@STRATEGIES.register("nsga2")
class Nsga2(OptunaStrategy):
    """Optuna's NSGA-II: a front of loss against cost (see the module)."""

    description = "a front of loss against cost by Optuna's NSGA-II, judged with shared weights"

    def objectives(self) -> tuple[str, ...]:
        """Return the costs that are minimized beside the loss; by default the one that has a budget."""
        return self.config.objectives or (self.config.budget_cost,)

    def sampler(self, seed: int) -> "optuna.samplers.BaseSampler":
        """Return a fresh NSGA-II sampler."""
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(seed=seed, population_size=self.config.population)
