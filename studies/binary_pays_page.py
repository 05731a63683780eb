"""docs/when-binary-pays.md and its pictures, from results/when-binary-pays.csv and results/published.csv."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claim_methods import METHODS
from markdown_table import table
from pictures import Point, draw_points
from published import ROOT, Published, top1_of
from report_claim import Claim, Sample
from result_rows import rows as read

CSV = ROOT / "results" / "when-binary-pays.csv"
PAGE = ROOT / "docs" / "when-binary-pays.md"
DATA = "cifar10"
"""Of the section in small."""
TEXT = """\
# When binary pays

Made by `build/peers/env/bin/python studies/when_binary_pays.py` (`make peers` sets that up; a few minutes; `--page`
writes the page alone); a test fails if this page is not what that command writes. Measured: milliseconds of one image
of 224x224 on one thread, in the thread's own processor time, and the bytes of the file, with random weights. **Top-1 is
what others published** for ImageNet, with its source; nothing was trained here, and ABC-Net's and Group-Net's figures
were not seen at their source, so they have none ([rivals.md](rivals.md)). `time` is the median of the rounds' ratios to
ResNet-18, fp32, in ONNX Runtime; in brackets its quartiles.

Each binary network, and the hosts ResNet-18/34/50 with real weights, run in our engine; the rest is torchvision's, in
ONNX Runtime, fp32 and int8 (static, per channel). int8's Top-1 is of torchvision's own quantized models; whether ONNX
Runtime's quantization keeps it was not measured.

{sections}{small}
## Where you should not go binary

{advice}

These words are of the first table. Measured are two CPUs, one at 224x224 and one in small. On yours: `nasb compare
bireal_resnet18 quicknet reactnet_a --latency --input-size 3x224x224` for our engine, this page's command for all of it.
The engine's ARM kernels were never timed on a board.
"""


@dataclass(frozen=True)
class Measured:
    """One network in one runtime."""

    network: str
    runtime: str
    precision: str
    ms: float
    ratio: float
    ratio_q1: float
    ratio_q3: float
    file_bytes: int
    published: Published | None

    @property
    def label(self) -> str:
        """Its name; if it is not binary, with the precision, and with the engine where that is ours."""
        if self.binary:
            return self.network
        return f"{self.network} {self.precision}{'' if self.runtime == 'ONNX Runtime' else f' ({self.runtime})'}"

    @property
    def top1(self) -> float:
        """Published Top-1; 0 where it was not seen."""
        return 0.0 if self.published is None or self.published.top1 is None else self.published.top1

    @property
    def binary(self) -> bool:
        """Whether its convolutions are binary."""
        return self.precision == "binary"


def load(path: Path) -> dict[str, list[dict[str, str]]]:
    """Return the rows by what the CPU was held to; "" is the CPU as it is."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in read(path):
        found.setdefault(row["held_to"], []).append(row)
    return found


def measured(rows: Sequence[dict[str, str]]) -> list[Measured]:
    """Return rows as what they say, fastest first."""
    found = []
    for row in rows:
        name = f"{row['network']} int8" if row["precision"] == "int8" else row["network"]
        numbers = (float(row[key]) for key in ("ms", "ratio", "ratio_q1", "ratio_q3"))
        found.append(
            Measured(row["network"], row["runtime"], row["precision"], *numbers, int(row["file_bytes"]), top1_of(name))
        )
    return sorted(found, key=lambda one: one.ratio)


def page(path: Path) -> str:
    """Return the page's text."""
    found = load(path)
    sections = "\n".join(_section(held, rows) for held, rows in found.items())
    first = measured(next(iter(found.values())))
    return TEXT.format(
        sections=sections, small=_small(path.parent), advice="\n".join(f"- {line}" for line in advice(first))
    )


def _section(held: str, rows: Sequence[dict[str, str]]) -> str:
    row, name = rows[0], f"-{held}" if held else ""
    title = f"Nobody may use AVX-512 ({held})" if held else "This CPU"
    state = f"{row['rounds']} rounds, load {row['load']}{', ' + row['note'] if row['note'] else ''}"
    conditions = (
        f"{row['cpu']} ({row['instruction_sets']}); {row['versions']}; {state}; commit {row['commit']}, {row['date']}."
    )
    lines = []
    for one in measured(rows):
        top1 = "" if one.published is None else f"{one.top1:.1f} ([{one.published.source}]({one.published.url}))"
        time = f"{one.ratio:.2f} ({one.ratio_q1:.2f} - {one.ratio_q3:.2f})"
        lines.append([one.label, one.runtime, f"{one.ms:.2f}", time, f"{one.file_bytes / 1e6:.2f}", top1])
    found = table(("network", "runs in", "ms", "time", "file, MB", "published Top-1"), lines, left=2)
    pictures = "\n\n".join(
        f"![Published Top-1 over {what}](when-binary-pays/{what}{name}.svg)" for what in ("time", "bytes")
    )
    return f"## {title}\n\n{conditions}\n\n{found}\n\n{pictures}\n"


