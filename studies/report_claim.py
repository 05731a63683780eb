"""What results/claim.csv and its sealed companion say: accuracies by method, goals, trials, and what search costs."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from claim import Job, chosen_trial, key_of
from claim_methods import METHODS, SEEDS, SETS, TRIALS
from markdown_table import table
from result_rows import rows
from scipy.stats import ttest_ind

Row = Mapping[str, str]
PLAIN = "bireal-published"
"""Whose epoch is a plain training epoch."""
REAL, SEARCHED = "real-16", "nasb-1.37"
"""What a binary network of the same shape can reach at most, and ours that is compared with it."""


@dataclass(frozen=True)
class Sample:
    """Measured values of one thing, one for each seed or drawn architecture."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.mean(self.values)

    @property
    def spread(self) -> float | None:
        """Their standard deviation; None of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        if not self.values:
            return ""
        spread = "" if self.spread is None else f" ± {self.spread:.2f}"
        return f"{self.mean:.2f}{spread} ({len(self.values)})"


def difference(ours: Sample, theirs: Sample) -> tuple[float, float | None]:
    """Return the difference of two means, and its standard error; None where either is of a single value."""
    if ours.spread is None or theirs.spread is None:
        return ours.mean - theirs.mean, None
    variance = ours.spread**2 / len(ours.values) + theirs.spread**2 / len(theirs.values)
    return ours.mean - theirs.mean, math.sqrt(variance)


def p_value(ours: Sample, theirs: Sample) -> float:
    """Return how often chance alone gives two means so far apart, or farther: Welch's t test, two-sided."""
    return float(ttest_ind(ours.values, theirs.values, equal_var=False).pvalue)


@dataclass(frozen=True)
class Claim:
    """The rows of the study."""

    runs: Sequence[Row]
    """Finished runs: validation Top-1."""
    sealed: Sequence[Row]
    """Test Top-1 of the chosen ones; empty before `claim.py final`."""

    @classmethod
    def load(cls, folder: Path) -> "Claim":
        """Read a folder of results."""
        return cls(rows(folder / "claim.csv"), rows(folder / "claim-test.csv"))

    def sets(self) -> list[str]:
        """Return the data sets that have finished runs."""
        return [name for name in SETS if any(row["set"] == name for row in self.runs)]

    def trial(self, data: str, name: str) -> tuple[float, float] | None:
        """Return the (learning rate, branch gain) that a method is compared with; None while trials are missing."""
        return chosen_trial(list(self.runs), data, name)

    def chosen(self, data: str, name: str) -> list[Row]:
        """Return the runs of a method with its chosen settings, by seed."""
        trial = self.trial(data, name)
        if trial is None:
            return []
        keys = [Job(data, name, *trial, seed).row_key() for seed in METHODS[name].all_seeds(data)]
        found = {key_of(dict(row)): row for row in self.runs}
        return [found[key] for key in keys if key in found]

    def methods(self, data: str) -> list[str]:
        """Return the methods that have a chosen run."""
        return [name for name in METHODS if self.chosen(data, name)]

    def validation(self, data: str, name: str) -> Sample:
        """Return the validation Top-1 of a method."""
        return Sample(tuple(float(row["validation_top1"]) for row in self.chosen(data, name)))

    def test(self, data: str, name: str) -> Sample:
        """Return its test Top-1; without values before the seal is broken."""
        keys = {key_of(dict(row)) for row in self.chosen(data, name)}
        return Sample(tuple(float(row["test_top1"]) for row in self.sealed if key_of(dict(row)) in keys))

    def is_sealed(self, data: str) -> bool:
        """Whether the accuracies of a data set are validation ones still, of at least one method."""
        return any(len(self.test(data, n).values) < len(self.chosen(data, n)) for n in self.methods(data))

    def mean(self, data: str, name: str, column: str) -> float:
        """Return the mean of a column over a method's chosen runs."""
        return statistics.mean(float(row[column]) for row in self.chosen(data, name))


def accuracy_table(claim: Claim, data: str) -> str:
    """Return a data set's methods: cost, Top-1 with spread, and what they were trained with."""
    header = ("method", "name", "OPs (M)", "to plain", "added binary MACs", "kB", "validation Top-1", "test Top-1",
              "epochs, search", "learning rate, gain")  # fmt: skip
    lines = []
    for name in claim.methods(data):
        numbers = {key: claim.mean(data, name, key) for key in ("ops", "ops_ratio", "added_binary_macs", "memory_bits")}
        row = claim.chosen(data, name)[0]
        rate, gain = claim.trial(data, name) or (0.0, 0.0)
        source = METHODS[name].as_in
        settings = f"{rate:g}, {gain:.2f}" + ("" if source is None else f", as `{source}`")
        searched = f"{row['epochs']}, {row['search_epochs']}" if int(row["search_epochs"]) else row["epochs"]
        lines.append(
            [
                METHODS[name].label, f"`{name}`", f"{numbers['ops'] / 1e6:.4f}", f"{numbers['ops_ratio']:.3f}",
                f"{numbers['added_binary_macs']:.1%}", f"{numbers['memory_bits'] / 8e3:.1f}",
                str(claim.validation(data, name)), str(claim.test(data, name)), searched, settings,
            ]
        )  # fmt: skip
    return table(header, lines, left=2)


