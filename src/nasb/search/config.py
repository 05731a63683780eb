"""Options of the architecture search."""

from dataclasses import dataclass

from nasb.errors import UserError, unknown_name

ALPHA_BETAS = (0.5, 0.999)
COSTS = ("ops", "memory", "ms")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Options of the architecture search."""

    strategy: str = "regression"
    """How paths are sampled and alpha is updated: `nasb list strategies`."""
    budget: float = 1.10
    """Largest OPs of the derived network, relative to its backbone alone (every edge "none"). Not used where there is a
    budget_memory or a budget_ms."""
    budget_memory: float | None = None
    """Largest memory of the derived network (1 bit for a binary weight, 32 for any other number), relative to its
    backbone alone, instead of the budget on OPs."""
    budget_ms: float | None = None
    """Largest latency of the derived network in milliseconds, instead of the budget on OPs; needs latency_table."""
    latency_table: str | None = None
    """Milliseconds of each operation on the device that the network is for: `nasb latency-table`."""
    epochs: int = 10
    """Epochs of the search, over the weights' share of the training images."""
    alpha_share: float = 0.2
    """Share of the training images that alpha, or candidates, are judged on; the weights have the others."""
    warmup_epochs: int = 2
    """First epochs, in which only weights are trained."""
    learning_rate: float = 5e-3
    """Learning rate of the weights (Adam, cosine)."""
    alpha_learning_rate: float = 5e-2
    """Strategies gumbel, gates, darts and reinforce: learning rate of alpha (Adam)."""
    budget_weight: float = 1.0
    """The same strategies: weight w of the budget in their objective, cross-entropy + w * |log(E[OPs] / budget)|."""
    uniform_paths: float = 0.2
    """Share of weight steps whose path is drawn from the starting distribution, for exploration."""
    free_share: float = 0.75
    """Share of the free edges that are connected at the start, where three operations and none then are equally
    probable; the paid ones start where the budget is met."""
    pair_share: float = 0.15
    """Strategy gates: share of edges whose two paths are compared in one step of alpha (all of them cost too much)."""
    temperature: float = 1.0
    """Strategy gumbel: temperature of the softmax at the start."""
    final_temperature: float = 0.3
    """Strategy gumbel: temperature at the end (geometric schedule)."""
    entropy_weight: float = 0.0
    """The same strategies: weight of an entropy bonus on alpha against collapse; it decays as exp(-epoch /
    entropy_decay) (BNAS: 1.0)."""
    entropy_decay: float = 7.7
    """Epochs in which the entropy bonus falls to 1/e."""
    paths: int = 4
    """Strategies regression and reinforce: paths whose losses are compared on one batch of the alpha part."""
    candidates: int = 24
    """Strategy random: architectures that are judged once the weights are trained."""
    trials: int = 200
    """Strategies evolution, tpe and nsga2: architectures that are judged once the weights are trained."""
    candidate_batches: int = 8
    """Strategies random, evolution, tpe and nsga2: batches of the alpha part on which each of them is judged."""
    at_once: int = 8
    """Strategies random, evolution, tpe and nsga2: architectures that are proposed before any of them is judged; ranks
    share them."""
    population: int = 40
    """Strategies evolution, tpe and nsga2: first architectures, which are drawn at random; with evolution also how many
    live at a time, with nsga2 the size of a generation."""
    tournament: int = 10
    """Strategy evolution: of that many living the best one is the parent."""
    objectives: tuple[str, ...] = ()
    """Strategies tpe and nsga2: costs that are minimized beside the loss, of ops, memory and ms (which needs
    latency_table); the run directory then holds the front. By default none for tpe, for nsga2 the budget's own."""
    derive_candidates: int = 1
    """Architectures that are derived at the end and ranked with the shared weights, batch norms recalibrated, on images
    of the alpha part; the best is kept. 1: the first, unranked (the shared weights' loss was not seen to rank them)."""
    race_epochs: int = 0
    """Epochs for which each of the derived architectures is trained by itself instead, by finetune's options without
    pretraining, on the weights' share of the training images; the one with the least loss on alpha's is kept. 0: no
    race, they are ranked with the shared weights."""
    derive_batches: int = 16
    """Batches of the weights part on which their batch norms are recalibrated, and of the alpha part on which they are
    ranked."""
    weights: str = "binary"
    """Search on the binary network (binary), or with real weights and binary activations (real)."""
    operations: tuple[str, ...] | None = None
    """Candidate operations; by default all: `nasb list operations`."""

    @property
    def budget_cost(self) -> str:
        """Name of the cost that has a budget: "ops", "memory" or "ms"."""
        if self.budget_ms is not None:
            return "ms"
        return "ops" if self.budget_memory is None else "memory"

    def __post_init__(self) -> None:
        from nasb.search.strategies import STRATEGIES

        STRATEGIES[self.strategy]
        self._check_objectives()
        self._check_budget()
        self._check_operations()
        if self.weights not in ("binary", "real"):
            raise UserError(f"search.weights is {self.weights!r}; accepted: binary, real")
        at_least_one = ("epochs", "candidates", "candidate_batches", "trials", "at_once", "tournament",
                        "derive_candidates", "derive_batches")  # fmt: skip
        for key, least in (*((key, 1) for key in at_least_one), ("paths", 2), ("population", 2)):
            if getattr(self, key) < least:
                raise UserError(f"search.{key} is {getattr(self, key)}; it must be at least {least}")
        # Alpha learns behind the warm-up; strategies that judge whole architectures have none.
        most = self.epochs - 1 if STRATEGIES[self.strategy].trains_alpha else self.epochs
        if not 0 <= self.warmup_epochs <= most:
            raise UserError(
                f"search.warmup_epochs is {self.warmup_epochs}; accepted with {self.epochs} search.epochs and strategy "
                f"{self.strategy}: 0 to {most}"
            )
        if not 0 < self.alpha_share < 1:
            raise UserError(f"search.alpha_share is {self.alpha_share}; accepted: above 0, below 1")
        for key in ("uniform_paths", "free_share", "pair_share"):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(f"search.{key} is {getattr(self, key)}; accepted: 0 to 1")
        for key in (
            *("learning_rate", "alpha_learning_rate", "temperature", "final_temperature", "entropy_decay"),
            *(() if self.budget_ms is None else ("budget_ms",)),
        ):
            if not 0 < getattr(self, key) < float("inf"):
                raise UserError(f"search.{key} is {getattr(self, key)}; it must be a number above 0")
        for key in ("budget_weight", "entropy_weight", "race_epochs"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise UserError(f"search.{key} is {getattr(self, key)}; it must not be negative")
        if self.race_epochs and self.derive_candidates == 1:
            raise UserError(
                f"search.race_epochs is {self.race_epochs}, but search.derive_candidates is 1; a race needs two or more"
            )

    def _check_operations(self) -> None:
        operations = self.operations or ()
        for name in operations:
            if operations.count(name) > 1:
                raise UserError(f"search.operations has {name} twice; name each operation once")

    def _check_objectives(self) -> None:
        for name in self.objectives:
            if name not in COSTS:
                raise UserError(f"search.objectives: {unknown_name('cost', name, COSTS)}")
        if len(set(self.objectives)) < len(self.objectives):
            raise UserError(f"search.objectives is {', '.join(self.objectives)}; name each cost once")
        if self.objectives and self.strategy not in ("tpe", "nsga2"):
            raise UserError(
                f"search.objectives is {', '.join(self.objectives)}, but strategy {self.strategy} has the loss alone, "
                "within the budget; a front is found by nsga2 or tpe"
            )
        if "ms" in self.objectives and self.latency_table is None:
            raise UserError("search.objectives: ms needs search.latency_table: `nasb latency-table` makes one")

    def _check_budget(self) -> None:
        if not 1.0 <= self.budget < float("inf"):
            raise UserError(
                f'search.budget is {self.budget}, but a network with every edge "none" costs 1.0. Give one >= 1.0'
            )
        if (self.budget_ms is None and "ms" not in self.objectives) != (self.latency_table is None):
            raise UserError(
                f"search.budget_ms is {self.budget_ms} and search.latency_table is {self.latency_table}; give both, "
                "for a budget in milliseconds, or neither"
            )
        if self.budget_memory is not None and not 1.0 <= self.budget_memory < float("inf"):
            raise UserError(
                f'search.budget_memory is {self.budget_memory}, but a network with every edge "none" takes 1.0. '
                "Give one >= 1.0"
            )
        if self.budget_memory is not None and self.budget_ms is not None:
            raise UserError("search.budget_memory and search.budget_ms are both given; give one of them")
