from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Sequence
from typing import Literal

import pytest
from scipy import stats

from asymlora.errors import SpecError
from asymlora.reproduce import paired_tests
from asymlora.reproduce.by_seed import BySeed
from asymlora.reproduce.claim import Finding, Verdict
from asymlora.reproduce.evidence import MissingEvidenceError
from asymlora.reproduce.paired_tests import (
    as_good_finding,
    bound_finding,
    equivalence_finding,
    level_at,
    paired_finding,
)
from asymlora.reproduce.units import POINTS, RATIO
from asymlora.sweep.statistics import sign_flip_test

Claimed = Literal["greater", "less", "different"]
SIX = (0.02, 0.03, 0.01, 0.015, 0.025, 0.02)
WHAT = "Accuracy of init_a less that of init_b"


def _by_seed(values: Sequence[float]) -> dict[int, float]:
    return dict(enumerate(values))


def _paired(differences: Sequence[float], claimed: Claimed = "greater", none_within: float | None = None) -> Finding:
    second = {seed: 0.5 for seed in range(len(differences))}
    first = {seed: 0.5 + difference for seed, difference in enumerate(differences)}
    return paired_finding(first, second, claimed=claimed, show=POINTS, what=WHAT, none_within=none_within)


def _ten(rank: int) -> list[float]:
    """Ten differences of which ``rank`` of the 1024 assignments of signs have a sum that is as high or higher."""
    # The sums of signed powers of two are all different: turning the bits of v leaves v larger sums.
    return [(-1.0 if (rank - 1) >> bit & 1 else 1.0) * 2.0**bit / 1024 for bit in range(10)]


# The two looks -------------------------------------------------------------------------------------------------------


def test_the_levels_are_those_of_the_two_looks() -> None:
    assert [level_at(pairs) for pairs in (6, 7, 9, 10, 12)] == [0.03125, *[0.01875] * 4]
    assert level_at(6) == sign_flip_test([1.0] * 6)
    assert level_at(6) + level_at(10) == pytest.approx(0.05)


def test_without_a_difference_two_looks_decide_in_at_most_one_of_twenty_cases() -> None:
    # Every assignment of signs to ten sizes is as likely as any other: count those that a look decides.
    sizes = [1.0, 0.9, 1.3, 0.7, 1.1, 0.4, 1.6, 0.8, 1.2, 0.6]
    six = {signs for signs in itertools.product((1, -1), repeat=6) if abs(sum(signs)) == 6}
    sums = {signs: sum(map(float.__mul__, sizes, map(float, signs))) for signs in itertools.product((1, -1), repeat=10)}
    ranked = sorted((abs(total) for total in sums.values()), reverse=True)
    edge = ranked[math.floor(level_at(10) * 1024) - 1]
    decided = sum(signs[:6] in six or abs(total) >= edge for signs, total in sums.items())
    assert 0.03125 < decided / 1024 <= 0.05


@pytest.mark.parametrize(
    ("differences", "claimed", "verdict"),
    [
        (SIX, "greater", "holds"),
        (SIX, "less", "fails"),
        (SIX, "different", "holds"),
        ([-d for d in SIX], "greater", "fails"),
        ([-d for d in SIX], "less", "holds"),
        ([-d for d in SIX], "different", "holds"),
        ([*SIX[:5], -0.001], "greater", "undecided"),
        ([*SIX[:5], -0.001], "different", "undecided"),
        ([0.0] * 6, "greater", "undecided"),
        (_ten(9), "greater", "holds"),
        (_ten(9), "less", "fails"),
        (_ten(10), "greater", "undecided"),
    ],
)
def test_the_sign_flip_test_decides(differences: Sequence[float], claimed: Claimed, verdict: Verdict) -> None:
    assert _paired(differences, claimed).verdict == verdict


def test_p_and_estimate_are_those_of_the_differences() -> None:
    found = _paired(_ten(9))
    assert found.p == 2 * 9 / 1024
    assert found.estimate == pytest.approx(sum(_ten(9)) / 10)
    assert found.pairs == 10
    assert found.interval is not None
    assert found.estimate is not None
    assert found.interval[0] < found.estimate < found.interval[1]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_fewer_than_six_pairs_decide_nothing_and_are_a_description(count: int) -> None:
    found = _paired(SIX[:count])
    assert (found.verdict, found.p, found.pairs, found.detectable) == ("undecided", None, count, None)
    assert f"A description of {count} seed{'s' if count > 1 else ''}: fewer than 6 decide nothing." in found.ours
    assert (found.interval is None) == (count == 1)


