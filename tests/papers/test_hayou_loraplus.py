"""Claims on the init and LoRA+'s ratio: the arms, and what made-up records make of each claim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from asymlora.papers.hayou_loraplus import ARMS, ARTEFACT, CLAIMS, NAMES, arm_name, paper_parts, small_parts
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError
from asymlora.reproduce.forecasting import part_runs
from asymlora.sweep.axes import parse_arm
from asymlora.sweep.grid import cells
from papers.made_sweeps import Behaviour, made

ROOT = Path("nowhere")
(SMALL,) = small_parts(ROOT)
BEST = Behaviour(best=1e-3)
EQUAL = dict.fromkeys(NAMES, BEST)


def _evidence(arms: Mapping[str, Behaviour]) -> Evidence:
    return Evidence(sweeps={"trec6": made(SMALL.plan, {**EQUAL, **arms})})


def _found(key: str, arms: Mapping[str, Behaviour]) -> Finding:
    (claim,) = [claim for claim in CLAIMS if claim.key == key]
    return claim.finding(_evidence(arms))


def test_both_inits_run_at_two_ratios() -> None:
    recipes = {cell.label: cell.recipe.adapter for cell in cells(SMALL.plan)}
    assert {name: (spec.A.lr_ratio, spec.B.lr_ratio) for name, spec in recipes.items()} == {
        "init_a": (1, 1),
        "init_b": (1, 1),
        "init_a_x16": (1, 16),
        "init_b_x16": (1, 16),
    }
    assert {name for name, spec in recipes.items() if spec.A.starts_at_zero} == {"init_b", "init_b_x16"}
    assert part_runs(SMALL).first == 4 * (5 * 2 + 6)
    (paper,) = paper_parts(ROOT)
    assert [cell.label for cell in cells(paper.plan)] == list(recipes)
    assert len(paper.plan.closing_seeds) == len(paper.plan.tuning_seeds) == 6


def test_an_arm_is_what_one_could_type() -> None:
    assert parse_arm("init_b_x16=init_b:adapter.B.lr_ratio=16") == ARMS[-1]


@pytest.mark.parametrize(("lead", "verdict"), [(0.0, "holds"), (0.03, "undecided"), (0.06, "fails")])
def test_the_lead_at_one_rate_is_held_against_that_at_the_largest_ratio(lead: float, verdict: str) -> None:
    arms = {"init_b": replace(BEST, top=0.87), "init_a_x16": replace(BEST, top=0.9 + lead)}
    found = _found("difference_shrinks", arms)
    assert (found.verdict, found.estimate) == (verdict, pytest.approx(0.03 - lead))
    assert "1: +3.00 points; 16: " in found.ours


@pytest.mark.parametrize(("top", "verdict"), [(0.905, "holds"), (0.95, "fails")])
def test_each_init_is_taken_at_its_own_best_ratio(top: float, verdict: str) -> None:
    arms = {"init_a": replace(BEST, top=0.91), "init_b_x16": replace(BEST, top=top)}
    found = _found("equal_at_best_ratio", arms)
    assert (found.verdict, found.estimate) == (verdict, pytest.approx(0.91 - top))
    assert "Init[A] at ratio 1 less Init[B] at ratio 16" in found.ours


def test_an_uneven_difference_around_the_margin_is_not_decided() -> None:
    arms = {"init_a": replace(BEST, top=0.92, uneven=0.03), "init_b_x16": replace(BEST, top=0.905)}
    assert _found("equal_at_best_ratio", arms).verdict == "undecided"


@pytest.mark.parametrize(
    ("best", "verdict", "octaves"),
    [(("init_a", "init_b_x16"), "holds", 4.0), (("init_a_x16", "init_b"), "fails", -4.0)],
)
def test_the_best_ratio_is_found_seed_by_seed(best: tuple[str, str], verdict: str, octaves: float) -> None:
    found = _found("larger_ratio_for_b", dict.fromkeys(best, replace(BEST, top=0.95)))
    assert (found.verdict, found.estimate, found.pairs) == (verdict, octaves, 6)


def test_ratios_that_tie_count_as_their_mean() -> None:
    found = _found("larger_ratio_for_b", {})
    assert (found.verdict, found.estimate) == ("undecided", 0.0)
    assert "Init[A] 1, Init[B] 1" in found.ours


def test_a_best_rate_at_an_end_of_the_grid_leaves_every_claim_open() -> None:
    arms = {"init_b": replace(BEST, top=0.87), "init_a_x16": Behaviour(best=1.0, top=0.87)}
    for claim in CLAIMS:
        found = _found(claim.key, arms)
        assert found.verdict == "undecided"
        assert "the best rate of Init[A], ratio 16 is the first or the last one tried" in found.ours


def test_nothing_is_judged_without_the_arms() -> None:
    only = {"init_a": BEST, "init_b": BEST}
    evidence = Evidence(sweeps={"trec6": made(SMALL.plan, only)})
    findings = [claim.finding(evidence) for claim in CLAIMS]
    assert {found.verdict for found in findings} == {"undecided"}
    with pytest.raises(MissingEvidenceError, match="trec6, mnli"):
        ARTEFACT.figure(Evidence())


def test_the_figure_names_all_arms() -> None:
    names = {trace.name for trace in ARTEFACT.figure(_evidence({})).plotly.data}
    assert {f"Init[{start}], ratio {ratio}" for start in "AB" for ratio in (1, 16)} <= names


def test_names_are_made_of_start_and_ratio() -> None:
    assert arm_name("init_a", 4) == "init_a_x4"
