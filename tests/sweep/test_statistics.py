"""Tests on paired runs: against enumeration, published data and other implementations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from asymlora.errors import SpecError
from asymlora.sweep.statistics import (
    all_equal,
    detectable_effect,
    deviation,
    holm,
    least_p,
    not_worse,
    one_sided_sign_flip,
    paired_difference,
    pairs_for_least_p,
    seeds_needed,
    sign_flip_test,
    tost,
)

# Darwin, 1876, "The Effects of Cross and Self Fertilisation", Zea mays, eighths of an inch, crossed less selfed; in
# Fisher, 1935, "The Design of Experiments", table 3.
MAIZE = (49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48)
# "Student", 1908, "The probable error of a mean": R's data set `sleep`, second drug less first, hours.
SLEEP = (1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4)

counts = st.lists(st.integers(-9, 9), min_size=1, max_size=8)


def _by_hand(values: list[int]) -> float:
    flipped = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in _signs(len(values))]
    return sum(total >= abs(sum(values)) for total in flipped) / len(flipped)


def _signs(pairs: int) -> list[tuple[int, ...]]:
    return list(itertools.product((1, -1), repeat=pairs))


def test_differences_are_first_less_second_by_seed() -> None:
    found = paired_difference({1: 5.0, 0: 3.0}, {0: 2.0, 1: 2.0})
    assert found.seeds == (0, 1)
    assert found.values == (1.0, 3.0)
    assert found.mean == 2.0
    assert found.deviation == pytest.approx(math.sqrt(2))


def test_seeds_that_have_no_partner_are_named_on_both_sides() -> None:
    with pytest.raises(SpecError, match=r"first has no run of seeds 7; the second has no run of seeds 1, 2") as raised:
        paired_difference({0: 1.0, 1: 1.0, 2: 1.0}, {0: 1.0, 7: 1.0})
    assert "Run the missing ones" in str(raised.value)
    with pytest.raises(SpecError, match="there are none"):
        paired_difference({}, {})


def test_a_deviation_is_exactly_0_for_equal_values_and_none_for_one() -> None:
    assert deviation([0.1 + 0.2, 0.3, 0.3]) == 0.0
    assert deviation([0.3]) is None
    assert deviation([1.0, 3.0]) == pytest.approx(math.sqrt(2))
    assert all_equal([0.0, 0.0])
    assert not all_equal([0.0, 1e-9])


def test_fishers_p_of_darwins_maize() -> None:
    # Fisher, 1935, section 21: of the 2^15 sums 863 are at least 314 (835 above it and 28 equal), and as many below.
    assert sign_flip_test(MAIZE) == 2 * 863 / 2**15


@given(counts)
def test_the_sign_flip_p_is_that_of_all_signs_by_hand(values: list[int]) -> None:
    assert sign_flip_test(values) == _by_hand(values)


@given(counts)
def test_the_sign_flip_p_knows_no_side_and_no_unit(values: list[int]) -> None:
    assert sign_flip_test([-0.1 * value for value in values]) == sign_flip_test(values)


def test_the_one_sided_p_is_half_of_the_two_sided_one_and_one_less_the_other_side() -> None:
    assert one_sided_sign_flip(MAIZE) == 863 / 2**15
    # 28 of the sums are equal to 314 and count on both sides.
    assert one_sided_sign_flip([-value for value in MAIZE]) == 1 - 835 / 2**15


def test_ties_count_against_a_difference_though_sums_are_rounded() -> None:
    # 0.1 + 0.2 - 0.3 is not 0 in floating point; by whole numbers every sum of 1, 2, -3 is known.
    assert sign_flip_test([0.1, 0.2, -0.3]) == _by_hand([1, 2, -3]) == 1.0
    assert sign_flip_test([0.0] * 6) == 1.0


@pytest.mark.parametrize("pairs", [1, 5, 6, 20])
def test_the_least_p_is_reached_by_differences_of_one_sign(pairs: int) -> None:
    assert sign_flip_test([1.0 + number for number in range(pairs)]) == least_p(pairs) == 2 / 2**pairs


def test_above_20_pairs_a_sample_gives_the_p_of_the_normal_limit_and_never_0() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(0.3, 1, 60)
    # The flips' sum has mean 0 and variance sum(values^2); a sample of 1e5 has an error of sqrt(p / 1e5) = 0.001.
    limit = 2 * stats.norm.sf(abs(values.sum()) / math.sqrt((values**2).sum()))
    assert 0.001 < limit < 0.2
    assert sign_flip_test(list(values)) == pytest.approx(limit, abs=0.005)
    assert sign_flip_test([1.0] * 21) > 0
    assert sign_flip_test([1.0] * 40) == least_p(40) == 1e-5
    assert sign_flip_test(list(values)) == sign_flip_test(list(values))


def test_a_test_of_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="at least one pair"):
        sign_flip_test([])


def test_holms_correction_of_the_example_in_his_method() -> None:
    # By hand: 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1, which may not fall below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_holms_correction_is_that_of_statsmodels() -> None:
    # One call: statsmodels collects garbage in each.
    p_values = [0.04, 0.001, 0.2, 0.001, 0.9, 0.013, 0.05, 0.0, 1.0, 0.012]
    assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))


def test_equivalence_is_shown_within_a_wide_margin_and_not_within_a_narrow_one() -> None:
    near = [0.1, -0.1, 0.0, 0.05, -0.02, 0.03, 0.01, -0.04]
    assert tost(near, margin=0.5).verdict == "equivalent"
    assert tost(near, margin=0.02).verdict == "not shown"
    assert tost([value + 0.5 for value in near], margin=0.5).verdict == "not shown"


def test_students_half_of_equivalence_is_that_of_statsmodels() -> None:
    # Where t's p is the larger of the two. Its own p of the sleep data against 2 hours is between 0.05 and 0.5.
    wanted = DescrStatsW(np.array(SLEEP)).ttost_mean(-2.0, 2.0)[0]
    assert 0.05 < wanted < 0.5
    exact = max(
        one_sided_sign_flip([2 - value for value in SLEEP]), one_sided_sign_flip([value + 2 for value in SLEEP])
    )
    assert tost(SLEEP, margin=2.0).p == pytest.approx(max(wanted, exact))


def test_two_equal_differences_do_not_show_equivalence() -> None:
    # Student's t would give p = 0; of the 4 assignments of signs one is the observed one.
    assert tost([0.0, 0.0], margin=1.0).p == 0.25


def test_differences_as_large_as_the_margin_are_not_within_it_though_they_are_rounded() -> None:
    assert 0.102 - 0.1 < 0.002
    assert tost([0.102 - 0.1] * 6, margin=0.002).p == 1.0
    assert tost([0.001] * 6, margin=0.002).p == 1 / 2**6


def test_not_worse_is_one_side_of_equivalence() -> None:
    sides = [not_worse(values, margin=2.0) for values in (SLEEP, [-value for value in SLEEP])]
    assert max(sides) == tost(SLEEP, margin=2.0).p
    assert not_worse([0.1] * 6, margin=0.01) == 1 / 2**6


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan, math.inf])
def test_a_margin_that_is_none_is_refused(margin: float) -> None:
    with pytest.raises(SpecError, match="a number above 0, in units of the metric"):
        tost([0.1, 0.2], margin=margin)


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_cohens_effects_need_the_pairs_of_the_tables(effect: float, pairs: int) -> None:
    # Small, medium and large effect, paired, two-sided 0.05, power 0.8: R's power.t.test(delta=effect, sd=1, power=0.8,
    # type="paired") gives 198.15, 33.37 and 14.30; G*Power's tables 199, 34 and 15.
    assert seeds_needed(1.0, effect) == pairs
    assert seeds_needed(0.01, -0.01 * effect) == pairs


def test_seeds_needed_never_fall_below_what_the_exact_test_needs() -> None:
    assert seeds_needed(1.0, 50.0) == seeds_needed(0.0, 1.0) == 6
    assert seeds_needed(1.0, 50.0, alpha=0.05 / 3) == 7
    assert seeds_needed(1.0, 0.0) is None
    assert seeds_needed(1.0, 1e-9) is None


def test_six_seeds_need_an_effect_that_gives_all_six_one_sign() -> None:
    # The only p of six pairs below 0.05 is that of one sign: with a probability of 0.8 if each has 0.8^(1/6).
    enough = float(stats.norm.ppf(0.8 ** (1 / 6)))
    assert seeds_needed(1.0, enough * 1.001) == 6
    assert seeds_needed(1.0, enough * 0.999) == 7
    assert detectable_effect(1.0, 6) == pytest.approx(enough)


def test_seeds_needed_grow_with_spread_power_and_level() -> None:
    usual = seeds_needed(1.0, 1.0)
    assert usual is not None
    for harder in (seeds_needed(2.0, 1.0), seeds_needed(1.0, 1.0, power=0.95), seeds_needed(1.0, 1.0, alpha=0.01)):
        assert harder is not None
        assert harder > usual


def test_the_detectable_effect_undoes_the_number_of_seeds() -> None:
    found = detectable_effect(2.0, 34)
    assert found is not None
    assert seeds_needed(2.0, found * 1.0001) == 34
    assert seeds_needed(2.0, found * 0.999) == 35
    assert detectable_effect(1.0, 5) is None


@pytest.mark.parametrize(("alpha", "pairs"), [(0.05, 6), (0.0625, 5), (0.03125, 6), (0.05 / 3, 7), (1.0, 1)])
def test_pairs_for_the_least_p_are_the_first_that_reach_it(alpha: float, pairs: int) -> None:
    assert pairs_for_least_p(alpha) == pairs
    assert least_p(pairs) <= alpha
    assert pairs == 1 or least_p(pairs - 1) > alpha
