"""Makes docs/rivals.md: what the hand-made binary networks compute and cost, beside what others published.

python studies/rivals.py            # writes the page
python studies/rivals.py --check    # exit code 1 if it is not what would be written
"""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

from published import ROOT, Published, published

from nasb.cli.compare import cost_of, expand
from nasb.cost.comparison import NetworkCost, render_comparison, significant

PAGE = ROOT / "docs" / "rivals.md"
LARQ = ROOT / "tests" / "golden" / "larq-zoo-counts.json"
MODULES = ("bnn", "xnornet", "irnet", "reactnet", "quicknet", "abcnet", "groupnet")
FAMILIES = ("bireal_resnet", "bnn_", "xnor_", "irnet_", "reactnet_", "quicknet", "abcnet_", "groupnet")
LIMIT = 0.01
"""A larger relative difference needs an explanation."""

EXPLAINED = {
    (
        "xnor_resnet18",
        "OPs",
    ): "the scale K of the activations is left out here, as in the released AlexNet; it would be "
    "some 0.017e8 FLOPs, which leaves -0.8%",
    ("bnn_alexnet", "FLOPs"): "the first layer has 55x55 pixels here, as AlexNet's, and 56x56 there",
    ("bnn_alexnet", "memory"): "the first layer's weights are real here and binary there",
    ("quicknet_small", "FLOPs"): "the fixed blur of each transition is pooling here and a convolution there",
    ("quicknet", "FLOPs"): "the same",
    ("quicknet_large", "FLOPs"): "the same",
}
"""By (network, quantity): why it differs by more than LIMIT."""
TWINS = {
    **{"BiRealNet": "bireal_resnet18", "QuickNetSmall": "quicknet_small", "QuickNet": "quicknet"},
    **{"QuickNetLarge": "quicknet_large", "BinaryAlexNet": "bnn_alexnet"},
}
"""Larq Zoo's names."""

TEXT = """\
# Hand-made binary networks

Made by `python studies/rivals.py`; a test fails if this page is not what that command writes. The counts are those
of `nasb compare`: one MAC is one operation, OPs = FLOPs + BOPs / 64; memory is 1 bit for each binary weight and 32
bits for any other number, batch norms folded ([contracts.md](contracts.md)).

All are trained by the same stages and recipes as any other network (`--network.host NAME --architecture backbone`),
exported by `nasb export` and run by the engine. `bireal_HOST` is the conversion of a host with every edge "none"
(`--network.host HOST --architecture backbone`; Bi-Real Net: Liu et al., ECCV 2018, arXiv 1808.00278).

## Cost at 224x224, 1,000 classes

{imagenet}

ABC-Net has 5 x 5 bases, Group-Net 5; `groupnet2_...` is Group-Net\\*\\*, whose real 1x1 shortcuts run once for each
branch.

## Beside published figures

Top-1 and Top-5 are on ImageNet's validation images, as their authors published them: **none was trained here**.
Each row is one source that was read (results/published.csv). The papers' own tables were not at hand; so what only
a paper says is missing (ABC-Net, Group-Net, BNN's ResNet-18), and Bi-Real Net's ResNet-50, whose published form has
two streams that the conversion of ResNet-50 has not. `difference`: ours to theirs; what is above {limit:.0%} is
explained below.

{published}

## Beside Larq Zoo's own summary

Counted by Larq Zoo itself (benchmarks/peers/larq_counts.py, recorded in tests/golden/larq-zoo-counts.json). After the
differences that are explained, every number is equal (tests/networks/rivals/test_rivals_larq_zoo.py).

{larq}

Explained:

{explained}

## Cost at 32x32, 10 classes

Those on ResNet-20 have the host's options (`width`, `stem_stride`) and `shortcut`; ABC-Net has 3 x 3 bases,
Group-Net 3.

{small}

## What each computes

{formulas}
"""


