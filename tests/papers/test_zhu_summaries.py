from __future__ import annotations

from pathlib import Path

import pytest

from asymlora.papers.zhu_summaries import ARMS, ARTEFACT, paper_parts, small_parts
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError
from asymlora.reproduce.missing_inputs import missing_inputs
from asymlora.sweep.grid import cells
from asymlora.sweep.matching import ModelCosts
from asymlora.tasks.inputs import refuse_unread
from papers.made_arms import raised, swept

NOWHERE = Path("nowhere")
(SMALL,) = small_parts(NOWHERE)
PAPER = {part.name: part for part in paper_parts(NOWHERE)}
CLAIMS = {claim.key: claim for claim in ARTEFACT.claims}
ROUGE, LOSS = [0.60, 0.61, 0.62, 0.60, 0.61, 0.62], [3.0, 3.1, 3.2, 3.0, 3.1, 3.2]


def _figures(rouge: float, loss: float) -> dict[str, list[float]]:
    scores = dict.fromkeys(("rouge1", "rouge2", "rougeL"), raised(ROUGE, rouge))
    return {**scores, "loss": raised(LOSS, loss)}


def _evidence(b_only: dict[str, list[float]], a_only: dict[str, list[float]], *parts: str) -> Evidence:
    arms = {"both": _figures(0, 0), "b_only": b_only, "a_only": a_only}
    plans = {SMALL.name: SMALL.plan, **{name: part.plan for name, part in PAPER.items()}}
    return Evidence(sweeps={part: swept(plans[part], arms) for part in parts or (SMALL.name,)})


def _found(key: str, *, b: tuple[float, float] = (0, 0), a: tuple[float, float] = (0, 0)) -> Finding:
    return CLAIMS[key].finding(_evidence(_figures(*b), _figures(*a)))


def test_arms_train_as_many_values_as_are_printed_at_the_papers_scale() -> None:
    costs = ModelCosts()
    recipes = {cell.label: cell.recipe for cell in cells(PAPER["xsum"].plan)}
    assert {name: recipe.adapter.rank for name, recipe in recipes.items()} == {"both": 8, "b_only": 16, "a_only": 16}
    values = {costs.factor_values(recipe) for recipe in recipes.values()}
    assert values == {1_769_472}
    assert {printed.agreement(1_769_472) for printed in PAPER["xsum"].printed.values()} == {"equal"}
    assert PAPER["xsum"].printed.keys() == recipes.keys()


def test_both_sets_of_the_paper_are_trained_for_fifteen_epochs() -> None:
    rows = {"xsum": 204_045, "cnn_dailymail": 287_113}
    for name, part in PAPER.items():
        recipe = part.plan.recipe
        refuse_unread(recipe.task, recipe.data)
        assert recipe.train.steps * recipe.train.batch_size / rows[name] == pytest.approx(15, abs=1e-3)
        assert 5e-4 in part.plan.rates
    assert {name: part.plan.recipe.data.beams for name, part in PAPER.items()} == {"xsum": 8, "cnn_dailymail": 4}


def test_the_small_scale_is_the_denoiser_at_equal_trained_values() -> None:
    recipes = {cell.label: cell.recipe for cell in cells(SMALL.plan)}
    assert {name: recipe.adapter.rank for name, recipe in recipes.items()} == {"both": 8, "b_only": 16, "a_only": 16}
    assert {recipe.adapter.scaling_factor for recipe in recipes.values()} == {2.0}
    assert SMALL.plan.recipe.data.name == str(NOWHERE / ARTEFACT.small.data[0].place)
    assert len(ARMS) * (len(SMALL.plan.rates) * 2 + 6) == 42
    refuse_unread(SMALL.plan.recipe.task, SMALL.plan.recipe.data)


def test_a_missing_denoiser_is_told_with_the_command_that_makes_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    missing = missing_inputs(ARTEFACT.small, (SMALL,), data_root=tmp_path)
    assert any("python -m asymlora.tasks.denoiser" in said for said in missing.data)
    assert any("seq2seq/mrpc_paraphrase" in said for said in missing.data)


@pytest.mark.parametrize(
    ("key", "b", "verdict"),
    [
        ("below_both", (-0.02, 0), "holds"),
        ("below_both", (0.02, 0), "fails"),
        ("higher_loss", (0, 0.1), "holds"),
        ("higher_loss", (0, -0.1), "fails"),
        ("nearly_as_well", (-0.002, 0), "holds"),
        ("nearly_as_well", (-0.03, 0), "fails"),
        ("above_a_only", (0.02, 0), "holds"),
        ("above_a_only", (-0.02, 0), "fails"),
        ("lower_loss_than_a_only", (0, -0.1), "holds"),
        ("lower_loss_than_a_only", (0, 0.1), "fails"),
    ],
)
def test_b_only_is_held_against_each_other_arm(key: str, b: tuple[float, float], verdict: str) -> None:
    assert _found(key, b=b).verdict == verdict


def test_at_the_papers_scale_a_claim_holds_on_both_sets_or_not_at_all() -> None:
    worse, better = _figures(-0.02, 0), _figures(0.02, 0)
    assert CLAIMS["below_both"].finding(_evidence(worse, worse, *PAPER)).verdict == "holds"
    sweeps = {**_evidence(worse, worse, *PAPER).sweeps, "xsum": _evidence(better, worse, "xsum").sweeps["xsum"]}
    found = CLAIMS["below_both"].finding(Evidence(sweeps=sweeps))
    assert (found.verdict, found.joined) == ("fails", 2)
    assert CLAIMS["below_both"].finding(_evidence(worse, worse, "xsum")).ours == "Not run yet: cnn_dailymail."


def test_all_three_scores_are_told_and_not_tested() -> None:
    found = _found("all_scores", b=(-0.02, 0), a=(-0.04, 0))
    assert (found.verdict, found.p) == ("undecided", None)
    assert "ROUGE-2: LoRA 61.00 points (6 seeds), B-only 58.95 points (6 seeds)" in found.ours
    assert "B-only less LoRA -2.05 points, less A-only +2.05 points." in found.ours


def test_nothing_is_judged_without_records() -> None:
    assert {claim.finding(Evidence()).ours for claim in ARTEFACT.claims} == {"Not run yet: paraphrase."}
    with pytest.raises(MissingEvidenceError, match="paraphrase"):
        ARTEFACT.figure(Evidence())
