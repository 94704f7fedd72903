"""How much runs differ that differ in nothing but the seed, and the rates that are no worse than that. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from scipy import stats

from asymlora.sweep.statistics import deviation
from asymlora.sweep.summary import Basin, BasinEnd, NoiseFloor


def noise_floor(groups: Iterable[Sequence[float]], *, of: str) -> NoiseFloor | None:
    r"""Return the standard deviation within groups of runs that should agree, pooled.

    .. math:: s^2 = \sum_g \sum_i (x_{gi} - \bar x_g)^2 \big/ \sum_g (n_g - 1)

    Args:
        groups: Figures of the runs of each group; groups of fewer than two say nothing and are passed over.
        of: What it is of, as words.

    Returns:
        The floor with its 95 % interval for normal noise; exactly 0, without width, where every group agrees. None
        where no group has two runs.

    Example:
        >>> noise_floor([[1.0, 3.0], [5.0, 5.0]], of="loss").deviation
        1.0
    """
    told = [list(group) for group in groups if len(group) > 1]
    degrees = sum(len(group) - 1 for group in told)
    if not degrees:
        return None
    squares = sum((len(group) - 1) * (deviation(group) or 0.0) ** 2 for group in told)
    low, high = (math.sqrt(squares / float(stats.chi2.ppf(share, degrees))) for share in (0.975, 0.025))
    return NoiseFloor(
        of=of, deviation=math.sqrt(squares / degrees), degrees=degrees, groups=len(told), low=low, high=high
    )


def basin_width(
    means: Mapping[float, float | Literal["diverged", "pruned", "missing"]],
    *,
    best: float,
    floor: float,
    greater_is_better: bool,
) -> Basin:
    """Return the rates around the best one whose metric is within one noise floor of the best.

    Between two tried rates the metric is taken as a straight line in the logarithm of the rate. Where a side leaves
    the tried rates, or meets one without a mean, before it has fallen by the floor, its end is not known: the basin
    reaches at least to the last rate with a mean, and at most to one that diverged.

    Args:
        means: Mean metric of each tried rate, or why there is none.
        best: The best rate; it has a mean.
        floor: The noise that is allowed, in units of the metric, at least 0.
        greater_is_better: Whether more of the metric is better.

    Returns:
        The basin.

    Example:
        >>> means = {1.0: 0.8, 4.0: 0.9, 16.0: 0.7}
        >>> round(basin_width(means, best=4.0, floor=0.05, greater_is_better=True).octaves, 6)
        1.5
    """
    rising = sorted(means)
    place = rising.index(best)
    sides = (rising[place::-1], rising[place:])
    (low, least, low_end), (high, most, high_end) = (
        _side(side, means, floor=floor, greater_is_better=greater_is_better) for side in sides
    )
    return Basin(
        low=low,
        high=high,
        octaves=math.log2(high / low),
        most_octaves=None if least is None or most is None else math.log2(most / least),
        low_end=low_end,
        high_end=high_end,
        floor=floor,
    )


def _side(
    rates: Sequence[float], means: Mapping[float, float | str], *, floor: float, greater_is_better: bool
) -> tuple[float, float | None, BasinEnd]:
    """The last rate that is known to belong to the basin, the farthest that can, and why it ends, from the best on."""
    top = means[rates[0]]
    assert not isinstance(top, str)
    last, last_lost = rates[0], 0.0
    for rate in rates[1:]:
        mean = means[rate]
        if isinstance(mean, str):
            ends: dict[str, BasinEnd] = {"diverged": "diverged", "pruned": "pruned"}
            return last, rate if mean == "diverged" else None, ends.get(mean, "missing")
        lost = top - mean if greater_is_better else mean - top
        if lost > floor:
            share = (floor - last_lost) / (lost - last_lost)
            edge = float(np.exp(np.log(last) + share * (np.log(rate) - np.log(last))))
            return edge, edge, "crossed"
        last, last_lost = rate, lost
    return last, None, "end of range"
