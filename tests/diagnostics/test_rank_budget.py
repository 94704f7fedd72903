"""Budgets divided over curves, against every choice there is."""

from __future__ import annotations

import itertools
import random

import pytest

from asymlora.diagnostics.rank_budget import Curve, cost_of, divide, mean_share
from asymlora.errors import SpecError

RANKS = (1, 2, 4, 8)


def _concave(draw: random.Random, cost: int) -> Curve:
    """Gains for each further rank that fall."""
    steps = sorted((draw.random() for _ in range(8)), reverse=True)
    total = sum(steps)
    return Curve(RANKS, tuple(sum(steps[:rank]) / total for rank in RANKS), cost)


def _best(curves: list[Curve], values: int) -> float:
    choices = itertools.product(*(curve.ranks for curve in curves))
    return max(mean_share(curves, ranks) for ranks in choices if cost_of(curves, ranks) <= values)


@pytest.mark.parametrize("seed", range(20))
def test_no_choice_of_the_same_cost_reaches_more_on_curves_that_bend_downwards(seed: int) -> None:
    draw = random.Random(seed)
    curves = [_concave(draw, draw.choice((1, 2, 5))) for _ in range(4)]
    values = draw.randint(cost_of(curves, [1] * 4), cost_of(curves, [8] * 4))
    ranks = divide(curves, values)
    spent = cost_of(curves, ranks)
    assert spent <= values
    # What it spent it spent at best; what is left over is less than one step of some site.
    found, largest = mean_share(curves, ranks), max(curve.shares[-1] - curve.shares[0] for curve in curves)
    assert _best(curves, values) - largest / 4 <= found <= _best(curves, values) + 1e-12


@pytest.mark.parametrize("seed", range(10))
def test_equal_costs_and_steps_of_one_are_divided_at_best(seed: int) -> None:
    draw = random.Random(seed)
    curves = []
    for _ in range(3):
        steps = sorted((draw.random() for _ in range(5)), reverse=True)
        curves.append(Curve((1, 2, 3, 4, 5), tuple(sum(steps[:r]) / sum(steps) for r in range(1, 6)), 7))
    values = 7 * draw.randint(3, 15)
    assert mean_share(curves, divide(curves, values)) == pytest.approx(_best(curves, values), rel=1e-12)


def test_a_larger_budget_never_reaches_less() -> None:
    draw = random.Random(0)
    curves = [_concave(draw, 3) for _ in range(4)]
    reached = [mean_share(curves, divide(curves, values)) for values in range(12, 97, 3)]
    assert reached == sorted(reached)
    assert divide(curves, 96) == (8, 8, 8, 8)


def test_a_curve_that_bends_upwards_is_entered_at_its_far_end() -> None:
    late = Curve((1, 2, 4), (0.0, 0.01, 0.9), 10)
    assert divide([late, Curve((1, 2), (0.5, 0.55), 10)], 50) == (4, 1)


def test_nothing_is_spent_where_nothing_is_gained() -> None:
    assert divide([Curve(RANKS, (0.5, 0.5, 0.5, 0.5), 1)], 100) == (1,)


def test_a_budget_below_the_smallest_ranks_is_refused() -> None:
    with pytest.raises(SpecError, match="less than the 30 trained values"):
        divide([Curve((1, 2), (0.1, 0.2), 10), Curve((2,), (0.5,), 10)], 29)
