from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from asymlora.papers.feature_claims import CLAIMS, DECODER, ENCODER, STUDENTS
from asymlora.reproduce.evidence import Evidence
from papers.made_features import EFFICIENT, ONE_SIDED, Course, swept, traces

BY_KEY = {claim.key: claim for claim in CLAIMS}
WIDTHS = (128, 512, 2048, 4096)
OF_ONE = ("first_step", "features_grow", "b_barely_moves", "parts_of_a_step", "efficiency")
Change = Callable[[Course], Course]


def toy(init_a: Change = lambda course: course, init_b: Change = lambda course: course) -> dict[str, dict[int, Course]]:
    """Return what both starts do at each width, as claimed but for a change."""
    a = {n: init_a(replace(EFFICIENT, end=0.4 * (n / 128) ** 0.5)) for n in WIDTHS}
    # Less and less of B; Z_A of order 1, larger than that of Init[A] at small widths only.
    b = {n: init_b(replace(ONE_SIDED, end=1.0, of_B=8 / n, joint=8 / n, moved=min(0.5, 64 / n))) for n in WIDTHS}
    return {"init_a": a, "init_b": b}


def made(
    *, init_a: Course = EFFICIENT, init_b: Course = ONE_SIDED, of_toy: dict[str, dict[int, Course]] | None = None,
    seeds: int = 6,
) -> Evidence:  # fmt: skip
    """Return evidence of all parts, as claimed but for a change."""
    arms = {"init_a": init_a, "init_b": init_b}
    return Evidence(
        measured={STUDENTS: traces(WIDTHS, of_toy or toy(), seeds=seeds)},
        sweeps={part: swept(arms, seeds=seeds) for part in (ENCODER, DECODER)},
    )


@pytest.mark.parametrize("key", list(BY_KEY))
def test_each_claim_holds_where_the_factors_do_as_claimed(key: str) -> None:
    finding = BY_KEY[key].finding(made())
    assert finding.verdict == "holds", finding.ours


@pytest.mark.parametrize("key", list(BY_KEY))
def test_each_claim_is_undecided_without_records(key: str) -> None:
    assert BY_KEY[key].finding(Evidence()).verdict == "undecided"


@pytest.mark.parametrize("key", [key for key in BY_KEY if not key.endswith("first_step")])
def test_five_seeds_decide_nothing(key: str) -> None:
    assert BY_KEY[key].finding(made(seeds=5)).verdict == "undecided"


@pytest.mark.parametrize("part", [ENCODER, DECODER])
@pytest.mark.parametrize(
    ("key", "evidence"),
    [
        ("features_grow", {"init_a": replace(EFFICIENT, growth=0.9)}),
        ("b_barely_moves", {"init_b": replace(ONE_SIDED, moved=0.2)}),
        ("parts_of_a_step", {"init_b": replace(ONE_SIDED, of_B=0.3)}),
        ("parts_of_a_step", {"init_b": replace(ONE_SIDED, joint=0.3)}),
        ("parts_of_a_step", {"init_a": replace(EFFICIENT, of_B=20.0)}),
        ("efficiency", {"init_a": replace(EFFICIENT, of_B=0.02)}),
        ("features_larger", {"init_a": replace(EFFICIENT, end=0.5)}),
    ],
)
def test_each_claim_on_a_model_fails_where_its_factors_do_the_opposite(
    part: str, key: str, evidence: dict[str, Any]
) -> None:
    assert BY_KEY[f"{part}_{key}"].finding(made(**evidence)).verdict == "fails"


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("features_grow", toy(init_a=lambda course: replace(course, growth=0.9))),
        ("b_barely_moves", toy(init_b=lambda course: replace(course, moved=0.2))),
        ("parts_of_a_step", toy(init_b=lambda course: replace(course, of_B=0.3))),
        ("efficiency", toy(init_a=lambda course: replace(course, of_B=0.001))),
        ("grow_with_width", toy(init_a=lambda course: replace(course, end=1 / course.end))),
        ("b_moves_less_with_width", toy(init_b=lambda course: replace(course, moved=1 / course.moved))),
        ("b_moves_less_with_width", toy(init_b=lambda course: replace(course, of_B=0.001 / course.of_B))),
        ("features_larger", toy(init_b=lambda course: replace(course, end=5.0))),
    ],
)
def test_each_claim_on_the_toy_fails_where_its_factors_do_the_opposite(
    key: str, changed: dict[str, dict[int, Course]]
) -> None:
    assert BY_KEY[f"{STUDENTS}_{key}"].finding(made(of_toy=changed)).verdict == "fails"


