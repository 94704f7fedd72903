"""Tests on a few paired runs: sign flips, Holm, equivalence, the number of seeds. No torch.

Intervals are in `asymlora.sweep.intervals`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from asymlora.errors import SpecError

ALPHA = 0.05
"""Level of the tests."""
EXACT_UP_TO = 20
"""Pairs up to which every assignment of signs is counted: about a million of them."""
_SAMPLED = 99_999
_MOST_SEEDS = 100_000


class PairedDifference(NamedTuple):
    """Differences of two sets of runs, seed by seed.

    Attributes:
        seeds: The seeds, rising.
        values: First less second.
        mean: Of the values.
        deviation: Their standard deviation (n - 1); None for one pair.
    """

    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    deviation: float | None


class Equivalence(NamedTuple):
    """Result of two one-sided tests against a margin.

    Attributes:
        p: The larger one-sided p.
        margin: Largest difference that counts as none.
        verdict: ``equivalent`` where ``p`` is at most the level, otherwise ``not shown``.
    """

    p: float
    margin: float
    verdict: str


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> PairedDifference:
    """Return the differences of two sets of runs with the same seeds.

    Args:
        first: Figure by seed.
        second: Likewise, of the same seeds.

    Returns:
        First less second.

    Raises:
        SpecError: There is no pair, or a seed has a run on one side only.

    Example:
        >>> paired_difference({0: 3.0, 1: 5.0}, {0: 2.0, 1: 3.0}).mean
        1.5
    """
    problems = [
        f"the {name} has no run of seeds {', '.join(map(str, missing))}"
        for name, missing in (("first", sorted(set(second) - set(first))), ("second", sorted(set(first) - set(second))))
        if missing
    ]
    if problems or not first:
        raise SpecError(
            f"The runs cannot be paired: {'; '.join(problems) or 'there are none'}. Pairs need the same seeds on both"
            " sides. Run the missing ones, or leave out the seeds that only one side has."
        )
    seeds = tuple(sorted(first))
    values = tuple(first[seed] - second[seed] for seed in seeds)
    return PairedDifference(seeds, values, float(np.mean(values)), deviation(values))


def deviation(values: Sequence[float]) -> float | None:
    """Return the standard deviation (n - 1); exactly 0 where all values are equal, None for fewer than two."""
    if len(values) < 2:
        return None
    return 0.0 if all_equal(values) else float(np.std(values, ddof=1))


def least_p(pairs: int) -> float:
    """Return the smallest two-sided p that the sign-flip test can give: ``2 / 2^n``, and no less than a sample shows.

    Args:
        pairs: Their number.
    """
    if pairs > EXACT_UP_TO:
        return 1 / (_SAMPLED + 1)
    return min(1.0, 2.0 / 2**pairs)


def sign_flip_test(differences: Sequence[float], *, seed: int = 0) -> float:
    """Return the two-sided p of "the signs of these differences are a coin's".

    The p is the share of all assignments of signs whose mean is at least as far from 0 as the observed one; ties count
    against the observed one. Exact up to 20 pairs; above, of a sample to which the observed one is added.

    Args:
        differences: One for each pair.
        seed: Of the sample.

    Raises:
        SpecError: There is no difference.

    Example:
        >>> sign_flip_test([1.0, 2.0, 0.5, 1.5, 3.0, 0.1])
        0.03125

    Source:
        Fisher, 1935, "The Design of Experiments", section 21. The added one: Phipson and Smyth, 2010, "Permutation
        p-values should never be zero".
    """
    values = _given(differences)
    sums, _, total = subset_sums(values, seed)
    observed = abs(values.sum())
    # Turning the signs of a subset takes twice its sum away.
    as_far = np.abs(values.sum() - 2 * sums) >= observed - _rounding(values)
    return float((as_far.sum() + (total - len(sums))) / total)


def one_sided_sign_flip(differences: Sequence[float], *, seed: int = 0) -> float:
    """Return the p of "the mean is 0 or below", exact for symmetric noise, as `sign_flip_test`.

    Args:
        differences: One for each pair.
        seed: Of the sample.

    Raises:
        SpecError: There is no difference.
    """
    values = _given(differences)
    sums, _, total = subset_sums(values, seed)
    as_high = sums <= _rounding(values)
    return float((as_high.sum() + (total - len(sums))) / total)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that are corrected for their number, so that one in twenty families has a false one at 0.05.

    Args:
        p_values: Uncorrected.

    Returns:
        In the same order, at most 1.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
        [0.03, 0.06, 0.06, 0.02]

    Source:
        Holm, 1979, "A simple sequentially rejective multiple test procedure".
    """
    # statsmodels' multipletests collects garbage at every call: 0.2 to 0.4 s in a process that holds a model.
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[at]))
        corrected[at] = largest
    return corrected


def tost(differences: Sequence[float], *, margin: float, alpha: float = 0.05) -> Equivalence:
    """Test whether the mean difference lies within a margin, both ways.

    Each of the two one-sided tests is done by Student's t and by sign flips, and the largest p counts: t alone would
    be certain of two equal differences.

    Args:
        differences: One for each pair.
        margin: Largest difference that counts as none, above 0, stated before the runs.
        alpha: Level.

    Raises:
        SpecError: The margin is not a number above 0, or there is no difference.

    Source:
        Schuirmann, 1987, "A comparison of the two one-sided tests procedure and the power approach".
    """
    _refuse_no_margin(margin)
    values = _given(differences)
    p = max(_p_above(values, -margin), _p_above(-values, -margin))
    return Equivalence(p, margin, "equivalent" if p <= alpha else "not shown")