def main() -> None:
    """Write the page, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE.relative_to(ROOT)} is out of date: python studies/rivals.py")


def page() -> str:
    """Return the page's text."""
    costs = {name: cost_of(name) for name in names()}
    by_size = {size: [cost for cost in costs.values() if cost.input_shape[1] == size] for size in (224, 32)}
    return TEXT.format(
        imagenet=render_comparison(by_size[224], "markdown"),
        limit=LIMIT,
        published=_published_table(costs),
        larq=_larq_table(costs),
        explained="\n".join(f"- {name}, {quantity}: {reason}." for (name, quantity), reason in EXPLAINED.items()),
        small=render_comparison(by_size[32], "markdown"),
        formulas="\n\n".join(map(_formula, MODULES)),
    )


def names() -> list[str]:
    """Return the registered hand-made networks, family by family."""
    found = expand([f"{family}*" for family in FAMILIES])
    return [name for name in found if not name.endswith(("32", "44", "56"))]


def _published_table(costs: dict[str, NetworkCost]) -> str:
    header = ("network", "source", "OPs, published", "ours", "difference", "MiB, published", "ours", "difference")
    lines = _head(*header, "Top-1", "Top-5")
    for row in published():
        if row.network not in costs:
            continue
        count = costs[row.network].count
        cells = [row.network, f"[{row.source}]({row.url})", *_beside(row, "OPs", row.ops, count.ops, 1e8, "e8")]
        cells += _beside(row, "memory", row.memory_mib, count.memory_bits / 8 / 2**20, 1, "")
        cells += [f"{value:.2f}".removesuffix("0") if value is not None else "" for value in (row.top1, row.top5)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _head(*columns: str) -> list[str]:
    return [f"| {' | '.join(columns)} |", f"| --- | --- |{' ---: |' * (len(columns) - 2)}"]


def _beside(row: Published, quantity: str, theirs: float | None, ours: float, unit: float, suffix: str) -> list[str]:
    if theirs is None:
        return [""] * 3
    mine = f"{significant(ours / unit)}{suffix}"
    return [f"{theirs / unit:.2f}{suffix}", mine, difference(row.network, quantity, ours, theirs)]


def difference(network: str, quantity: str, ours: float, theirs: float) -> str:
    """Return ours to theirs in percent.

    Raises:
        SystemExit: it is above LIMIT and nothing explains it.
    """
    share = ours / theirs - 1
    if abs(share) > LIMIT and (network, quantity) not in EXPLAINED:
        raise SystemExit(f"{network}: {quantity}: {share:+.1%} to the published figure, and nothing explains it")
    return f"{share:+.1%}" if share else "equal"


def _larq_table(costs: dict[str, NetworkCost]) -> str:
    record = json.loads(LARQ.read_text())["networks"]
    header = ("Larq Zoo", "here", "BOPs (M), theirs", "ours", "FLOPs (M), theirs", "ours", "difference")
    lines = _head(*header, "Mbit, theirs", "ours", "difference")
    for theirs, ours in TWINS.items():
        found, count = record[theirs], costs[ours].count
        if found["macs"]["1"] != count.bops:
            raise SystemExit(f"{ours}: {count.bops} BOPs, Larq Zoo counts {found['macs']['1']}")
        cells = [theirs, ours, significant(found["macs"]["1"] / 1e6), significant(count.bops / 1e6)]
        pairs = (("FLOPs", found["macs"]["32"], count.flops), ("memory", found["memory_bits"], count.memory_bits))
        for quantity, larq, mine in pairs:
            cells += [significant(larq / 1e6), significant(mine / 1e6), difference(ours, quantity, mine, larq)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _formula(name: str) -> str:
    """Return what a module's docstring says of its network: title and all that follows it."""
    text = (import_module(f"nasb.networks.rivals.{name}").__doc__ or "").strip()
    title, _, rest = text.partition("\n")
    file = Path("src/nasb/networks/rivals", f"{name}.py")
    return f"### {title.rstrip('.')}\n\n[{file}](../{file})\n\n{rest.strip(chr(10))}"


if __name__ == "__main__":
    main()