def trial_table(claim: Claim, data: str) -> str:
    """Return the validation Top-1 of every trial, with its settings."""
    done = {key_of(dict(row)): row["validation_top1"] for row in claim.runs}
    lines = []
    for name, method in METHODS.items():
        trials = {trial: done.get(Job(data, name, *trial, SEEDS[0]).row_key(), "") for trial in TRIALS}
        if method.as_in is None and any(trials.values()):
            cells = (f"{top1 or 'to come'} ({rate:g}, {gain:.2f})" for (rate, gain), top1 in trials.items())
            lines.append([method.label, *cells])
    return table(("method", *(f"trial {number + 1}" for number in range(max(map(len, lines)) - 1))), lines)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the study is to show."""

    text: str
    ours: str
    theirs: tuple[str, ...]
    """The best of them by validation is compared with."""
    by: float | None
    """Points; None: the spread of theirs."""
    no_more_ops: bool = False


SINGLE = ("bnn", "xnornet", "bireal", "bireal-published")
GOALS = (
    Goal(text="NASB 1.37 over the best of BNN, XNOR-Net, Bi-Real Net", ours="nasb-1.37", theirs=SINGLE, by=4.0),
    Goal(text="NASB 1.10 over the same", ours="nasb-1.10", theirs=SINGLE, by=4.0),
    Goal(text="NASB 1.37 without learned thresholds over the same, who have none either", ours="nasb-1.37-sign",
         theirs=SINGLE, by=4.0),
    Goal(text="NASB 1.37 over Bi-Real Net and its backbone with learned thresholds", ours="nasb-1.37",
         theirs=("bireal-published-rsign", "backbone-rsign"), by=4.0),
    Goal(text="NASB 1.10 over the same, with learned thresholds", ours="nasb-1.10",
         theirs=("bireal-published-rsign", "backbone-rsign"), by=4.0),
    Goal(text="NASB 1.37 with thresholds in every cell over the same", ours="nasb-1.37-rsign",
         theirs=("bireal-published-rsign", "backbone-rsign"), by=4.0),
    Goal(text="NASB 1.10 with thresholds in every cell over the same", ours="nasb-1.10-rsign",
         theirs=("bireal-published-rsign", "backbone-rsign"), by=4.0),
    Goal(text="NASB of several bases over the best multiple network, no more OPs", ours="nasb-multiple",
         theirs=("abcnet", "groupnet"), by=1.0, no_more_ops=True),
    Goal(text="the same, thresholds on both sides", ours="nasb-multiple", theirs=("abcnet", "groupnet-rsign"), by=1.0,
         no_more_ops=True),
    Goal(text="NASB 1.37 over its own backbone", ours="nasb-1.37", theirs=("backbone",), by=0.0),
    Goal(text="NASB 1.37 over random architectures, by their spread", ours="nasb-1.37", theirs=("random-1.37",),
         by=None),
    Goal(text="NASB 1.37 over the best of six random ones in its race, by their spread", ours="nasb-1.37",
         theirs=("random-race-1.37",), by=None),
    Goal(text="NASB 1.10 over random architectures, by their spread", ours="nasb-1.10", theirs=("random-1.10",),
         by=None),
    Goal(text="the same, both with thresholds in every cell", ours="nasb-1.10-rsign", theirs=("random-1.10-rsign",),
         by=None),
    Goal(text="NASB 1.37 over the widened Bi-Real Net", ours="nasb-1.37",
         theirs=("bireal-wide-1.37", "backbone-wide-1.37"), by=0.0),
    Goal(text="the same, learned thresholds on both sides", ours="nasb-1.37", theirs=("backbone-wide-1.37-rsign",),
         by=0.0),
    Goal(text="NASB 1.10 over the widened Bi-Real Net", ours="nasb-1.10", theirs=("bireal-wide-1.10",), by=0.0),
    Goal(text="the same, learned thresholds on both sides", ours="nasb-1.10", theirs=("backbone-wide-1.10-rsign",),
         by=0.0),
    Goal(text="NASB 1.37 with ReActNet's components over ReActNet", ours="nasb-1.37-react", theirs=("reactnet",),
         by=0.0),
    Goal(text="the same where RPReLU starts as identity, over the better ReActNet", ours="nasb-1.37-react-1",
         theirs=("reactnet", "reactnet-1"), by=0.0),
    Goal(text="NASB 1.37 over Bi-Real Net trained for the search's epochs too", ours="nasb-1.37",
         theirs=("bireal-equal",), by=0.0),
    Goal(text="the same, learned thresholds on both sides", ours="nasb-1.37",
         theirs=("bireal-equal-rsign", "backbone-equal-rsign"), by=0.0),
    Goal(text="the same, learned thresholds on neither", ours="nasb-1.37-sign", theirs=("bireal-equal",), by=0.0),
    Goal(text="both trained 4 times as long", ours="nasb-1.37-long", theirs=("bireal-long",), by=0.0),
    Goal(text="the same, learned thresholds on both sides, theirs for the search's epochs too", ours="nasb-1.37-long",
         theirs=("backbone-long-rsign",), by=0.0),
    Goal(text="the same, learned thresholds on neither", ours="nasb-1.37-long-sign", theirs=("bireal-long",), by=0.0),
)  # fmt: skip


def goal_table(claim: Claim, data: str) -> str:
    """Return each goal that can be judged on a data set: how far, and whether it is met."""
    lines, there = [], claim.methods(data)
    for goal in GOALS:
        rivals = [name for name in goal.theirs if name in there]
        if goal.ours not in there or not rivals:
            continue
        best = max(rivals, key=lambda name: claim.validation(data, name).mean)
        ours, theirs = _alike(claim, data, goal.ours, best)
        points, error = difference(ours, theirs)
        wanted = theirs.spread if goal.by is None else goal.by
        share = claim.mean(data, goal.ours, "ops") / claim.mean(data, best, "ops")
        met = wanted is not None and points > 0 and points >= wanted and (share <= 1 or not goal.no_more_ops)
        missing = [METHODS[name].label for name in goal.theirs if name in METHODS and name not in there]
        against = METHODS[best].label + (f" (without {', '.join(missing)}: not run)" if missing else "")
        lines.append(
            [
                goal.text, against, f"{len(ours.values)}, {len(theirs.values)}",
                f"{points:+.2f}" + ("" if error is None else f" ± {error:.2f}"),
                f"{share:.2f}", "" if wanted is None else f"{wanted:+.2f}", "yes" if met else "**no**",
                "" if error is None else f"{p_value(ours, theirs):.3f}",
            ]
        )  # fmt: skip
    if not lines:
        return "No goal can be judged here yet: no searched network is trained."
    return table(("goal", "against", "n", "points", "OPs to theirs", "wanted", "met", "p"), lines, left=2)


def headroom(claim: Claim, data: str) -> str:
    """Say how far below the real network of the same training the best hand-made and the searched one are; or empty."""
    there = claim.methods(data)
    best = max(
        (name for name in SINGLE if name in there), key=lambda name: claim.validation(data, name).mean, default=""
    )
    if REAL not in there or not best:
        return ""
    gaps, runs = [], 1
    for name in (best, SEARCHED):
        if name in there:
            real, binary = _alike(claim, data, REAL, name)
            gaps.append(f"{difference(real, binary)[0]:.2f} above {METHODS[name].label}")
            runs = len(real.values)
    return (
        f"What there is to win: with the same training the {METHODS[REAL].label} is {' and '.join(gaps)}. "
        "A binary network of its shape is hardly expected to pass it in as many epochs. Runs of it: "
        f"{runs}."
    )


def _alike(claim: Claim, data: str, *names: str) -> list[Sample]:
    """Return accuracies that may be compared: test Top-1 if all have it, else validation Top-1 of all."""
    tests, validations = ([of(data, name) for name in names] for of in (claim.test, claim.validation))
    whole = all(len(t.values) == len(v.values) for t, v in zip(tests, validations, strict=True))
    return tests if whole else validations


def cost_table(claim: Claim, data: str) -> str:
    """Return what search costs, in seconds and in plain training epochs; empty where nothing was searched."""
    searched = [name for name in claim.methods(data) if METHODS[name].budget is not None and not METHODS[name].random]
    searched = [name for name in searched if METHODS[name].architectures(name) == name]
    if not searched or not claim.chosen(data, PLAIN):
        return ""
    plain = claim.mean(data, PLAIN, "train_seconds") / claim.mean(data, PLAIN, "epochs")
    lines = []
    for name in searched:
        seconds, training = (claim.mean(data, name, key) for key in ("search_seconds", "train_seconds"))
        epochs = claim.mean(data, name, "search_epochs")
        lines.append(
            [
                METHODS[name].label, f"{seconds:.0f}", f"{epochs:.0f}", f"{seconds / plain:.1f}", f"{training:.0f}",
                f"{training / plain:.1f}",
            ]
        )  # fmt: skip
    header = ("method", "search, s", "its epochs", "in plain epochs", "training, s", "in plain epochs")
    return (
        f'A plain epoch, of {METHODS[PLAIN].label}: {plain:.1f} s. "Its epochs" is counted, in passes over the '
        "training images; seconds are those of several CPUs, two jobs side by side and stopped at times: an order of "
        "magnitude."
        f"\n\n{table(header, lines)}"
    )