def not_worse(differences: Sequence[float], *, margin: float) -> float:
    """Return the p of "the mean difference is that of the margin below 0, or lower": of the one side of `tost`.

    Args:
        differences: One for each pair, above 0 where the first is better.
        margin: Largest difference that counts as none, above 0, stated before the runs.

    Raises:
        SpecError: The margin is not a number above 0, or there is no difference.
    """
    _refuse_no_margin(margin)
    return _p_above(_given(differences), -margin)


def _refuse_no_margin(margin: float) -> None:
    if not 0 < margin < math.inf:
        raise SpecError(
            f"margin={margin:g} is no margin of equivalence. Allowed: a number above 0, in units of the metric. State"
            " the largest difference that would not matter, before the runs."
        )


def _p_above(values: Any, bound: float) -> float:
    beyond = np.where(np.abs(values - bound) > 1e-12 * abs(bound), values - bound, 0.0)
    return max(_t_above_zero(beyond), one_sided_sign_flip(list(beyond)))


def seeds_needed(spread: float, effect: float, *, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Return the number of pairs at which a true difference would be found, by Student's paired t test.

    Never fewer than the sign-flip test needs to reach ``alpha`` at all; and where it reaches it by differences of one
    sign alone, with the probability of those: where Student's test of six pairs has 80 %, the sign-flip test has 62 %.

    Args:
        spread: Standard deviation of the differences.
        effect: The true mean difference.
        power: Probability of finding it.
        alpha: Two-sided level.

    Returns:
        Pairs; None where the effect is 0 or more than 100 000 would be needed.

    Source:
        Cohen, 1988, "Statistical Power Analysis for the Behavioral Sciences"; `statsmodels.stats.power.TTestPower`.
    """
    least = pairs_for_least_p(alpha)
    if effect == 0:
        return None
    size = abs(effect) / spread if spread > 0 else math.inf
    # Known noise needs a few pairs fewer than noise that is estimated, so the search begins there.
    known = (stats.norm.isf(alpha / 2) + stats.norm.ppf(power)) / size
    if known**2 > _MOST_SEEDS:
        return None
    pairs, reached = max(least, math.floor(known**2)), _power(size, alpha)
    while reached(pairs) < power:
        pairs += 1
    return pairs


def pairs_for_least_p(alpha: float) -> int:
    """Return the number of pairs from which the exact sign-flip test can give a p of at most ``alpha``.

    Args:
        alpha: Two-sided level, above 0.

    Example:
        >>> pairs_for_least_p(0.05), pairs_for_least_p(0.05 / 3)
        (6, 7)
    """
    # Exact powers of two must not be lost to the logarithm's rounding.
    return max(1, math.ceil(1 - math.log2(alpha) - 1e-12))


def detectable_effect(spread: float, pairs: int, *, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Return the true difference that so many pairs would find, by Student's paired t test.

    Args:
        spread: Standard deviation of the differences.
        pairs: Their number.
        power: Probability of finding it.
        alpha: Two-sided level.

    Returns:
        The difference, in units of ``spread``; None for so few pairs that the sign-flip test cannot reach ``alpha``.
    """
    if pairs < pairs_for_least_p(alpha):
        return None
    from scipy.optimize import brentq

    found: Any = brentq(lambda size: _power(size, alpha)(pairs) - power, 1e-6, 100.0)
    return float(found) * spread


def _power(size: float, alpha: float) -> Callable[[int], float]:
    from statsmodels.stats.power import TTestPower

    def reached(pairs: int) -> float:
        if math.isinf(size):
            return 1.0
        found = float(TTestPower().power(size, pairs, alpha))
        # SciPy 1.17's noncentral t is no number far out, where the power is 1 to many digits.
        found = 1.0 if math.isnan(found) else found
        only_one_sign = pairs < pairs_for_least_p(alpha / 2)
        return min(found, float(stats.norm.cdf(size)) ** pairs) if only_one_sign else found

    return reached


def subset_sums(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the sums and sizes of the subsets of some values, the empty one included; above 20 values, of a sample.

    Args:
        values: Shape ``(n,)``.
        seed: Of the sample.

    Returns:
        Sums; sizes; how many assignments of signs count: all, or the sample and the observed one.
    """
    if len(values) <= EXACT_UP_TO:
        sums, sizes = np.zeros(1), np.zeros(1)
        for value in values:
            sums, sizes = np.concatenate([sums, sums + value]), np.concatenate([sizes, sizes + 1])
        return sums, sizes, len(sums)
    chosen = np.random.default_rng(seed).random((_SAMPLED, len(values))) < 0.5
    return chosen @ values, chosen.sum(axis=1), _SAMPLED + 1


def _given(differences: Sequence[float]) -> np.ndarray:
    if not len(differences):
        raise SpecError("A test of no differences was asked for. Allowed: at least one pair. Run both sides' seeds.")
    return np.asarray(differences, dtype=float)


def _rounding(values: np.ndarray) -> float:
    # Sums of the same numbers in another order differ by so much; an accuracy's smallest step is far above it.
    return 1e-12 * float(np.abs(values).sum())


def all_equal(values: Sequence[float]) -> bool:
    """Return whether values, at least one, differ by rounding at most."""
    # Differences of accuracies that are equal by count differ in the last digit.
    return max(values) - min(values) <= 1e-12 * max(abs(value) for value in values)


def _t_above_zero(values: np.ndarray) -> float:
    spread = deviation(list(values))
    if spread is None:
        return 1.0
    if spread == 0:
        return 0.0 if values.mean() > 0 else 1.0
    tested: Any = stats.ttest_1samp(values, 0.0, alternative="greater")
    return float(tested.pvalue)