def test_the_level_is_that_of_the_seeds_that_were_asked_for() -> None:
    # Six of one sign reach 0.03125, which is spent at the first look; it must not be spent on what is left of ten.
    second = dict.fromkeys(range(6), 0.0)
    for planned, verdict in ((range(6), "holds"), (range(10), "undecided")):
        first = BySeed(_by_seed(SIX), planned=planned)
        found = paired_finding(first, second, claimed="greater", show=POINTS, what=WHAT)
        assert (found.verdict, found.p, found.pairs) == (verdict, 0.03125, 6)
        bounded = bound_finding(first, claimed="above", bound=0.005, show=RATIO, what=WHAT)
        assert (bounded.verdict, bounded.p) == (verdict, 0.03125)
    assert "at a level of 0.01875" in found.ours
    assert "Left out for want of a finite value: 4 seeds (6, 7, 8, 9)." in found.ours
    lost = paired_finding(
        {**_by_seed(SIX), 6: math.nan, 7: 0.5}, {**second, 6: 0.0, 8: 0.5}, claimed="greater", show=POINTS, what=WHAT
    )
    assert (lost.verdict, lost.pairs) == ("undecided", 6)


def test_a_seed_that_both_sides_lost_is_named() -> None:
    sides = [BySeed({seed: float(side) for seed in range(6) if seed != 4}, planned=range(6)) for side in (1, 0)]
    found = paired_finding(sides[0], sides[1], claimed="greater", show=POINTS, what=WHAT)
    assert "Left out for want of a finite value: 1 seed (4)." in found.ours


def test_an_interval_is_at_one_less_the_level_and_agrees_with_the_test() -> None:
    # p is 0.0195 here: beyond the level of ten pairs, so 0 is not ruled out, though a 95 % interval would do it.
    found = _paired(_ten(10))
    assert found.p == 2 * 10 / 1024
    assert "98.1 % interval" in found.ours
    assert found.interval is not None
    assert found.interval[0] <= 0 < found.interval[1]
    assert "96.9 % interval" in _paired(SIX).ours
    assert "95 % interval" in _paired(SIX[:3]).ours


def test_a_decided_claim_needs_no_more_seeds_and_an_open_one_says_how_many() -> None:
    assert _paired(SIX).seeds_needed is None
    found = _paired([*SIX[:5], -0.001])
    assert found.seeds_needed is not None
    assert found.seeds_needed > 6
    assert f"{found.seeds_needed} seeds would decide it" in found.ours
    assert _paired([0.01, -0.01] * 3).seeds_needed is None  # of no difference no number of seeds would be sure


def test_the_detectable_effect_of_six_is_that_which_gives_all_six_one_sign() -> None:
    found = _paired(SIX)
    spread = stats.tstd(SIX)
    assert found.detectable == pytest.approx(spread * stats.norm.ppf(0.8 ** (1 / 6)), rel=1e-6)


def test_equal_differences_tell_no_spread() -> None:
    found = _paired([0.25] * 6)
    assert (found.verdict, found.detectable, found.interval) == ("holds", None, (0.25, 0.25))
    assert "the same in every seed" in found.ours


def test_the_sentence_has_a_unit_after_each_number() -> None:
    ours = _paired(SIX).ours
    assert ours.startswith("Accuracy of init_a less that of init_b: mean +2.00 points, 96.9 % interval +1.")
    assert ours.endswith(" points, 6 paired seeds, sign-flip p = 0.031 at a level of 0.03125.")


def test_seeds_of_one_side_are_left_out_and_named() -> None:
    first = {**_by_seed(SIX), 6: 0.5, 8: math.nan}
    second = {**dict.fromkeys(range(6), 0.0), 7: 0.5, 8: 0.0}
    found = paired_finding(first, second, claimed="greater", show=POINTS, what=WHAT)
    assert found.pairs == 6
    assert "Left out for want of a finite value: 3 seeds (6, 7, 8)." in found.ours


def test_no_common_seed_is_missing_evidence() -> None:
    with pytest.raises(MissingEvidenceError, match="less that of init_b: no seed has a value on both sides"):
        paired_finding({0: 1.0}, {1: 1.0, 0: math.inf}, claimed="greater", show=POINTS, what=WHAT)


