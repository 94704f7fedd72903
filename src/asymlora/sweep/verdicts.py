"""From the closing runs of two cells to a verdict, and to sentences that never say more than the tests do. No torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from asymlora.sweep.intervals import mean_interval
from asymlora.sweep.statistics import (
    ALPHA,
    EXACT_UP_TO,
    PairedDifference,
    holm,
    least_p,
    paired_difference,
    pairs_for_least_p,
    seeds_needed,
    sign_flip_test,
    tost,
)
from asymlora.sweep.summary import Comparison, Interval, Outcome, SeedValue


@dataclass(frozen=True, kw_only=True)
class Contender:
    """What one cell brings to a comparison.

    Attributes:
        label: Its name.
        values: Metric on the test part by seed.
        doubt: The most that another of its rates could add, in units of the metric, as `CellSummary.rate_doubt`.
        diverged: Seeds of closing runs that diverged; they have no value.
        caveats: Sentences that limit what may be said of it.
    """

    label: str
    values: Mapping[int, float]
    doubt: float = 0.0
    diverged: tuple[int, ...] = ()
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How a metric is shown.

    Attributes:
        metric: Its name.
        greater_is_better: Whether more of it is better.
        scale: Factor by which values are shown.
        unit: ``points`` or nothing.
    """

    metric: str
    greater_is_better: bool
    scale: float = 1.0
    unit: str = ""

    @classmethod
    def of(cls, metric: str, values: Sequence[float], *, greater_is_better: bool) -> Shown:
        """Return how a metric is shown: in points where more is better and all its values are fractions.

        Args:
            metric: Its name.
            values: All that are known.
            greater_is_better: Whether more of it is better.
        """
        fractions = bool(values) and greater_is_better and all(0 <= value <= 1 for value in values)
        scale, unit = (100.0, "points") if fractions else (1.0, "")
        return cls(metric=metric, greater_is_better=greater_is_better, scale=scale, unit=unit)

    def number(self, value: float) -> str:
        """Return a value as people read it, without its unit.

        Example:
            >>> Shown(metric="accuracy", greater_is_better=True, scale=100, unit="points").number(0.9123)
            '91.23'
        """
        text = f"{value * self.scale:.2f}" if self.unit else f"{value:.4g}"
        return text.removeprefix("-") if not text.strip("-0.") else text

    def amount(self, value: float) -> str:
        """Return a value with its unit and the metric's name: ``0.80 points of accuracy``.

        Example:
            >>> Shown(metric="loss", greater_is_better=False).amount(0.25)
            '0.25 of loss'
        """
        return f"{self.number(value)} {self.unit + ' ' if self.unit else ''}of {self.metric}"


def compare_cells(
    contenders: Sequence[Contender],
    shown: Shown,
    *,
    margin: float | None = None,
    planned: int = 0,
    resamples: int = 9999,
) -> list[Comparison]:
    """Return the verdict on every pair of cells, corrected for the number of pairs of cells.

    A cell is called better only where it leads by more than another rate could give the one behind, by a sign-flip
    test whose p after Holm's correction is at most 0.05; where there are six paired seeds at least; and where none of
    its own closing runs diverged (the others are a choice of the good ones; nor are two cells called equivalent where
    any diverged). Without the allowance for the rate, equal
    arms that were tuned with two seeds are told apart in up to a quarter of all sweeps: each pair of closing runs
    carries the same luck of the choice, so more closing seeds make it worse (``experiments/null_sweeps.py``).

    Args:
        contenders: The cells.
        shown: How the metric is shown.
        margin: Largest difference that counts as none, in units of the metric, stated beforehand; None: equivalence
            is not tested.
        planned: Number of comparisons that are to be made in the end, where some cells have no runs yet: what is said
            before is corrected for all of them.
        resamples: Of the intervals' bootstrap.

    Returns:
        One comparison for each pair, in the order of the cells.
    """
    pairs = list(itertools.combinations(contenders, 2))
    measured = [_measured(*pair, shown=shown, margin=margin, resamples=resamples) for pair in pairs]
    tested = [at for at, found in enumerate(measured) if found.differences]
    count = max(planned, len(tested))
    differ = _corrected([measured[at].p for at in tested], count)
    agree = _corrected([measured[at].p_equivalence for at in tested], count)
    beyond = _corrected([measured[at].p_beyond for at in tested], count)
    for at, p, p_beyond, p_equivalence in zip(tested, differ, beyond, agree, strict=True):
        measured[at] = replace(measured[at], p_adjusted=p, p_beyond=p_beyond, p_equivalence=p_equivalence)
    return [
        _judged(replace(found, comparisons=count), pair, shown) for found, pair in zip(measured, pairs, strict=True)
    ]


