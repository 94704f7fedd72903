"""What a sweep will take, from a few real steps of each cell: nothing is extrapolated from a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from asymlora.sweep.executors import Work
from asymlora.sweep.grid import Cell, SweepPlan, closing_jobs, job, tuning_jobs
from asymlora.sweep.run_record import RunJob

PROBE_STEPS = 5
"""Steps of each cell that are timed."""


@dataclass(frozen=True, kw_only=True)
class PlannedRuns:
    """Equal runs of one cell.

    Attributes:
        cell: Label of the cell.
        phase: What they are for.
        runs: How many.
        job: One of them.
    """

    cell: str
    phase: str
    runs: int
    job: RunJob


def planned_runs(plan: SweepPlan, cells: Sequence[Cell]) -> list[PlannedRuns]:
    """Return what a sweep would run before any grid has grown.

    Args:
        plan: The plan.
        cells: Its cells.
    """
    found: list[PlannedRuns] = []
    for cell in cells:
        middle = plan.rates[(len(plan.rates) - 1) // 2]
        tuning = tuning_jobs(plan, cell, plan.rates) if plan.tunes and plan.search is None else []
        groups = {"tuning": (len(tuning), tuning[0] if tuning else None)}
        if plan.search is not None:
            one = job(plan, cell, lr=middle, seed=plan.tuning_seeds[0], phase="search")
            groups["search"] = (plan.search.trials * len(plan.tuning_seeds), one)
        closing = closing_jobs(plan, cell, middle)
        for phase in ("closing", "repeat"):
            mine = [each for each in closing if each.phase == phase]
            groups[phase] = (len(mine), mine[0] if mine else None)
        found += [
            PlannedRuns(cell=cell.label, phase=phase, runs=count, job=one)
            for phase, (count, one) in groups.items()
            if one is not None
        ]
    return found


def forecast(
    planned: Sequence[PlannedRuns], work: Work, *, workers: int, notes: Sequence[str] = (),
    told: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """Time a few steps of each cell, a score on validation and one on test, and add them up.

    Args:
        planned: What the sweep would run.
        work: What does runs; it loads models and data.
        workers: Runs at a time.
        notes: Sentences to be shown with it.
        told: Hears what is being timed.

    Returns:
        As `asymlora.report.sweep_tables.forecast_table` reads it.
    """
    probes: dict[str, dict[str, Any]] = {}
    troubles: list[str] = []
    for group in planned:
        if group.cell not in probes:
            told(f"Timing {PROBE_STEPS} steps of {group.cell}")
            probes[group.cell], trouble = _probe(group.job, work)
            troubles += [f"{group.cell}: {trouble}"] if trouble else []
    rows = [_row(group, probes[group.cell]) for group in planned]
    known = [row["seconds"] for row in rows]
    loading = sum(probe.get("loading", 0.0) for probe in probes.values())
    seconds = None if None in known else sum(known) / workers + loading
    memory = [probe["memory"] for probe in probes.values() if probe.get("memory")]
    words = (
        f"Time and memory are those of {PROBE_STEPS} real steps of each cell, one score on validation and one on test"
    )
    divided = f", divided by {workers} workers as if they did not slow each other" if workers > 1 else ""
    return {
        "rows": rows,
        "seconds": seconds,
        "memory_bytes": max(memory) if memory else None,
        "notes": [f"{words}{divided}.", *troubles, *notes],
    }


def _probe(job: RunJob, work: Work) -> tuple[dict[str, Any], str | None]:
    # A first run loads and fits, a second one does not; the third also scores the test part.
    recipe, steps = job.recipe, min(PROBE_STEPS, job.recipe.train.steps)
    train = replace(recipe.train, steps=steps, evaluate_every=steps, patience=None)
    short = replace(job, recipe=replace(recipe, train=train), rivals=None, keeps_adapter=False, scores_test=False)
    first = work.run(short)
    if first.status == "failed":
        return {}, first.error
    again, tested = work.run(short), work.run(replace(short, scores_test=True))
    return {
        "step": again.train_seconds / max(1, again.steps),
        "setup": again.setup_seconds,
        "loading": max(0.0, first.setup_seconds - again.setup_seconds),
        "validation": again.evaluate_seconds,
        "test": max(0.0, tested.evaluate_seconds - again.evaluate_seconds),
        "memory": tested.peak_memory_bytes,
    }, None


def _row(group: PlannedRuns, probe: Mapping[str, Any]) -> dict[str, Any]:
    train = group.job.recipe.train
    seconds = None
    if probe:
        scores = -(-train.steps // min(train.evaluate_every, train.steps))
        each = probe["setup"] + train.steps * probe["step"] + scores * probe["validation"]
        seconds = group.runs * (each + (probe["test"] if group.job.scores_test else 0.0))
    return {
        "cell": group.cell,
        "phase": group.phase,
        "runs": group.runs,
        "steps": group.runs * train.steps,
        "seconds": seconds,
    }
