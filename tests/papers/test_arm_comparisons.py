from __future__ import annotations

import pytest

from asymlora.papers.arm_comparisons import (
    DOUBLED,
    as_good,
    at_rank,
    compared,
    on_each,
    plan_of,
    rates_drawn,
    scale_sets,
)
from asymlora.papers.zhu_settings import B_ONLY, BOTH
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, PartNotRunError, SweepEvidence
from asymlora.reproduce.paired_tests import NATS
from asymlora.reproduce.plain_findings import exact_finding
from asymlora.sweep.grid import cells
from asymlora.train.recipe import Recipe
from papers.made_arms import raised, swept

RATES = (1e-4, 1e-3, 1e-2)
PLAN = plan_of(Recipe(), (BOTH, B_ONLY), RATES)
LOSSES = [2.0, 2.1, 2.2, 2.3, 2.4, 2.5]


def _ended(by: float, **more: float) -> SweepEvidence:
    return swept(PLAN, {"both": {"loss": LOSSES}, "b_only": {"loss": raised(LOSSES, by)}}, best=more)


def test_an_arm_at_twice_the_rank_keeps_its_scaling() -> None:
    recipe = Recipe.from_dict({"adapter": {"rank": 4, "alpha": 5}})
    plan = plan_of(recipe, (BOTH, at_rank(B_ONLY, 8, name=DOUBLED)), RATES)
    specs = {cell.label: cell.recipe.adapter for cell in cells(plan)}
    assert {name: spec.rank for name, spec in specs.items()} == {"both": 4, DOUBLED: 8}
    assert {spec.scaling_factor for spec in specs.values()} == {2.0}


def test_a_bounded_grid_grows_by_one_rate() -> None:
    assert PLAN.bounds is None
    assert plan_of(Recipe(), (BOTH,), RATES, bounded=True).bounds == (1e-5, 1e-1)
    assert (PLAN.tuning_seeds, PLAN.closing_seeds) == ((200, 201), (0, 1, 2, 3, 4, 5))


@pytest.mark.parametrize(("by", "verdict"), [(0.1, "holds"), (-0.1, "fails")])
def test_a_difference_is_judged_by_its_sign_and_told_with_the_rates(by: float, verdict: str) -> None:
    found = compared(_ended(by), ("b_only", "both"), metric="loss", show=NATS, claimed="greater", what="Loss")
    assert (found.verdict, found.pairs) == (verdict, 6)
    assert found.estimate == pytest.approx(1.025 * by)
    assert "b_only: best rate 1e-3, interior of 1e-4 to 1e-2. both: best rate 1e-3" in found.ours


@pytest.mark.parametrize(("by", "verdict"), [(0.01, "holds"), (0.1, "fails"), (-0.1, "holds")])
def test_what_is_better_or_worse_within_the_margin_is_as_good(by: float, verdict: str) -> None:
    found = as_good(_ended(by), ("b_only", "both"), metric="loss", margin=0.05, show=NATS, what="Loss", better="less")
    assert found.verdict == verdict


def test_a_best_rate_at_an_end_leaves_both_tests_open() -> None:
    sweep = _ended(0.1, b_only=1e-2)
    found = compared(sweep, ("b_only", "both"), metric="loss", show=NATS, claimed="greater", what="Loss")
    equal = as_good(sweep, ("b_only", "both"), metric="loss", margin=1.0, show=NATS, what="Loss", better="less")
    assert (found.verdict, equal.verdict) == ("undecided", "undecided")
    assert "the best rate of B-only is the first or the last one tried" in found.ours


def test_a_claim_on_two_sets_holds_where_it_holds_on_both_and_needs_both() -> None:
    sets = {"one": "One", "two": "Two"}
    evidence = Evidence(sweeps={"one": _ended(0.1), "two": _ended(-0.1)})
    verdicts = {id(evidence.sweep("one")): True, id(evidence.sweep("two")): False}
    found = on_each(evidence, sets, lambda sweep: exact_finding(verdicts[id(sweep)], "Said."))
    assert (found.verdict, found.ours) == ("fails", "One (holds): Said. Two (fails): Said.")
    alone = on_each(evidence, {"one": "One"}, lambda sweep: exact_finding(verdicts[id(sweep)], "Said."))
    assert (alone.verdict, alone.ours) == ("holds", "Said.")
    with pytest.raises(PartNotRunError, match="three"):
        on_each(evidence, {**sets, "three": "Three"}, lambda _: exact_finding(True, ""))


def test_the_scale_is_told_by_a_set_that_the_small_one_lacks() -> None:
    small, paper = {"pacs": "PACS"}, {"vlcs": "VLCS", "pacs": "PACS"}
    assert scale_sets(Evidence(), small, paper) == small
    assert scale_sets(Evidence(sweeps={"pacs": _ended(0.1)}), small, paper) == small
    assert scale_sets(Evidence(sweeps={"vlcs": _ended(0.1)}), small, paper) == paper


def test_the_figure_has_a_panel_for_each_sweep_that_was_run() -> None:
    titles = {"one": "First", "two": "Second"}
    with pytest.raises(MissingEvidenceError, match="one, two"):
        rates_drawn(Evidence(), titles, title="Title", y="loss")
    drawn = rates_drawn(Evidence(sweeps={"two": _ended(0.1)}), titles, title="Title", y="loss").plotly
    assert [note.text for note in drawn.layout.annotations if note.text in titles.values()] in ([], ["Second"])
    assert {"LoRA", "B-only"} <= {trace.name for trace in drawn.data}