def p_text(p: float) -> str:
    """Return a p-value as ``= 0.031`` or ``< 0.001``."""
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def interval_text(interval: Interval | None, shown: Shown, *, sign: int = 1) -> str:
    """Return an interval as words, for the middle of a sentence.

    Args:
        interval: None where there is none.
        shown: How the metric is shown.
        sign: -1 to show it the other way round.
    """
    if interval is None:
        return "no interval"
    if interval.low == interval.high:
        return "the same in every seed"
    ends = sorted((sign * interval.low, sign * interval.high))
    return f"{interval.level * 100:g} % interval {' to '.join(shown.number(end) for end in ends)}"


def _measured(first: Contender, second: Contender, *, shown: Shown, margin: float | None, resamples: int) -> Comparison:
    common = sorted(set(first.values) & set(second.values))
    found = PairedDifference((), (), 0.0, None)
    if common:
        found = paired_difference(*({seed: one.values[seed] for seed in common} for one in (first, second)))
    ahead = _ahead(found.mean, (first, second), shown)
    allowance = 0.0 if ahead is None else (second if ahead is first else first).doubt
    return Comparison(
        first=first.label,
        second=second.label,
        differences=tuple(map(SeedValue, found.seeds, found.values)),
        mean=found.mean if common else None,
        deviation=found.deviation,
        interval=mean_interval(found.values, resamples=resamples),
        p=sign_flip_test(found.values) if common else None,
        p_adjusted=None,
        least_p=least_p(len(common)) if common else None,
        comparisons=0,
        allowance=allowance,
        p_beyond=_p_beyond(found, allowance),
        margin=margin,
        p_equivalence=_p_equivalence(found, margin, max(first.doubt, second.doubt)),
        outcome="not testable",
        better=None,
        seeds_needed=None,
        caveats=(),
        sentence="",
    )


def _p_beyond(found: PairedDifference, allowance: float) -> float | None:
    """The p of the differences with their mean moved towards 0 by the allowance."""
    if not found.values:
        return None
    if allowance >= abs(found.mean):
        return 1.0  # moved to 0, equal differences would leave their rounding, all of one sign
    return sign_flip_test([value - math.copysign(allowance, found.mean) for value in found.values])


def _p_equivalence(found: PairedDifference, margin: float | None, doubt: float) -> float | None:
    if margin is None or not found.values:
        return None
    return tost(found.values, margin=margin - doubt).p if margin > doubt else 1.0


def _corrected(p_values: Sequence[float | None], count: int) -> list[float] | list[None]:
    known = [p for p in p_values if p is not None]
    # A comparison that is still to be made counts as one without any difference.
    return holm([*known, *[1.0] * (count - len(known))])[: len(known)] if known else [None] * len(p_values)


def _judged(found: Comparison, pair: tuple[Contender, Contender], shown: Shown) -> Comparison:
    ahead = _ahead(found.mean, pair, shown)
    outcome = _outcome(found, ahead, pair)
    better = ahead if outcome.endswith("better") else None
    needed = None
    if better is None and outcome != "equivalent" and found.mean is not None and found.deviation is not None:
        beyond = max(0.0, abs(found.mean) - found.allowance)
        needed = seeds_needed(found.deviation, beyond, alpha=ALPHA / max(1, found.comparisons))
    found = replace(
        found,
        outcome=outcome,
        better=better.label if better else None,
        seeds_needed=needed,
        caveats=tuple(dict.fromkeys((*_missing(found, pair), *pair[0].caveats, *pair[1].caveats))),
    )
    parts = [_verdict(found, shown), *_reasons(found, ahead, shown), *found.caveats]
    return replace(found, sentence=" ".join(parts))


def _ahead(mean: float | None, pair: tuple[Contender, Contender], shown: Shown) -> Contender | None:
    if not mean:
        return None
    return pair[0] if (mean > 0) == shown.greater_is_better else pair[1]


def _outcome(found: Comparison, ahead: Contender | None, pair: tuple[Contender, Contender]) -> Outcome:
    if found.p_beyond is None or len(found.differences) < pairs_for_least_p(ALPHA):
        return "not testable"
    if found.p_beyond <= ALPHA and ahead is not None and not ahead.diverged:
        return "first better" if ahead.label == found.first else "second better"
    whole = not any(one.diverged for one in pair)
    if whole and found.p_equivalence is not None and found.p_equivalence <= ALPHA:
        return "equivalent"
    return "not decided"


def _missing(found: Comparison, pair: tuple[Contender, Contender]) -> list[str]:
    paired = {difference.seed for difference in found.differences}
    lost = sorted(({*pair[0].values, *pair[1].values}) - paired)
    if not lost:
        return []
    return [f"Seeds {', '.join(map(str, lost))} have a closing run on one side only and are left out."]


