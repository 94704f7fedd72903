"""Learning rates of a sweep, on numbers alone: their ladder, their order, the best one, what to try next. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

from asymlora.sweep.collapse import collapsed
from asymlora.sweep.run_record import RunRow

RateStatus = Literal["finished", "pruned", "diverged", "failed", "incomplete"]
"""Worst of a rate's seeds: ``diverged`` first, then ``pruned``, ``failed``; ``incomplete``: seeds are missing."""
BestAt = Literal["interior", "lower end", "upper end", "only rate"]
"""Where the best rate lies: a rate was tried on both sides; it is the smallest or largest; it is the only one."""
_NEAR = 1e-4  # relative; rates are stored to six digits


# The ladder ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ladder:
    r"""Rates in equal ratios: :math:`10^{e + k/n}` for whole :math:`k`, rounded to six digits.

    Attributes:
        exponent: ``e``, of the rung 0.
        per_decade: ``n``, rungs in a factor of ten; above 0.

    Example:
        >>> ladder = Ladder(exponent=-4, per_decade=3)
        >>> [ladder.rung(k) for k in range(4)]
        [0.0001, 0.000215443, 0.000464159, 0.001]
    """

    exponent: float
    per_decade: float

    def rung(self, number: int) -> float:
        """Return the rate of a rung.

        Args:
            number: Its number; 0 is the ladder's anchor, negative ones lie below.
        """
        # Six digits: the same float in every sweep, wherever its ladder begins.
        return float(f"{10 ** (self.exponent + number / self.per_decade):.6g}")

    def below(self, lr: float) -> float:
        """Return the largest rung that is smaller than a rate."""
        return self.rung(math.ceil(self._place(lr) - self.per_decade * _NEAR) - 1)

    def above(self, lr: float) -> float:
        """Return the smallest rung that is larger than a rate."""
        return self.rung(math.floor(self._place(lr) + self.per_decade * _NEAR) + 1)

    def _place(self, lr: float) -> float:
        return (math.log10(lr) - self.exponent) * self.per_decade


def ladder_through(rates: Sequence[float]) -> Ladder:
    """Return the ladder that goes on where a grid of rates ends: in the grid's mean ratio, from its smallest rate.

    Where that is a whole number of rates a decade and the grid holds powers of ten, or roots of them, the ladder is
    anchored at 1, so that two sweeps share their rates.

    Args:
        rates: At least two different rates.

    Returns:
        The ladder.

    Example:
        >>> ladder_through([1e-4, 3e-4, 1e-3]).above(1e-3)
        0.00316228
    """
    low, high = min(rates), max(rates)
    per_decade = (len(rates) - 1) / math.log10(high / low)
    if round(per_decade) and abs(per_decade / round(per_decade) - 1) < _NEAR:
        per_decade = round(per_decade)
    return Ladder(exponent=exponent_of(low, per_decade), per_decade=per_decade)


def exponent_of(lr: float, per_decade: float) -> float:
    """Return the decimal logarithm of a rate: of the root of a power of ten that it is, to three digits, if it is one.

    Args:
        lr: The rate.
        per_decade: Rates in a decade.

    Returns:
        The exponent.

    Example:
        >>> exponent_of(2.15e-4, 3) == -11 / 3, exponent_of(3e-4, 3) == math.log10(3e-4)
        (True, True)
    """
    root = round(math.log10(lr) * per_decade) / per_decade
    return root if per_decade == round(per_decade) and rate_text(10**root) == rate_text(lr) else math.log10(lr)


def grid_of(low: float, high: float, *, per_decade: int) -> tuple[float, ...]:
    """Return rates in equal ratios from one end to the other, both included.

    The number of steps is the one whose ratio is nearest to ``per_decade`` rates a decade: where the ends are not a
    whole number of such steps apart, the ratio gives way, not the ends. An end that is the root of a power of ten to
    three digits (``2.15e-4``) stands for that root.

    Args:
        low: Smallest rate, above 0.
        high: Largest rate, at least ``low``.
        per_decade: Rates in a factor of ten, at least 1.

    Returns:
        The rates, rising.

    Example:
        >>> grid_of(1e-4, 1e-3, per_decade=3)
        (0.0001, 0.000215443, 0.000464159, 0.001)
        >>> grid_of(1e-4, 5e-4, per_decade=3)
        (0.0001, 0.000223607, 0.0005)
    """
    first, last = (exponent_of(lr, per_decade) for lr in (low, high))
    steps = max(1, round((last - first) * per_decade))
    inner = [float(f"{10 ** (first + (last - first) * step / steps):.6g}") for step in range(steps + 1)]
    ends = [end if math.log10(end) == exponent else found for end, exponent, found in
            ((low, first, inner[0]), (high, last, inner[-1]))]  # fmt: skip
    return tuple(sorted({ends[0], *inner[1:-1], ends[1]}))


