"""Everything that a run is told: frozen dataclasses, validated when made, saved into the run directory.

The sentence under a field is its help at the command line; a YAML recipe has the same keys.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nasb.cells.config import CellConfig
from nasb.data.config import DataConfig
from nasb.errors import UserError, unknown_name
from nasb.search.config import SearchConfig

STAGES = ("search", "pretrain", "finetune")
OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "linear", "steps", "constant")
ACTIVATION_PHASES = ("hardtanh", "tanh", "sign")
UNNAMED_TEACHERS = ("auto", "none")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
Scalar = int | float | str | bool


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The real CNN that is converted."""

    host: str = "resnet20"
    """Registered host network (`nasb list networks`), or torchvision/NAME, timm/NAME; or (with architecture: backbone)
    a hand-made binary one."""
    options: dict[str, Scalar] = field(default_factory=dict)
    """The host's own options, e.g. {width: 16, stem_stride: 2}."""
    factory: str | None = None
    """In place of host: the function that makes your own CNN, package.module:function or file.py:function. It is called
    with num_classes and in_channels, as far as it takes them, and with the options."""
    keep_real: tuple[str, ...] = ()
    """Wildcards of what stays real, e.g. ["layer4.*"]: convolutions, and layers and operations that the conversion does
    not know."""

    @property
    def name(self) -> str:
        """The name under which the CNN is found: the factory's, or the host's."""
        return self.host if self.factory is None else self.factory


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Options of one training stage."""

    epochs: int = 20
    """Epochs of the stage."""
    optimizer: str = "adamw"
    """adamw or sgd."""
    learning_rate: float = 5e-3
    """Learning rate after warm-up."""
    momentum: float = 0.9
    """Nesterov momentum of sgd; 0: none."""
    weight_decay: float = 0.0
    """Decay of real weights of convolutions and linear layers; never of binary weights, batch norms or thresholds."""
    schedule: str = "cosine"
    """Learning rate over the stage: cosine or linear to 0; steps: a tenth after each of `milestones`; or constant."""
    milestones: tuple[float, ...] = ()
    """Schedule steps: epochs after each of which the learning rate falls to a tenth, e.g. [25, 35]."""
    warmup_epochs: float = 0.0
    """Epochs in which the learning rate rises linearly from 0."""
    label_smoothing: float = 0.0
    """Share of the target's probability that is spread over all classes."""
    clip_norm: float = 0.0
    """Largest norm of all gradients together; 0: no clipping."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is then what is kept; 0: none."""
    teacher: str = "auto"
    """Real network whose soft labels are learned: auto (the CNN of `init`, where there is one and all of it is
    trained), none, or a registered network with its teacher_weights."""
    teacher_weights: str | None = None
    """The weights of a teacher that is named (safetensors)."""
    teacher_options: dict[str, Scalar] = field(default_factory=dict)
    """The teacher's own options."""
    distillation_weight: float = 0.9
    """Share of the teacher's soft labels in the loss; the rest is cross-entropy with the true labels."""
    distillation_temperature: float = 4.0
    """Temperature of both distributions of logits in the distillation loss."""

    def validate(self, where: str) -> None:
        """Check the values; `where` leads the messages.

        Raises:
            UserError: names the key and what is accepted.
        """
        for key, accepted in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, key) not in accepted:
                raise UserError(f"{where}.{key}: {unknown_name(key, getattr(self, key), accepted)}")
        for key in ("epochs", "weight_decay", "warmup_epochs", "clip_norm"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise UserError(f"{where}.{key} is {getattr(self, key)}; it must not be negative")
        for key in ("label_smoothing", "ema", "momentum"):
            if not 0 <= getattr(self, key) < 1:
                raise UserError(f"{where}.{key} is {getattr(self, key)}; accepted: 0 to below 1")
        if not 0 <= self.distillation_weight <= 1:
            raise UserError(f"{where}.distillation_weight is {self.distillation_weight}; accepted: 0 to 1")
        for key in ("learning_rate", "distillation_temperature"):
            if not 0 < getattr(self, key) < float("inf"):
                raise UserError(f"{where}.{key} is {getattr(self, key)}; it must be a number above 0")
        rising = all(a < b for a, b in zip((0, *self.milestones), (*self.milestones, float("inf")), strict=True))
        if (self.schedule == "steps") != bool(self.milestones) or not rising:
            raise UserError(
                f"{where}.milestones is {list(self.milestones)} and {where}.schedule is {self.schedule}; "
                "milestones are epochs above 0 in rising order, for the schedule steps alone"
            )
        if self.epochs and self.warmup_epochs > self.epochs:
            raise UserError(
                f"{where}.warmup_epochs is {self.warmup_epochs}; accepted: 0 to {where}.epochs ({self.epochs})"
            )
        if (self.teacher in UNNAMED_TEACHERS) != (self.teacher_weights is None):
            raise UserError(
                f"{where}: teacher is {self.teacher} and teacher_weights is {self.teacher_weights}; give the name of a "
                "registered network and its weights, or auto or none without weights"
            )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(StageConfig):
    """Stage 2: the derived network with real weights and bounded activations."""

    epochs: int = 10
    """Epochs of the stage; 0 leaves the stage out."""
    activations: str = "hardtanh"
    """What stands in place of sign: hardtanh or tanh; or sign itself (ReActNet: real weights, binary activations)."""

    def __post_init__(self) -> None:
        self.validate("pretrain")
        if self.activations not in ACTIVATION_PHASES:
            raise UserError(f"pretrain.activations: {unknown_name('activation', self.activations, ACTIVATION_PHASES)}")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(StageConfig):
    """Stage 3: weights and activations binarized."""

    learning_rate: float = 3e-3
    """Learning rate after warm-up."""

    def __post_init__(self) -> None:
        self.validate("finetune")
        if self.epochs < 1:
            raise UserError("finetune.epochs is 0; the binary network has to be trained for at least one epoch")


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """Where the run is computed; changing it does not make it another run, though its numbers may differ: each of
    devices * nodes * accumulate pieces of a batch has batch norm statistics of its own."""

    accelerator: str = "auto"
    """auto, cpu, cuda or mps; all but cpu are untried."""
    devices: int = 1
    """Devices of this machine, one process each; they share each batch (data parallel). Also: --devices."""
    nodes: int = 1
    """Machines with that many devices each; start the command on each of them (docs/several-devices.md). Also:
    --nodes."""
    accumulate: int = 1
    """Pieces in which each process computes its share of a batch, one after the other: less memory, the same batch."""
    sync_batch_norm: bool = False
    """Batch norm over the images of all processes, not of each (torch's SyncBatchNorm; CUDA only, untried here)."""
    precision: str = "32-true"
    """32-true; or bf16-mixed or 16-mixed (fp16 with a gradient scaler): faster on hardware that has it, and
    approximate: accumulators are not exact integers."""
    threads: int | None = None
    """Threads of PyTorch in each process; by default the cores, shared by the processes of this machine."""
    keep_memory: bool = True
    """Keep freed memory for the next step, not give it back to the system: faster on a CPU (Linux with glibc)."""
    compile: bool = False
    """Compile derived networks with torch.compile (needs a C++ compiler); never the searchable one."""

    def __post_init__(self) -> None:
        if self.accelerator not in ("auto", "cpu", "cuda", "mps"):
            raise UserError(f"hardware.accelerator is {self.accelerator!r}; accepted: auto, cpu, cuda, mps")
        if self.precision not in PRECISIONS:
            raise UserError(f"hardware.precision: {unknown_name('precision', self.precision, PRECISIONS)}")
        for key in ("devices", "nodes", "accumulate", "threads"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"hardware.{key} is {value}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run: data and CNN in, searched and trained binary network out."""

    seed: int = 0
    """Every random number of the run follows from it."""
    architecture: str = "search"
    """search; backbone (no search: the hand-made Bi-Real form of the host, or a hand-made network as it is); or the
    path of an architecture.json."""
    init: str | None = None
    """The host's trained weights (safetensors), from which search and pretraining start."""
    init_partial: bool = False
    """Leave layers whose shape differs in `init` (such as the classifier) as they are, instead of refusing the file."""
    plugin: str | None = None
    """Python file that registers your own networks with nasb.register_host, or file.py:function; it is executed."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    cell: CellConfig = field(default_factory=CellConfig)
    data: DataConfig = field(default_factory=DataConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    evaluate_test: bool = True
    """Evaluate the finished network on the test images too; false leaves them to `nasb evaluate`, for comparisons in
    which everything is chosen on validation images."""
    resume: str = "auto"
    """auto: go on where the run directory stands; never: refuse a directory that holds a run."""
    checkpoint_minutes: float = 10.0
    """A checkpoint is written after each epoch, and within an epoch whenever that many minutes have passed."""

    def __post_init__(self) -> None:
        if self.resume not in ("auto", "never"):
            raise UserError(f"resume is {self.resume!r}; accepted: auto, never")
        if not self.checkpoint_minutes >= 0:
            raise UserError(f"checkpoint_minutes is {self.checkpoint_minutes}; it must not be negative")

    def stages(self) -> list[str]:
        """Return the stages that the run has, in their order."""
        left_out = set()
        if self.architecture != "search":
            left_out.add("search")
        if self.pretrain.epochs == 0:
            left_out.add("pretrain")
        return [stage for stage in STAGES if stage not in left_out]

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain values, as in a YAML recipe."""
        return _plain(asdict(self))  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


MAY_CHANGE = (
    "resume",
    "checkpoint_minutes",
    "evaluate_test",
    "hardware",
    "plugin",
    "search.latency_table",  # its content is compared with the run's copy
    "data.root",
    "data.workers",
    "data.download",
    "data.unreadable",  # whether the images are the same is seen by the images
)
"""Keys that a resumed run may have otherwise than the run that was begun."""


def first_difference(
    begun: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "", defaults: Mapping[str, Any] | None = None
) -> str | None:
    """Return a sentence on the first key in which two configs differ, None if they are one run.

    A key that the run was begun without, by an earlier version of nasb, counts as its default.
    """
    defaults = RunConfig().to_dict() if defaults is None else defaults
    for key in sorted({*begun, *now}):
        name = prefix + key
        if name in MAY_CHANGE:
            continue
        default = defaults.get(key)
        old, new = begun.get(key, default), now.get(key)
        if name == "data.in_memory" and bool(old) == bool(new):
            continue  # true makes photos centre crops; the others differ in memory alone
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            difference = first_difference(old, new, f"{name}.", default if isinstance(default, Mapping) else {})
            if difference is not None:
                return difference
        elif old != new:
            return f"{name} is {new!r} now, but the run was begun with {old!r}"
    return None