def test_rounding_is_no_difference() -> None:
    sums = {seed: 0.1 + 0.2 for seed in range(6)}
    found = paired_finding(sums, dict.fromkeys(sums, 0.3), claimed="greater", show=POINTS, what=WHAT)
    assert (found.verdict, found.estimate, found.p) == ("undecided", 0.0, 1.0)


# A margin under which a difference counts as none --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claimed", "none_within", "verdict"),
    [
        ("greater", 0.005, "holds"),
        ("different", 0.005, "holds"),
        ("greater", 0.04, "fails"),
        ("less", 0.04, "fails"),
        ("different", 0.04, "fails"),
    ],
)
def test_a_claim_of_a_difference_fails_where_the_difference_counts_as_none(
    claimed: Claimed, none_within: float, verdict: Verdict
) -> None:
    # The differences lie between 0.01 and 0.03: of one sign, and all within 0.04.
    assert _paired(SIX, claimed, none_within).verdict == verdict


def test_three_pairs_show_no_equivalence() -> None:
    assert _paired([0.001, -0.001, 0.0], "different", 0.1).verdict == "undecided"


# Equivalence ---------------------------------------------------------------------------------------------------------


def _equivalence(differences: Sequence[float], margin: float) -> Finding:
    second = dict.fromkeys(range(len(differences)), 0.0)
    return equivalence_finding(_by_seed(differences), second, margin=margin, show=POINTS, what=WHAT)


@pytest.mark.parametrize(
    ("differences", "margin", "verdict"),
    [
        ([0.002, -0.001, 0.001, -0.002, 0.0, 0.001], 0.015, "holds"),
        (SIX, 0.04, "holds"),  # a difference that is shown, and shown to be small
        (SIX, 0.02, "undecided"),
        (SIX, 0.001, "fails"),
        ([-d for d in SIX], 0.001, "fails"),
        ([0.1, -0.1, 0.05, -0.08, 0.02, -0.03], 0.001, "undecided"),
        (SIX[:5], 0.5, "undecided"),
    ],
)
def test_equivalence_needs_both_one_sided_tests(differences: Sequence[float], margin: float, verdict: Verdict) -> None:
    assert _equivalence(differences, margin).verdict == verdict


def test_a_difference_that_reaches_into_the_margin_leaves_equivalence_open() -> None:
    # All six of one sign, but the smallest is within the margin, and so is the lower end of the interval.
    assert _equivalence(SIX, 0.012).verdict == "undecided"


def test_the_p_of_equivalence_is_the_larger_one_sided() -> None:
    found = _equivalence([0.001] * 6, 0.01)
    assert found.p == 1 / 64
    assert "Two one-sided tests against the margin of 1.00 points: p = 0.016." in found.ours
    assert _equivalence(SIX[:4], 0.01).p is None


def test_an_equivalence_that_fails_shows_the_p_that_decided() -> None:
    found = _equivalence(SIX, 0.001)
    assert (found.verdict, found.p) == ("fails", 0.03125)


def test_seeds_of_equivalence_grow_as_the_margin_nears_the_mean() -> None:
    wide = [0.03, -0.03, 0.02, -0.02, 0.012, -0.01]
    needed = [_equivalence(wide, margin).seeds_needed for margin in (0.02, 0.01, 0.005)]
    assert all(seeds is not None for seeds in needed)
    assert sorted(needed, key=lambda seeds: seeds or 0) == needed
    assert len(set(needed)) == 3


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan])
def test_a_margin_that_is_none_is_refused_even_of_three_pairs(margin: float) -> None:
    with pytest.raises(SpecError, match="no margin of equivalence"):
        _equivalence(SIX[:3], margin)


# Against a constant --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claimed", "bound", "verdict"),
    [("below", 0.1, "holds"), ("above", 0.1, "fails"), ("above", 0.005, "holds"), ("below", 0.02, "undecided")],
)
def test_values_are_held_against_a_bound(claimed: Literal["above", "below"], bound: float, verdict: Verdict) -> None:
    found = bound_finding(_by_seed(SIX), claimed=claimed, bound=bound, show=RATIO, what="Way of B")
    assert found.verdict == verdict
    assert found.estimate == pytest.approx(0.02)
    assert found.interval is not None
    assert 0.01 - 1e-12 <= found.interval[0] < 0.02 < found.interval[1] <= 0.03 + 1e-12