def rate_text(lr: float) -> str:
    """Return a rate as people write it, to three digits.

    Example:
        >>> rate_text(0.000215443), rate_text(0.01)
        ('2.15e-4', '1e-2')
    """
    digits, _, exponent = f"{lr:.2e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def order_of_rates(rates: Iterable[float]) -> list[list[float]]:
    """Return rates in waves of one, from the middle outwards, so that early stopping has good rivals early.

    Args:
        rates: Different rates.

    Returns:
        Every rate once; of two that are as far from the middle the smaller first, which is the safer one.

    Example:
        >>> order_of_rates([1, 2, 3, 4, 5])
        [[3], [2], [4], [1], [5]]
    """
    rising = sorted(set(rates))
    middle = (len(rising) - 1) / 2
    places = sorted(range(len(rising)), key=lambda place: (abs(place - middle), place))
    return [[rising[place]] for place in places]


# What was found at each rate -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RateScore:
    """One cell at one learning rate, of its tuning runs.

    Attributes:
        lr: ``train.lr``.
        values: Metric on the validation part by seed, of the seeds that finished.
        missing: Seeds that have no row.
        pruned: Seeds that were stopped early.
        diverged: Seeds that diverged.
        failed: Seeds that failed, or whose metric was not finite.
        collapsed: Seeds that finished and had learnt next to nothing (`asymlora.sweep.collapse`).
    """

    lr: float
    values: Mapping[int, float] = field(default_factory=dict[int, float])
    missing: tuple[int, ...] = ()
    pruned: tuple[int, ...] = ()
    diverged: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    collapsed: tuple[int, ...] = ()

    @property
    def mean(self) -> float | None:
        """Mean over the seeds that finished; None where none did."""
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def status(self) -> RateStatus:
        """Worst of the seeds."""
        return (
            "diverged" if self.diverged else "pruned" if self.pruned
            else "failed" if self.failed else "incomplete" if self.missing or not self.values else "finished"
        )  # fmt: skip

    @property
    def complete(self) -> bool:
        """Whether every seed finished; only then can the rate be the best one."""
        return self.status == "finished"

    @property
    def tried(self) -> bool:
        """Whether the rate tells on which side of it the best one lies: some seed finished, diverged or was pruned."""
        return bool(self.values or self.diverged or self.pruned)

    @property
    def stable(self) -> bool:
        """Whether no seed diverged or collapsed; one that was pruned counts as stable, as far as it went."""
        return not (self.diverged or self.collapsed)


def rate_scores(rows: Iterable[RunRow], *, seeds: Sequence[int], rates: Iterable[float] = ()) -> list[RateScore]:
    """Return what the tuning runs of one cell say of each rate, by rising rate.

    Args:
        rows: Rows of the cell; those of other phases and seeds are passed over, a later row replaces an earlier one.
        seeds: The tuning seeds that every rate is to have.
        rates: Rates that are to have a score though they have no row yet.

    Returns:
        One score for each rate.
    """
    by_rate: dict[float, dict[int, RunRow]] = {lr: {} for lr in rates}
    for row in rows:
        if row.phase == "tuning" and row.seed in seeds and not row.repeat:
            by_rate.setdefault(row.lr, {})[row.seed] = row
    fallen = collapsed(row for found in by_rate.values() for row in found.values())
    return [_score(lr, by_rate[lr], sorted(seeds), fallen) for lr in sorted(by_rate)]


def _score(lr: float, rows: Mapping[int, RunRow], seeds: Sequence[int], fallen: Set[tuple[float, int]]) -> RateScore:
    values = {
        seed: row.validation
        for seed, row in sorted(rows.items())
        if row.status == "finished" and row.validation is not None and math.isfinite(row.validation)
    }

    def ended(status: str) -> tuple[int, ...]:
        return tuple(seed for seed in seeds if seed in rows and rows[seed].status == status)

    return RateScore(
        lr=lr,
        values=values,
        missing=tuple(seed for seed in seeds if seed not in rows),
        pruned=ended("pruned"),
        diverged=ended("diverged"),
        failed=tuple(sorted({*ended("failed"), *(seed for seed in ended("finished") if seed not in values)})),
        collapsed=tuple(seed for seed in seeds if (lr, seed) in fallen),
    )


# The best one and what to try next -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RateChoice:
    """What is known of a cell's learning rate.

    Attributes:
        best: The best rate's score; None where no rate has all of its seeds.
        best_at: Where it lies among the tried rates; None where there is none.
        next_rates: What to run before the choice is final: rates of which seeds are missing; where there are none, one
            rung beyond the end at which the best rate lies, or below all where none is stable.
        at_bound: Whether the best rate lies at an end and the next rung is outside of the bounds.
        largest_stable: Largest tried rate at which, and at every smaller one, no run diverged or collapsed. None where
            there is none.
        divergence_edge: Smallest tried rate from which on every tried one diverged or collapsed in some seed; None
            where none did.
    """

    best: RateScore | None
    best_at: BestAt | None
    next_rates: tuple[float, ...]
    at_bound: bool
    largest_stable: float | None
    divergence_edge: float | None

    @property
    def interior(self) -> bool:
        """Whether a rate was tried on both sides of the best one."""
        return self.best_at == "interior"


