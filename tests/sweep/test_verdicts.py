"""Verdicts: both sides of each sentence, and that none says more than its test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from asymlora.sweep.summary import Comparison
from asymlora.sweep.verdicts import Contender, Shown, compare_cells, interval_text, p_text

POINTS = Shown(metric="accuracy", greater_is_better=True, scale=100.0, unit="points")
LOSS = Shown(metric="loss", greater_is_better=False)
# Differences that have one sign, and ones that have both.
CLEAR = (0.010, 0.012, 0.009, 0.011, 0.008, 0.013, 0.010, 0.012)
MIXED = (0.010, -0.012, 0.009, -0.011, 0.008, 0.002, -0.010, 0.012)


def _contender(label: str, gains: tuple[float, ...] = (), *, n: int = 8, **more: Any) -> Contender:
    gains = gains or (0.0,) * n
    return Contender(label=label, values={s: 0.9 + 0.002 * s + gain for s, gain in enumerate(gains[:n])}, **more)


def _compare(gains: tuple[float, ...], *, n: int = 8, shown: Shown = POINTS, **more: Any) -> Comparison:
    (found,) = compare_cells([_contender("b_only", gains, n=n), _contender("init_a", n=n)], shown, **more)
    return found


def test_a_difference_of_one_sign_is_better_with_its_size_interval_seeds_and_p() -> None:
    found = _compare(CLEAR)
    assert (found.outcome, found.better) == ("first better", "b_only")
    assert found.p == found.p_adjusted == found.p_beyond == 2 / 2**8
    assert found.sentence.startswith("b_only is better than init_a by 1.06 points of accuracy (95 % interval 0.")
    assert "8 paired seeds, exact sign-flip p = 0.008)" in found.sentence
    assert found.seeds_needed is None


def test_the_second_is_better_with_the_same_numbers_above_0() -> None:
    found = _compare(tuple(-gain for gain in CLEAR))
    assert (found.outcome, found.better) == ("second better", "init_a")
    assert found.mean is not None
    assert found.mean < 0
    assert found.sentence.startswith("init_a is better than b_only by 1.06 points of accuracy (95 % interval 0.")


def test_where_less_is_better_the_lower_mean_is_better_in_plain_numbers() -> None:
    found = _compare(CLEAR, shown=LOSS)
    assert found.better == "init_a"
    assert "init_a is better than b_only by 0.0106" in found.sentence
    assert "points" not in found.sentence


def test_a_difference_of_both_signs_is_not_decided_and_says_what_would_decide() -> None:
    found = _compare(MIXED)
    assert (found.outcome, found.better) == ("not decided", None)
    assert found.sentence.startswith("b_only and init_a: not decided. The mean accuracy of b_only is 0.10 points above")
    assert f"{found.seeds_needed} paired seeds would show it with a probability of about 80 %" in found.sentence
    assert "better" not in found.sentence


def test_no_difference_at_all_is_told_as_such() -> None:
    found = _compare((0.0,) * 8)
    assert (found.outcome, found.p, found.seeds_needed) == ("not decided", 1.0, None)
    assert "Their mean accuracy is the same (the same in every seed, 8 paired seeds" in found.sentence


@pytest.mark.parametrize(("n", "outcome"), [(5, "not testable"), (6, "first better")])
def test_five_pairs_never_show_a_difference_and_six_can(n: int, outcome: str) -> None:
    found = _compare(CLEAR, n=n)
    assert found.outcome == outcome
    said = "5 paired seeds cannot give a p below 0.062; 6 can reach 0.05." in found.sentence
    assert said == (n == 5)
    assert ("better" in found.sentence) == (n == 6)


@pytest.mark.parametrize(("n", "decided"), [(6, False), (7, True)])
def test_three_arms_need_seven_seeds_and_six_are_told_so(n: int, decided: bool) -> None:
    arms = [_contender("a", CLEAR, n=n), _contender("b", n=n), _contender("c", tuple(-g for g in CLEAR), n=n)]
    found = compare_cells(arms, POINTS)
    assert [(pair.first, pair.second) for pair in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert all(pair.comparisons == 3 for pair in found)
    # Three times the least p: 3 * 2 / 2^6 and 3 * 2 / 2^7.
    assert [pair.p_adjusted for pair in found] == [3 * 2 / 2**n] * 3
    for pair in found:
        assert bool(pair.better) == decided
        told = "6 paired seeds cannot give a p below 0.094 over 3 comparisons; 7 can reach 0.05." in pair.sentence
        assert told != decided
        assert f"by Holm over 3 comparisons p = {3 * 2 / 2**n:.3f}" in pair.sentence


def test_comparisons_that_are_still_to_be_made_are_corrected_for() -> None:
    assert _compare(CLEAR, n=6).better == "b_only"
    assert _compare(CLEAR, n=6, planned=3).better is None


def test_a_lead_must_be_larger_than_what_another_rate_could_give_the_one_behind() -> None:
    rivals = {doubt: _contender("init_a", doubt=doubt) for doubt in (0.005, 0.02)}
    (small,) = compare_cells([_contender("b_only", CLEAR), rivals[0.005]], POINTS)
    assert small.better == "b_only"
    assert "beyond the 0.50 that another tried rate could add, p = 0.008" in small.sentence
    (large,) = compare_cells([_contender("b_only", CLEAR), rivals[0.02]], POINTS)
    assert (large.outcome, large.p_adjusted, large.p_beyond) == ("not decided", 2 / 2**8, 1.0)
    assert "init_a could gain 2.00 points of accuracy by another tried rate" in large.sentence
    assert "More tuning seeds would tell." in large.sentence
    # The doubt of the one ahead is no reason: at another rate it would be ahead by more.
    (own,) = compare_cells([_contender("b_only", CLEAR, doubt=0.02), _contender("init_a")], POINTS)
    assert (own.better, own.allowance) == ("b_only", 0.0)


def test_equal_differences_are_no_lead_beyond_an_allowance_that_is_larger() -> None:
    # Their mean is one digit in the last place below them, so that less it they are all above 0.
    arms = [Contender(label=x, values=dict.fromkeys(range(6), y), doubt=0.2) for x, y in (("a", 0.1), ("b", 0.0))]
    (found,) = compare_cells(arms, POINTS)
    assert (found.outcome, found.p_beyond) == ("not decided", 1.0)


def test_a_lead_that_the_correction_alone_leaves_open_is_not_laid_to_the_rate() -> None:
    # a and b differ from c by p = 0.008 each, but by less than its doubt; a and b by p = 0.031, without a doubt.
    small = (0.010, 0.010, 0.010, 0.010, 0.010, 0.010, -0.001, -0.001)
    a, b = (_contender(x, tuple(0.02 + more for more in gains)) for x, gains in (("a", small), ("b", (0.0,) * 8)))
    pairs = compare_cells([a, b, _contender("c", doubt=0.1)], POINTS)
    found = {pair.second: pair for pair in pairs if pair.first == "a"}
    assert found["b"].p_adjusted is not None
    assert found["b"].p_beyond is not None
    assert found["b"].p_adjusted <= 0.05 < found["b"].p_beyond
    assert found["b"].allowance == 0
    assert "another tried rate" not in found["b"].sentence
    assert "another tried rate" in found["c"].sentence


def test_what_few_pairs_can_reach_behind_a_comparison_of_more_is_not_denied() -> None:
    many = [_contender("a", CLEAR), _contender("b")]
    six = Contender(label="c", values={s: value for s, value in many[1].values.items() if s < 6})
    found = {pair.first: pair for pair in compare_cells([*many, replace(six, doubt=1.0)], POINTS) if pair.second == "c"}
    # Holm over 3: 2 / 2^8 comes first, so 2 / 2^6 counts twice.
    assert found["a"].p_adjusted == 2 * 2 / 2**6
    assert "cannot give" not in found["a"].sentence


def test_seeds_are_asked_for_only_where_they_would_decide() -> None:
    doubts = {}
    for doubt in (0.0, 0.0003, 0.005):
        (doubts[doubt],) = compare_cells([_contender("b_only", MIXED), _contender("init_a", doubt=doubt)], POINTS)
    # The mean difference is 0.001.
    assert doubts[0.0].seeds_needed is not None
    assert doubts[0.0003].seeds_needed is not None
    assert doubts[0.0].seeds_needed < doubts[0.0003].seeds_needed
    assert "beyond the 0.03 that another tried rate could add." in doubts[0.0003].sentence
    assert doubts[0.005].seeds_needed is None
    assert "Another tried rate could give init_a as much (0.50 points of accuracy" in doubts[0.005].sentence
    assert "would show it" not in doubts[0.005].sentence


def test_an_arm_whose_closing_runs_diverged_is_not_called_better_but_its_rival_is() -> None:
    arms = [_contender("b_only", CLEAR, diverged=(8,)), _contender("init_a")]
    (found,) = compare_cells(arms, POINTS)
    assert found.outcome == "not decided"
    assert "b_only is ahead, but 1 of its closing runs diverged, and only the others count." in found.sentence
    (rival,) = compare_cells([_contender("b_only", CLEAR), _contender("init_a", diverged=(8,))], POINTS)
    assert rival.better == "b_only"


@pytest.mark.parametrize(("margin", "outcome"), [(0.02, "equivalent"), (0.002, "not decided"), (None, "not decided")])
def test_equivalence_is_said_only_within_a_margin_that_was_stated(margin: float | None, outcome: str) -> None:
    found = _compare(MIXED, margin=margin)
    assert found.outcome == outcome
    assert ("equivalent" in found.sentence) == (outcome == "equivalent")
    assert (found.p_equivalence is None) == (margin is None)
    if outcome == "equivalent":
        assert "equivalent within the margin of 2.00 points of accuracy that was stated beforehand" in found.sentence


def test_equivalence_needs_room_for_the_choice_of_the_rate() -> None:
    arms = [_contender("b_only", MIXED, doubt=0.018), _contender("init_a")]
    assert compare_cells(arms, POINTS, margin=0.02)[0].outcome == "not decided"
    assert compare_cells(arms, POINTS, margin=0.01)[0].p_equivalence == 1.0


def test_cells_of_which_runs_diverged_are_not_called_equivalent() -> None:
    arms = [_contender("b_only", MIXED), _contender("init_a", diverged=(8,))]
    found = compare_cells(arms, POINTS, margin=0.02)[0]
    assert found.p_equivalence is not None
    assert found.p_equivalence <= 0.05
    assert found.outcome == "not decided"


def test_a_difference_below_the_margin_is_better_and_says_that_it_does_not_matter() -> None:
    found = _compare(CLEAR, margin=0.03)
    assert found.better == "b_only"
    assert "The difference is smaller than the margin that was stated beforehand." in found.sentence
    assert "smaller than the margin" not in _compare(CLEAR, margin=0.005).sentence


def test_seeds_of_one_side_are_named_and_left_out_and_no_pair_is_no_comparison() -> None:
    lone = Contender(label="c", values={7: 0.9, 99: 0.8})
    (some,) = compare_cells([_contender("a"), lone], POINTS)
    assert [pair.seed for pair in some.differences] == [7]
    assert "Seeds 0, 1, 2, 3, 4, 5, 6, 99 have a closing run on one side only and are left out." in some.sentence
    (none,) = compare_cells([_contender("a"), Contender(label="c", values={})], POINTS)
    assert (none.outcome, none.mean, none.p) == ("not testable", None, None)
    assert "not compared, as they have no closing runs of the same seed" in none.sentence


def test_caveats_of_both_sides_follow_the_verdict_once() -> None:
    arms = [_contender(label, caveats=("Not tuned.", f"Bound of {label}.")) for label in ("a", "b")]
    (found,) = compare_cells(arms, POINTS)
    assert found.caveats == ("Not tuned.", "Bound of a.", "Bound of b.")
    assert found.sentence.endswith("Not tuned. Bound of a. Bound of b.")


def test_values_are_shown_in_points_only_where_they_are_fractions_and_more_is_better() -> None:
    assert Shown.of("accuracy", [0.5, 1.0], greater_is_better=True).unit == "points"
    assert Shown.of("bleu", [0.5, 31.0], greater_is_better=True).scale == 1.0
    assert Shown.of("loss", [0.5], greater_is_better=False).unit == ""
    assert Shown.of("accuracy", [], greater_is_better=True).unit == ""
    assert POINTS.number(-0.00001) == "0.00"


def test_small_ps_and_turned_intervals_read_well() -> None:
    assert (p_text(0.03125), p_text(0.0002)) == ("= 0.031", "< 0.001")
    found = _compare(tuple(-gain for gain in CLEAR))
    assert found.interval is not None
    low, high = (-100 * end for end in (found.interval.high, found.interval.low))
    assert interval_text(found.interval, POINTS, sign=-1) == f"95 % interval {low:.2f} to {high:.2f}"
    assert interval_text(None, POINTS) == "no interval"
