from __future__ import annotations

from typing import Any

import pytest

import small_artefact as small
from asymlora.reproduce.claim import Claim, Finding, Kind, Verdict
from asymlora.reproduce.evidence import Evidence
from asymlora.reproduce.looks import judge

FIRST, WHOLE = (Evidence(measured={"toy": [{}] * count}) for count in (6, 10))


def _claim(first: Verdict, whole: Verdict, kind: Kind = "paper") -> Claim:
    def found(evidence: Evidence) -> Finding:
        records = len(evidence.records("toy"))
        return Finding(verdict=first if records == 6 else whole, ours=f"{records}", pairs=records)

    made: Any = small.count_claim("x", needed=1, kind=kind, parts=["toy"])
    return Claim(**{**vars(made), "judge": found})


@pytest.mark.parametrize("kind", ["abstract", "paper", "question"])
@pytest.mark.parametrize("first", ["holds", "fails"])
def test_what_the_first_look_decided_stands(first: Verdict, kind: Kind) -> None:
    judged = judge([_claim(first, "undecided", kind)], WHOLE, first=FIRST)
    assert judged.findings == {"x": Finding(verdict=first, ours="6", pairs=6)}
    assert judged.decided == {"x": "first"}


@pytest.mark.parametrize("kind", ["abstract", "paper", "question"])
@pytest.mark.parametrize("whole", ["holds", "undecided"])
def test_a_claim_that_it_left_open_is_judged_on_all_records(whole: Verdict, kind: Kind) -> None:
    judged = judge([_claim("undecided", whole, kind)], WHOLE, first=FIRST)
    assert judged.findings == {"x": Finding(verdict=whole, ours="10", pairs=10)}
    assert judged.decided == ({"x": "second"} if whole == "holds" else {})


def test_without_a_second_look_there_is_one_finding() -> None:
    assert judge([_claim("holds", "fails")], FIRST, first=None).findings["x"].verdict == "holds"
    assert judge([_claim("holds", "fails")], WHOLE, first=None).decided == {"x": "first"}