def _verdict(found: Comparison, shown: Shown) -> str:
    if found.mean is None:
        return f"{found.first} and {found.second}: not compared, as they have no closing runs of the same seed."
    if found.outcome.endswith("better"):
        # The advantage is shown as a number above 0, whichever side and whichever way is better.
        sign = 1 if found.mean > 0 else -1
        loser = found.second if found.better == found.first else found.first
        return (
            f"{found.better} is better than {loser} by {shown.amount(abs(found.mean))} ({_tests(found, shown, sign)})."
        )
    if found.outcome == "equivalent":
        assert found.margin is not None
        return (
            f"{found.first} and {found.second} are equivalent within the margin of {shown.amount(found.margin)} that"
            f" was stated beforehand, p {p_text(found.p_equivalence or 0.0)}. {_apart(found, shown)}"
        )
    words = "not testable" if found.outcome == "not testable" else "not decided"
    return f"{found.first} and {found.second}: {words}. {_apart(found, shown)}"


def _apart(found: Comparison, shown: Shown) -> str:
    assert found.mean is not None
    if found.mean == 0:
        return f"Their mean {shown.metric} is the same ({_tests(found, shown, 1)})."
    side = "above" if found.mean > 0 else "below"
    unit = f" {shown.unit}" if shown.unit else ""
    return (
        f"The mean {shown.metric} of {found.first} is {shown.number(abs(found.mean))}{unit} {side} that of"
        f" {found.second} (first less second: {_tests(found, shown, 1)})."
    )


def _tests(found: Comparison, shown: Shown, sign: int) -> str:
    pairs = len(found.differences)
    assert found.p is not None
    kind = "exact sign-flip" if pairs <= EXACT_UP_TO else "sign-flip"
    seeds = f"{pairs} paired seed{'s' if pairs != 1 else ''}"
    text = f"{interval_text(found.interval, shown, sign=sign)}, {seeds}, {kind} p {p_text(found.p)}"
    if found.comparisons > 1 and found.p_adjusted is not None:
        text += f", by Holm over {found.comparisons} comparisons p {p_text(found.p_adjusted)}"
    if found.allowance and found.p_beyond is not None and found.outcome.endswith("better"):
        allowed = shown.number(found.allowance)
        text += f"; beyond the {allowed} that another tried rate could add, p {p_text(found.p_beyond)}"
    return text


def _reasons(found: Comparison, ahead: Contender | None, shown: Shown) -> list[str]:
    """Why there is no verdict, and what would bring one."""
    if found.mean is None or found.least_p is None or found.outcome == "equivalent":
        return []
    if found.outcome.endswith("better"):
        agrees = found.p_equivalence is not None and found.p_equivalence <= ALPHA
        return ["The difference is smaller than the margin that was stated beforehand."] if agrees else []
    undecided = found.outcome == "not testable" or found.p_adjusted is None or found.p_adjusted > ALPHA
    if undecided or ahead is None or not (ahead.diverged or found.allowance):
        return _more_seeds(found, ahead, shown)
    behind = found.second if ahead.label == found.first else found.first
    if ahead.diverged:
        lost = len(ahead.diverged)
        return [f"{ahead.label} is ahead, but {lost} of its closing runs diverged, and only the others count."]
    seeds = "tuning" if found.allowance >= abs(found.mean) else "tuning or closing"
    return [
        f"{ahead.label} is ahead at the rates that were chosen, but for all that its tuning runs tell, {behind} could"
        f" gain {shown.amount(found.allowance)} by another tried rate (p {p_text(found.p_beyond or 0.0)} beyond that)."
        f" More {seeds} seeds would tell."
    ]


def _more_seeds(found: Comparison, ahead: Contender | None, shown: Shown) -> list[str]:
    said: list[str] = []
    most, pairs, least = max(1, found.comparisons), len(found.differences), found.least_p or 1.0
    if found.p_adjusted is not None and found.p_adjusted < min(1.0, most * least):
        most = 1  # behind a comparison of more pairs, Holm's factor is smaller
    reaching = pairs_for_least_p(ALPHA / most)
    if pairs < reaching:
        over = f" over {most} comparisons" if most > 1 else ""
        said.append(
            f"{pairs} paired seed{'s' if pairs != 1 else ''} cannot give a p below"
            f" {min(1.0, most * least):.3f}{over}; {reaching} can reach {ALPHA:g}."
        )
    if ahead is not None and found.allowance >= abs(found.mean or 0.0):
        behind = found.second if ahead.label == found.first else found.first
        said.append(
            f"Another tried rate could give {behind} as much ({shown.amount(found.allowance)}, for all that its tuning"
            " runs tell), so more closing seeds alone would not decide it: it takes more tuning seeds as well."
        )
    elif found.seeds_needed is not None:
        beyond = (
            f", beyond the {shown.number(found.allowance)} that another tried rate could add" if found.allowance else ""
        )
        said.append(
            f"If the true difference is as large as the observed one, {found.seeds_needed} paired seeds would show it"
            f" with a probability of about 80 %, at the observed spread{beyond}."
        )
    return said
