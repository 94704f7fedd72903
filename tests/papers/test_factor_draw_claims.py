"""Claims of zhu_least_squares on random draws, on made-up records."""

from __future__ import annotations

from typing import Any

import pytest

from asymlora.papers.factor_draw_claims import CLAIMS, DRAWS, share_finding
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence, Record


def _case(wins: int = 400, draws: int = 400, **changes: Any) -> Record:
    known = {"inputs": 256, "outputs": 256, "decay": 1.0, "rank": 4, "wanted": "generic"}
    sizes = {"ratio": 2.0, "ratio_error": 0.001, "predicted": 2.0, "criterion": 2.0}
    return {**known, "wins": wins, "draws": draws, **sizes, **changes}


def _found(key: str, *records: Record) -> Finding:
    (claim,) = [claim for claim in CLAIMS if claim.key == key]
    return claim.finding(Evidence(measured={DRAWS: records}))


@pytest.mark.parametrize(
    ("wins", "draws", "verdict"),
    [(400, 400, "holds"), (300, 300, "undecided"), (399, 400, "undecided"), (380, 400, "fails")],
)
def test_a_share_is_judged_by_its_exact_interval(wins: int, draws: int, verdict: str) -> None:
    found = share_finding(wins, draws, within=(0.99, 1.0), what="share")
    assert (found.verdict, found.estimate) == (verdict, wins / draws)
    if wins == draws:
        assert found.interval == (pytest.approx(0.025 ** (1 / draws)), 1.0)


def test_the_theorem_holds_in_its_regime_and_not_without_conditions() -> None:
    regime, low = _case(), _case(wins=0, wanted="low variance")
    assert _found("theorem_in_its_regime", regime, low, _case(wins=0, rank=8)).verdict == "holds"
    assert _found("theorem_without_conditions", regime).verdict == "holds"
    assert _found("theorem_without_conditions", regime, _case(wins=200, decay=0.0)).verdict == "undecided"
    broken = _found("theorem_without_conditions", regime, low)
    assert broken.verdict == "fails"
    assert "in 1 (256 to 256, variances i^-1, update on the half of low variance, rank 4)" in broken.ours


@pytest.mark.parametrize(
    ("wins", "ratio", "verdict"),
    [
        (200, 1.0, "holds"),
        (300, 1.0, "fails"),
        (280, 1.0, "undecided"),
        (200, 1.03, "fails"),
        (200, 1.019, "undecided"),
    ],
)
def test_a_tie_is_one_of_counts_and_of_sizes(wins: int, ratio: float, verdict: str) -> None:
    narrow = _case(wins=50, draws=100, inputs=64, outputs=64, decay=0.0, ratio=1.5)
    assert _found("tie_when_isotropic", _case(wins, decay=0.0, ratio=ratio), narrow).verdict == verdict


def test_few_outputs_turn_it_round_and_decay_outweighs_them() -> None:
    few, many = _case(wins=0, decay=0.0, outputs=64), _case(decay=0.0, inputs=64)
    assert _found("reversed_at_few_outputs", few, many).verdict == "holds"
    assert _found("reversed_at_few_outputs", few).verdict == "undecided"
    assert _found("reversed_at_few_outputs", {**few, "wins": 40}, many).verdict == "fails"
    assert _found("decay_outweighs_few_outputs", few, _case(outputs=64)).verdict == "holds"
    assert _found("reversed_at_low_variance", _case(wins=0, wanted="low variance"), _case()).verdict == "holds"


@pytest.mark.parametrize(
    ("ratio", "tail", "verdict"),
    [(2.1, 3.0, "holds"), (2.3, 3.0, "fails"), (2.1, 0.9, "fails"), (2.199, 3.0, "undecided")],
)
def test_the_criterion_is_held_to_ten_per_cent_and_to_its_side(ratio: float, tail: float, verdict: str) -> None:
    spectra = [_case(rank=8, decay=0.25, ratio=ratio), _case(rank=8, decay=2.0, ratio=tail, criterion=9.0)]
    assert _found("criterion", *spectra).verdict == verdict
    described = _found("criterion_at_heavy_tails", *spectra)
    assert described.verdict == "undecided"
    assert f"exponent 2: {tail:.3g} where d_out/PR is 9 and the prediction at the rank 2" in described.ours


@pytest.mark.parametrize(("predicted", "verdict"), [(2.15, "holds"), (1.7, "fails")])
def test_the_worst_case_judges_the_prediction_at_the_rank(predicted: float, verdict: str) -> None:
    found = _found("prediction_at_the_rank", _case(), _case(decay=2.0, predicted=predicted))
    assert found.verdict == verdict
    assert "variances i^-2" in found.ours
