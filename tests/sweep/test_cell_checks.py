"""What is wrong with an arm is found on a model without weights, before anything is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asymlora.errors import AttachError, NoTargetError, SpecError
from asymlora.sweep.axes import parse_arm
from asymlora.sweep.cell_checks import pruning_problem, ready_cells
from asymlora.sweep.grid import SweepPlan, cells
from asymlora.train.recipe import Recipe


def _plan(recipe: dict[str, Any], *arms: str, **values: Any) -> SweepPlan:
    return SweepPlan(recipe=Recipe.from_dict(recipe), arms=tuple(map(parse_arm, arms)), rates=(1e-3, 1e-2), **values)


def test_every_kind_of_arm_is_attached(small_recipe: dict[str, Any]) -> None:
    arms = ("b_only", "init_a", "hB_zero_A_V", "full", "head", "peft:lora", "peft:ia3")
    assert [cell.label for cell in ready_cells(_plan(small_recipe, *arms))] == list(arms)


def test_an_arm_that_does_not_fit_is_named(small_recipe: dict[str, Any]) -> None:
    with pytest.raises(NoTargetError, match=r"Arm odd: .*q_prj"):
        ready_cells(_plan(small_recipe, "b_only", "odd=b_only:targets=[q_prj]"))
    with pytest.raises(AttachError, match=r"Arm large: .*1000"):
        ready_cells(_plan(small_recipe, "large=b_only:rank=1000", "init_a"))


def test_all_arms_that_do_not_fit_are_named_at_once(small_recipe: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"Arm odd: .*Arm large: "):
        ready_cells(_plan(small_recipe, "odd=b_only:targets=[q_prj]", "large=b_only:rank=1000"))


def test_a_model_that_is_not_there_is_found(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    small_recipe["model"]["name"] = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="Arm b_only"):
        ready_cells(_plan(small_recipe, "b_only"))


def test_sharding_is_refused(small_recipe: dict[str, Any]) -> None:
    small_recipe["train"]["sharding"] = "fsdp"
    with pytest.raises(SpecError, match="sharding"):
        ready_cells(_plan(small_recipe, "b_only"))


def test_early_stopping_without_scores_on_the_way_is_a_problem(small_recipe: dict[str, Any]) -> None:
    plan = _plan(small_recipe, "b_only", "init_a", prune=True)
    assert pruning_problem(plan, ready_cells(plan)) is None
    small_recipe["train"]["evaluate_every"] = small_recipe["train"]["steps"]
    silent = _plan(small_recipe, "b_only", "init_a", prune=True)
    problem = pruning_problem(silent, ready_cells(silent))
    assert problem is not None
    assert "b_only, init_a has none" in problem
    assert pruning_problem(_plan(small_recipe, "b_only", "init_a"), ready_cells(silent)) is None


def test_early_stopping_with_one_rate_is_a_problem(small_recipe: dict[str, Any]) -> None:
    plan = replace(_plan(small_recipe, "b_only", prune=True), rates=(1e-3,))
    assert "with one rate there are none" in str(pruning_problem(plan, cells(plan)))
