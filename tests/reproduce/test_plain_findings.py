from __future__ import annotations

import math

import pytest

from asymlora.errors import SpecError
from asymlora.reproduce.claim import Finding, Verdict
from asymlora.reproduce.plain_findings import all_of, described, exact_finding, not_testable, slope_finding


def _slope(slope: float, error: float | None = None) -> Finding:
    return slope_finding(slope, expected=-0.5, tolerance=0.1, what="Rate with width", error=error)


@pytest.mark.parametrize(
    ("slope", "verdict"),
    [(-0.5, "holds"), (-0.6, "holds"), (-0.4, "holds"), (-0.601, "fails"), (-0.399, "fails"), (0.5, "fails")],
)
def test_a_slope_is_judged_by_its_distance_from_the_claimed_one(slope: float, verdict: Verdict) -> None:
    found = _slope(slope)
    assert found.verdict == verdict
    assert (found.estimate, found.interval) == (slope, None)


@pytest.mark.parametrize(
    ("slope", "error", "verdict"),
    [(-0.5, 0.04, "holds"), (-0.5, 0.06, "undecided"), (-0.45, 0.04, "undecided"), (-0.3, 0.04, "fails"),
     (-0.3, 0.06, "undecided"), (-0.7, 0.04, "fails")],
)  # fmt: skip
def test_with_an_error_the_whole_interval_is_judged(slope: float, error: float, verdict: Verdict) -> None:
    found = _slope(slope, error)
    assert found.verdict == verdict
    assert found.interval == (slope - 2 * error, slope + 2 * error)


def test_the_sentence_of_a_slope_says_what_was_claimed() -> None:
    assert _slope(-0.493, 0.01).ours == ("Rate with width: slope -0.493 (95 %: -0.513 to -0.473), claimed -0.5 ± 0.1.")


def test_with_few_degrees_of_freedom_the_interval_is_students() -> None:
    found = slope_finding(-0.5, expected=-0.5, tolerance=0.1, what="Rate", error=0.04, degrees=5)
    assert found.interval == pytest.approx((-0.5 - 2.570582 * 0.04, -0.5 + 2.570582 * 0.04))
    assert found.verdict == "undecided"


@pytest.mark.parametrize(("slope", "error"), [(math.nan, None), (-math.inf, None), (-0.5, math.nan)])
def test_a_slope_that_is_not_finite_decides_nothing(slope: float, error: float | None) -> None:
    found = _slope(slope, error)
    assert (found.verdict, found.estimate, found.interval) == ("undecided", None, None)


def test_a_check_without_noise_holds_or_fails() -> None:
    assert exact_finding(True, "Both are 0.") == Finding(verdict="holds", ours="Both are 0.")
    assert exact_finding(False, "One is 1.").verdict == "fails"


def test_a_description_is_undecided_and_keeps_its_numbers() -> None:
    found = described("Ratio 8.", estimate=8.0, interval=(4.0, 16.0), pairs=3)
    assert found == Finding(verdict="undecided", ours="Ratio 8.", estimate=8.0, interval=(4.0, 16.0), pairs=3)


def test_what_is_not_at_hand_is_not_testable() -> None:
    assert not_testable("GSM8K is not at hand.").verdict == "not testable here"


def _parts(*verdicts: Verdict) -> dict[str, Finding]:
    return {f"part {at}": Finding(verdict=verdict, ours=f"It is {at}.") for at, verdict in enumerate(verdicts)}


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("holds", "holds"), "holds"),
        (("holds", "fails"), "fails"),
        (("fails", "undecided"), "fails"),
        (("holds", "undecided"), "undecided"),
        (("holds", "not testable here"), "undecided"),
        (("not testable here", "fails"), "fails"),
        (("not testable here", "not testable here"), "not testable here"),
        (("undecided", "not testable here"), "undecided"),
    ],
)
def test_a_claim_of_parts_holds_if_all_do_and_fails_if_one_does(
    verdicts: tuple[Verdict, ...], expected: Verdict
) -> None:
    assert all_of(_parts(*verdicts)).verdict == expected


def test_the_sentence_of_parts_joins_theirs() -> None:
    assert all_of(_parts("holds", "fails")).ours == "part 0 (holds): It is 0. part 1 (fails): It is 1."


def test_seeds_needed_for_all_parts_are_the_most_of_any_open_one() -> None:
    def part(verdict: Verdict, pairs: int | None, needed: int | None) -> Finding:
        return Finding(verdict=verdict, ours="", pairs=pairs, seeds_needed=needed)

    found = all_of({"a": part("undecided", 10, 14), "b": part("undecided", 6, 30), "c": part("holds", None, None)})
    assert (found.pairs, found.seeds_needed) == (6, 30)
    assert all_of({"a": part("undecided", 6, 14), "b": part("undecided", 6, None)}).seeds_needed is None
    assert all_of({"a": part("undecided", 6, 14), "b": part("fails", 6, None)}).seeds_needed is None


def test_what_was_joined_is_counted() -> None:
    two = all_of(_parts("holds", "holds"))
    assert (two.joined, all_of({"a": two, "b": exact_finding(True, "Yes.")}).joined) == (2, 3)


def test_no_parts_are_refused() -> None:
    with pytest.raises(SpecError, match="a claim of no parts"):
        all_of({})
