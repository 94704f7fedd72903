"""Intervals of few values: against enumeration and published ones, and how often they cover the truth."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asymlora.errors import SpecError
from asymlora.sweep.intervals import bca_interval, mean_interval, sign_flip_interval
from asymlora.sweep.statistics import sign_flip_test

RESULTS = Path(__file__).parents[2] / "experiments" / "results" / "interval_coverage.jsonl"
# Efron and Tibshirani, 1993, "An Introduction to the Bootstrap", table 14.1: the spatial test, measure A.
SPATIAL = (48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41)
DRAWS = 1000


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(RESULTS.parents[1]))
    import interval_coverage

    return interval_coverage


def test_the_published_bca_interval_of_the_spatial_test() -> None:
    # Ibid., table 14.2: the variance is 171.5, its 90 % BCa interval (115.8, 259.6), of 2000 resamples. The error of
    # such an end is sqrt(q (1 - q) / 2000) over the density: about 3 at the upper one (q = 0.97, density 0.0015).
    assert np.var(SPATIAL) == pytest.approx(171.5, abs=0.05)
    low, high = bca_interval(SPATIAL, statistic=np.var, level=0.9)
    assert low == pytest.approx(115.8, abs=3)
    assert high == pytest.approx(259.6, abs=6)


@given(st.lists(st.integers(-20, 20), min_size=6, max_size=8), st.integers(-25, 25))
def test_a_mean_is_inside_just_where_the_sign_flip_test_does_not_reject_it(values: list[int], mean: int) -> None:
    low, high = sign_flip_interval(values)
    rejected = sign_flip_test([value - mean for value in values]) <= 0.05
    assert rejected == (not low <= mean <= high)


def test_six_values_reach_from_the_smallest_to_the_largest() -> None:
    # Of 64 assignments of signs each tail may hold one: that of a mean beyond all values.
    assert sign_flip_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == (1.0, 6.0)


def test_too_few_values_have_no_sign_flip_interval() -> None:
    with pytest.raises(
        SpecError, match=r"5 values give no sign-flip interval of level 0.95: their smallest p is 0.0625"
    ):
        sign_flip_interval([1.0, 2.0, 3.0, 4.0, 5.0])


def test_fewer_than_six_values_get_students_interval_and_say_so() -> None:
    # By hand: mean 2, standard error 1 / sqrt(3), and Student's 4.302653 for 2 degrees (any table of t).
    found = mean_interval([1.0, 2.0, 3.0])
    assert found is not None
    assert "Student" in found.method
    assert (found.low, found.high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))
    assert mean_interval([1.0]) is None
    assert mean_interval([]) is None


@pytest.mark.parametrize("n", [2, 6, 30])
def test_equal_values_get_an_interval_without_width_that_says_so(n: int) -> None:
    found = mean_interval([0.25] * n)
    assert found is not None
    assert found.low == found.high == 0.25
    assert found.method == "none: all values are equal"


@pytest.mark.parametrize(
    "values",
    [[0.0] * 5 + [0.002], [0.002, -0.002] * 3, [0.0] * 29 + [0.1], [1e-300] * 5 + [0.0], [1e12, 1, 1, 1, 1, 1, 1]],
)
def test_values_on_a_grid_and_outliers_get_finite_intervals_around_the_mean(values: list[float]) -> None:
    found = mean_interval(values, resamples=999)
    assert found is not None
    assert math.isfinite(found.low)
    assert math.isfinite(found.high)
    assert found.low <= np.mean(values) <= found.high


@pytest.mark.parametrize(("n", "level"), [(4, 0.8), (5, 0.9), (6, 0.95), (8, 0.99)])
def test_a_lower_level_needs_fewer_values_and_gives_a_narrower_interval(n: int, level: float) -> None:
    values = [0.0, 1.0, 2.0, 4.0, 5.0, 7.0, 8.0, 9.0][:n]
    found, narrow = (mean_interval(values, level=each, resamples=999) for each in (level, level - 0.2))
    assert found is not None
    assert narrow is not None
    assert found.method == "sign flips and BCa bootstrap"
    assert found.level == level
    assert narrow.high - narrow.low < found.high - found.low < math.inf


def test_the_interval_is_the_same_in_any_order_and_moves_with_the_values() -> None:
    values = [0.1, 0.4, 0.2, 0.9, 0.3, 0.25, 0.5]
    found, turned = mean_interval(values), mean_interval(values[::-1])
    assert found == turned
    moved = mean_interval([value + 1 for value in values])
    assert found is not None
    assert moved is not None
    # Resampled means that equal the mean are told from those below it by rounding, hence the 1e-3 of the width.
    assert (moved.low - 1, moved.high - 1) == pytest.approx((found.low, found.high), abs=1e-3)


def test_it_leaves_out_0_only_where_the_sign_flip_test_does() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        values = list(rng.normal(0.7, 1, 8))
        found = mean_interval(values, resamples=199)
        assert found is not None
        assert found.low <= 0 <= found.high or sign_flip_test(values) <= 0.05


@pytest.mark.parametrize("population", ["normal", "exponential", "accuracies on 500 rows"])
@pytest.mark.parametrize("n", [6, 8])
def test_it_covers_the_mean_and_the_plain_bootstrap_does_not(simulation: ModuleType, n: int, population: str) -> None:
    found = simulation.coverage(population, n, simulations=DRAWS, resamples=1999)
    # 93 % less three standard errors of a share of 1000 draws: sqrt(0.93 * 0.07 / 1000) = 0.8 %.
    assert found["ours"] >= 0.93 - 3 * 0.0081
    assert found["bca"] < 0.93


def test_the_simulation_has_the_intervals_that_sweeps_have(simulation: ModuleType) -> None:
    draws = np.random.default_rng(2).normal(size=(5, 7))
    low, high = simulation.intervals(draws, resamples=999)["ours"]
    for row, draw in enumerate(draws):
        found = mean_interval(list(draw), resamples=999)
        assert found is not None
        assert (found.low, found.high) == pytest.approx((low[row], high[row]), rel=1e-3)


def test_the_stored_simulation_shows_93_percent_but_for_skew_at_seven_values_and_the_lognormal() -> None:
    records = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()][1:]
    held = [record for record in records if record["population"] != "lognormal"]
    assert {record["values"] for record in held} == {6, 7, 8, 10, 20, 30}
    for record in held:
        # The script's head tells of the one row that is below the aim: 92.7 % over all draws with this rule.
        aim = 0.92 if (record["population"], record["values"]) == ("exponential", 7) else 0.93
        error = math.sqrt(aim * (1 - aim) / record["simulations"])
        assert record["ours"] >= aim - 2 * error, record
    assert min(record["bca"] for record in held if record["values"] == 6) < 0.9