SMALL = """
## In small, with accuracies of our own

CIFAR-10 (JPEG copy), the study of [results.md](results.md): what the search found beside thin real ResNet-20s, the
widest of each precision that take no longer, or whose file is no larger (studies/thin_real.py: the commands), and the
whole ResNet-20, `real-16`. Times and bytes of searched networks are means over their seeds. Top-1 is ours here: mean ±
standard deviation (n) on {part} images; int8 is quantized after training. {conditions}

{table}

{words}
"""


def widths(found: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], int]:
    """Return the widest real network of thin-real.csv that is no slower, and no larger, than the first network there.

    By (precision, "time" or "bytes"); without those of which even the thinnest is slower, or larger.
    """
    chosen: dict[tuple[str, str], int] = {}
    for row in found:
        if not str(row["network"]).startswith("real-"):
            continue
        width = int(str(row["network"]).removeprefix("real-"))
        fits = {"time": float(row["ratio"]) <= 1, "bytes": int(row["file_bytes"]) <= int(found[0]["file_bytes"])}
        for what in (what for what, fit in fits.items() if fit):
            chosen[row["precision"], what] = max(width, chosen.get((row["precision"], what), 0))
    return chosen


def _small(results: Path) -> str:
    """Return the section of thin real networks; empty before it is measured and trained."""
    rows, claim = read(results / "thin-real.csv"), Claim.load(results)
    trained = {row["network"] for row in rows if row["network"] in METHODS and claim.chosen(DATA, row["network"])}
    shown = sorted((row for row in rows if row["network"] in trained), key=lambda row: float(row["ratio"]))
    if not any(name.startswith("real-") for name in trained):
        return ""
    # Of one kind of images all, the quantized networks too.
    quantized = read(results / "thin-real-int8.csv")
    tested = {row["method"] for row in quantized if row["part"] == "test"}
    sealed = all(claim.test(DATA, name).values for name in trained) and all(
        row["network"] in tested for row in shown if row["precision"] == "int8"
    )
    part = "test" if sealed else "validation"
    quantized = [row for row in quantized if row["part"] == part]

    def top1(row: Mapping[str, str]) -> Sample:
        name = row["network"]
        if row["precision"] == "int8":
            return Sample(tuple(float(one["top1"]) for one in quantized if one["method"] == name))
        return claim.test(DATA, name) if sealed else claim.validation(DATA, name)

    lines = []
    for row in shown:
        time = f"{float(row['ratio']):.2f} ({float(row['ratio_q1']):.2f} - {float(row['ratio_q3']):.2f})"
        size = f"{int(row['file_bytes']) / 1e3:.1f}"
        known = [f"`{row['network']}`", row["precision"], row["runtime"], f"{float(row['ms']):.3f}", time, size]
        lines.append([*known, str(top1(row))])
    row = rows[0]
    header = ("network", "precision", "runs in", "ms", f"time / {row['network']}", "file, kB", "Top-1")
    state = (
        f"{row['cpu']}; {row['versions']}; {row['rounds']} rounds, load {row['load']}; {row['commit']}, {row['date']}."
    )
    words = "\n".join(f"- {line}" for line in _small_words(rows, shown, top1))
    return SMALL.format(part=part, conditions=state, table=table(header, lines, left=3), words=words)


def _small_words(
    rows: Sequence[dict[str, str]], shown: Sequence[dict[str, str]], top1: Callable[[Mapping[str, str]], Sample]
) -> Iterator[str]:
    """Yield what the table says of the first network; of what is not trained, or too close, that it is so."""
    ours, chosen = rows[0], widths(rows)
    for what in ("time", "bytes"):
        for precision in ("fp32", "int8"):
            start = f"**In no more {what}, {precision}:**"
            width = chosen.get((precision, what))
            if width is None:
                yield f"{start} no real ResNet-20, not the thinnest."
                continue
            row = next((r for r in shown if r["network"] == f"real-{width}" and r["precision"] == precision), None)
            if row is None or not top1(row).values:
                yield f"{start} `real-{width}`, which is not trained yet."
                continue
            points = top1(ours).mean - top1(row).mean
            side = "below" if points > 0 else "above"
            yield f"{start} `real-{width}`, {abs(points):.2f} points {side} `{ours['network']}`."
    for row in shown:
        if row["network"].startswith("real-") and top1(row).values and top1(row).mean >= top1(ours).mean:
            size = int(row["file_bytes"]) / int(ours["file_bytes"])
            yield (
                f"**With as much Top-1 or more:** `{row['network']}` {row['precision']}, at {float(row['ratio']):.2f} "
                f"times the time and {size:.1f} times the bytes."
            )