def test_the_sentence_of_a_bound_shows_values_without_a_sign() -> None:
    ours = bound_finding(_by_seed(SIX), claimed="below", bound=0.1, show=RATIO, what="Way of B").ours
    assert ours.startswith("Way of B: mean 0.020 (ratio) against the bound of 0.100 (ratio), 96.9 % interval 0.01")
    assert "6 seeds, sign-flip p = 0.031" in ours
    lost = bound_finding({**_by_seed(SIX), 9: math.inf}, claimed="below", bound=0.1, show=RATIO, what="Way of B")
    assert "Left out for want of a finite value: 1 seed (9)." in lost.ours


def test_no_finite_value_is_missing_evidence() -> None:
    with pytest.raises(MissingEvidenceError, match="Way of B"):
        bound_finding({0: math.nan}, claimed="below", bound=0.1, show=RATIO, what="Way of B")


# The module ----------------------------------------------------------------------------------------------------------


def test_the_module_gives_what_it_lists_and_loads_neither_torch_nor_scipy() -> None:
    assert all(hasattr(paired_tests, name) for name in paired_tests.__all__)
    code = (
        "import sys\nfrom asymlora.reproduce import paired_tests, rates_by_seed, run_measures\n"
        "sys.exit(', '.join({'torch', 'scipy', 'numpy', 'plotly', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert done.returncode == 0


# As good as ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.002, -0.001, 0.001, -0.002, 0.0, 0.001], "holds"),
        ([0.008, 0.03, 0.012, 0.02, 0.025, 0.015], "holds"),  # better, by more than the margin or not
        ([-d for d in SIX], "undecided"),  # worse, its interval reaches into the margin
        ([-d - 0.02 for d in SIX], "fails"),
        ([0.1, -0.1, 0.05, -0.08, 0.02, -0.03], "undecided"),
        (SIX[:5], "undecided"),
    ],
)
@pytest.mark.parametrize("better", ["greater", "less"])
def test_as_good_is_one_sided(
    differences: Sequence[float], verdict: Verdict, better: Literal["greater", "less"]
) -> None:
    signed = differences if better == "greater" else [-d for d in differences]
    none = dict.fromkeys(range(len(signed)), 0.0)
    found = as_good_finding(_by_seed(signed), none, margin=0.02, show=POINTS, what=WHAT, better=better)
    assert found.verdict == verdict
    assert ("no more than 2.00 points worse" in found.ours) == (len(differences) >= 6)


def test_as_good_needs_less_than_equivalence() -> None:
    differences = [0.03, -0.004, 0.02, 0.012, 0.028, 0.001]
    none = dict.fromkeys(range(6), 0.0)
    assert _equivalence(differences, 0.02).verdict == "undecided"
    found = as_good_finding(_by_seed(differences), none, margin=0.02, show=POINTS, what=WHAT)
    assert (found.verdict, found.p) == ("holds", 1 / 64)


def test_seeds_that_decide_it_are_of_the_side_on_which_the_mean_lies() -> None:
    none = dict.fromkeys(range(6), 0.0)
    worse = as_good_finding(
        _by_seed([-0.06, 0.0, -0.03, -0.02, -0.05, -0.02]), none, margin=0.02, show=POINTS, what=WHAT
    )
    equal = _equivalence([-0.06, 0.0, -0.03, -0.02, -0.05, -0.02], 0.02)
    assert (worse.verdict, equal.verdict) == ("undecided", "undecided")
    assert worse.seeds_needed == equal.seeds_needed  # beyond the margin both must show a difference
    better = as_good_finding(
        _by_seed([-0.06, 0.06, -0.05, 0.04, -0.03, 0.04]), none, margin=0.02, show=POINTS, what=WHAT
    )
    assert better.verdict == "undecided"
    assert better.seeds_needed is not None


@pytest.mark.parametrize("margin", [0.0, -0.02, math.nan, math.inf])
def test_as_good_needs_a_margin(margin: float) -> None:
    with pytest.raises(SpecError, match="no margin of equivalence"):
        as_good_finding(_by_seed(SIX[:3]), dict.fromkeys(range(3), 0.0), margin=margin, show=POINTS, what=WHAT)
