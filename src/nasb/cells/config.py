"""What all cells of one network have in common."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from nasb.errors import UserError, unknown_name

ACTIVATIONS = ("none", "prelu", "rprelu")
SHORTCUTS = ("auto", "adapt", "avgmax", "conv")
THRESHOLDS = ("node", "edge")
WEIGHT_SCALES = ("none", "mean", "learned")
SURROGATES = (
    "clipped_identity",
    "half_clipped_identity",
    "wide_clipped_identity",
    "polynomial",
    "tanh_annealed",
    "identity",
)


@dataclass(frozen=True, kw_only=True)
class CellConfig:
    """Options of the NASB cell, the same for every cell of a network. The defaults are Bi-Real Net's published form."""

    nodes: int = 1
    """Inside nodes of the cell, 0 to 2 (0 leaves the edges from the input to the output)."""
    bases: int = 1
    """Binary bases K of the backbone: 1 is a single binary CNN, more a multiple one."""
    activation: str = "none"
    """What follows the cell's sum: none (published Bi-Real Net), prelu or rprelu."""
    activation_slope: float = 1.0
    """Start of its slopes for negative values; at 1 it starts as if it were not there."""
    shortcut: str = "auto"
    """Shortcut of a cell that changes shape: conv (average pooling, real 1x1, batch norm), adapt (average pooling,
    channels repeated), avgmax (the added channels max-pooled, batch norm), or auto: as the host had it."""
    learned_threshold: bool = False
    """Learn a threshold per channel for each binarization (RSign) instead of 0."""
    thresholds: str = "node"
    """node: the operations that leave a node share one binarization of it. edge: each edge of binary convolutions has
    one of its own, with a learned threshold per channel, as each further base has."""
    weight_scale: str = "none"
    """Scale of binary weights: none, mean or learned. The batch norm behind each binary convolution absorbs it."""
    surrogate: str = "polynomial"
    """Surrogate gradient of the activations' sign."""
    pad_value: int = 0
    """What the border of a binary convolution contributes: 0, or 1 / -1 for networks that were published so."""
    branch_gain: float = 1 / 3
    """Start of the batch norms' gamma in the backbone, which is added to the shortcut."""
    edge_gain: float = 0.03
    """The same in the operations on edges, of which a cell can have several."""
    inside_gain: float | None = None
    """The same on edges to inside nodes, where no shortcut is; by default edge_gain."""

    def __post_init__(self) -> None:
        for key, accepted in (
            ("activation", ACTIVATIONS),
            ("shortcut", SHORTCUTS),
            ("thresholds", THRESHOLDS),
            ("weight_scale", WEIGHT_SCALES),
            ("surrogate", SURROGATES),
        ):
            if getattr(self, key) not in accepted:
                raise UserError(f"cell.{key}: {unknown_name(key, getattr(self, key), accepted)}")
        for key, accepted_numbers in (("nodes", (0, 1, 2)), ("bases", range(1, 17)), ("pad_value", (-1, 0, 1))):
            value = getattr(self, key)
            if type(value) is not int or value not in accepted_numbers:
                numbers = ", ".join(map(str, accepted_numbers))
                raise UserError(f"cell.{key} is {value!r}; accepted: {numbers}")
        if not isinstance(self.learned_threshold, bool):
            raise UserError(f"cell.learned_threshold is {self.learned_threshold!r}; accepted: true, false")
        if type(self.activation_slope) not in (int, float) or not 0 <= self.activation_slope <= 1:
            raise UserError(f"cell.activation_slope is {self.activation_slope!r}; give a number from 0 to 1")
        for key in ("branch_gain", "edge_gain", "inside_gain"):
            value = getattr(self, key)
            if key == "inside_gain" and value is None:
                continue
            if type(value) not in (int, float) or not 0 < value <= 10:
                raise UserError(f"cell.{key} is {value!r}; give a number above 0, at most 10")

    def of_edge(self, target: int) -> "CellConfig":
        """Return the options of what stands on an edge to a node: `edge_gain` is what it starts with."""
        if target > self.nodes or self.inside_gain is None:
            return self
        return replace(self, edge_gain=self.inside_gain)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: object, where: str) -> "CellConfig":
        """Read the options back; `where`, the file's name, leads the error messages.

        Raises:
            UserError: not a mapping, an unknown key, or a value that is not accepted.
        """
        if not isinstance(values, dict):
            raise UserError(f"{where}: cell must be a mapping, not {type(values).__name__}")
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise UserError(f"{where}: cell: {unknown_name('key', key, known)}")
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
