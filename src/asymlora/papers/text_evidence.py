"""What claims read of sweeps over texts: which sweep rates are read from, and when a rate is stable. No torch in here.

The sweeps are those of `asymlora.papers.text_sweeps`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from asymlora.reproduce.artefact import FIRST_SEEDS, MOST_SEEDS
from asymlora.reproduce.by_seed import BySeed, asked_for
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, SweepEvidence
from asymlora.reproduce.paired_tests import POINTS, Unit, paired_finding
from asymlora.reproduce.rates_by_seed import (
    Stable,
    censored_seeds,
    closing_values,
    comparable_rates,
    known_rates,
    largest_stable_rates,
    tuned_rate,
)
from asymlora.reproduce.run_measures import LEARNT, has_learnt
from asymlora.sweep.run_record import RunRow

FigureBySeed = Callable[[SweepEvidence, str], BySeed]
"""From a sweep and the name of an arm to a figure of its closing runs."""
TWO_LOOKS = (
    f"exact two-sided sign-flip test at a level of 0.03125 with {FIRST_SEEDS} seeds and, where these leave it"
    f" undecided, of 0.01875 with {MOST_SEEDS}"
)
ONE_LOOK = f"exact two-sided sign-flip test at a level of 0.03125 with {FIRST_SEEDS} seeds"
"""The tests in words, as claims quote them."""
MAIN_SET = "TREC-6 (MNLI at the paper's scale)"
"""Whose sweep `main_sweep` is."""
_TREC6_LABELS = (1162, 1250, 86, 1223, 835, 896)
"""Rows of each label in its training file."""


def label_entropy(counts: Sequence[int]) -> float:
    """Return the loss of one who knows how frequent each label is and nothing else, in nats.

    Args:
        counts: Rows of each label, all above 0.

    Example:
        >>> round(label_entropy((1, 1)), 4)
        0.6931
    """
    return -sum(count / sum(counts) * math.log(count / sum(counts)) for count in counts)


TREC6_CHANCE = label_entropy(_TREC6_LABELS)
MNLI_CHANCE = math.log(3)
"""MNLI's three labels are equally frequent but for a third of a per cent."""
CHANCES: Mapping[str, float] = {
    "trec6": TREC6_CHANCE,
    "sst2": label_entropy((29_780, 37_569)),
    "cola": label_entropy((2_528, 6_023)),
    "mrpc": label_entropy((1_197, 2_471)),
    "rte": label_entropy((1_249, 1_241)),
    "mnli": MNLI_CHANCE,
    "qnli": math.log(2),
    "qqp": label_entropy((229_468, 134_378)),
}
"""Entropies of the labels of training files, by set. Of QNLI and QQP the labels were not counted but recalled."""
CENSORED = (
    "Where the best or the largest stable rate of a seed is at an end of the tried ones, it is a bound: the pair counts"
    " only where the bound implies its sign, else the seed is left out and named."
)
"""How claims treat rates that lie beyond the grid."""
KNOWN_EDGES = (
    "a sweep of 57 runs of MiniLM on TREC-6, of other settings and of other tuning seeds (100 and 101; closing seeds 0"
    " to 5), in which Init[B] was lost at 3e-3. TREC-6 with the seeds from 200 on is new seeds of the same set, not a"
    " new set"
)
"""What was known of the stable rates of Init[B], as claims quote it."""
STABLE_WORDS = (
    "a rate is stable where the run ended with finite numbers and its last logged training loss, a mean of ten steps,"
    f" is below {LEARNT} of the entropy of the training labels ({TREC6_CHANCE:.2f} nats on TREC-6: what is reached by"
    " knowing no more than how frequent the labels are; ln 6 would let that pass); the largest stable rate of a seed is"
    " the last one before the first that is not, rates too small to learn anything passed over"
)
"""When a rate counts as stable, as claims quote it."""


def at_paper_scale(evidence: Evidence) -> bool:
    """Return whether records are of the paper's scale, where MNLI is the set that rates are read from.

    Args:
        evidence: Records of an artefact.
    """
    return not {"mnli", "qnli", "qqp"}.isdisjoint(evidence.sweeps)