def test_a_first_step_that_moves_both_factors_fails() -> None:
    records = [
        {**record, "delta3": [None, 1e-9, *record["delta3"][2:]]} if record["seed"] == 4 else record
        for record in traces(WIDTHS, toy())
    ]
    assert BY_KEY["students_first_step"].finding(Evidence(measured={STUDENTS: records})).verdict == "fails"


def test_a_claim_of_several_parts_is_undecided_where_one_is() -> None:
    mixed = made(init_b=replace(ONE_SIDED, of_B=0.0975))  # some seeds above a tenth, some below
    finding = BY_KEY["encoder_parts_of_a_step"].finding(mixed)
    assert finding.verdict == "undecided"
    assert "delta2 under Init[B] (undecided)" in finding.ours
    assert "delta3 under Init[B] (holds)" in finding.ours


def test_features_that_grow_by_little_grow_and_the_factor_is_told() -> None:
    finding = BY_KEY["encoder_features_grow"].finding(made(init_a=replace(EFFICIENT, growth=1.05)))
    assert finding.verdict == "holds"
    assert "The geometric mean of the factor is 1.05." in finding.ours


@pytest.mark.parametrize("key", [key for key in BY_KEY if key.startswith(STUDENTS) and not key.endswith("first_step")])
def test_a_rate_at_an_end_of_what_the_toy_tried_leaves_its_claims_open(key: str) -> None:
    records = [
        {**record, "interior": (record["width"], record["scheme"]) != (4096, "init_b")}
        for record in traces(WIDTHS, toy())
    ]
    finding = BY_KEY[key].finding(Evidence(measured={STUDENTS: records}))
    assert finding.verdict == "undecided"
    assert "the best rate of Init[B] at n = 4096 is the first or the last one tried" in finding.ours


@pytest.mark.parametrize("key", [key for key in BY_KEY if key.startswith(ENCODER) and not key.endswith("first_step")])
def test_a_best_rate_at_an_end_of_the_grid_leaves_claims_on_a_model_open(key: str) -> None:
    sweep = swept({"init_a": EFFICIENT, "init_b": ONE_SIDED})
    kept = [row for row in sweep.rows if not (row.arm == "init_a" and row.lr > 1e-3)]
    evidence = Evidence(sweeps={ENCODER: replace(sweep, plan={**sweep.plan, "rates": [1e-4, 1e-3]}, rows=kept)})
    finding = BY_KEY[key].finding(evidence)
    assert finding.verdict == "undecided"
    assert "the best rate of Init[A] is the first or the last one tried" in finding.ours


def test_each_test_says_what_was_known_before() -> None:
    assert all("Known before: " in claim.test for claim in CLAIMS)


def test_a_toy_without_a_large_width_says_which_one_is_missing() -> None:
    records = [record for record in traces(WIDTHS, toy()) if record["width"] < 4096]
    finding = BY_KEY["students_features_larger"].finding(Evidence(measured={STUDENTS: records}))
    assert finding.verdict == "undecided"
    assert "at least 4096; the largest is 2048" in finding.ours


def test_each_source_has_the_same_claims_and_none_is_the_abstracts() -> None:
    for part in (STUDENTS, ENCODER, DECODER):
        assert {f"{part}_{key}" for key in OF_ONE} <= set(BY_KEY)
    assert not any(claim.runs_until_decided for claim in CLAIMS)
