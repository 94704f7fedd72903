"""What the artefact `advice` runs: equal budgets, and what an advice has cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asymlora.errors import SpecError
from asymlora.papers.advice_runs import (
    ARMS,
    PAPER_VALUES,
    SETS,
    VALUES,
    cost_in_steps,
    measure_advised,
    paper_parts,
    plain_recipe,
    small_parts,
)
from asymlora.reproduce.artefact import MeasuredPart, SweepPart
from asymlora.sweep.grid import cells
from asymlora.sweep.matching import ModelCosts
from asymlora.sweep.run_record import RunJob
from asymlora.train.advice_options import AdvisingSettings, refuse_chosen
from asymlora.train.recipe import Recipe
from sweep.made_rows import row

ROOT = Path("nowhere")
RECIPES = {each.name: plain_recipe(each, ROOT) for each in SETS}
POINT: dict[str, Any] = {"set": "trec6", "seed": 4, "steps": 160, "values": 331_776}


def _of_minilm(recipe: Recipe) -> int:
    """Trained values of the factors, from the widths of its layers."""
    layers = 6 * [*4 * [(384, 384)], (384, 1536), (1536, 384)]
    spec = recipe.adapter
    return spec.rank * sum(inputs * spec.trains["A"] + outputs * spec.trains["B"] for inputs, outputs in layers)


@pytest.mark.parametrize(
    ("parts", "count", "values"),
    [(small_parts, _of_minilm, VALUES), (paper_parts, ModelCosts().factor_values, PAPER_VALUES)],
    ids=["small", "paper"],
)
def test_all_plain_arms_train_as_many_values_as_advice_may(parts: Any, count: Any, values: int) -> None:
    sweeps = [part for part in parts(ROOT) if isinstance(part, SweepPart)]
    for part in sweeps:
        assert {count(cell.recipe) for cell in cells(part.plan)} == {values}, part.name
    (measured,) = [part for part in parts(ROOT) if isinstance(part, MeasuredPart)]
    assert {point["values"] for point in measured.points} == {values}
    assert {point["steps"] for point in measured.points} == {part.plan.recipe.train.steps for part in sweeps}


def test_advised_runs_are_paired_with_the_closing_seeds_of_every_sweep() -> None:
    parts = small_parts(ROOT)
    assert [part.name for part in parts] == [
        "trec6_plain", "trec6_own", "trec6_tuned", "sst2_500_plain", "sst2_500_own", "advised",
    ]  # fmt: skip
    (measured,) = [part for part in parts if isinstance(part, MeasuredPart)]
    seeds = {name: {p["seed"] for p in measured.points if p["set"] == name} for name in RECIPES}
    assert all(set(part.plan.closing_seeds) == seeds[part.name.rpartition("_")[0]]
               for part in parts if isinstance(part, SweepPart))  # fmt: skip
    assert [(part.plan.rates, len(part.plan.arms)) for part in parts if isinstance(part, SweepPart)][:2] == [
        ((2e-4,), 2), ((2e-3,), 1),
    ]  # fmt: skip


def test_the_given_recipe_chooses_nothing_that_advice_chooses() -> None:
    for recipe in RECIPES.values():
        refuse_chosen(recipe)
    refuse_chosen(paper_parts(ROOT)[0].plan.recipe)  # pyright: ignore[reportAttributeAccessIssue]
    assert [arm.word for arm in ARMS] == ["lora", "b_only"]


def _advised(given: Recipe, *, head_fitted: bool = True) -> Any:
    """What of an advice is read here; `asymlora.train.advising.Advised` has more."""
    layers = [SimpleNamespace(train=factor) for factor in ("B", "B", "A")]
    return SimpleNamespace(
        given=given, recipe=replace(given, train=replace(given.train, lr=5e-3)), rows=900, batches=2,
        head_fitted=head_fitted, range_test=SimpleNamespace(steps=16, outcome="found"), seconds={"in all": 10.0},
        advice=SimpleNamespace(sites=layers, values=1000, per_site_ranks=False),
    )  # fmt: skip


def test_the_cost_of_an_advice_is_its_steps_batches_and_forward_passes() -> None:
    advised = _advised(Recipe())
    # 900 rows of train and 400 each of validation and test, 32 a batch: 53.1 forward passes, each a third of a step.
    assert cost_in_steps(advised) == {"range_steps": 16, "gradient_steps": 2, "head_steps": 18}
    assert cost_in_steps(_advised(Recipe(), head_fitted=False))["head_steps"] == 0


class _Asked:
    """What `measure_advised` asked for, instead of advice and runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, status: str = "finished") -> None:
        self.jobs: list[RunJob] = []
        self.given: list[tuple[Recipe, AdvisingSettings]] = []
        self.status = status
        asked = self

        class Session:
            def run(self, job: RunJob) -> Any:
                asked.jobs.append(job)
                return replace(
                    row("advised", lr=job.recipe.train.lr, seed=job.seed, value=0.75, phase="closing"),
                    status=asked.status, planned_steps=job.recipe.train.steps, error="no memory.",
                )  # fmt: skip

        monkeypatch.setattr("asymlora.sweep.session.Session", Session)
        monkeypatch.setattr("asymlora.train.advising.advise_recipe", self.advise)

    def advise(self, recipe: Recipe, *, settings: AdvisingSettings) -> Any:
        self.given.append((recipe, settings))
        return _advised(recipe)


def test_a_point_trains_the_advised_recipe_with_what_is_left_and_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _Asked(monkeypatch)
    counted, free = measure_advised(POINT, recipes=RECIPES)
    ((recipe, settings),) = asked.given
    assert (recipe.train.seed, recipe.adapter.seed, recipe.train.steps, settings.values) == (4, 4, 160, 331_776)
    # 16 + 2 steps, and 900 + 2 * 300 rows in batches of 16 at a third of a step each.
    assert [job.recipe.train.steps for job in asked.jobs] == [160 - 16 - 2 - 32, 160]
    assert all(job.recipe.train.evaluate_every == job.recipe.train.steps for job in asked.jobs)
    assert {job.recipe.train.lr for job in asked.jobs} == {5e-3}
    assert all(job.scores_test and not job.keeps_adapter and job.seed == 4 for job in asked.jobs)
    assert (counted["cost_counted"], counted["steps"], free["cost_counted"], free["steps"]) == (True, 110, False, 160)
    assert (counted["accuracy"], counted["sites_B"], counted["lr"]) == (0.75, 2, 5e-3)


def test_a_step_is_left_however_much_the_advice_has_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _Asked(monkeypatch)
    measure_advised({**POINT, "steps": 20}, recipes=RECIPES)
    assert [job.recipe.train.steps for job in asked.jobs] == [1, 20]


def test_a_run_that_failed_leaves_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    _Asked(monkeypatch, status="failed")
    with pytest.raises(SpecError, match=r"ended as 'failed': no memory\. Type the same command"):
        measure_advised(POINT, recipes=RECIPES)
