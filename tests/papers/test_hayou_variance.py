"""Claims on the variance of Init[B]: the arms, and what made-up records make of each claim."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from asymlora.papers.hayou_variance import ARTEFACT, CLAIMS, SMALL_B, paper_parts, small_parts
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError
from asymlora.reproduce.forecasting import part_runs
from asymlora.sweep.grid import cells
from papers.made_sweeps import Behaviour, made

ROOT = Path("nowhere")
(SMALL,) = small_parts(ROOT)
STEP = 0.5 * math.log2(10)


def _evidence(a: Behaviour, b: Behaviour, small_b: Behaviour) -> Evidence:
    return Evidence(sweeps={"trec6": made(SMALL.plan, {"init_a": a, "init_b": b, SMALL_B: small_b})})


def _found(key: str, a: Behaviour, b: Behaviour, small_b: Behaviour) -> Finding:
    (claim,) = [claim for claim in CLAIMS if claim.key == key]
    return claim.finding(_evidence(a, b, small_b))


def _stable(key: str, a: float, b: float, small_b: float) -> Finding:
    return _found(key, *(Behaviour(best=1e-3, lost_from=lost) for lost in (a, b, small_b)))


def test_the_third_arm_differs_from_init_b_in_the_variance_alone() -> None:
    for (part,), width in ((small_parts(ROOT), 384), (paper_parts(ROOT), 1024)):
        recipes = {cell.label: cell.recipe.to_dict() for cell in cells(part.plan)}
        assert list(recipes) == ["init_a", "init_b", SMALL_B]
        assert recipes[SMALL_B]["adapter"]["B"].pop("variance") == 1 / width
        assert recipes["init_b"]["adapter"]["B"].pop("variance") is None
        assert recipes[SMALL_B] == recipes["init_b"]


def test_stable_rates_have_six_tuning_seeds() -> None:
    assert len(SMALL.plan.tuning_seeds) == 6
    assert (part_runs(SMALL).first, part_runs(SMALL).both) == (3 * (6 * 6 + 6), None)
    (paper,) = paper_parts(ROOT)
    assert len(paper.plan.tuning_seeds) == len(paper.plan.closing_seeds) == 6


def test_the_grid_reaches_beyond_the_edges_and_may_grow_by_one_rate() -> None:
    assert max(SMALL.plan.rates) == pytest.approx(0.316, abs=1e-3)
    assert SMALL.plan.bounds == pytest.approx((3.16e-4, 1.0), rel=1e-2)


@pytest.mark.parametrize(("top", "verdict"), [(0.895, "holds"), (0.86, "fails")])
def test_as_good_is_within_a_point_and_a_half(top: float, verdict: str) -> None:
    found = _found("as_good_as_init_a", Behaviour(), Behaviour(), Behaviour(top=top))
    assert (found.verdict, found.estimate) == (verdict, pytest.approx(top - 0.9))


def test_a_difference_that_changes_its_sign_from_seed_to_seed_is_not_decided() -> None:
    uneven = Behaviour(uneven=0.03)
    for key in ("as_good_as_init_a", "better_than_init_b"):
        assert _found(key, Behaviour(), Behaviour(), uneven).verdict == "undecided"


@pytest.mark.parametrize(("top", "verdict"), [(0.87, "holds"), (0.93, "fails")])
def test_better_than_with_the_larger_variance_is_a_test_of_signs(top: float, verdict: str) -> None:
    found = _found("better_than_init_b", Behaviour(), Behaviour(top=top), Behaviour())
    assert (found.verdict, found.estimate) == (verdict, pytest.approx(0.9 - top))


def test_the_same_edge_at_every_seed_is_within_an_octave() -> None:
    found = _stable("stable_rate_as_init_a", a=3e-2, b=3e-3, small_b=3e-2)
    assert (found.verdict, found.estimate) == ("holds", 0.0)


def test_one_step_of_the_grid_at_every_seed_is_a_difference() -> None:
    found = _stable("stable_rate_as_init_a", a=3e-2, b=3e-3, small_b=1e-2)
    assert (found.verdict, found.estimate) == ("fails", pytest.approx(-STEP, abs=1e-4))


@pytest.mark.parametrize("a", [math.inf, 3e-1])
def test_an_edge_that_was_not_reached_shows_no_equality(a: float) -> None:
    found = _stable("stable_rate_as_init_a", a=a, b=3e-3, small_b=math.inf)
    assert (found.verdict, found.p) == ("undecided", None)


def test_a_best_rate_at_an_end_of_the_grid_leaves_the_accuracies_open() -> None:
    for key in ("as_good_as_init_a", "better_than_init_b"):
        found = _found(key, Behaviour(), Behaviour(top=0.8), Behaviour(best=1e-5))
        assert found.verdict == "undecided"
        assert "the best rate of Init[B], variance 1/n is the first or the last one tried" in found.ours


@pytest.mark.parametrize(
    ("b", "verdict", "steps"), [(3e-3, "holds", 2), (math.inf, "fails", -3), (3e-2, "undecided", 0)]
)
def test_the_stable_rate_is_held_against_that_of_the_larger_variance(b: float, verdict: str, steps: int) -> None:
    found = _stable("stable_rate_larger", a=3e-2, b=b, small_b=3e-2)
    assert (found.verdict, found.estimate) == (verdict, pytest.approx(steps * STEP, abs=1e-4))


def test_nothing_is_judged_without_records() -> None:
    assert {claim.finding(Evidence()).ours for claim in CLAIMS} == {"Not run yet: trec6."}
    with pytest.raises(MissingEvidenceError, match="trec6, mnli"):
        ARTEFACT.figure(Evidence())


def test_the_figure_tells_the_variances_apart() -> None:
    drawn = ARTEFACT.figure(_evidence(Behaviour(), Behaviour(), Behaviour())).plotly
    assert {"Init[A]", "Init[B], variance 1/n", "Init[B], variance 1/r"} <= {trace.name for trace in drawn.data}
