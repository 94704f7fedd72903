"""What made-up similarities make of each claim of zhu_cca."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from asymlora.papers.similarity_claims import AT_RATE, CLAIMS, CONTROLS, DRAWN_HEAD, SIMILARITY, SLOWER, similarities
from asymlora.papers.similarity_points import (
    BOTH_OTHER,
    FIRST,
    LAST,
    MOMENTS,
    PANELS,
    RANDOM,
    REVERSED,
    SAME_TASK,
    SHARED_START,
    STANDARD,
    ZERO,
)
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, Record

CHANCE = 0.02


@dataclass(frozen=True)
class Alike:
    """Similarities of one start: of the random and of the zero factor by panel, and the way of the random one."""

    random: Mapping[str, float] = field(
        default_factory=lambda: {SAME_TASK: CHANCE, SHARED_START: 0.9, BOTH_OTHER: CHANCE}
    )
    zero: Mapping[str, float] = field(default_factory=lambda: {SAME_TASK: 0.12, SHARED_START: 0.05, BOTH_OTHER: 0.05})
    first: float = 0.1
    """Of the zero factor within a task after one step."""
    moved: float = 0.2


AS_CLAIMED = Alike()


def _records(variant: str, start: str, alike: Alike, units: int) -> list[Record]:
    records: list[Record] = []
    for unit in range(units):
        known = {"variant": variant, "start": start, "unit": unit}
        # Units differ, and all panels of a unit alike.
        off = 1 + 0.01 * unit
        for moment in MOMENTS:
            for panel in PANELS:
                zero = alike.first if (moment, panel) == (FIRST, SAME_TASK) else alike.zero[panel]
                for factor, value in ((RANDOM[start], alike.random[panel]), (ZERO[start], zero)):
                    row = {"moment": moment, "panel": panel, "factor": factor, "pairs": 3}
                    cca = {"cca": value * off, "over_chance": value * off / CHANCE}
                    records.append({"kind": "similarity", **known, **row, **cca})
        moved = {"factor": RANDOM[start], "moved": alike.moved * off, "like_its_start": 0.95}
        records.append({"kind": "moved", **known, **moved})
    return records


def _evidence(
    standard: Alike = AS_CLAIMED, reverse: Alike = AS_CLAIMED, *, units: int = 6, drawn: Alike = AS_CLAIMED
) -> Evidence:
    measured: dict[str, Any] = {
        SIMILARITY: [
            *_records(AT_RATE, STANDARD, standard, units), *_records(AT_RATE, REVERSED, reverse, units)
        ],
        CONTROLS: [
            *_records(SLOWER, STANDARD, standard, units), *_records(SLOWER, REVERSED, reverse, units),
            *_records(DRAWN_HEAD, STANDARD, drawn, units),
        ],
    }  # fmt: skip
    return Evidence(measured=measured)


def _found(key: str, evidence: Evidence) -> Finding:
    (claim,) = [claim for claim in CLAIMS if claim.key == key]
    return claim.finding(evidence)


def test_similarities_as_claimed_let_all_claims_hold_but_the_open_ones() -> None:
    verdicts = {claim.key: claim.finding(_evidence()).verdict for claim in CLAIMS}
    # B and A of made-up records share as much within a task; rates are a description.
    assert verdicts.pop("letter") == "undecided"
    assert verdicts.pop("rates") == "undecided"
    assert set(verdicts.values()) == {"holds"}
    assert len(verdicts) == 9


def _with(alike: Alike, factor: str, **panels: float) -> Alike:
    names = {"same": SAME_TASK, "shared": SHARED_START, "other": BOTH_OTHER}
    values = {**getattr(alike, factor), **{names[name]: value for name, value in panels.items()}}
    return replace(alike, **{factor: values})


LOST_START = _with(AS_CLAIMED, "random", shared=0.4)
FAR_FROM_CHANCE = _with(AS_CLAIMED, "random", other=4 * CHANCE)
OF_NO_TASK = _with(AS_CLAIMED, "zero", shared=0.2)


@pytest.mark.parametrize(
    ("key", "alike"),
    [
        ("a_alike_if_shared", LOST_START),
        ("a_at_chance_if_not", FAR_FROM_CHANCE),
        ("b_follows_the_task", OF_NO_TASK),
        ("hardly_moves", replace(AS_CLAIMED, moved=0.8)),
        ("hardly_moves_at_a_third", replace(AS_CLAIMED, moved=0.8)),
        ("a_alike_at_a_third", LOST_START),
        ("after_one_step", replace(AS_CLAIMED, first=0.06)),
    ],
)
def test_each_claim_on_the_standard_start_fails_where_the_records_say_the_opposite(key: str, alike: Alike) -> None:
    assert _found(key, _evidence(alike)).verdict == "fails"


@pytest.mark.parametrize("alike", [LOST_START, FAR_FROM_CHANCE, OF_NO_TASK])
def test_the_reversed_start_must_show_all_three(alike: Alike) -> None:
    assert _found("reversed", _evidence(reverse=alike)).verdict == "fails"
    assert _found("reversed", _evidence(standard=alike)).verdict == "holds"


def test_a_factor_of_three_of_chance_is_the_edge() -> None:
    near, far = (_with(AS_CLAIMED, "random", same=share * CHANCE) for share in (2.5, 3.5))
    assert _found("a_at_chance_if_not", _evidence(near)).verdict == "holds"
    assert _found("a_at_chance_if_not", _evidence(far)).verdict == "fails"


@pytest.mark.parametrize(("of_A", "verdict", "octaves"), [(0.06, "holds", 1.0), (0.24, "fails", -1.0)])
def test_the_letter_is_what_is_left_when_starts_are_exchanged(of_A: float, verdict: str, octaves: float) -> None:
    found = _found("letter", _evidence(reverse=_with(AS_CLAIMED, "zero", same=of_A)))
    assert (found.verdict, found.estimate) == (verdict, pytest.approx(octaves))


def test_the_control_with_a_drawn_head_is_a_test_of_its_own() -> None:
    evidence = _evidence(drawn=OF_NO_TASK)
    assert _found("with_a_drawn_head", evidence).verdict == "fails"
    assert _found("b_follows_the_task", evidence).verdict == "holds"


def test_fewer_than_six_pairs_of_starts_decide_nothing() -> None:
    assert _found("a_alike_if_shared", _evidence(units=5)).verdict == "undecided"


def test_what_is_asked_for_is_one_moment_panel_and_variant() -> None:
    evidence = _evidence(replace(AS_CLAIMED, first=0.08))
    first = similarities(evidence, STANDARD, "B", SAME_TASK, moment=FIRST)
    last = similarities(evidence, STANDARD, "B", SAME_TASK, column="over_chance", moment=LAST)
    assert first[0] == 0.08
    assert last[5] == pytest.approx(0.12 * 1.05 / CHANCE)
    assert first.planned == tuple(range(6))
    with pytest.raises(MissingEvidenceError, match=f"{CONTROLS}.*reversed.*{DRAWN_HEAD}"):
        similarities(evidence, REVERSED, "A", SAME_TASK, variant=DRAWN_HEAD)


def test_a_factor_that_has_left_its_start_is_not_taken_for_one_that_stayed() -> None:
    records = [
        {**record, "moved": None} if record["kind"] == "moved" else record for record in _evidence().records(SIMILARITY)
    ]
    assert "standard start" in _found("hardly_moves", Evidence(measured={SIMILARITY: records})).ours


def test_nothing_is_judged_without_records() -> None:
    assert {claim.finding(Evidence()).ours for claim in CLAIMS} == {
        f"Not run yet: {SIMILARITY}.", f"Not run yet: {CONTROLS}."
    }  # fmt: skip
