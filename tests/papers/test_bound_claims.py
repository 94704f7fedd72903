"""Claims of zhu_bounds: the bound as it is, and made-up gaps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from asymlora.papers.bound_claims import BOUND, CLAIMS, GAPS, gaps_by_seed
from asymlora.papers.bound_points import LAYERS, bound_points, measure_bound
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence, Record

BOUNDS = [record for point in bound_points(LAYERS) for record in measure_bound(point)]


def _judge(key: str, evidence: Evidence) -> Finding:
    (claim,) = [claim for claim in CLAIMS if claim.key == key]
    return claim.finding(evidence)


def _of_bounds(key: str, change: Callable[[Record], Record] = dict) -> Finding:
    return _judge(key, Evidence(measured={BOUND: [change(record) for record in BOUNDS]}))


def test_the_formula_is_what_the_notes_have_by_hand() -> None:
    for key in ("improves", "hand_values", "scales"):
        assert _of_bounds(key).verdict == "holds"
    assert "both factors 59.18 (59.2), B alone 41.85 (41.8)" in _of_bounds("hand_values").ours


def test_an_improvement_by_another_factor_or_a_wrong_identity_fails() -> None:
    assert _of_bounds("improves", lambda r: {**r, "one_factor_error": 1e-9}).verdict == "fails"
    assert _of_bounds("improves", lambda r: {**r, "b_only": r["both"]}).verdict == "fails"
    broken = _of_bounds("scales", lambda r: {**r, "squares_error": 1e-9})
    assert broken.verdict == "fails"
    assert "broken: query and value of RoBERTa-large: squares add up" in broken.ours


def test_it_tells_nothing_of_b_against_a() -> None:
    found = _of_bounds("tells_b_from_a")
    assert found.verdict == "fails"
    assert "query and value of RoBERTa-large: equal; up-projections of RoBERTa-large: A alone;" in found.ours
    assert "down-projections of RoBERTa-large: B alone; all linear layers of MiniLM: equal" in found.ours
    assert _of_bounds("tells_b_from_a", lambda r: {**r, "b_only": 0.5 * r["a_only"]}).verdict == "holds"


def test_even_one_bit_at_rank_one_wants_more_rows_than_rte_has() -> None:
    least = [record["samples_needed"] for record in BOUNDS if record["rank"] == record["bits"] == 1]
    assert len(least) == len(LAYERS)
    assert min(least) > 2490
    assert f"{least[0]:,} at rank 1 and one bit" in _of_bounds("samples_needed").ours


def _gaps(both: float, b_only: float, a_only: float, *, bound: float = 50.0, uneven: float = 0.0) -> Evidence:
    rows = [
        {
            "set": name, "rows": 128, "seed": seed, "arm": arm, "train_error": 0.1, "both": bound, "b_only": bound,
            "a_only": bound, "test_error": 0.1 + gap + (uneven if seed % 2 == 0 else -uneven) * (arm == "both"),
        }
        for name in ("trec6", "rte")
        for seed in range(6)
        for arm, gap in (("both", both), ("b_only", b_only), ("a_only", a_only))
    ]  # fmt: skip
    return Evidence(measured={GAPS: rows})


def test_the_gap_is_that_of_the_seeds_that_have_all_sets() -> None:
    evidence = _gaps(0.3, 0.2, 0.25)
    rows = [
        {**row, "test_error": None} if (row["set"], row["seed"], row["arm"]) == ("rte", 4, "both") else row
        for row in evidence.records(GAPS)
    ]
    gaps = gaps_by_seed(Evidence(measured={GAPS: rows}), "both")
    assert dict(gaps) == pytest.approx(dict.fromkeys((0, 1, 2, 3, 5), 0.3))
    assert gaps.planned == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("b_only", [0.2, 0.4])
def test_gaps_at_one_rate_for_all_are_described_and_decide_nothing(b_only: float) -> None:
    found = _judge("gap_smaller", _gaps(0.3, b_only, 0.3))
    assert (found.verdict, found.p) == ("undecided", None)
    assert found.estimate == pytest.approx(0.3 - b_only)
    assert "trec6, 128 rows: both factors 30.00 with 10.00 wrong in training" in found.ours


def test_a_alone_is_held_against_b_alone() -> None:
    found = _judge("a_gap_like_b", _gaps(0.3, 0.2, 0.25))
    assert (found.verdict, found.estimate) == ("undecided", pytest.approx(0.05))


@pytest.mark.parametrize(("bound", "verdict"), [(50.0, "holds"), (0.9, "fails")])
def test_a_bound_is_vacuous_from_the_range_of_the_loss_on(bound: float, verdict: str) -> None:
    found = _judge("vacuous", _gaps(0.25, 0.2, 0.25, bound=bound))
    assert found.verdict == verdict
    if bound == 50:
        assert "the bound is 200 to 250 times the measured gap" in found.ours
    assert "measured 0.80, bound 1.00" in _judge("ratio_of_gaps", _gaps(0.25, 0.2, 0.25)).ours


def test_nothing_is_judged_without_records() -> None:
    assert {claim.finding(Evidence()).verdict for claim in CLAIMS} == {"undecided"}
