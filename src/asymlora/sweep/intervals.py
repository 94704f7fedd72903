"""Intervals for the mean of a few runs. Tests are in `asymlora.sweep.statistics`. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from asymlora.errors import SpecError
from asymlora.sweep.statistics import all_equal, least_p, subset_sums
from asymlora.sweep.summary import Interval


def mean_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Interval | None:
    """Return an interval for the mean of few values that covers it about as often as it says.

    The plain BCa bootstrap covers 82 to 89 % at six values where it says 95 %. So the interval is the smallest one
    that holds both of these: the means that the sign-flip test does not reject (exact for symmetric noise of any
    kind; it leaves out 0 just where that test gives p at most ``1 - level``), and the BCa interval, which sees skew, at
    tails expanded for few values. Where so few values can reject nothing it is Student's, and says so.

    Args:
        values: At least two; their order does not matter.
        level: Nominal coverage, a fraction.
        resamples: Of the bootstrap.
        seed: Of its draws, and of the sign-flip test's where there are more than 20 values.

    Returns:
        The interval; without width where all values are equal, and its method says so; None for fewer than two values.

    Source:
        Hartigan, 1969, "Using subsample values as typical values" (the inversion); Hesterberg, 2015, "What teachers
        should know about the bootstrap" (expanded tails). Holding both, and the BCa tails' factor ``1 - 4 / n``, are
        ours, chosen by simulation: ``experiments/interval_coverage.py``.
    """
    values = sorted(values)
    n, miss = len(values), 1 - level
    if n < 2:
        return None
    if all_equal(values):
        return Interval(low=values[0], high=values[0], level=level, method="none: all values are equal")
    if least_p(n) > miss:
        half = float(stats.t.isf(miss / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
        mean = float(np.mean(values))
        return Interval(low=mean - half, high=mean + half, level=level, method="Student's t, for normal noise")
    flip = sign_flip_interval(values, level=level, seed=seed)
    tail = expanded_tail(n, level=level)
    # On a scale of 0 to 1 neither tiny nor huge values lose their digits when they are squared.
    start, width = values[0], values[-1] - values[0]
    shares = [(value - start) / width for value in values]
    bca = [start + width * end for end in bca_interval(shares, level=1 - 2 * tail, resamples=resamples, seed=seed)]
    return Interval(
        low=min(flip[0], bca[0]), high=max(flip[1], bca[1]), level=level, method="sign flips and BCa bootstrap"
    )


def bca_interval(
    values: Sequence[float],
    *,
    statistic: Callable[..., object] = np.mean,
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the plain BCa bootstrap interval of a statistic.

    Args:
        values: At least two that are not all equal.
        statistic: Of an array, along ``axis``.
        level: Nominal coverage, a fraction.
        resamples: Draws.
        seed: Of the draws.

    Returns:
        Lower and upper end.

    Source:
        Efron, 1987, "Better bootstrap confidence intervals"; `scipy.stats.bootstrap`.
    """
    found = stats.bootstrap(
        (np.asarray(values, dtype=float),),
        statistic,
        confidence_level=level,
        n_resamples=resamples,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def sign_flip_interval(values: Sequence[float], *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return the smallest and the largest mean that the two-sided sign-flip test does not reject.

    They are the k-th smallest and the k-th largest mean of a subset of the values, k being the number of assignments
    of signs that one tail may hold.

    Args:
        values: So many that ``least_p`` is at most ``1 - level``.
        level: Coverage for symmetric noise, a fraction.
        seed: Of the sample of subsets, above 20 values.

    Returns:
        Lower and upper end.

    Raises:
        SpecError: There are too few values.

    Source:
        Hartigan, 1969, "Using subsample values as typical values".
    """
    sums, sizes, total = subset_sums(np.asarray(values, dtype=float), seed)
    # The guard is against 0.05 * 32 = 1.6000000000000014 and the like at whole numbers.
    rank = math.floor((1 - level) * total / 2 * (1 + 1e-9))
    if rank < 1:
        raise SpecError(
            f"{len(values)} values give no sign-flip interval of level {level:g}: their smallest p is"
            f" {least_p(len(values)):g}. Allowed: 2 / 2^n of at most {1 - level:g}. Add runs."
        )
    kept = sizes > 0
    means = sums[kept] / sizes[kept]
    means.partition((rank - 1, len(means) - rank))
    return float(means[rank - 1]), float(means[len(means) - rank])


def expanded_tail(n: int, *, level: float = 0.95) -> float:
    """Return the share of the bootstrap's draws that each tail of `mean_interval` leaves out.

    The bootstrap of n values is too narrow by ``sqrt((n - 1) / n)`` and has normal tails where Student's are due. The
    share is that of a normal curve of its width beyond Student's ends, for a level that is raised by a further part,
    as skew hides in few values.

    Args:
        n: Number of values, at least 2.
        level: Nominal coverage, a fraction.

    Source:
        Hesterberg, 2015, "What teachers should know about the bootstrap", section 5 (expanded percentile intervals);
        the factor ``1 - 4 / n`` (at least 0.1) is ours, chosen by simulation.
    """
    miss = (1 - level) * max(0.1, 1 - 4 / n)
    return float(stats.norm.sf(math.sqrt(n / (n - 1)) * stats.t.isf(miss / 2, n - 1)))
