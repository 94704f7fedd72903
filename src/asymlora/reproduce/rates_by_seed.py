"""What the runs of one arm say of its learning rates, seed by seed, and its closing figures. No torch in here.

An arm is named by the label of its cell (`asymlora.sweep.run_record.cell_label`): its name where there are no axes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from asymlora.errors import UnknownNameError, nearest
from asymlora.reproduce.by_seed import BySeed, asked_for
from asymlora.reproduce.evidence import MissingEvidenceError, SweepEvidence
from asymlora.sweep.rates import rate_text
from asymlora.sweep.run_record import RunRow, cell_label

if TYPE_CHECKING:
    from asymlora.sweep.cell_analysis import CellRows

__all__ = [
    "BySeed", "Stable", "best_ends", "best_rates", "censored_seeds", "closing_values", "comparable_rates",
    "is_interior", "known_rates", "largest_stable_rates", "rate_sentence", "tuned_rate",
]  # fmt: skip
Stable = Callable[[RunRow], bool]


def closing_values(sweep: SweepEvidence, arm: str, *, metric: str | None = None) -> BySeed:
    """Return a metric on the test part by seed, of the finished closing runs at the rate that is quoted.

    Args:
        sweep: What the sweep left.
        arm: Label of the cell.
        metric: Its name; None: the metric that choices are made by.

    Returns:
        Finite figures alone; they know of every closing seed of the plan.

    Raises:
        MissingEvidenceError: No closing run of the arm has finished.
        UnknownNameError: There is no such arm or metric.
    """
    cell = _cell(sweep, arm)
    ended = [row for row in cell.closing if row.status == "finished" and row.test is not None]
    if not ended:
        raise MissingEvidenceError(f"closing runs of {arm}")
    name = cell.metric if metric is None else metric
    known = sorted({name for row in ended for name in row.test or ()})
    if name not in known:
        raise UnknownNameError(f"metric={name!r} is none of the test part.{nearest(name, known)} Known: {known}.")
    values = {row.seed: (row.test or {}).get(name) for row in ended}
    finite = {seed: value for seed, value in values.items() if value is not None and math.isfinite(value)}
    return BySeed(finite, planned=cell.view.closing_seeds)


def tuned_rate(sweep: SweepEvidence, arm: str) -> float | None:
    """Return the rate with the best mean on validation over the tuning seeds.

    Args:
        sweep: What the sweep left.
        arm: Label of the cell.

    Returns:
        The rate; None where no rate has finished with every tuning seed.

    Raises:
        MissingEvidenceError: There is no run of the arm.
        UnknownNameError: There is no such arm.
    """
    best = _cell(sweep, arm).choice.best
    return None if best is None else best.lr


def is_interior(sweep: SweepEvidence, arm: str) -> bool:
    """Return whether a smaller and a larger rate than the tuned one were tried.

    Args:
        sweep: What the sweep left.
        arm: Label of the cell.

    Raises:
        MissingEvidenceError: There is no run of the arm.
        UnknownNameError: There is no such arm.
    """
    return _cell(sweep, arm).choice.interior


def rate_sentence(sweep: SweepEvidence, arm: str) -> str:
    """Return the tuned rate of an arm and where it lies among the tried ones, as a sentence.

    Args:
        sweep: What the sweep left.
        arm: Label of the cell.

    Returns:
        ``init_a: best rate 3.16e-3, interior of 1e-4 to 1e-1.``

    Raises:
        MissingEvidenceError: There is no run of the arm.
        UnknownNameError: There is no such arm.
    """
    cell = _cell(sweep, arm)
    tried = [score.lr for score in cell.scores if score.tried]
    best, at = cell.choice.best, cell.choice.best_at
    if best is None or at is None:
        return f"{arm}: no rate has finished with every tuning seed."
    where = {"interior": "interior of", "only rate": "the only one of"}.get(at, f"at the {at} of")
    return f"{arm}: best rate {rate_text(best.lr)}, {where} {rate_text(min(tried))} to {rate_text(max(tried))}."


def best_rates(sweep: SweepEvidence, arm: str) -> BySeed:
    """Return log2 of the best learning rate on validation for each tuning seed.

    It is the top of the parabola through the best rate and its two finished neighbours in log2 of the rate, and never
    nearer to a neighbour than half-way. Of rates that tie it is the middle one, of two middle ones the smaller. Where
    the best rate is the smallest or the largest that finished, it is that rate itself, and the true one may lie beyond
    (it is censored: `best_ends`). Seeds that have not run at every rate of the arm yet are left out.

    Args:
        sweep: What the sweep left.
        arm: Label of the cell.

    Returns:
        Seeds of which some run finished, rising; they know of every tuning seed of the plan.

    Raises:
        MissingEvidenceError: There is no such seed.
        UnknownNameError: There is no such arm.
    """
    cell = _cell(sweep, arm)
    found = {seed: _top(places, heights) for seed, (places, heights) in _curves(cell).items()}
    if not found:
        raise MissingEvidenceError(f"tuning runs of {arm} that finished")
    return BySeed(found, planned=cell.view.tuning_seeds)


def best_ends(sweep: SweepEvidence, arm: str, *, end: Literal["lower", "upper"]) -> tuple[int, ...]:
    """Return the tuning seeds whose best rate is at an end of what finished, so that the true one may lie beyond.

    Args:
        sweep: What the sweep left.
        arm: Label of the cell.
        end: ``lower``: the smallest rate is best; ``upper``: the largest. Of a single rate that finished it is both.

    Returns:
        The seeds, rising.

    Raises:
        MissingEvidenceError: There is no run of the arm.
        UnknownNameError: There is no such arm.
    """
    curves = _curves(_cell(sweep, arm))
    ends = {seed: 0 if end == "lower" else len(places) - 1 for seed, (places, _) in curves.items()}
    return tuple(seed for seed, (_, heights) in curves.items() if _highest(heights) == ends[seed])


def largest_stable_rates(sweep: SweepEvidence, arm: str, *, stable: Stable) -> BySeed:
    """Return log2 of the largest stable learning rate for each tuning seed: the last before the first unstable one.

    Unstable rates below the smallest stable one are passed over: where ``stable`` asks that a run has learnt, a rate
    may be too small for it. Where the largest tried rate is still stable, it is that one, and the true one lies beyond
    (`censored_seeds` names them). Seeds without any stable rate are left out, and those that have not run at every rate
    of the arm yet.

    Args:
        sweep: What the sweep left.
        arm: Label of the cell.
        stable: Whether a run was; asked of finished, diverged and pruned ones.

    Returns:
        By seed, rising; they know of every tuning seed of the plan.

    Raises:
        MissingEvidenceError: There is no such seed.
        UnknownNameError: There is no such arm.
    """
    cell = _cell(sweep, arm)
    found = {seed: rate for seed, (rate, _) in _edges(cell, stable).items()}
    if not found:
        raise MissingEvidenceError(f"tuning runs of {arm} that were stable")
    return BySeed(found, planned=cell.view.tuning_seeds)


def censored_seeds(sweep: SweepEvidence, arm: str, *, stable: Stable) -> tuple[int, ...]:
    """Return the tuning seeds at which the largest tried rate is still stable.

    Args:
        sweep: What the sweep left.
        arm: Label of the cell.
        stable: As for `largest_stable_rates`.

    Raises:
        MissingEvidenceError: There is no run of the arm.
        UnknownNameError: There is no such arm.
    """
    return tuple(seed for seed, (_, censored) in _edges(_cell(sweep, arm), stable).items() if censored)


def comparable_rates(
    first: Mapping[int, float],
    second: Mapping[int, float],
    *,
    open_first: Collection[int] = (),
    open_second: Collection[int] = (),
    low_first: Collection[int] = (),
    low_second: Collection[int] = (),
) -> tuple[BySeed, BySeed]:
    """Return two arms' rates at the seeds whose difference has a sign that is known, for a claim that one is larger.

    Where the grid ended too soon a rate is a bound, and a difference of bounds may be one of the grids alone. A pair
    stays where both rates are exact, or where the sign follows from the bounds: the true difference then lies farther
    from 0. The other seeds go from both sides, and a finding names them.

    Args:
        first: Log2 of the rates of one arm, by seed.
        second: Of the other.
        open_first: Seeds at which the first one's true rate is this one or larger (`censored_seeds`, `best_ends`).
        open_second: Likewise of the second.
        low_first: Seeds at which the first one's true rate is this one or smaller.
        low_second: Likewise of the second.

    Returns:
        Both, with the seeds that were asked for.

    Example:
        >>> comparable_rates({0: -7.0, 1: -9.0}, {0: -8.0, 1: -8.0}, open_first=[0, 1])
        ({0: -7.0}, {0: -8.0})
    """

    def sign_is_known(seed: int) -> bool:
        larger = seed in open_first or seed in low_second
        smaller = seed in low_first or seed in open_second
        difference = first[seed] - second[seed]
        return not (larger or smaller) or (difference > 0 and not smaller) or (difference < 0 and not larger)

    both = set(first) & set(second)
    return _without(first, second, {seed for seed in both if not sign_is_known(seed)})


def known_rates(
    first: Mapping[int, float], second: Mapping[int, float], *, open_seeds: Collection[int]
) -> tuple[BySeed, BySeed]:
    """Return two arms' rates without the seeds at which one is a bound, for a claim that there is no difference.

    Args:
        first: Log2 of the rates of one arm, by seed.
        second: Of the other.
        open_seeds: Seeds at which a rate of either arm is a bound, on whichever side.

    Returns:
        Both, with the seeds that were asked for.
    """
    return _without(first, second, open_seeds)


def _without(first: Mapping[int, float], second: Mapping[int, float], seeds: Collection[int]) -> tuple[BySeed, BySeed]:
    planned = asked_for(first, second)
    one, other = ({seed: side[seed] for seed in side if seed not in seeds} for side in (first, second))
    return BySeed(one, planned=planned), BySeed(other, planned=planned)


def _cell(sweep: SweepEvidence, arm: str) -> CellRows:
    view, found = sweep.view, sweep.cells
    if arm in found:
        return found[arm]
    known = [cell_label(*point) for point in itertools.product(view.arms, view.points)] or list(found)
    if arm in known:
        raise MissingEvidenceError(f"runs of {arm}")
    raise UnknownNameError(f"arm={arm!r} is none of the sweep.{nearest(arm, known)} Its arms: {', '.join(known)}.")


def _tuning(cell: CellRows) -> dict[int, list[RunRow]]:
    """Tuning runs by seed and rising rate, of the seeds that have ended at every rate."""
    runs: dict[int, dict[str, RunRow]] = {seed: {} for seed in sorted(cell.view.tuning_seeds)}
    rates = {_key(lr) for lr in cell.view.rates}
    for row in cell.of("tuning"):
        if row.seed in runs and not row.repeat:
            rates.add(_key(row.lr))
            if row.final:
                runs[row.seed][_key(row.lr)] = row
    return {
        seed: sorted(by_rate.values(), key=lambda row: row.lr)
        for seed, by_rate in runs.items()
        if by_rate and rates <= set(by_rate)
    }


def _curves(cell: CellRows) -> dict[int, tuple[list[float], list[float]]]:
    """Log2 of the rates that finished, and how good each was, of the seeds of which some run finished."""
    sign = 1 if cell.greater_is_better else -1
    found: dict[int, tuple[list[float], list[float]]] = {}
    for seed, rows in _tuning(cell).items():
        ended = [row for row in rows if row.status == "finished" and math.isfinite(_or_nan(row.validation))]
        if ended:
            found[seed] = [math.log2(row.lr) for row in ended], [sign * _or_nan(row.validation) for row in ended]
    return found


def _edges(cell: CellRows, stable: Stable) -> dict[int, tuple[float, bool]]:
    """Log2 of the largest stable rate of each seed that has one, and whether it is the largest tried one."""
    found: dict[int, tuple[float, bool]] = {}
    for seed, rows in _tuning(cell).items():
        from_first = list(itertools.dropwhile(lambda row: not stable(row), rows))
        upto = list(itertools.takewhile(stable, from_first))
        if upto:
            found[seed] = (math.log2(upto[-1].lr), len(upto) == len(from_first))
    return found


def _top(places: Sequence[float], heights: Sequence[float]) -> float:
    """Where the parabola around the highest place has its top; the highest place itself at an end."""
    at = _highest(heights)
    if at in (0, len(places) - 1):
        return places[at]
    (x0, x1, x2), (y0, y1, y2) = places[at - 1 : at + 2], heights[at - 1 : at + 2]
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    if left == right:  # both 0: nothing is higher or lower
        return x1
    # The slope is `left` half-way to the left neighbour and `right` half-way to the right one; between them it is 0.
    low, high = (x0 + x1) / 2, (x1 + x2) / 2
    return low + (high - low) * left / (left - right)


def _highest(heights: Sequence[float]) -> int:
    tied = [at for at, height in enumerate(heights) if height == max(heights)]
    return tied[(len(tied) - 1) // 2]


def _key(lr: float) -> str:
    # A plan may hold a rate in fewer digits than its runs do.
    return f"{lr:.5g}"


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
