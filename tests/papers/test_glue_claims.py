"""What made-up records make of each claim on GLUE."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from asymlora.papers.glue_claims import CLAIMS
from asymlora.papers.hayou_glue import paper_parts, small_parts
from asymlora.reproduce.artefact import SweepPart
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence, SweepEvidence
from papers.made_sweeps import LOST, Behaviour, made

ROOT = Path("nowhere")
SMALL = {part.name: part for part in small_parts(ROOT)}
STEP = 0.5 * math.log2(10)
BEST = Behaviour(best=1e-3)
PLAIN = replace(BEST, learnt=0.65)
"""A training loss that is much for six labels and next to none for two."""


def _sweeps(parts: tuple[SweepPart, ...], a: Behaviour, b: Behaviour, *, second: bool = False) -> Evidence:
    plans = {part.name: part.second if second and part.second else part.plan for part in parts}
    return Evidence(sweeps={name: made(plan, {"init_a": a, "init_b": b}) for name, plan in plans.items()})


def _found(key: str, evidence: Evidence) -> Finding:
    (claim,) = [claim for claim in CLAIMS if claim.key == key]
    return claim.finding(evidence)


def _trec6(a: Behaviour, b: Behaviour) -> Evidence:
    return _sweeps((SMALL["trec6"],), a, b)


def test_rates_that_differ_by_a_decade_at_every_seed_are_told_apart() -> None:
    evidence = _trec6(Behaviour(best=1e-2), Behaviour(best=1e-3))
    for key in ("optimal_rates_differ", "optimal_rate_larger"):
        found = _found(key, evidence)
        assert (found.verdict, found.pairs) == ("holds", 6)
        assert found.estimate == pytest.approx(math.log2(10), abs=1e-3)
    assert "init_a: best rate 1e-2, interior of 1e-4 to 1e-1." in found.ours


def test_the_smaller_rate_for_init_a_fails_the_direction_and_not_the_difference() -> None:
    evidence = _trec6(Behaviour(best=1e-3), Behaviour(best=1e-2))
    assert _found("optimal_rates_differ", evidence).verdict == "holds"
    assert _found("optimal_rate_larger", evidence).verdict == "fails"


def test_one_rate_for_both_fails_the_difference_and_leaves_the_direction_open() -> None:
    evidence = _trec6(Behaviour(best=1e-2), Behaviour(best=1e-2, top=0.8))
    assert _found("optimal_rates_differ", evidence).verdict == "fails"
    assert _found("optimal_rate_larger", evidence).verdict == "undecided"


@pytest.mark.parametrize(
    ("lost", "verdict", "octaves"),
    [((1e-1, 1e-2), "holds", 2 * STEP), ((1e-2, 1e-1), "fails", -2 * STEP), ((1e-1, 1e-1), "undecided", 0.0)],
)
def test_the_larger_stable_rate_is_counted_in_octaves(lost: tuple[float, float], verdict: str, octaves: float) -> None:
    found = _found("stable_rate_larger", _trec6(*(Behaviour(best=1e-3, lost_from=rate) for rate in lost)))
    assert (found.verdict, found.estimate) == (verdict, pytest.approx(octaves, abs=1e-4))


@pytest.mark.parametrize(("a", "b", "verdict"), [(1.0, 1e-3, "holds"), (1e-3, 1.0, "fails")])
def test_best_rates_beyond_the_grid_count_where_the_bound_tells_the_sign(a: float, b: float, verdict: str) -> None:
    found = _found("optimal_rate_larger", _trec6(Behaviour(best=a), Behaviour(best=b)))
    assert (found.verdict, found.pairs) == (verdict, 6)
    assert "At 6 seeds (200, 201, 202, 203, 204, 205) a best rate is an end of the grid." in found.ours


@pytest.mark.parametrize("best", [1.0, 1e-6])
def test_two_best_rates_at_one_end_of_the_grid_are_not_found_equal(best: float) -> None:
    evidence = _trec6(Behaviour(best=best), Behaviour(best=best))
    for key in ("optimal_rates_differ", "optimal_rate_larger"):
        assert _found(key, evidence).verdict == "undecided"


def test_bounds_tell_that_rates_differ_and_never_that_they_do_not() -> None:
    # 0.4 octaves apart by the parabola's reach, and the larger one beyond the grid.
    found = _found("optimal_rates_differ", _trec6(Behaviour(best=1.0), Behaviour(best=1e-2)))
    assert found.verdict == "holds"
    assert "count as no difference" not in found.ours


def test_a_rate_that_is_stable_to_the_end_of_the_grid_counts_as_the_largest_and_is_told() -> None:
    found = _found("stable_rate_larger", _trec6(Behaviour(), Behaviour(best=1e-3, lost_from=1e-1)))
    assert (found.verdict, found.estimate) == ("holds", pytest.approx(STEP, abs=1e-4))
    assert "still stable for the first arm at 6 of 6 seeds, for the second at 0 of 6" in found.ours


@pytest.mark.parametrize(
    ("b", "verdict"),
    [
        (replace(BEST, top=0.88), "holds"),
        (replace(BEST, top=0.92), "fails"),
        (replace(BEST, top=0.9, uneven=0.01), "undecided"),
    ],
)
def test_the_average_is_over_the_sets_seed_by_seed(b: Behaviour, verdict: str) -> None:
    found = _found("better_on_average", _learnt_everywhere(BEST, b))
    assert (found.verdict, found.pairs) == (verdict, 6)
    assert found.estimate == pytest.approx(0.9 - b.top)
    assert "Mean over TREC-6, SST-2, CoLA, MRPC, RTE of Init[A]" in found.ours
    assert "Not counted" not in found.ours
    assert "By set: TREC-6 " in found.ours


def _learnt_everywhere(a: Behaviour, b: Behaviour) -> Evidence:
    # Losses that are below nine tenths of two labels' entropy too.
    return _sweeps(tuple(SMALL.values()), *(replace(arm, learnt=0.3, slow_loss=0.3) for arm in (a, b)))


def test_sets_that_count_are_weighed_alike() -> None:
    ahead = _learnt_everywhere(replace(BEST, top=0.93), BEST)
    behind = _learnt_everywhere(replace(BEST, top=0.88), BEST).sweep("rte")
    found = _found("better_on_average", Evidence(sweeps={**ahead.sweeps, "rte": behind}))
    assert found.estimate == pytest.approx((4 * 0.03 - 0.02) / 5)


def test_a_set_counts_where_one_arm_has_learnt_it_and_the_others_stand_beside() -> None:
    sweeps = dict(_sweeps(tuple(SMALL.values()), replace(PLAIN, top=0.92), PLAIN).sweeps)
    arms = {"init_a": replace(PLAIN, top=0.94, learnt=0.3), "init_b": PLAIN}
    sweeps["rte"] = made(SMALL["rte"].plan, arms)
    found = _found("better_on_average", Evidence(sweeps=sweeps))
    assert found.verdict == "holds"
    assert found.estimate == pytest.approx(0.03)
    assert "Mean over TREC-6, RTE of Init[A]" in found.ours
    assert "Not counted, as nothing was learnt there: SST-2, CoLA, MRPC." in found.ours
    assert "Over all 5 sets: +2.40 points" in found.ours


def test_where_no_set_was_learnt_the_average_is_undecided() -> None:
    lost = replace(BEST, learnt=LOST, slow_loss=LOST)
    found = _found("better_on_average", _sweeps(tuple(SMALL.values()), lost, replace(lost, top=0.8)))
    assert (found.verdict, found.estimate) == ("undecided", None)
    assert "On no set have all tuning runs of an arm learnt anything. Over all 5 sets: +10.00 points" in found.ours


def test_a_best_rate_at_an_end_of_the_grid_of_a_set_that_counts_leaves_the_average_open() -> None:
    sweeps = dict(_sweeps(tuple(SMALL.values()), replace(PLAIN, top=0.93), PLAIN).sweeps)
    ends = {"init_a": replace(PLAIN, best=1.0, top=0.93), "init_b": PLAIN}
    sweeps["sst2"] = made(SMALL["sst2"].plan, ends)
    found = _found("better_on_average", Evidence(sweeps=sweeps))
    assert found.verdict == "holds"  # SST-2 does not count
    sweeps["trec6"] = made(SMALL["trec6"].plan, ends)
    found = _found("better_on_average", Evidence(sweeps=sweeps))
    assert found.verdict == "undecided"
    assert "the best rate of Init[A] on TREC-6 is the first or the last one tried" in found.ours


def test_without_one_of_the_sets_there_is_no_average() -> None:
    sweeps = dict(_sweeps(tuple(SMALL.values()), BEST, BEST).sweeps)
    del sweeps["mrpc"]
    found = _found("better_on_average", Evidence(sweeps=sweeps))
    assert (found.verdict, found.ours) == ("undecided", "Not run yet: mrpc.")


def test_the_papers_ratio_and_difference_are_described() -> None:
    evidence = _sweeps(tuple(SMALL.values()), Behaviour(best=3.16e-3), Behaviour(best=1e-3, top=0.88))
    ratio, difference = _found("ratio_of_rates", evidence), _found("difference_by_set", evidence)
    assert (ratio.verdict, difference.verdict) == ("undecided", "undecided")
    assert "SST-2: 3.16e-3 over 1e-3, ratio 3.16;" in ratio.ours
    assert "an end of its grid" not in ratio.ours
    assert "CoLA +2.00 points" in difference.ours


def test_a_best_rate_at_the_end_of_its_grid_is_told_beside_the_ratio() -> None:
    evidence = _sweeps(tuple(SMALL.values()), Behaviour(best=1e-1), Behaviour(best=1e-3))
    assert "one of them at an end of its grid" in _found("ratio_of_rates", evidence).ours


@pytest.mark.parametrize(("loss_b", "verdict"), [(LOST - 0.2, "holds"), (LOST + 0.2, "fails"), (LOST, "undecided")])
def test_the_smallest_rate_is_asked_for_the_training_loss(loss_b: float, verdict: str) -> None:
    evidence = _trec6(Behaviour(slow_loss=LOST), Behaviour(slow_loss=loss_b))
    found = _found("behind_at_small_rates", evidence)
    assert (found.verdict, found.estimate) == (verdict, pytest.approx(LOST - loss_b))
    assert "at the rate 1e-4" in found.ours


def test_sets_that_are_not_at_hand_are_not_testable_at_the_small_scale() -> None:
    for key in ("mnli", "qnli"):
        assert _found(key, _trec6(Behaviour(), Behaviour())).verdict == "not testable here"


def test_records_of_the_papers_scale_are_judged_by_the_same_claims() -> None:
    a = Behaviour(best=4e-5, lost_from=1.6e-4, learnt=0.3)
    b = Behaviour(best=1e-5, top=0.85, lost_from=8e-5, learnt=0.3)
    three = _sweeps(paper_parts(ROOT), a, b)
    assert {claim.key: claim.finding(three).verdict for claim in CLAIMS} == {c.key: "undecided" for c in CLAIMS}
    ten = _sweeps(paper_parts(ROOT), a, b, second=True)
    decided = {claim.key: claim.finding(ten).verdict for claim in CLAIMS}
    assert [key for key, verdict in decided.items() if verdict == "holds"] == [
        "optimal_rates_differ",
        "optimal_rate_larger",
        "better_on_average",
        "stable_rate_larger",
        "mnli",
        "qnli",
    ]
    assert _found("stable_rate_larger", ten).estimate == pytest.approx(1.0)


def test_each_test_of_ours_says_what_was_known_before() -> None:
    assert all(claim.test.startswith("None: ") or "Known before: " in claim.test for claim in CLAIMS)


def test_rows_of_an_earlier_plan_are_not_read() -> None:
    whole = _trec6(Behaviour(slow_loss=LOST), Behaviour())
    rows = whole.sweep("trec6").rows
    seeds = [200, 201, 202, 203, 204, 205]
    other = [replace(row, id=f"{row.id} old", seed=row.seed + 100) for row in rows if row.phase == "tuning"]
    sweep = SweepEvidence(plan=whole.sweep("trec6").plan, rows=[*rows, *other])
    found = _found("behind_at_small_rates", Evidence(sweeps={"trec6": sweep}))
    assert found.pairs == len(seeds)
