"""Arms of a sweep held against each other, each at its own best rate: plan, tests, words, figure. No torch in here.

For the artefacts of Zhu et al. on summaries, instructions and images.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from asymlora.papers.bracketed import AT_AN_END, open_arms, undecided_at_ends
from asymlora.papers.stated_tests import UNTOLD, closing_seeds, tuning_seeds
from asymlora.reproduce.artefact import FIRST_SEEDS
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, SweepEvidence
from asymlora.reproduce.paired_tests import Unit, all_of, as_good_finding, level_at, paired_finding
from asymlora.reproduce.rates_by_seed import closing_values, rate_sentence
from asymlora.sweep.axes import Arm
from asymlora.sweep.grid import SweepPlan
from asymlora.sweep.rates import ladder_through
from asymlora.train.recipe import Recipe

DOUBLED = "b_only_2r"
"""B alone at twice the rank of the other arms."""
NAMES: Mapping[str, str] = {
    "both": "LoRA",
    "b_only": "B-only",
    "a_only": "A-only",
    DOUBLED: "B-only at twice the rank",
    "head": "head alone",
    "full": "full fine-tuning",
}
"""Names of the arms for people."""
AT_LEVELS = "at a level of 0.03125 where six seeds were asked for and of 0.01875 where more were"
Judge = Callable[[SweepEvidence], Finding]


def at_rank(arm: Arm, rank: int, *, name: str | None = None) -> Arm:
    """Return an arm at a rank of its own.

    Args:
        arm: The arm.
        rank: Its rank; alpha follows, as twice the rank.
        name: Its name; None: that of the arm.

    Example:
        >>> at_rank(Arm(name="b_only", word="b_only"), 16, name="b_only_2r").options
        {'adapter.rank': 16}
    """
    return replace(arm, name=name or arm.name, options={**arm.options, "adapter.rank": rank})


def plan_of(
    recipe: Recipe,
    arms: Sequence[Arm],
    rates: Sequence[float],
    *,
    seeds: tuple[int, int] = (2, FIRST_SEEDS),
    bounded: bool = False,
) -> SweepPlan:
    """Return a sweep in one look, with an alpha of twice the rank at every rank.

    Args:
        recipe: What the arms have in common.
        arms: What is compared.
        rates: Learning rates of the first grid, rising.
        seeds: Number of tuning seeds, and of closing seeds.
        bounded: Whether the grid may grow by one rate beyond either end, and no farther.
    """
    bounds: tuple[float, float] | None = None
    if bounded:
        ladder = ladder_through(rates)
        bounds = (ladder.below(rates[0]), ladder.above(rates[-1]))
    return SweepPlan(
        recipe=replace(
            recipe, adapter=replace(recipe.adapter, alpha=None), train=replace(recipe.train, dynamics_every=0)
        ),
        arms=tuple(arms),
        rates=tuple(rates),
        bounds=bounds,
        tuning_seeds=tuning_seeds(seeds[0]),
        closing_seeds=closing_seeds(seeds[1]),
    )


# Tests ---------------------------------------------------------------------------------------------------------------


def compared(
    sweep: SweepEvidence,
    arms: tuple[str, str],
    *,
    metric: str,
    show: Unit,
    claimed: Literal["greater", "less"],
    what: str,
) -> Finding:
    """Judge a figure of the closing runs between two arms by the sign-flip test on its differences.

    Args:
        sweep: What the sweep left.
        arms: The arm that is claimed to be greater or less, and the other.
        metric: On the test part.
        show: Its unit.
        claimed: What is claimed of the first arm.
        what: What the difference is, as the start of a sentence.
    """
    first, second = (closing_values(sweep, arm, metric=metric) for arm in arms)
    return at_own_rates(paired_finding(first, second, claimed=claimed, show=show, what=what), {"": sweep}, arms)


def as_good(
    sweep: SweepEvidence,
    arms: tuple[str, str],
    *,
    metric: str,
    margin: float,
    show: Unit,
    what: str,
    better: Literal["greater", "less"] = "greater",
) -> Finding:
    """Judge by a one-sided test that one arm is no more than a margin worse than another.

    Args:
        sweep: What the sweep left.
        arms: The arm that is claimed to be as good, and the other.
        metric: On the test part.
        margin: By how much it may be worse, stated before the runs.
        show: The metric's unit.
        what: What the difference is, as the start of a sentence.
        better: On which side of the other it is the better one.
    """
    first, second = (closing_values(sweep, arm, metric=metric) for arm in arms)
    found = as_good_finding(first, second, margin=margin, show=show, what=what, better=better)
    return at_own_rates(found, {"": sweep}, arms)


def at_own_rates(found: Finding, sweeps: Mapping[str, SweepEvidence], arms: Sequence[str]) -> Finding:
    """Return a finding with the rates of its arms, undecided where one of these is at an end of the tried ones.

    Args:
        found: What the closing runs say.
        sweeps: What the sweeps left, by the name of the set, which is empty where there is one set.
        arms: The arms that it is about.
    """
    said, ends = [found.ours], list[str]()
    for name, sweep in sweeps.items():
        said += [f"{name}, {rate_sentence(sweep, arm)}" if name else rate_sentence(sweep, arm) for arm in arms]
        ends += open_arms(sweep, {arm: NAMES[arm] for arm in arms}, where=f" on {name}" if name else "")
    return undecided_at_ends(replace(found, ours=" ".join(said)), ends)


def on_each(evidence: Evidence, sets: Mapping[str, str], judge: Judge) -> Finding:
    """Judge a claim on each of some sets: it holds where it holds on all of them.

    Args:
        evidence: Records of the artefact.
        sets: Names for people by the part.
        judge: From the records of one set to the finding there.

    Raises:
        PartNotRunError: A set has no records.
    """
    findings = {name: judge(evidence.sweep(part)) for part, name in sets.items()}
    return next(iter(findings.values())) if len(findings) == 1 else all_of(findings)


def scale_sets(evidence: Evidence, small: Mapping[str, str], paper: Mapping[str, str]) -> Mapping[str, str]:
    """Return the sets of the scale that records are of: of the paper's where there is a set that the small one lacks.

    Args:
        evidence: Records of the artefact.
        small: Names for people by the part, at the small scale.
        paper: Likewise at the paper's.
    """
    return small if (paper.keys() - small.keys()).isdisjoint(evidence.sweeps) else paper


# Words ---------------------------------------------------------------------------------------------------------------


def decided_by_sign(claimed: Literal["above", "below"], *, seeds: int = FIRST_SEEDS) -> str:
    """Return what decides a claim on pairs, as the end of a sentence that says what is paired.

    Args:
        claimed: On which side of 0 the mean is where the claim holds.
        seeds: How many are asked for.
    """
    other = "below" if claimed == "above" else "above"
    return (
        f"exact two-sided sign-flip test at a level of {level_at(seeds):g} with {seeds} seeds. Holds: p is at most"
        f" that and the mean is {claimed} 0; fails: p is at most that and it is {other};"
        f" otherwise undecided. {AT_AN_END}{UNTOLD}"
    )


def decided_within(margin: str, *, why: str) -> str:
    """Return what decides a claim that there is no difference, as the end of a sentence that says what is paired.

    Args:
        margin: The margin with its unit.
        why: Why it is that one.
    """
    return (
        f"two one-sided tests against a margin of {margin}, which was stated before the runs ({why}), {AT_LEVELS}."
        " Holds: both reject. Fails: the sign-flip test at that level finds a difference whose interval lies beyond the"
        f" margin. Otherwise undecided. {AT_AN_END}{UNTOLD}"
    )


def decided_as_good(margin: str, *, why: str) -> str:
    """Return what decides a claim that one arm is as good as another, as the end of a sentence on what is paired.

    Args:
        margin: The margin with its unit.
        why: Why it is that one.
    """
    return (
        f"a one-sided test that it is no more than {margin} worse, which was stated before the runs ({why}): Student's"
        f" t and sign flips, the larger p counts, {AT_LEVELS}. Holds: it rejects that. Fails: the sign-flip test finds"
        f" it worse, the whole interval beyond the margin. Otherwise undecided. {AT_AN_END}{UNTOLD}"
    )


def means_said(values: Mapping[str, Mapping[int, float]], *, show: Unit) -> str:
    """Return the mean of each arm over its seeds, as the end of a sentence.

    Args:
        values: By arm and seed.
        show: Their unit.

    Example:
        >>> from asymlora.reproduce.units import POINTS
        >>> means_said({"both": {0: 0.5, 1: 0.52}, "full": {0: 0.25}}, show=POINTS)
        'LoRA 51.00 points (2 seeds), full fine-tuning 25.00 points (1 seed)'
    """
    return ", ".join(
        f"{NAMES[arm]} {show.amount(statistics.fmean(found.values()))}"
        f" ({len(found)} seed{'s' if len(found) > 1 else ''})"
        for arm, found in values.items()
    )


# The figure ----------------------------------------------------------------------------------------------------------


def rates_drawn(
    evidence: Evidence, titles: Mapping[str, str], *, title: str, y: str, log_y: bool = False, scale: float = 1.0
) -> Any:
    """Draw the metric on validation against the learning rate, a panel a sweep.

    Args:
        evidence: Records of the artefact.
        titles: Of the panels, by part; those without records are left out.
        title: Sentence above the figure.
        y: Name of the vertical axes, with its unit.
        log_y: Whether they are logarithmic.
        scale: Factor of the values.

    Returns:
        The figure (`asymlora.report.plots.Figure`).

    Raises:
        MissingEvidenceError: No part has records.
    """
    from asymlora.report.reproduction_figures import metric_against_rate
    from asymlora.report.reproduction_panels import rate_panel

    there = {part: evidence.sweep(part) for part in titles if part in evidence.sweeps and evidence.has(part)}
    if not there:
        raise MissingEvidenceError(", ".join(titles))
    panels = [
        rate_panel(titles[part], sweep.plan, rows=sweep.rows, names=NAMES, scale=scale) for part, sweep in there.items()
    ]
    return metric_against_rate(panels, title=title, y=y, log_y=log_y)
