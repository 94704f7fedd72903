"""Claims of zhu_least_squares that are exact, on made-up records."""

from __future__ import annotations

from typing import Any

import pytest

from asymlora.papers.least_squares_claims import CLAIMS, FORMS, GAP, GRADIENTS, MOVED, NESTED
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence, Record

FORM = {"loss_error": 1e-12, "solution_error": 1e-9, "gradient": 1e-9, "descent_error": 1e-7, "noise_error": 0.01}


def _found(key: str, part: str, records: list[Record]) -> Finding:
    (claim,) = [claim for claim in CLAIMS if claim.key == key]
    assert claim.parts == (part,)
    return claim.finding(Evidence(measured={part: records}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss_error", 1e-9),
        ("solution_error", 1e-7),
        ("gradient", 1e-7),
        ("descent_error", 1e-5),
        ("noise_error", 0.03),
    ],
)
def test_a_lemma_fails_by_any_of_its_limits_and_for_its_own_factor(name: str, value: float) -> None:
    records: list[Record] = [{"trained": "B", **FORM, name: value}, {"trained": "A", **FORM}]
    assert _found("lemma_4_1", FORMS, records).verdict == "fails"
    assert _found("lemma_4_2", FORMS, records).verdict == "holds"


@pytest.mark.parametrize(("single", "verdict"), [(5e-7, "holds"), (5e-6, "fails")])
def test_projections_are_judged_by_precision(single: float, verdict: str) -> None:
    records: list[Record] = [
        {"dtype": "float64", "error_A": 1e-15, "error_B": 1e-14},
        {"dtype": "float32", "error_A": 1e-8, "error_B": single},
    ]
    assert _found("projections", GRADIENTS, records).verdict == verdict


@pytest.mark.parametrize(
    ("gap", "error", "verdict"),
    [(0.9, 0.0, "holds"), (0.896, 0.0, "holds"), (0.88, 1e-3, "fails"), (0.88, 6e-3, "holds")],
)
def test_the_gap_is_within_half_a_per_cent_or_four_standard_errors(gap: float, error: float, verdict: str) -> None:
    record = {"rank": 4, "width": 40, "draws": 9, "gap": gap, "error": error, "formula": 0.9, "not_recovered": 1e-9}
    assert _found("gap_formula", GAP, [record]).verdict == verdict
    assert _found("full_recovery", GAP, [record]).verdict == "holds"
    assert _found("full_recovery", GAP, [{**record, "not_recovered": 1e-7}]).verdict == "fails"


@pytest.mark.parametrize(
    ("within", "beyond", "verdict"), [(1e-12, 0.2, "holds"), (1e-6, 0.2, "fails"), (0.0, 0, "fails")]
)
def test_moving_an_update_must_work_within_the_rank_and_not_beyond(within: float, beyond: float, verdict: str) -> None:
    records: list[Record] = [
        {"rank": 8, "dimensions": 8, "error": within}, {"rank": 8, "dimensions": 16, "error": beyond},
    ]  # fmt: skip
    assert _found("reparameterisation", MOVED, records).verdict == verdict
    assert _found("reparameterisation", MOVED, records[:1]).verdict == "undecided"


@pytest.mark.parametrize(
    ("changed", "verdict"), [({}, "holds"), ({"explained_A": 0.1}, "fails"), ({"best": 0.3}, "fails")]
)
def test_a_larger_rank_neither_loses_nor_exceeds_the_optimum(changed: dict[str, Any], verdict: str) -> None:
    first = {"decay": 1.0, "seed": 0, "rank": 1, "explained_A": 0.2, "explained_B": 0.1, "best": 0.4}
    second = {**first, "rank": 2, "explained_A": 0.3, "explained_B": 0.35, "best": 0.5, **changed}
    assert _found("grows_with_rank", NESTED, [second, first]).verdict == verdict
