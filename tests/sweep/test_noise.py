"""The noise floor against textbook pooling, and basins whose edges are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from asymlora.sweep.noise import basin_width, noise_floor


def _basin(means: dict[float, Any], *, best: float, floor: float = 0.05, greater: bool = True) -> Any:
    return basin_width(means, best=best, floor=floor, greater_is_better=greater)


def test_the_floor_pools_variances_by_degrees_of_freedom() -> None:
    # Squares around the group means: 2 of (1, 3), 2 of (10, 11, 12); 1 + 2 degrees.
    found = noise_floor([[1.0, 3.0], [10.0, 11.0, 12.0], [7.0]], of="loss")
    assert found is not None
    assert found.deviation == pytest.approx(math.sqrt(4 / 3))
    assert (found.degrees, found.groups, found.of) == (3, 2, "loss")
    # Chi-square with 3 degrees of freedom, 2.5 % and 97.5 % points of any table: 0.2158 and 9.3484.
    assert (found.low, found.high) == pytest.approx((math.sqrt(4 / 9.3484), math.sqrt(4 / 0.2158)), rel=1e-3)


def test_repeats_that_agree_have_a_floor_of_exactly_0() -> None:
    found = noise_floor([[0.9, 0.9], [0.1 + 0.2, 0.3]], of="accuracy")
    assert found is not None
    assert found.deviation == found.low == found.high == 0.0


def test_single_runs_tell_no_noise() -> None:
    assert noise_floor([[1.0], [2.0], []], of="loss") is None
    assert noise_floor([], of="loss") is None


def test_the_floors_interval_covers_the_true_noise() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        found = noise_floor([list(group) for group in rng.normal(0, 2, (3, 4))], of="loss")
        assert found is not None
        held += found.low <= 2 <= found.high
    # Exact for normal noise: 95 %, with a standard error of sqrt(0.95 * 0.05 / 400) = 1.1 %; four of them.
    assert 0.906 <= held / 400 <= 0.994


@pytest.mark.parametrize("sign", [1, -1])
def test_a_basin_ends_where_the_straight_line_has_fallen_by_the_floor(sign: int) -> None:
    # In log2: best at 2; below it falls 0.1 in 2 octaves, above 0.2 in 2. So 1 octave below and half a one above.
    means = {1.0: sign * 0.8, 4.0: sign * 0.9, 16.0: sign * 0.7}
    found = _basin(means, best=4.0, greater=sign > 0)
    assert (found.low, found.high) == pytest.approx((2.0, 4 * math.sqrt(2)))
    assert found.octaves == found.most_octaves == pytest.approx(1.5)
    assert (found.low_end, found.high_end) == ("crossed", "crossed")


def test_a_basin_goes_on_over_rates_within_the_floor_and_stops_at_the_first_beyond() -> None:
    found = _basin({1.0: 0.9, 2.0: 0.7, 4.0: 0.88, 8.0: 0.9, 16.0: 0.87, 32.0: 0.6}, best=8.0)
    # The smallest rate is good again, but on the other side of a bad one.
    assert 2.0 < found.low < 4.0
    assert 16.0 < found.high < 32.0


def test_a_basin_that_leaves_the_tried_rates_is_at_least_as_wide_as_they_are() -> None:
    found = _basin({1.0: 0.89, 4.0: 0.9, 16.0: 0.88}, best=4.0)
    assert (found.low, found.high, found.octaves) == (1.0, 16.0, 4.0)
    assert found.most_octaves is None
    assert (found.low_end, found.high_end) == ("end of range", "end of range")


def test_a_rate_that_diverged_bounds_the_basin_and_one_that_was_pruned_does_not() -> None:
    diverged = _basin({1.0: 0.8, 4.0: 0.9, 16.0: "diverged"}, best=4.0)
    assert diverged.octaves == pytest.approx(1.0)
    assert diverged.most_octaves == pytest.approx(3.0)
    assert diverged.high_end == "diverged"
    pruned = _basin({1.0: 0.8, 4.0: 0.9, 16.0: "pruned"}, best=4.0)
    assert (pruned.octaves, pruned.most_octaves) == (pytest.approx(1.0), None)
    assert pruned.high_end == "pruned"
    assert _basin({4.0: 0.9, 16.0: "missing"}, best=4.0).high_end == "missing"


def test_without_noise_the_basin_is_the_best_rate_alone() -> None:
    found = _basin({1.0: 0.8, 4.0: 0.9, 16.0: 0.7}, best=4.0, floor=0.0)
    assert (found.low, found.high, found.octaves) == (4.0, 4.0, 0.0)