def main_sweep(evidence: Evidence) -> SweepEvidence:
    """Return the sweep with the most tuning seeds, from which rates are read: of TREC-6, or MNLI at the paper's scale.

    Args:
        evidence: Records of an artefact.
    """
    return evidence.sweep("mnli" if at_paper_scale(evidence) else "trec6")


def main_stable(evidence: Evidence) -> Stable:
    """Return whether a run of `main_sweep` was stable.

    Args:
        evidence: Records of an artefact.
    """
    chance = MNLI_CHANCE if at_paper_scale(evidence) else TREC6_CHANCE
    return lambda row: has_learnt(row, chance)


@dataclass(frozen=True, kw_only=True)
class StableEdges:
    """The largest stable rates of two arms, by tuning seed.

    Attributes:
        first: Log2 of those of the first arm.
        second: Likewise.
        open_first: Seeds at which the first arm's largest tried rate is still stable.
        open_second: Likewise.
    """

    first: Mapping[int, float]
    second: Mapping[int, float]
    open_first: tuple[int, ...]
    open_second: tuple[int, ...]

    @property
    def sentence(self) -> str:
        """Return at how many seeds the grid ended before the rate became unstable; empty where at none."""
        if not (self.open_first or self.open_second):
            return ""
        return (
            f" The largest tried rate was still stable for the first arm at {len(self.open_first)} of"
            f" {len(self.first)} seeds, for the second at {len(self.open_second)} of {len(self.second)}."
        )

    def comparable(self) -> tuple[BySeed, BySeed]:
        """Return the rates at the seeds whose difference has a sign that is known."""
        return comparable_rates(self.first, self.second, open_first=self.open_first, open_second=self.open_second)

    def known(self) -> tuple[BySeed, BySeed]:
        """Return the rates at the seeds at which both arms' were found."""
        return known_rates(self.first, self.second, open_seeds={*self.open_first, *self.open_second})


def stable_edges(evidence: Evidence, first: str, second: str) -> StableEdges:
    """Return the largest stable rates of two arms of `main_sweep`.

    Args:
        evidence: Records of an artefact.
        first: Name of an arm.
        second: Likewise.
    """
    sweep, stable = main_sweep(evidence), main_stable(evidence)
    rates = [largest_stable_rates(sweep, arm, stable=stable) for arm in (first, second)]
    still = [censored_seeds(sweep, arm, stable=stable) for arm in (first, second)]
    return StableEdges(first=rates[0], second=rates[1], open_first=still[0], open_second=still[1])


def tuning_rows(sweep: SweepEvidence, arm: str, rate: float) -> dict[int, RunRow]:
    """Return the finished tuning runs of an arm at one rate, by seed.

    Args:
        sweep: What the sweep left.
        arm: Name of the arm.
        rate: The learning rate, to four digits.

    Raises:
        MissingEvidenceError: There is none.
    """
    asked: Sequence[int] = sweep.plan.get("tuning_seeds") or ()
    found = {
        row.seed: row
        for row in sweep.rows
        if (row.arm, row.phase, row.status) == (arm, "tuning", "finished")
        and row.seed in asked
        and math.isclose(row.lr, rate, rel_tol=1e-4)
    }
    if not found:
        raise MissingEvidenceError(f"tuning runs of {arm} at the rate {rate:g}")
    return found


def has_learnt_its_set(sweep: SweepEvidence, arm: str, chance: float) -> bool:
    """Return whether all tuning runs of an arm have learnt something at the rate that they chose.

    Args:
        sweep: Of the set.
        arm: Name of the arm.
        chance: Entropy of the set's labels (`CHANCES`).
    """
    rate = tuned_rate(sweep, arm)
    if rate is None:
        return False
    rows = tuning_rows(sweep, arm, rate)
    return set(sweep.plan["tuning_seeds"]) <= set(rows) and all(has_learnt(row, chance) for row in rows.values())


def counted_sets(sweeps: Mapping[str, SweepEvidence], arms: Sequence[str]) -> list[str]:
    """Return the sets on which the tuning runs of at least one arm have all learnt; others tell nothing of arms.

    Args:
        sweeps: By set; one without an entropy of labels (`CHANCES`), as it has numbers, counts.
        arms: Names of the arms.
    """
    return [
        name
        for name, sweep in sweeps.items()
        if name not in CHANCES or any(has_learnt_its_set(sweep, arm, CHANCES[name]) for arm in arms)
    ]


