"""Makes docs/results.md with its pictures, and docs/screening.md, from the CSVs in results/.

python studies/report.py            # writes the two pages and docs/results/*.svg
python studies/report.py --check    # exit code 1 if a page is not what would be written
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ablations import NOTE as ABLATIONS
from claim import ROOT
from claim_methods import BASE, EPOCHS, IMAGES, LONG, METHODS, SEEDS
from pictures import Point, draw_points
from report_claim import Claim, accuracy_table, cost_table, goal_table, headroom, trial_table
from report_search import ablation_table, load_architectures, operations_table, tau_table
from result_rows import rows

from nasb.cells.architecture import Architecture
from nasb.cells.draw import draw_architecture

TITLES = {"cifar10": "CIFAR-10 (JPEG copy)", "fashion-mnist": "Fashion-MNIST"}
HEAD = """\
# Results: does search beat design by hand?

Made by `python studies/report.py` from results/*.csv; a test fails if this page is not what that command writes. The
CSVs are made by

    python studies/claim.py run --cifar10 DATA --fashion-mnist DATA --out RUNS      # goes on where it stands
    python studies/ablations.py --cifar10 DATA --out RUNS                           # one thing at a time
    python studies/search_score.py --root DATA --runs RUNS                          # Kendall's tau
    python studies/claim.py final --cifar10 DATA --fashion-mnist DATA --out RUNS    # test images, once

The protocol, and how it was changed ten times, is the docstring of studies/claim_methods.py: ResNet-20 with the
strided stem, {images:,} training images, the same trials of learning rate and branch gain for every hand-made method
and for the backbone of the searched ones, everything decided on validation images. Numbers are Top-1 in percent: mean ±
standard deviation (n) over seeds, or over architectures for the random ones. OPs, memory: [contracts.md](contracts.md).
`to plain`: OPs to those of the same network with every edge "none". kB: counted bits of all that is stored; the
exported file has names and metadata, too. Learning rate and gain "as" another method are that one's: the row has no
trials of its own.
"""
LIMITS = """\
## What cannot be concluded from this

- **Nothing about ImageNet.** NASB's claims (+4.0 and +1.0 points Top-1) are about ImageNet, ResNet-18 and up, and long
  training. These are small images, a ResNet-20 of 0.27 M weights and {epochs} epochs of {images:,} images. A method
  that learns fast is favoured; {longer}.
- **No absolute accuracy.** CIFAR-10 is a lossy JPEG copy here, so its numbers are comparable among themselves only, and
  the rivals' published recipes (hundreds of epochs, some with a teacher) were not followed: each has the same short
  list of trials.
- **Little about small differences.** With {seeds} seeds a point may be chance. p tells how easily, for one goal alone:
  of forty, two would be below 0.05 by chance. Where n is 1 there is no spread at all.
- **One side was tuned more on CIFAR-10.** How branches on edges start, how the search goes, and, once a first searched
  network was not better than random ones, that it ends with a race, were chosen by some 30 runs
  ([screening](screening.md) and random architectures) on its validation images; the rivals had their trials alone, one
  of them with a smaller start of their branches. Differences to them are in our favour by an unknown amount.
  Fashion-MNIST chooses trials only.
- **Learned thresholds are on one side of most rows.** Cells of searched and random networks have them, on edges of
  binary convolutions and with these in their backbone; hand-made networks and the bare backbone have none. The rows
  that say so show both sides with and without.
- **Search, or a choice among six?** A searched network is the best of six in a race. What the race alone gives is in
  the rows of random architectures: single draws, and the best of six in the same race.
- **Validation images chose.** Trials, defaults and ablations were decided on validation Top-1, whose best is therefore
  a little too good; only the test column is free of it.
"""
SEALED = "Not all test images are read yet: where a side has no test Top-1, goals are judged on validation images."
DRAWN = "Not drawn: rows of more epochs, and those of another row's searched or random architectures."
TOLD = (
    "`n`: runs of ours, of theirs. Points are ± the standard error of the difference, where both have several runs; "
    "`p`: how often chance alone would part them as far (Welch's t test, two-sided, each row for itself)."
)
CHOICE = (
    "Validation Top-1 of the first seed (learning rate, branch gain); each method goes on with its best one, by the "
    "mean over seeds where two were trained with all."
)
ABLATED = (
    "The searched network of seed 0, trained again with one thing changed. Two equal runs whose last bits differ lay "
    "0.6 points apart (screening.md): a difference like that says nothing."
)
SCREENED = """\
# Screening

Made by `python studies/report.py` from results/ablation.csv. What was tried by hand, one run each, on validation
images, before and while the method of [results.md](results.md) was fixed; some rows differ from the method in more than
the one thing, some are of changed trees (results/README.md). No command makes these numbers again.
"""
TAU = (
    "Kendall's tau (n; p value) between what a search says of architectures and their validation Top-1 after training, "
    "over pairs of the same budget: of random ones, and with the searched ones, which `regression` has found. One "
    "search for each strategy (studies/search_score.py); darts, whose steps run all operations, has fewer epochs, "
    "in about the time of the slowest of the others. Strategies evolution, tpe and nsga2 train the shared weights "
    "as random does and have no score but their loss, so that they know the same. Above 0 the search agrees with the "
    "training; the standard error is about 0.2. Seconds are those of two jobs side by side, and no benchmark."
)


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    text: str


def main() -> None:
    """Write page and pictures, or compare the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of the CSVs")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the page")
    given = parser.parse_args()
    if not (given.results / "claim.csv").exists():
        sys.exit(f"{given.results / 'claim.csv'} is not there: studies/claim.py run makes it")
    if not given.check:
        draw(given.results, given.docs / "results")
    for name, text in (("results.md", page(given.results)), ("screening.md", screening_page(given.results))):
        file = given.docs / name
        if not given.check:
            file.write_text(text, encoding="utf-8")
        elif not file.exists() or file.read_text(encoding="utf-8") != text:
            sys.exit(f"{file} is out of date: python studies/report.py")


def page(results: Path) -> str:
    """Return the page's text."""
    found = [f"## {section.title}\n\n{section.text}\n" for section in sections(results)]
    times = f"{int(LONG) / EPOCHS:g} times"
    longer = f"how much of a difference stays with {times} the epochs is not measured yet"
    if {"nasb-1.37-long", "bireal-long"} <= {row["method"] for row in rows(results / "claim.csv")}:
        longer = f"the rows that train {times} as long show how much of a difference stays"
    scale = {"images": IMAGES, "epochs": EPOCHS, "longer": longer, "seeds": len(SEEDS)}
    return "\n".join([HEAD.format(**scale), *found, LIMITS.format(**scale)])


def screening_page(results: Path) -> str:
    """Return the page of what was tried by hand."""
    claim, parts = Claim.load(results), [SCREENED]
    for data in claim.sets():
        tried = [row for row in _changed(results, data) if row["note"] != ABLATIONS]
        if tried:
            parts.append(f"## {TITLES.get(data, data)}\n\n{ablation_table(claim, tried)}\n")
    return "\n".join(parts)


def _changed(results: Path, data: str) -> list[dict[str, str]]:
    return [row for row in rows(results / "ablation.csv") if row["set"] == data]


def sections(results: Path) -> Iterator[Section]:
    """Yield the sections for which there are numbers."""
    claim = Claim.load(results)
    for data in claim.sets():
        title = TITLES.get(data, data)
        if claim.methods(data):
            picture = f"![Top-1 over OPs, {title}](results/{data}-ops.svg)"
            state = SEALED if claim.is_sealed(data) else "Goals are judged on test images."
            goals = f"{state} {TOLD}\n\n{goal_table(claim, data)}"
            parts = [accuracy_table(claim, data), f"{picture}\n\n{DRAWN}", goals, headroom(claim, data)]
            yield Section(title, "\n\n".join(part for part in parts if part))
        cost = cost_table(claim, data)
        if cost:
            yield Section(f"What search costs: {title}", cost)
        searched = load_architectures(results / "architectures", data)
        if searched:
            found = (_found(data, name, architectures) for name, architectures in searched.items())
            yield Section(f"What was found: {title}", "\n\n".join(found))
        ablations = [row for row in _changed(results, data) if row["note"] == ABLATIONS]
        if ablations:
            yield Section(f"One thing at a time: {title}", f"{ABLATED}\n\n{ablation_table(claim, ablations)}")
        yield Section(f"Trials: {title}", f"{CHOICE}\n\n{trial_table(claim, data)}")
    scores = rows(results / "search-score.csv")
    if scores:
        yield Section("Does a search know what is good?", f"{TAU}\n\n{tau_table(claim, scores)}")


def _found(data: str, name: str, architectures: Sequence[tuple[int, Architecture]]) -> str:
    seeds = [seed for seed, _ in architectures]
    words = (
        f"Operations a network, on average over {len(seeds)} search{'es' if len(seeds) > 1 else ''}; right, by edge."
    )
    picture = f"![{METHODS[name].label}, seed {seeds[0]}](results/{data}-{name}.svg)"
    return f"### {METHODS[name].label}\n\n{words}\n\n{operations_table([a for _, a in architectures])}\n\n{picture}"


def draw(results: Path, folder: Path) -> None:
    """Draw accuracy over OPs, and the first searched network of each method."""
    claim = Claim.load(results)
    folder.mkdir(parents=True, exist_ok=True)
    for data in claim.sets():
        accuracy = claim.validation if claim.is_sealed(data) else claim.test
        points = [
            Point(
                label=name,
                group=_group(name),
                x=claim.mean(data, name, "ops") / 1e6,
                y=accuracy(data, name).mean,
                error=accuracy(data, name).spread or 0.0,
            )
            for name in claim.methods(data)
            if _is_drawn(name)
        ]
        if points:
            y = f"{'validation' if claim.is_sealed(data) else 'test'} Top-1 (%)"
            draw_points(folder / f"{data}-ops.svg", points, title=TITLES.get(data, data), x="OPs (M)", y=y, log=True)
        for name, architectures in load_architectures(results / "architectures", data).items():
            draw_architecture(architectures[0][1], folder / f"{data}-{name}.svg")


def _is_drawn(name: str) -> bool:
    """Whether a method stands in the picture: not what trains another one's architectures, or for longer."""
    method = METHODS[name]
    return method.architectures(name) == name and (BASE | dict(method.flags))["finetune.epochs"] == str(EPOCHS)


def _group(name: str) -> str:
    if name.startswith("nasb"):
        return "searched"
    if name.startswith("random"):
        return "random architectures"
    return "real" if name.startswith("real-") else "hand-made"


if __name__ == "__main__":
    main()
