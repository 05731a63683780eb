"""What the claim's study compares, and how: one table of methods, one list of trials, one training for all.

The protocol (fixed before the first run that counts; what is decided, is decided on validation images):

- Data: CIFAR-10 (JPEG copy) and Fashion-MNIST; 20,000 training images, a tenth of all for validation. Test images are
  read by `claim.py final` alone, once for each method and seed.
- Host: ResNet-20 with the strided stem. All train from scratch with AdamW, cosine schedule, batch 128, the default
  augmentation, compiled, one thread.
- Each method has the same TRIALS (learning rate, start of the branches' gain), one seed; the best on validation images
  is trained with the other seeds. A searched architecture is searched once for each seed, with the search's defaults.
- The epochs of the search are stated apart. `long` rows train the hand-made network for as many image passes as search
  and training of the searched one take together.
"""

from dataclasses import dataclass

IMAGES = 20_000
EPOCHS = 12
SEARCH_EPOCHS = 10
SEEDS = (0, 1, 2)
TRIALS = ((0.01, 1 / 3), (0.005, 1 / 3), (0.02, 1 / 3), (0.01, 1.0))
"""(learning rate, branch gain)."""

SETS = {
    "cifar10": {"data.name": "folder", "data.image_size": "32"},
    "fashion-mnist": {"data.name": "fashion-mnist"},
}
"""Flags of each data set; data.root is added."""

BASE = {
    "network.host": "resnet20",
    "network.options": "{stem_stride: 2}",
    "architecture": "backbone",
    "pretrain.epochs": "0",
    "finetune.epochs": str(EPOCHS),
    "data.train_limit": str(IMAGES),
    "hardware.threads": "1",
    "hardware.compile": "true",
    "evaluate_test": "false",
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the comparison."""

    label: str
    tier: str
    """A: three seeds, both data sets; B: one seed, CIFAR-10 only."""
    flags: tuple[tuple[str, str], ...] = ()
    """What differs from BASE."""
    budget: float | None = None
    """The method is searched (or drawn) within this budget."""
    random: bool = False
    """Architectures are drawn within the budget, not searched: one for each of RANDOM_SEEDS, not tuned on their own."""


RANDOM_SEEDS = (0, 1, 2, 3, 4)


def _host(width: int) -> tuple[tuple[str, str], ...]:
    return (("network.options", f"{{stem_stride: 2, width: {width}}}"),)


def _rival(name: str) -> tuple[tuple[str, str], ...]:
    return (("network.host", name),)


METHODS: dict[str, Method] = {
    "bireal": Method(label="Bi-Real Net, shortcuts without parameters", tier="A"),
    "nasb-1.10": Method(label="NASB, budget 1.10", tier="A", budget=1.10),
    "nasb-1.37": Method(label="NASB, budget 1.37", tier="A", budget=1.37),
    "random-1.10": Method(label="random architectures, budget 1.10", tier="A", budget=1.10, random=True),
    "random-1.37": Method(label="random architectures, budget 1.37", tier="A", budget=1.37, random=True),
    "bireal-published": Method(
        label="Bi-Real Net as published (real 1x1)", tier="A", flags=(("cell.shortcut", "conv"),)
    ),
    "bireal-wide-1.10": Method(label="Bi-Real Net, widened to 17", tier="A", flags=_host(17)),
    "bireal-wide-1.37": Method(label="Bi-Real Net, widened to 19", tier="A", flags=_host(19)),
    "reactnet": Method(label="ReActNet", tier="A", flags=_rival("reactnet_resnet20")),
    "bnn": Method(label="BNN", tier="B", flags=_rival("bnn_resnet20")),
    "xnornet": Method(label="XNOR-Net", tier="B", flags=_rival("xnor_resnet20")),
    "irnet": Method(label="IR-Net", tier="B", flags=_rival("irnet_resnet20")),
}