def mean_over(sweeps: Mapping[str, SweepEvidence], arm: str, *, value: FigureBySeed = closing_values) -> BySeed:
    """Return the mean over sets of an arm's figure, at the seeds that every set has.

    Args:
        sweeps: By set, at least one.
        arm: Name of the arm.
        value: From a sweep and the arm's name to the figure by seed; by default the metric on test.

    Raises:
        MissingEvidenceError: A set has no such figure.
    """
    sets = [value(sweep, arm) for sweep in sweeps.values()]
    seeds = set[int].intersection(*map(set, sets))
    means = {seed: statistics.fmean(values[seed] for values in sets) for seed in sorted(seeds)}
    return BySeed(means, planned=asked_for(*sets))


def difference_text(found: Finding, show: Unit = POINTS) -> str:
    """Return the difference of a paired finding, and its interval where it has one.

    Args:
        found: As `paired_finding` gives it.
        show: Its unit.
    """
    assert found.estimate is not None  # a paired finding has one
    ends = "" if found.interval is None else " ({} to {})".format(*map(show.text, found.interval))
    return f"{show.text(found.estimate)}{ends}"


def by_set(
    sweeps: Mapping[str, SweepEvidence],
    titles: Mapping[str, str],
    *,
    first: str,
    second: str,
    value: FigureBySeed = closing_values,
    show: Unit = POINTS,
) -> str:
    """Return the difference of two arms' closing figures on each set, as a sentence.

    Args:
        sweeps: By set.
        titles: By set, as sentences have them.
        first: Name of an arm.
        second: Of the arm whose figures are taken off.
        value: As for `mean_over`.
        show: Unit of the figures.
    """
    said: list[str] = []
    for name, sweep in sweeps.items():
        try:
            sides = [value(sweep, arm) for arm in (first, second)]
            found = paired_finding(*sides, claimed="greater", show=show, what=titles[name])
            said.append(f"{titles[name]} {difference_text(found, show)}")
        except MissingEvidenceError:
            said.append(f"{titles[name]} not known")
    return "By set: " + "; ".join(said) + "."


def rates_figure(
    evidence: Evidence, sets: Mapping[str, str], *, names: Mapping[str, str], title: str
) -> Any:  # fmt: skip
    """Draw the metric on validation against the learning rate, a panel a set.

    On the set of `main_sweep` a triangle marks the largest stable rate, the median over its seeds, of arms whose rates
    became unstable at most seeds; elsewhere there are too few seeds to tell.

    Args:
        evidence: Records of the artefact.
        sets: Titles by part; those without records are left out.
        names: Names of the arms for people.
        title: Sentence above the figure.

    Returns:
        The figure (`asymlora.report.plots.Figure`).

    Raises:
        MissingEvidenceError: No part has records.
    """
    from asymlora.report.reproduction_figures import metric_against_rate
    from asymlora.report.reproduction_panels import rate_panel

    there = {part: evidence.sweeps[part] for part in sets if part in evidence.sweeps and evidence.sweeps[part].rows}
    if not there:
        raise MissingEvidenceError(", ".join(sets))
    main = "mnli" if at_paper_scale(evidence) else "trec6"
    panels = [
        replace(
            rate_panel(sets[part], sweep.plan, rows=sweep.rows, names=names, scale=100),
            edge=_edges(evidence, names) if part == main else {},
        )
        for part, sweep in there.items()
    ]
    return metric_against_rate(panels, title=title, y="metric on validation, points")


def _edges(evidence: Evidence, names: Mapping[str, str]) -> dict[str, float]:
    sweep, stable = main_sweep(evidence), main_stable(evidence)
    found: dict[str, float] = {}
    for arm, name in names.items():
        try:
            rates = largest_stable_rates(sweep, arm, stable=stable)
            still = censored_seeds(sweep, arm, stable=stable)
        except MissingEvidenceError:
            continue
        if 2 * len(still) < len(rates):
            found[name] = 2 ** statistics.median(rates.values())
    return found
