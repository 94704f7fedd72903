from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from asymlora.papers.arm_comparisons import DOUBLED
from asymlora.papers.domain_scores import DomainScores
from asymlora.papers.vision_claims import ADAPTERS, FULL, PAPER_SETS, ROWS
from asymlora.papers.zhu_vision import (
    ARTEFACT,
    DOMAIN_SETS,
    HEAD_RATIO,
    PACS_AT_112,
    paper_parts,
    small_parts,
    with_pacs_linked,
    with_sets_linked,
)
from asymlora.reproduce.artefact import MeasuredPart, Part, SweepPart
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError
from asymlora.sweep.grid import cells, job
from asymlora.sweep.matching import ModelCosts
from asymlora.tasks.inputs import refuse_unread
from papers.made_domains import evidence

NOWHERE = Path("nowhere") / "data"


def _sweeps(parts: tuple[Part, ...]) -> dict[str, SweepPart]:
    return {part.name: part for part in parts if isinstance(part, SweepPart)}


SMALL, PAPER = _sweeps(small_parts(NOWHERE)), _sweeps(paper_parts(NOWHERE))


def test_none_of_these_artefacts_loads_a_heavy_package() -> None:
    code = (
        "import sys, asymlora.papers.zhu_vision, asymlora.papers.zhu_llama, asymlora.papers.zhu_summaries\n"
        "sys.exit(bool({'torch', 'transformers', 'plotly', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_each_set_has_three_sweeps_and_the_scores_of_their_closing_runs() -> None:
    assert [part.name for part in small_parts(NOWHERE)] == ["pacs", "pacs_rows", "pacs_full", "pacs_domains"]
    assert len(paper_parts(NOWHERE)) == 4 * len(PAPER_SETS)
    for parts in (small_parts(NOWHERE), paper_parts(NOWHERE)[4:8]):
        sweeps = _sweeps(parts)
        arms = [[arm.name for arm in sweep.plan.arms] for sweep in sweeps.values()]
        assert arms == [list(ADAPTERS), list(ROWS), list(FULL)]
        assert [len(sweep.plan.closing_seeds) for sweep in sweeps.values()] == [6, 3, 3]
        *_, scores = parts
        assert isinstance(scores, MeasuredPart)
        assert len(scores.points) == 3 * 6 + 2 * 3 + 3
        assert {point["sweep"] for point in scores.points} == set(sweeps)


def test_claims_read_parts_that_there_are_and_the_paper_scale_has_them_all() -> None:
    read = {part for claim in ARTEFACT.claims for part in claim.parts}
    assert read == {part.name for part in paper_parts(NOWHERE)} > {part.name for part in small_parts(NOWHERE)}


def test_every_set_is_trained_on_one_domain_and_read_where_it_is_linked() -> None:
    for each in DOMAIN_SETS:
        recipe = PAPER[each.name].plan.recipe
        refuse_unread(recipe.task, recipe.data)
        assert (recipe.data.train_environment, recipe.train.steps) == (each.trained_on, each.steps)
        assert recipe.data.name == str(NOWHERE / each.data.place)
    data = SMALL["pacs"].plan.recipe.data
    assert (data.name, data.train_environment) == (str(NOWHERE / PACS_AT_112.place), "cartoon")


def test_the_papers_arms_adapt_query_key_and_value_of_each_block() -> None:
    costs, one_factor = ModelCosts(), 12 * 3 * 8 * 768
    recipes = {cell.label: cell.recipe for part in ("vlcs", "vlcs_rows") for cell in cells(PAPER[part].plan)}
    assert recipes.pop("head").method == "head"
    assert {name: costs.factor_values(recipe) for name, recipe in recipes.items()} == {
        "both": 2 * one_factor,
        "b_only": one_factor,
        "a_only": one_factor,
        DOUBLED: 2 * one_factor,
    }


def test_arms_differ_in_what_is_trained_and_in_the_rank_alone() -> None:
    recipes = {cell.label: cell.recipe for sweep in SMALL.values() for cell in cells(sweep.plan)}
    ranks = {name: recipe.adapter.rank for name, recipe in recipes.items() if recipe.method == "adapter"}
    assert ranks == {"both": 8, "b_only": 8, "a_only": 8, DOUBLED: 16}
    others = {name: recipe.method for name, recipe in recipes.items() if name not in ranks}
    assert others == {"head": "head", "full": "full"}
    assert len({recipe.train.steps for recipe in recipes.values()}) == 1
    assert {recipe.train.head_start for recipe in recipes.values()} == {"random"}


def test_the_head_of_full_finetuning_keeps_its_ratio_at_every_rate() -> None:
    plan = SMALL["pacs_full"].plan
    (cell,) = cells(plan)
    for lr in plan.rates:
        train = job(plan, cell, lr=lr, seed=0, phase="tuning").recipe.train
        assert train.lr_head == pytest.approx(HEAD_RATIO * lr)
    (paper,) = cells(PAPER["vlcs_full"].plan)
    assert paper.recipe.train.lr_head is None


def test_sets_are_linked_below_the_run_and_scores_look_for_the_sweeps_beside(tmp_path: Path) -> None:
    for prepare, sets in ((with_pacs_linked, ARTEFACT.small.data), (with_sets_linked, ARTEFACT.paper.data)):
        for each in sets:
            (tmp_path / "sets" / each.place).mkdir(parents=True, exist_ok=True)
        root = prepare(tmp_path / "sets", tmp_path / "run")
        assert prepare(tmp_path / "sets", tmp_path / "run") == root
        assert all((root / each.place).resolve() == (tmp_path / "sets" / each.place).resolve() for each in sets)
        *_, scores = small_parts(root)
        assert isinstance(scores, MeasuredPart)
        owner = getattr(scores.measure, "__self__", None)
        assert isinstance(owner, DomainScores)
        assert owner.folder == tmp_path / "run"


def test_the_figure_has_a_panel_for_each_sweep() -> None:
    with pytest.raises(MissingEvidenceError, match="pacs, pacs_rows, pacs_full"):
        ARTEFACT.figure(Evidence())
    drawn = ARTEFACT.figure(evidence("pacs")).plotly.to_json()
    assert all(title in drawn for title in ("PACS", "PACS: further rows", "PACS: every weight"))
