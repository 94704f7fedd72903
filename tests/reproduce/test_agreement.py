from __future__ import annotations

from typing import Any

import pytest

import small_artefact as small
from asymlora.reproduce.agreement import Compared, compared
from asymlora.reproduce.claim import Finding

KEPT = Finding(verdict="holds", ours="1.2 points", estimate=1.2, interval=(0.4, 2.0), p=0.03125, pairs=6)


def _finding(estimate: float | None, **changes: Any) -> Finding:
    return Finding(**{"verdict": "holds", "ours": "", "estimate": estimate, **changes})


def _one(kept: Finding | None, new: Finding, *, unknown: tuple[str, ...] = ()) -> Compared:
    what = small.artefact()
    (found,) = compared(what, kept={} if kept is None else {"enough": kept}, new={"enough": new}, unknown=unknown)
    return found


@pytest.mark.parametrize("estimate", [0.4, 1.2, 2.0])
def test_an_estimate_within_the_kept_interval_agrees(estimate: float) -> None:
    assert _one(KEPT, _finding(estimate)).agreement == "agrees"


@pytest.mark.parametrize("estimate", [0.39, 2.01, -1.2, None])
def test_one_beyond_it_is_outside(estimate: float | None) -> None:
    assert _one(KEPT, _finding(estimate)).agreement == "outside"


def test_without_an_interval_estimates_must_be_equal_to_the_digits_that_are_kept() -> None:
    exact = _finding(0.123456789)
    assert _one(exact, _finding(0.123457)).agreement == "agrees"
    assert _one(exact, _finding(0.1236)).agreement == "outside"
    assert _one(_finding(None), _finding(None)).agreement == "same verdict"
    assert _one(_finding(None), _finding(0.1)).agreement == "outside"


def test_another_verdict_is_told_whatever_the_estimate() -> None:
    found = _one(KEPT, _finding(1.2, verdict="undecided"))
    assert (found.agreement, found.verdicts) == ("another verdict", ("holds", "undecided"))


def test_what_was_not_run_in_both_is_not_compared() -> None:
    assert _one(None, _finding(1.0)).agreement == "not compared"
    assert _one(KEPT, _finding(1.2, verdict="undecided"), unknown=("toy",)).agreement == "not compared"
    assert _one(KEPT, _finding(1.2), unknown=("aside",)).agreement == "agrees"
    assert _one(None, _finding(1.0)).verdicts == (None, "holds")
