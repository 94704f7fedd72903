"""The runs of a search: points that a sampler proposes, each on every tuning seed, until the best one is known."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from asymlora.sweep.grid import Cell, SweepPlan, job
from asymlora.sweep.pruning import with_rivals
from asymlora.sweep.recipe_fields import with_values
from asymlora.sweep.run_record import RunJob, RunRow
from asymlora.sweep.searching import LEARNING_RATE, Outcome, Point, Proposals, Search
from asymlora.train.recipe import at_rate


class Doer(Protocol):
    """What does runs: `asymlora.sweep.engine.SweepRuns`."""

    def do(self, jobs: Sequence[RunJob]) -> list[RunRow]:
        """Do runs and return their rows, in the order of the jobs."""
        ...


def search_cell(plan: SweepPlan, cell: Cell, runs: Doer) -> Cell | None:
    """Search one cell and return it at its best point.

    Args:
        plan: The plan, with a search.
        cell: The cell.
        runs: What does the runs.

    Returns:
        The cell with the best point's values, ``train.lr`` in its recipe; None where no point has all of its seeds.
    """
    assert plan.search is not None
    search: Search = plan.search
    proposals = Proposals(search)
    found: list[tuple[float, Point]] = []
    earlier: dict[str, RunRow] = {}
    for first in range(0, search.trials, search.batch):
        asked = proposals.ask(min(search.batch, search.trials - first))
        jobs = {number: _jobs(plan, at_point(cell, point), earlier.values()) for number, point in asked}
        rows = iter(runs.do([each for several in jobs.values() for each in several]))
        ended = {number: [next(rows) for _ in several] for number, several in jobs.items()}
        earlier |= {row.id: row for of in ended.values() for row in of}
        outcomes = {number: outcome_of(of) for number, of in ended.items()}
        proposals.tell(outcomes)
        found += [(value, point) for number, point in asked if (value := _settled(outcomes[number])) is not None]
    # Of points that tie, the one that was proposed first.
    return at_point(cell, min(found, key=lambda one: one[0])[1]) if found else None


def at_point(cell: Cell, point: Mapping[str, Any]) -> Cell:
    """Return a cell with a point's values in its recipe, those besides the learning rate among its axes.

    Args:
        cell: The cell.
        point: Values by dotted field name.
    """
    values = {name: rounded(value) for name, value in point.items()}
    lr = values.pop(LEARNING_RATE, cell.recipe.train.lr)
    recipe = with_values(cell.recipe.to_dict(), values)
    return replace(cell, axes={**cell.axes, **values}, recipe=replace(recipe, train=at_rate(recipe.train, lr)))


def outcome_of(rows: Sequence[RunRow]) -> Outcome:
    """Return what a point came to, from the rows of its seeds.

    Args:
        rows: The rows.
    """
    values = [row.validation for row in rows]
    known = [value for value in values if value is not None]
    if len(known) < len(rows) or any(row.status in ("diverged", "failed") for row in rows):
        return Outcome(value=None)
    sign = -1.0 if rows[0].greater_is_better else 1.0
    stopped = [row.steps for row in rows if row.status == "pruned"]
    return Outcome(value=sign * statistics.fmean(known), pruned_at=min(stopped) if stopped else None)


def rounded(value: Any) -> Any:
    """Return a number to six digits, so that a recipe is one that people can read and type.

    Args:
        value: A number, or anything else, which stays.

    Example:
        >>> rounded(0.0012345678), rounded(16), rounded("linear")
        (0.00123457, 16, 'linear')
    """
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _settled(outcome: Outcome) -> float | None:
    return outcome.value if outcome.pruned_at is None else None


def _jobs(plan: SweepPlan, cell: Cell, ended: Iterable[RunRow]) -> list[RunJob]:
    # Rivals are of batches that have ended, as in a grid of waves.
    jobs = [job(plan, cell, lr=cell.recipe.train.lr, seed=seed, phase="search") for seed in plan.tuning_seeds]
    return with_rivals(jobs, ended) if plan.prune else jobs
