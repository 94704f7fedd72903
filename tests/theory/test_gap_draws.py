from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import pytest

from asymlora.errors import SpecError
from asymlora.theory.gap_draws import THEOREM_CASES, GapCase, gap_draws


def _drawn(case: GapCase, draws: int = 12) -> dict[str, float]:
    records = list(gap_draws([case], draws=draws))
    names = ("explained_A", "explained_B", "B_only_wins", "predicted_ratio", "simple_ratio")
    return {name: statistics.fmean(record[name] for record in records) for name in names}


@pytest.mark.parametrize(
    ("case", "wins"),
    [
        (GapCase(inputs=64, outputs=64, decay=1.0, rank=4), 1.0),
        (GapCase(inputs=64, outputs=64, decay=1.0, rank=4, wanted="low variance"), 0.0),
        (GapCase(inputs=128, outputs=32, decay=0.0, rank=8), 0.0),
        (GapCase(inputs=32, outputs=128, decay=0.0, rank=8), 1.0),
    ],
)
def test_the_theorem_holds_and_is_reversed_where_the_criterion_says(case: GapCase, wins: float) -> None:
    drawn = _drawn(case)
    assert drawn["B_only_wins"] == wins
    assert (drawn["predicted_ratio"] > 1) == bool(wins)
    # The mean over 12 draws of a ratio of two means: 15 % covers its spread at these sizes.
    assert drawn["explained_A"] / drawn["explained_B"] == pytest.approx(drawn["predicted_ratio"], rel=0.15)


def test_the_limit_of_small_rank_overstates_heavy_tails() -> None:
    drawn = _drawn(GapCase(inputs=128, outputs=128, decay=1.0, rank=16))
    measured = drawn["explained_A"] / drawn["explained_B"]
    assert drawn["simple_ratio"] > 1.5 * measured
    assert drawn["predicted_ratio"] == pytest.approx(measured, rel=0.1)


def test_draws_are_the_same_again_and_told_one_by_one() -> None:
    seen: list[tuple[int, int, Mapping[str, Any]]] = []
    case = GapCase(inputs=16, outputs=16, rank=2)
    records = list(
        gap_draws([case, GapCase(inputs=16, outputs=8, rank=2)], draws=2, progress=lambda *s: seen.append(s))
    )
    assert [(done, total) for done, total, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [record["outputs"] for record in records] == [16, 16, 8, 8]
    assert records[:2] == list(gap_draws([case], draws=2))
    assert records[0]["explained_A"] != records[1]["explained_A"]


def test_the_default_cases_hold_regime_tie_and_reversals() -> None:
    assert {case.wanted for case in THEOREM_CASES} == {"generic", "high variance", "low variance"}
    assert any(case.decay == 0 and case.inputs == case.outputs for case in THEOREM_CASES)
    assert any(case.outputs < case.inputs for case in THEOREM_CASES)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank=0 must be at least 1"),
        ({"rank": 65, "outputs": 64}, "rank=65 must be at most 64"),
        ({"decay": -1.0}, "decay=-1.0 must be at least 0"),
        ({"wanted": "all"}, "wanted='all' must be"),
    ],
)
def test_wrong_cases_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        GapCase(**fields)


def test_no_draws_are_refused() -> None:
    with pytest.raises(SpecError, match="draws=0 must be at least 1"):
        list(gap_draws(draws=0))
