"""A budget of trained values divided over sites: which rank each gets, from what each rank of it reaches.

Pure arithmetic on curves; where the curves come from is `asymlora.diagnostics.captured_gradient`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from asymlora.errors import SpecError


class Curve(NamedTuple):
    """What the ranks of one site reach and cost.

    Attributes:
        ranks: Ranks that may be given, ascending.
        shares: What each reaches, a fraction in [0, 1], not falling.
        cost: Trained values of one rank.
    """

    ranks: tuple[int, ...]
    shares: tuple[float, ...]
    cost: int

    def index_within(self, rank: int) -> int:
        """Return the place of the largest rank not above ``rank``, or of the smallest."""
        return max((i for i, own in enumerate(self.ranks) if own <= rank), default=0)


def cost_of(curves: Sequence[Curve], ranks: Sequence[int]) -> int:
    """Return the trained values of a choice of ranks."""
    return sum(curve.cost * rank for curve, rank in zip(curves, ranks, strict=True))


def mean_share(curves: Sequence[Curve], ranks: Sequence[int]) -> float:
    """Return what a choice of ranks reaches, in the mean over sites: each counts alike."""
    each = [curve.shares[curve.index_within(rank)] for curve, rank in zip(curves, ranks, strict=True)]
    return sum(each) / len(each)


def divide(curves: Sequence[Curve], values: int) -> tuple[int, ...]:
    """Return the rank of each site that reaches most in the mean, within a budget.

    Greedy: every site starts at its smallest rank; then the step that gains most per trained value is taken, among the
    steps of any site to any of its larger ranks that still fit, until none fits or gains. On curves that bend downwards
    this is the best choice up to what is left of the budget at the end; others are entered as their upper hull.

    Args:
        curves: One per site.
        values: Most trained values of all.

    Returns:
        A rank of each site's curve.

    Raises:
        SpecError: The smallest ranks cost more than the budget.

    Example:
        >>> flat, steep = Curve((1, 2, 4), (0.5, 0.51, 0.52), 10), Curve((1, 2, 4), (0.1, 0.3, 0.7), 10)
        >>> divide([flat, steep], 50)
        (1, 4)

    Source:
        Greedy for concave gains at linear cost: textbook (Fox, 1966). That each site counts alike is ours.
    """
    chosen = [0] * len(curves)
    spare = values - cost_of(curves, [curve.ranks[0] for curve in curves])
    if spare < 0:
        raise SpecError(
            f"values={values:,} is less than the {values - spare:,} trained values of the smallest ranks. Give at least"
            " those, or leave sites out."
        )
    while (step := _best_step(curves, chosen, spare)) is not None:
        site, index = step
        spare -= curves[site].cost * (curves[site].ranks[index] - curves[site].ranks[chosen[site]])
        chosen[site] = index
    return tuple(curve.ranks[index] for curve, index in zip(curves, chosen, strict=True))


def _best_step(curves: Sequence[Curve], chosen: Sequence[int], spare: int) -> tuple[int, int] | None:
    best, step = 0.0, None
    for site, (curve, at) in enumerate(zip(curves, chosen, strict=True)):
        for index in range(at + 1, len(curve.ranks)):
            cost = curve.cost * (curve.ranks[index] - curve.ranks[at])
            gain = (curve.shares[index] - curve.shares[at]) / cost
            if cost <= spare and gain > best:
                best, step = gain, (site, index)
    return step