def choose_rate(
    scores: Sequence[RateScore], *, greater_is_better: bool, ladder: Ladder | None, bounds: tuple[float, float]
) -> RateChoice:
    """Return the best rate of a cell, whether it is settled, and what to try next.

    Args:
        scores: Of every rate, as `rate_scores` gives them.
        greater_is_better: Whether more of the metric is better.
        ladder: Where the grid goes on; None: it does not grow.
        bounds: Smallest and largest rate that may be tried.

    Returns:
        The choice.
    """
    best = best_rate(scores, greater_is_better=greater_is_better)
    missing = tuple(score.lr for score in scores if score.missing)
    # Not before all seeds are in: a sweep that was interrupted grows as one that was not.
    beyond = () if missing else _beyond(scores, best, ladder)
    allowed = tuple(lr for lr in beyond if bounds[0] * (1 - _NEAR) <= lr <= bounds[1] * (1 + _NEAR))
    return RateChoice(
        best=best,
        best_at=None if best is None else where_best(scores, best),
        next_rates=missing or tuple(lr for lr in allowed if not _has(scores, lr)),
        at_bound=len(allowed) < len(beyond),
        largest_stable=largest_stable(scores),
        divergence_edge=divergence_edge(scores),
    )


def best_rate(scores: Sequence[RateScore], *, greater_is_better: bool) -> RateScore | None:
    """Return the rate with the best mean on validation, among those whose every tuning run finished.

    A rate at which a run was stopped early was behind, and one at which any run diverged is not stable. Of rates that
    tie, it is the middle one (of two middle ones the smaller): the farthest from where it gets worse on either side,
    and a plateau does not send the grid's growth along itself.

    Args:
        scores: Of the rates.
        greater_is_better: Whether more of the metric is better.

    Returns:
        Its score; None where no rate has all of its seeds.
    """
    means = {score.lr: score.mean for score in scores if score.complete}
    known = [mean for mean in means.values() if mean is not None]
    if not known:
        return None
    top = max(known) if greater_is_better else min(known)
    tied = sorted(lr for lr, mean in means.items() if mean == top)
    chosen = tied[(len(tied) - 1) // 2]
    return next(score for score in scores if score.lr == chosen)


def where_best(scores: Sequence[RateScore], best: RateScore) -> BestAt:
    """Return where the best rate lies among those that were tried: finished, pruned or diverged.

    Args:
        scores: Of the rates.
        best: One of them.
    """
    tried = [score.lr for score in scores if score.tried]
    below, above = (any(lr < best.lr for lr in tried), any(lr > best.lr for lr in tried))
    if below and above:
        return "interior"
    return "only rate" if not (below or above) else "upper end" if below else "lower end"


def largest_stable(scores: Sequence[RateScore]) -> float | None:
    """Return the largest tried rate at which, and at every smaller one, no run diverged or collapsed, or None.

    Args:
        scores: Of the rates.
    """
    tried = sorted((score for score in scores if score.tried), key=lambda score: score.lr)
    stable: float | None = None
    for score in tried:
        if not score.stable:
            return stable
        stable = score.lr
    return stable


def divergence_edge(scores: Sequence[RateScore]) -> float | None:
    """Return the smallest tried rate from which on every one diverged or collapsed in some seed, or None.

    Args:
        scores: Of the rates.
    """
    edge: float | None = None
    for score in sorted((score for score in scores if score.tried), key=lambda score: -score.lr):
        if score.stable:
            return edge
        edge = score.lr
    return edge


def _beyond(scores: Sequence[RateScore], best: RateScore | None, ladder: Ladder | None) -> tuple[float, ...]:
    # The rungs without which the choice is open, whether or not they are within the bounds.
    if ladder is None or not scores:
        return ()
    rates = [score.lr for score in scores]
    if best is None:
        # Where no rate is stable, a smaller one may be; where all failed, no rate will help.
        return (ladder.below(min(rates)),) if any(score.diverged for score in scores) else ()
    sides = where_best(scores, best)
    below = () if sides in ("interior", "upper end") else (ladder.below(best.lr),)
    above = () if sides in ("interior", "lower end") else (ladder.above(best.lr),)
    return below + above


def _has(scores: Sequence[RateScore], lr: float) -> bool:
    return any(abs(score.lr / lr - 1) < _NEAR for score in scores)