def draw(path: Path, folder: Path = PAGE.parent / "when-binary-pays") -> None:
    """Draw published Top-1 over time and over bytes, with the front."""
    for held, rows in load(path).items():
        known = [one for one in measured(rows) if one.published is not None]
        for what, x in (("time", "time / ResNet-18 fp32 in ONNX Runtime"), ("bytes", "file (MB)")):
            points = [
                Point(
                    label=one.label,
                    group="binary" if one.binary else f"{one.precision}, {one.runtime}",
                    x=one.ratio if what == "time" else one.file_bytes / 1e6,
                    y=one.top1,
                )
                for one in known
            ]
            name = f"{what}-{held}.svg" if held else f"{what}.svg"
            title = f"published Top-1 over measured {what}{', ' + held if held else ''}"
            draw_points(folder / name, points, title=title, x=x, y="published Top-1 (%)", front=True, log=True)


def advice(found: Sequence[Measured]) -> list[str]:
    """Return plain words; a sentence that these numbers do not say is not written."""
    binary = [one for one in found if one.binary and one.published]
    real = [one for one in found if not one.binary and one.published]
    best = max(binary, key=lambda one: one.top1)
    above = [one for one in real if one.top1 > best.top1]
    lines = [
        f"**Where {best.top1:.1f}% on ImageNet is not enough.** No binary network here was published with more "
        f"({best.label}). {_listed(above)} were."
    ]
    # As fast: what the rounds' quartiles do not tell to be slower.
    by_time = {one: [r for r in real if r.ratio_q1 <= one.ratio_q3 and r.top1 >= one.top1] for one in binary}
    for precision in ("int8", "fp32"):
        beaten = [one for one in binary if any(r.precision == precision for r in by_time[one])]
        if beaten:
            rivals = _union(by_time[one] for one in beaten)
            rivals = [r for r in rivals if r.precision == precision]
            lines.append(
                f"**For speed, where {precision} runs as well as here.** Each of these is no faster, as far as the "
                f"quartiles tell, than a real network that was published with as much or more: {_listed(beaten)}. "
                f"Those real ones: {_listed(rivals)}."
            )
    free = [one for one in binary if not by_time[one]]
    if free:
        lines.append(f"Faster than every real network here of as much published Top-1: {_listed(free)}.")
    by_bytes = {one: [r for r in real if r.file_bytes < one.file_bytes and r.top1 >= one.top1] for one in binary}
    beaten = [one for one in binary if by_bytes[one]]
    if beaten:
        rivals = _union(by_bytes[one] for one in beaten)
        lines.append(
            f"**For bytes.** Each of these is larger than a real network that was published with more, since first "
            f"layer, 1x1 shortcuts and classifier stay real: {_listed(beaten)}. Those real ones: {_listed(rivals)}."
        )
    small = [one for one in binary if not by_bytes[one]]
    if small:
        lines.append(f"No real network here beats these in both bytes and published Top-1: {_listed(small)}.")
    alike = [one for one in binary if one.network.endswith("_resnet18")]
    host = next((one for one in real if one.label == "resnet18 int8"), None)
    if alike and host:
        same = max(alike, key=lambda one: one.top1)
        lines.append(
            f"**What it buys in a shape that is given.** {same.label} takes {same.ratio / host.ratio:.2f} of the time "
            f"of {host.label} and {same.file_bytes / host.file_bytes:.2f} of its bytes, and was published with "
            f"{host.top1 - same.top1:.1f} points less."
        )
    slow = [one for one in found if one.binary and one.ratio > 1]
    if slow:
        lines.append(f"**With many bases.** Slower than ResNet-18 itself, fp32 in ONNX Runtime: {_listed(slow)}.")
    return lines


def _union(lists: Iterable[list[Measured]]) -> list[Measured]:
    return list(dict.fromkeys(one for found in lists for one in found))


def _listed(networks: Sequence[Measured]) -> str:
    names = [one.label for one in networks]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
