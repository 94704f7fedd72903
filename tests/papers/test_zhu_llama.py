from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from asymlora.papers import hayou_llama
from asymlora.papers.arm_comparisons import DOUBLED
from asymlora.papers.zhu_llama import ARTEFACT, BY_TEXT, PART, STEPS, paper_parts, small_parts
from asymlora.reproduce.artefact import SweepPart
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError
from asymlora.sweep.grid import cells
from asymlora.sweep.matching import ModelCosts
from asymlora.tasks.inputs import refuse_unread
from papers.made_arms import raised, swept

NOWHERE = Path("nowhere")
CLAIMS = {claim.key: claim for claim in ARTEFACT.claims}
RIGHT, LOSS = [0.50, 0.53, 0.56, 0.50, 0.53, 0.56], [1.0, 1.1, 1.2, 1.0, 1.1, 1.2]


def _part(made: tuple[object, ...]) -> SweepPart:
    (part,) = made
    assert isinstance(part, SweepPart)
    return part


SMALL, PAPER = _part(small_parts(NOWHERE)), _part(paper_parts(NOWHERE))


def _found(key: str, **arms: tuple[float, float]) -> Finding:
    figures = {
        arm.name: {
            BY_TEXT: raised(RIGHT, arms.get(arm.name, (0, 0))[0]),
            "loss": raised(LOSS, arms.get(arm.name, (0, 0))[1]),
        }
        for arm in SMALL.plan.arms
    }
    return CLAIMS[key].finding(Evidence(sweeps={PART: swept(SMALL.plan, figures)}))


def test_printed_shares_are_held_against_what_is_trained() -> None:
    costs = ModelCosts()
    recipes = {cell.label: cell.recipe for cell in cells(PAPER.plan)}
    values = {name: costs.factor_values(recipe) for name, recipe in recipes.items()}
    assert {name: (recipe.adapter.rank, values[name]) for name, recipe in recipes.items()} == {
        "both": (32, 16_777_216),
        "b_only": (32, 8_388_608),
        "a_only": (32, 8_388_608),
        DOUBLED: (64, 16_777_216),
    }
    # All but the misprinted one are right to the digits that are printed.
    assert {name: printed.agreement(values[name]) for name, printed in PAPER.printed.items()} == {
        "both": "equal as cut",
        "b_only": "equal",
        "a_only": "equal",
        DOUBLED: "differs",
    }
    assert "misprint" in PAPER.printed[DOUBLED].where


def test_the_small_scale_has_the_rows_of_the_other_paper_and_fewer_steps() -> None:
    other = _part(hayou_llama.small_parts(NOWHERE)).plan.recipe
    recipe = SMALL.plan.recipe
    refuse_unread(recipe.task, recipe.data)
    assert (replace(recipe.data, max_scored_rows=24), recipe.model) == (other.data, other.model)
    assert recipe.train.steps == recipe.train.evaluate_every == STEPS < other.train.steps
    assert ARTEFACT.small.prepare is hayou_llama.with_rows_made
    specs = {cell.label: cell.recipe.adapter for cell in cells(SMALL.plan)}
    assert {name: spec.rank for name, spec in specs.items()} == {"both": 8, "b_only": 8, "a_only": 8, DOUBLED: 16}
    assert {name: spec.trains for name, spec in specs.items()} == {
        "both": {"A": True, "B": True},
        "b_only": {"A": False, "B": True},
        "a_only": {"A": True, "B": False},
        DOUBLED: {"A": False, "B": True},
    }
    assert {spec.scaling_factor for spec in specs.values()} == {2.0}


def test_the_papers_scale_is_five_shot_mmlu_below_the_data_root() -> None:
    data = PAPER.plan.recipe.data
    refuse_unread(PAPER.plan.recipe.task, data)
    assert (data.name, data.shots, data.choices) == ("tatsu-lab/alpaca", 5, "nowhere/instructions/mmlu.jsonl")


@pytest.mark.parametrize(
    ("key", "arms", "verdict"),
    [
        ("b_over_a_choices", {"a_only": (-0.1, 0.0)}, "holds"),
        ("b_over_a_choices", {"a_only": (0.1, 0.0)}, "fails"),
        ("b_over_a_loss", {"a_only": (0.0, 0.2)}, "holds"),
        ("b_over_a_loss", {"a_only": (0.0, -0.2)}, "fails"),
        ("doubled_over_both_choices", {DOUBLED: (0.1, 0.0)}, "holds"),
        ("doubled_over_both_choices", {DOUBLED: (-0.1, 0.0)}, "fails"),
        ("doubled_over_both_loss", {DOUBLED: (0.0, -0.2)}, "holds"),
        ("doubled_over_both_loss", {"b_only": (0.0, -0.2)}, "undecided"),
        ("nearly_as_well", {"b_only": (0.0, 0.01)}, "holds"),
        ("nearly_as_well", {"b_only": (0.0, 0.1)}, "fails"),
    ],
)
def test_each_pair_of_the_table_is_held_against_each_other(
    key: str, arms: dict[str, tuple[float, float]], verdict: str
) -> None:
    assert _found(key, **arms).verdict == verdict


def test_the_table_is_told_and_not_tested() -> None:
    found = _found("table", **{DOUBLED: (0.1, -0.1)})
    assert (found.verdict, found.p, found.pairs) == ("undecided", None, 6)
    assert "B-only at twice the rank 63.25 points (6 seeds)" in found.ours
    assert "Test loss: LoRA 1.1000 nats (6 seeds)" in found.ours


def test_nothing_is_judged_without_records() -> None:
    assert {claim.finding(Evidence()).ours for claim in ARTEFACT.claims} == {f"Not run yet: {PART}."}
    with pytest.raises(MissingEvidenceError, match=PART):
        ARTEFACT.figure(Evidence())
