"""What zhu_gap measures: loss and accuracy on training and test rows along the steps, of arms that are tuned first.

A point is one arm on one set: its rate is chosen on validation and tuning seeds as in a sweep, then fresh seeds are
trained at it and both parts are scored on the way. No torch at import.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from asymlora.errors import DivergedError, SpecError
from asymlora.papers.row_scores import scores_of
from asymlora.reproduce.evidence import Record
from asymlora.sweep.grid import Cell, SweepPlan, cells, choice, closing_jobs, tuning_jobs
from asymlora.sweep.rates import RateChoice
from asymlora.sweep.run_record import RunRow

if TYPE_CHECKING:
    from asymlora.sweep.loaded_base import LoadedBase
    from asymlora.sweep.run_record import RunJob
    from asymlora.tasks.task import Prepared

Point = Mapping[str, Any]
SCORED = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
"""What stands beside ``step`` in a record."""


def gap_points(plans: Mapping[str, SweepPlan], *, marks: int) -> tuple[Point, ...]:
    """Return one point for each set and arm; it holds what a plan says, so that another plan makes other points.

    Args:
        plans: By set: arms, rates, seeds, and the recipe with its training rows.
        marks: How often both parts are scored beside the first step: after so many equal stretches, the last of them
            at the end.
    """
    return tuple(
        {
            "set": name, "arm": cell.arm, "rank": cell.recipe.adapter.rank, "rows": plan.recipe.data.max_rows,
            "steps": cell.recipe.train.steps, "batch_size": cell.recipe.train.batch_size, "rates": list(plan.rates),
            "tuning_seeds": list(plan.tuning_seeds), "closing_seeds": list(plan.closing_seeds), "marks": marks,
        }
        for name, plan in plans.items()
        for cell in cells(plan)
    )  # fmt: skip


def measure_gap(point: Point, *, plans: Mapping[str, SweepPlan]) -> list[Record]:
    """Choose the rate of one arm, train fresh seeds at it, and score training and test rows along the steps.

    Args:
        point: As `gap_points` gives it.
        plans: By set, those that the points were made from.

    Returns:
        One record a closing seed: ``set``, ``arm``, ``seed``, ``rate``, whether that is ``interior``, and what `course`
        gives. None where no rate finished with all tuning seeds.
    """
    from asymlora.sweep.loaded_base import LoadedBase

    plan = plans[point["set"]]
    (cell,) = [each for each in cells(plan) if each.arm == point["arm"]]
    found = _tuned(plan, cell)
    if found.best is None:
        return []
    base = LoadedBase(cell.recipe)
    known = {"set": point["set"], "arm": cell.arm, "rate": found.best.lr, "interior": found.interior}
    return [
        {**known, "seed": job.seed, **course(base, job, marks=point["marks"])}
        for job in closing_jobs(plan, cell, found.best.lr)
    ]


def _tuned(plan: SweepPlan, cell: Cell) -> RateChoice:
    """Return the choice of the rate, made as in a sweep of this plan.

    Raises:
        SpecError: A run failed.
    """
    from asymlora.sweep.session import Session

    session, rows = Session(), list[RunRow]()
    while True:
        found = choice(plan, rows, greater_is_better=rows[0].greater_is_better if rows else True)
        if not found.next_rates:
            return found
        for job in tuning_jobs(plan, cell, found.next_rates):
            row = session.run(job)
            if row.status == "failed":
                raise SpecError(f"The run of {job.arm} with seed {job.seed} at rate {row.lr:g} has failed: {row.error}")
            rows.append(row)


def course(base: LoadedBase, job: RunJob, *, marks: int) -> dict[str, Any]:
    """Do one run, scoring training and test rows on the way; the run itself is what it is without.

    Args:
        base: Model and rows.
        job: The run.
        marks: As for `gap_points`.

    Returns:
        ``step`` and those of `SCORED`, and whether the run ``finished``; of one that diverged as far as it came.
    """
    from asymlora.sweep.single_run import SingleRun

    scores = PartScores(base.prepared, every=max(1, job.recipe.train.steps // marks))
    # Both parts are scored here, and the adapter is not kept.
    bare = replace(job, scores_test=False, keeps_adapter=False)
    try:
        SingleRun(base, bare, folder=None, progress=scores).do()
    except DivergedError:
        return {**scores.course, "finished": False}
    return {**scores.course, "finished": True}


class PartScores:
    """Scores training and test rows while a run goes on; told of each step as `asymlora.train.run_watch.Progress` is.

    Args:
        prepared: Model and rows.
        every: Steps between two scores; the first and the last step are scored too.

    Attributes:
        course: ``step`` and those of `SCORED`.
    """

    def __init__(self, prepared: Prepared, *, every: int) -> None:
        self.prepared = prepared
        self.every = every
        self.course: dict[str, list[float]] = {name: [] for name in ("step", *SCORED)}

    def __call__(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """Score both parts, if this step is one to be scored; what is not finite is left out."""
        # The first step's is the score of the start or near it, or a run could be below a level before its first one.
        if step not in (1, total) and step % self.every:
            return
        found = {"step": float(step), **dict(self._scores())}
        if all(map(math.isfinite, found.values())):
            for name, column in self.course.items():
                column.append(found[name])

    def _scores(self) -> Iterator[tuple[str, float]]:
        for part, items in (("train", self.prepared.train), ("test", self.prepared.test)):
            # A training step puts the model back into training mode itself.
            metrics = scores_of(self.prepared.model, self.prepared, items)
            for name in ("loss", "accuracy"):
                yield f"{part}_{name}", float(f"{metrics[name]:.6g}")
