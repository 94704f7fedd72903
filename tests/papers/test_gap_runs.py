"""Scores on training and test rows along a run, which is the run that it is without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from asymlora.papers import gap_runs
from asymlora.papers.gap_runs import SCORED, course, gap_points, measure_gap
from asymlora.papers.zhu_settings import B_ONLY, BOTH
from asymlora.sweep.grid import SweepPlan, cells, closing_jobs
from asymlora.sweep.loaded_base import LoadedBase
from asymlora.sweep.run_record import RunJob
from asymlora.sweep.session import Session
from asymlora.train.recipe import Recipe


def _plan(small_recipe: Mapping[str, Any], **changes: Any) -> SweepPlan:
    recipe = Recipe.from_dict({**small_recipe, "adapter": {"preset": "b_only", "rank": 2, "dropout": 0.2}})
    recipe = replace(recipe, train=replace(recipe.train, steps=6, evaluate_every=6, head_start="random"))
    plan: dict[str, Any] = {
        "recipe": recipe, "arms": (BOTH, B_ONLY), "rates": (1e-3, 1e-2), "bounds": (1e-4, 1e-1), "tuning_seeds": (200,),
        "closing_seeds": (0,),
    }  # fmt: skip
    return SweepPlan(**{**plan, **changes})


def _job(plan: SweepPlan, lr: float) -> RunJob:
    return closing_jobs(plan, cells(plan)[1], lr)[0]


def test_a_run_that_is_scored_on_the_way_ends_as_it_would_have(small_recipe: dict[str, Any]) -> None:
    job = replace(_job(_plan(small_recipe), 1e-2), keeps_adapter=False)
    alone = Session().run(job)
    base = LoadedBase(job.recipe)
    found = course(base, job, marks=3)
    assert found["step"] == [1.0, 2.0, 4.0, 6.0]
    assert found["finished"] is True
    assert alone.test is not None
    assert found["test_loss"][-1] == pytest.approx(alone.test["loss"], rel=1e-5)
    assert found["test_accuracy"][-1] == pytest.approx(alone.test["accuracy"], rel=1e-5)
    assert len(set(found["train_loss"])) == 4
    # One that diverges ends its course there.
    lost = course(base, _job(_plan(small_recipe), 1e30), marks=6)
    assert lost["finished"] is False
    assert len(lost["step"]) < 6


def test_an_arm_is_tuned_as_in_a_sweep_and_trained_at_what_that_chose(
    small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = {"reviews": _plan(small_recipe, closing_seeds=(0, 1))}
    points = gap_points(plans, marks=2)
    assert [(point["arm"], point["rank"], point["marks"]) for point in points] == [("both", 2, 2), ("b_only", 2, 2)]
    # Made-up validation, best at 1e-2, an end of the grid: it grows by one rate and no farther.
    tried: list[float] = []
    ran = Session.run

    def run(self: Session, job: RunJob, **options: Any) -> Any:
        tried.append(job.recipe.train.lr)
        row = ran(self, replace(job, recipe=replace(job.recipe, train=replace(job.recipe.train, steps=1))), **options)
        return replace(row, lr=tried[-1], validation=1 - abs(tried[-1] - 1e-2))

    monkeypatch.setattr(Session, "run", run)
    monkeypatch.setattr(gap_runs, "course", lambda base, job, marks: {"marks": marks, "lr": job.recipe.train.lr})
    records = measure_gap(points[1], plans=plans)
    assert tried == [1e-3, 1e-2, 1e-1]
    common = {"set": "reviews", "arm": "b_only", "rate": 1e-2, "interior": True, "marks": 2, "lr": 1e-2}
    assert records == [{**common, "seed": 0}, {**common, "seed": 1}]
    assert set(SCORED) == {"train_loss", "train_accuracy", "test_loss", "test_accuracy"}
