"""From numbers by seed to the finding of a claim, by tests that are stated before the runs. No torch in here.

SciPy takes most of a second to import, so the statistics are imported where they are used: every artefact imports this
module, and ``asymlora reproduce --list`` imports every artefact. Findings that need no seeds are in
`asymlora.reproduce.plain_findings`, units in `asymlora.reproduce.units`; both are to be had from here too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from asymlora.reproduce.artefact import FIRST_SEEDS
from asymlora.reproduce.by_seed import BySeed, asked_for
from asymlora.reproduce.claim import Finding, Verdict
from asymlora.reproduce.evidence import MissingEvidenceError
from asymlora.reproduce.plain_findings import all_of, described, exact_finding, not_testable, slope_finding
from asymlora.reproduce.units import NATS, OCTAVES, POINTS, RATIO, Unit

if TYPE_CHECKING:
    from asymlora.sweep.summary import Interval

__all__ = [
    "NATS", "OCTAVES", "POINTS", "RATIO", "BySeed", "Unit", "all_of", "as_good_finding", "bound_finding", "described",
    "equivalence_finding", "exact_finding", "level_at", "not_testable", "paired_finding", "slope_finding",
]  # fmt: skip
FIRST_LOOK, SECOND_LOOK = 0.03125, 0.01875
"""Levels of the two-sided tests: 2/64, which six pairs of one sign reach exactly, and what is left of 0.05."""
_SLACK, _LEAST = 1e-12, 1e-15  # relative and absolute; what is equal by count may differ in its last digits


def level_at(seeds: int) -> float:
    """Return the level of the two-sided tests of so many seeds that were asked for.

    A claim is looked at twice: at six pairs and, where that leaves it undecided, at ten. Six pairs reach no smaller p
    than 2/64 = 0.03125. With 0.01875 at ten the two looks together find a difference that is not there in at most one
    of twenty cases. It is the seeds that were asked for that tell the look: of ten, six pairs may be left.

    Args:
        seeds: Their number. Below six pairs no test can decide, whatever the level.

    Example:
        >>> level_at(6), level_at(10), level_at(6) + level_at(10)
        (0.03125, 0.01875, 0.05)
    """
    return FIRST_LOOK if seeds <= FIRST_SEEDS else SECOND_LOOK


def paired_finding(
    first: Mapping[int, float],
    second: Mapping[int, float],
    *,
    claimed: Literal["greater", "less", "different"],
    show: Unit,
    what: str,
    none_within: float | None = None,
) -> Finding:
    """Judge "first is greater than second" by the exact sign-flip test on their differences, seed by seed.

    ``fails``: two one-sided tests at `level_at` find the mean difference within ``none_within``, whatever its sign and
    p, or it has another sign than claimed and p is at most that level; ``holds``: neither, it has the claimed sign, and
    p is at most that level; otherwise, and with fewer than six pairs always, ``undecided``. A claim of ``different``
    fails by ``none_within`` alone. The level is that of the seeds that were asked for (`BySeed.planned`).

    Args:
        first: Values by seed. Seeds that have no finite value on both sides are left out, and the sentence names them.
        second: Likewise.
        claimed: What is claimed of the first.
        show: How the difference is shown.
        what: What the difference is, as the start of a sentence: ``Accuracy of init_a less that of init_b``.
        none_within: Largest difference that counts as none, stated before the runs; None: a small difference is one.

    Returns:
        The finding; its estimate is the mean difference.

    Raises:
        MissingEvidenceError: No seed has a value on both sides.
        SpecError: ``none_within`` is no number above 0.
    """
    found = _paired(first, second, what)
    p_none = None if none_within is None else _p_of_none(found, none_within)
    verdict: Verdict = "undecided"
    if p_none is not None and p_none <= found.level:
        verdict = "fails"
    elif found.p is not None and found.p <= found.level:
        verdict = "holds" if claimed == "different" or (found.mean > 0) == (claimed == "greater") else "fails"
    parts = [f"{what}: mean {show.text(found.mean)}, {_tested(found, show)}."]
    if p_none is not None and none_within is not None and verdict == "fails":
        parts.append(f"Within the {show.amount(none_within)} that count as no difference, p {_p_text(p_none)}.")
    needed = _seeds_needed(found, found.mean) if verdict == "undecided" else None
    return _finding(found, verdict, [*parts, *_reasons(found, verdict, show=show, needed=needed)], needed=needed)


def equivalence_finding(
    first: Mapping[int, float], second: Mapping[int, float], *, margin: float, show: Unit, what: str
) -> Finding:
    """Judge "first and second differ by no more than the margin" by two one-sided tests on their differences.

    ``holds``: both tests reject at `level_at` (`asymlora.sweep.statistics.tost`); ``fails``: the sign-flip test finds a
    difference at that level, and its interval lies wholly beyond the margin; otherwise, and with fewer than six pairs
    always, ``undecided``. The effect that it can detect is that of the sign-flip test; the seeds needed give each of
    the two tests 90 %, so that both together have 80 % at least.

    Args:
        first: As for `paired_finding`.
        second: Likewise.
        margin: Largest difference that counts as none, above 0, stated before the runs.
        show: How the difference is shown.
        what: What the difference is, as the start of a sentence.

    Returns:
        The finding; its estimate is the mean difference, its p the larger one of the two tests; where it fails, that of
        the sign-flip test.

    Raises:
        MissingEvidenceError: No seed has a value on both sides.
        SpecError: The margin is no number above 0.
    """
    found = _paired(first, second, what)
    p_none = _p_of_none(found, margin)
    verdict: Verdict = "undecided"
    if p_none is not None and p_none <= found.level:
        verdict = "holds"
    elif found.p is not None and found.p <= found.level and _beyond(found.interval, margin):
        verdict = "fails"
    parts = [f"{what}: mean {show.text(found.mean)}, {_tested(found, show)}."]
    if p_none is not None:
        parts.append(f"Two one-sided tests against the margin of {show.amount(margin)}: p {_p_text(p_none)}.")
    needed = _seeds_of_equivalence(found, margin) if verdict == "undecided" else None
    parts += _reasons(found, verdict, show=show, needed=needed)
    return _finding(found, verdict, parts, needed=needed, p=found.p if verdict == "fails" else p_none)


def as_good_finding(
    first: Mapping[int, float],
    second: Mapping[int, float],
    *,
    margin: float,
    show: Unit,
    what: str,
    better: Literal["greater", "less"] = "greater",
) -> Finding:
    """Judge "first is as good as second, or better" by a one-sided test that it is no more than the margin worse.

    ``holds``: the test rejects at `level_at` that first is worse by the margin or more (one side of
    `asymlora.sweep.statistics.tost`); ``fails``: the sign-flip test finds it worse at that level, its interval wholly
    beyond the margin; otherwise, and with fewer than six pairs always, ``undecided``.

    Args:
        first: As for `paired_finding`.
        second: Likewise.
        margin: By how much it may be worse, above 0, stated before the runs.
        show: How the difference is shown.
        what: What the difference is, as the start of a sentence.
        better: On which side of second first is the better one.

    Returns:
        The finding; its estimate is the mean difference, its p that of the one-sided test; where it fails, that of the
        sign-flip test.

    Raises:
        MissingEvidenceError: No seed has a value on both sides.
        SpecError: The margin is no number above 0.
    """
    from asymlora.sweep.statistics import not_worse

    found, sign = _paired(first, second, what), 1 if better == "greater" else -1
    p_one = not_worse([sign * each for each in found.differences], margin=margin)  # refuses a margin that is none
    p = p_one if len(found.differences) >= FIRST_SEEDS else None
    verdict: Verdict = "undecided"
    if p is not None and p <= found.level:
        verdict = "holds"
    elif found.p is not None and found.p <= found.level and sign * found.mean < 0 and _beyond(found.interval, margin):
        verdict = "fails"
    parts = [f"{what}: mean {show.text(found.mean)}, {_tested(found, show)}."]
    if p is not None:
        parts.append(f"One-sided test that it is no more than {show.amount(margin)} worse: p {_p_text(p)}.")
    effect = sign * found.mean + margin
    # Beyond the margin it is a difference that is to be shown.
    level = 2 * SECOND_LOOK if effect > 0 else SECOND_LOOK
    needed = _seeds_needed(found, effect, level=level) if verdict == "undecided" and effect else None
    parts += _reasons(found, verdict, show=show, needed=needed)
    return _finding(found, verdict, parts, needed=needed, p=found.p if verdict == "fails" else p)


def bound_finding(
    values: Mapping[int, float], *, claimed: Literal["above", "below"], bound: float, show: Unit, what: str
) -> Finding:
    """Judge "the values are above a bound" by the exact sign-flip test on what they are beyond it.

    The verdicts are those of `paired_finding`.

    Args:
        values: By seed; those that are not finite are left out, and the sentence names their seeds.
        claimed: On which side of the bound.
        bound: The bound, stated before the runs.
        show: How a value is shown.
        what: What the values are, as the start of a sentence.

    Returns:
        The finding; its estimate and interval are of the values, what it can detect is a distance from the bound.

    Raises:
        MissingEvidenceError: No seed has a finite value.
    """
    found = _paired(values, dict.fromkeys(asked_for(values), bound), what)
    verdict: Verdict = "undecided"
    if found.p is not None and found.p <= found.level:
        verdict = "holds" if (found.mean > 0) == (claimed == "above") else "fails"
    mean = found.mean + bound
    ends = None if found.interval is None else (found.interval[0] + bound, found.interval[1] + bound)
    parts = [
        f"{what}: mean {show.amount(mean)} against the bound of {show.amount(bound)},"
        f" {_tested(found, show, shown=ends, paired=False)}."
    ]
    needed = _seeds_needed(found, found.mean) if verdict == "undecided" else None
    parts += _reasons(found, verdict, show=show, needed=needed)
    return _finding(found._replace(mean=mean, interval=ends), verdict, parts, needed=needed)


class _Paired(NamedTuple):
    """Differences by seed and what is tested of them; ``p`` is None for too few of them."""

    differences: tuple[float, ...]
    left_out: tuple[int, ...]
    mean: float
    spread: float | None
    interval: tuple[float, float] | None
    p: float | None
    level: float

    @property
    def coverage(self) -> float:
        # Of the interval: one without 0 is then one with p at most the level. Without a test it is the usual one.
        return 0.95 if self.p is None else 1 - self.level


def _paired(first: Mapping[int, float], second: Mapping[int, float], what: str) -> _Paired:
    from asymlora.sweep.intervals import mean_interval
    from asymlora.sweep.statistics import paired_difference, sign_flip_test

    sides = [{seed: float(value) for seed, value in side.items() if math.isfinite(value)} for side in (first, second)]
    seeds = sorted(set(sides[0]) & set(sides[1]))
    if not seeds:
        raise MissingEvidenceError(f"{what}: no seed has a value on both sides")
    one, other = ({seed: side[seed] for seed in seeds} for side in sides)
    # Equal figures must not become a difference of one sign by their rounding.
    same = [seed for seed in seeds if math.isclose(one[seed], other[seed], rel_tol=_SLACK, abs_tol=_LEAST)]
    one |= {seed: other[seed] for seed in same}
    found = paired_difference(one, other)
    asked = asked_for(first, second)
    tested = _Paired(
        differences=found.values,
        left_out=tuple(seed for seed in asked if seed not in seeds),
        mean=found.mean,
        spread=found.deviation,
        interval=None,
        p=sign_flip_test(found.values) if len(seeds) >= FIRST_SEEDS else None,
        level=level_at(len(asked)),
    )
    interval: Interval | None = mean_interval(found.values, level=tested.coverage)
    return tested._replace(interval=None if interval is None else (interval.low, interval.high))


def _p_of_none(found: _Paired, margin: float) -> float | None:
    from asymlora.sweep.statistics import tost

    p = tost(found.differences, margin=margin).p  # refuses a margin that is none, however few pairs there are
    return None if found.p is None else p


def _beyond(interval: tuple[float, float] | None, margin: float) -> bool:
    return interval is not None and (interval[0] > margin or interval[1] < -margin)


def _detectable(found: _Paired) -> float | None:
    from asymlora.sweep.statistics import detectable_effect

    # Differences that are all equal tell no spread.
    return detectable_effect(found.spread, len(found.differences), alpha=found.level) if found.spread else None


def _seeds_needed(found: _Paired, effect: float, *, level: float | None = None, power: float = 0.8) -> int | None:
    from asymlora.sweep.statistics import seeds_needed

    if found.spread is None:
        return None
    pairs = len(found.differences)
    alpha = level or (FIRST_LOOK if pairs < FIRST_SEEDS else SECOND_LOOK)
    needed = seeds_needed(found.spread, effect, power=power, alpha=alpha)
    return None if needed is None else max(needed, pairs + 1)


def _seeds_of_equivalence(found: _Paired, margin: float) -> int | None:
    # Beyond the margin it is a difference that is to be shown, and one side of the two is enough.
    inside = abs(found.mean) < margin
    level, power = (2 * SECOND_LOOK, 0.9) if inside else (SECOND_LOOK, 0.8)
    return _seeds_needed(found, abs(found.mean) - margin, level=level, power=power)


def _tested(found: _Paired, show: Unit, *, shown: tuple[float, float] | None = None, paired: bool = True) -> str:
    pairs = len(found.differences)
    said = [f"{pairs} {'paired ' if paired else ''}seed{'s' if pairs != 1 else ''}"]
    if found.p is not None:
        said.append(f"sign-flip p {_p_text(found.p)} at a level of {found.level:g}")
    if found.interval is not None and found.interval[0] == found.interval[1]:
        said.insert(0, "the same in every seed")
    elif found.interval is not None:
        low, high = (show.number(end, signed=paired) for end in shown or found.interval)
        said.insert(0, f"{100 * found.coverage:.3g} % interval {low} to {high} {show.name}")
    return ", ".join(said)


def _reasons(found: _Paired, verdict: Verdict, *, show: Unit, needed: int | None) -> list[str]:
    said: list[str] = []
    if found.left_out:
        count, seeds = len(found.left_out), ", ".join(map(str, found.left_out))
        said.append(f"Left out for want of a finite value: {count} seed{'s' if count > 1 else ''} ({seeds}).")
    pairs = len(found.differences)
    if verdict != "undecided":
        return said
    if pairs < FIRST_SEEDS:
        said.append(
            f"A description of {pairs} seed{'s' if pairs != 1 else ''}: fewer than {FIRST_SEEDS} decide nothing."
        )
        return said
    if (detectable := _detectable(found)) is not None:
        said.append(f"So many seeds find an effect of {show.amount(detectable)} with 80 % power.")
    if needed is not None:
        said.append(f"If the true mean and spread are the measured ones, {needed} seeds would decide it.")
    return said


def _finding(
    found: _Paired, verdict: Verdict, parts: list[str], *, needed: int | None, p: float | None = None
) -> Finding:
    return Finding(
        verdict=verdict,
        ours=" ".join(parts),
        estimate=found.mean,
        interval=found.interval,
        p=found.p if p is None else p,
        pairs=len(found.differences),
        detectable=_detectable(found),
        seeds_needed=needed,
    )


def _p_text(p: float) -> str:
    from asymlora.sweep.verdicts import p_text

    return p_text(p)
