"""B alone at twice the rank: equal values and compute by the plans, and what made-up records make of each claim."""

from __future__ import annotations

from pathlib import Path

import pytest

from asymlora.papers.arm_comparisons import DOUBLED
from asymlora.papers.zhu_rank import ARTEFACT, CLAIMS, COMPUTE, SMALL_SETS, paper_parts, small_parts
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, SweepEvidence
from asymlora.reproduce.forecasting import part_runs
from asymlora.sweep.matching import ModelCosts, matched
from asymlora.sweep.run_record import RunRow
from asymlora.tasks.inputs import refuse_unread
from papers.made_sweeps import Behaviour, made

ROOT = Path("nowhere")
PARTS = {part.name: part for part in small_parts(ROOT)}
SAME = Behaviour()


def _evidence(both: Behaviour, doubled: Behaviour, single: Behaviour = SAME) -> Evidence:
    arms = {"both": both, DOUBLED: doubled, "b_only": single}
    return Evidence(sweeps={name: made(part.plan, arms) for name, part in PARTS.items()})


def _found(key: str, evidence: Evidence) -> Finding:
    (claim,) = [claim for claim in CLAIMS if claim.key == key]
    return claim.finding(evidence)


def _changed(evidence: Evidence, arm: str, **changes: object) -> Evidence:
    sweeps = {
        name: SweepEvidence(
            plan=sweep.plan,
            rows=[RunRow.from_dict({**row.to_dict(), **(changes if row.arm == arm else {})}) for row in sweep.rows],
        )
        for name, sweep in evidence.sweeps.items()
    }
    return Evidence(sweeps=sweeps)


def test_all_arms_are_held_to_the_compute_of_both_factors() -> None:
    for part in (*PARTS.values(), *paper_parts(ROOT)):
        assert part.plan.match == "compute"
        assert [arm.name for arm in part.plan.arms] == ["both", DOUBLED, "b_only"]
        assert [arm.options["adapter.rank"] for arm in part.plan.arms] == [8, 16, 8]
        assert part.plan.recipe.adapter.alpha is None
        assert (len(part.plan.tuning_seeds), len(part.plan.closing_seeds)) == (2, 10)
        refuse_unread(part.plan.recipe.task, part.plan.recipe.data)
    assert [part_runs(part).first for part in PARTS.values()] == [3 * (4 * 2 + 10)] * 2


def test_twice_the_rank_is_exactly_as_many_values_and_as_much_compute() -> None:
    costs = ModelCosts()
    part = paper_parts(ROOT)[0]
    both, doubled, single = (
        cell.recipe for cell in matched(part.plan, factor_values=costs.factor_values, flops=costs.flops)
    )
    assert costs.factor_values(both) == costs.factor_values(doubled) == 2 * costs.factor_values(single) == 786_432
    flops = {r.adapter.rank: (costs.flops(r) or 0) * r.train.steps for r in (both, doubled)}
    assert flops[16] / flops[8] == pytest.approx(1, abs=COMPUTE)
    # Twice the rank costs more a step, one factor at the same rank less.
    assert doubled.train.steps < both.train.steps < single.train.steps


@pytest.mark.parametrize(("top", "verdict"), [(0.905, "holds"), (0.86, "fails"), (0.94, "fails")])
def test_as_good_is_within_two_points_in_the_mean_of_both_sets(top: float, verdict: str) -> None:
    found = _found("as_good_as_both", _evidence(Behaviour(), Behaviour(top=top)))
    assert found.verdict == verdict
    assert all(title in found.ours for title in SMALL_SETS.values())


def test_differences_of_two_sets_that_cancel_are_told_beside_the_mean() -> None:
    arms = {"both": SAME, "b_only": SAME}
    tops = {"trec6": 0.96, "subj": 0.84}
    sweeps = {name: made(part.plan, {**arms, DOUBLED: Behaviour(top=tops[name])}) for name, part in PARTS.items()}
    found = _found("as_good_as_both", Evidence(sweeps=sweeps))
    assert found.verdict == "holds"
    assert all(said in found.ours for said in ("TREC-6 +6.00 points", "SUBJ -6.00 points"))


def test_a_best_rate_at_an_end_leaves_it_open() -> None:
    found = _found("as_good_as_both", _evidence(Behaviour(), Behaviour(best=1e-5)))
    assert found.verdict == "undecided"
    assert (
        "of B-only at twice the rank on TREC-6 and of B-only at twice the rank on SUBJ is the first or the last"
        in found.ours
    )


def test_values_are_equal_only_where_every_run_has_as_many() -> None:
    evidence = _evidence(Behaviour(), Behaviour())
    assert _found("equal_values", evidence).verdict == "holds"
    assert _found("equal_values", _changed(evidence, DOUBLED, trained_parameters=101)).verdict == "fails"
    # Of the arm at the same rank nothing is claimed.
    assert _found("equal_values", _changed(evidence, "b_only", trained_parameters=55)).verdict == "holds"


@pytest.mark.parametrize(("flops", "verdict"), [(10.19, "holds"), (10.21, "fails"), (None, "undecided")])
def test_compute_is_equal_within_two_per_cent(flops: float | None, verdict: str) -> None:
    evidence = _changed(_evidence(Behaviour(), Behaviour()), DOUBLED, flops_per_step=flops)
    assert _found("equal_compute", evidence).verdict == verdict


@pytest.mark.parametrize(("top", "verdict"), [(0.88, "holds"), (0.92, "fails"), (0.9, "undecided")])
def test_doubling_is_held_against_the_same_factor_at_the_same_rank(top: float, verdict: str) -> None:
    found = _found("doubling_helps", _evidence(Behaviour(), Behaviour(), Behaviour(top=top)))
    assert (found.verdict, found.estimate) == (verdict, pytest.approx(0.9 - top))


def test_nothing_is_judged_without_records() -> None:
    assert {claim.finding(Evidence()).verdict for claim in CLAIMS} == {"undecided"}
    with pytest.raises(MissingEvidenceError, match="trec6, subj, rte, cola"):
        ARTEFACT.figure(Evidence())


def test_what_differs_is_listed_with_a_reason() -> None:
    for scale in (ARTEFACT.small, ARTEFACT.paper):
        assert all(row.what and row.paper and row.ours and row.why for row in scale.settings)
        assert len({row.what for row in scale.settings}) == len(scale.settings)


def test_the_figure_has_a_panel_a_set() -> None:
    figure = ARTEFACT.figure(_evidence(Behaviour(), Behaviour())).plotly
    assert [note.text for note in figure.layout.annotations] == list(SMALL_SETS.values())
