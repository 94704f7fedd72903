"""Panels of figures from the rows of a sweep: what each rate reached, and the course of what a run measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from asymlora.report.reproduction_figures import Panel
from asymlora.sweep.cell_analysis import CellRows, PlanView, cells_of
from asymlora.sweep.run_record import Phase, RunRow

ARM_NAMES: Mapping[str, str] = {"init_a": "Init[A]", "init_b": "Init[B]"}
"""Names of cells for people."""


def rate_panel(
    title: str,
    plan: Mapping[str, Any],
    *,
    rows: Sequence[RunRow],
    names: Mapping[str, str] = ARM_NAMES,
    scale: float = 1.0,
    quantity: Literal["validation", "last loss"] = "validation",
) -> Panel:
    """Return what the tuning runs of a sweep reached at each rate, with best rates, stable edges and lost rates.

    Args:
        title: Of the panel.
        plan: Of the sweep, as `asymlora.reproduce.evidence.SweepEvidence` has it.
        rows: Of the sweep.
        names: Names of cells (arms) for people; others keep theirs.
        scale: Factor of the values: 100 for per cent.
        quantity: The metric on validation, or the last training loss.

    Returns:
        The panel. An arm of which every run ended has no edge: the largest stable rate was not found.
    """
    cells = {names.get(cell.label, cell.label): cell for cell in cells_of(PlanView.of(plan, rows), rows)}
    return Panel(
        title=title,
        lines={name: _by_rate(cell, quantity, scale) for name, cell in cells.items()},
        best={name: cell.choice.best.lr for name, cell in cells.items() if cell.choice.best},
        edge={name: edge for name, cell in cells.items() if (edge := _edge(cell)) is not None},
        lost={name: lost for name, cell in cells.items() if (lost := _lost(cell))},
    )


def course_panel(
    title: str,
    rows: Sequence[RunRow],
    *,
    quantity: str,
    names: Mapping[str, str] = ARM_NAMES,
    phase: Phase = "closing",
) -> Panel:
    """Return the course of one quantity over the steps: of ``RunRow.dynamics``, or ``loss``.

    Args:
        title: Of the panel.
        rows: Of the sweep.
        quantity: ``loss``, or a name of `asymlora.sweep.run_dynamics.QUANTITIES`.
        names: Names of cells (arms) for people; others keep theirs.
        phase: Whose runs: the closing ones that are quoted, or the tuning ones at the best rate.

    Returns:
        The panel; an arm without a number has no line.
    """
    lines: dict[str, dict[float, list[float]]] = {}
    for cell in cells_of(PlanView.of({}, rows), rows):
        best = cell.choice.best
        chosen = cell.closing if phase == "closing" else [row for row in cell.of(phase) if best and row.lr == best.lr]
        course = _course(chosen, quantity)
        if course:
            lines[names.get(cell.label, cell.label)] = course
    return Panel(title=title, lines=lines)


def _by_rate(cell: CellRows, quantity: str, scale: float) -> dict[float, list[float]]:
    if quantity == "validation":
        found = {score.lr: list(score.values.values()) for score in cell.scores}
    else:
        found = {score.lr: list[float]() for score in cell.scores}
        for row in cell.of("tuning"):
            losses = row.losses.get("loss") or ()
            if row.lr in found and losses and row.seed in cell.view.tuning_seeds:
                found[row.lr].append(losses[-1])
    return {lr: [scale * value for value in values] for lr, values in found.items()}


def _edge(cell: CellRows) -> float | None:
    return None if cell.choice.divergence_edge is None else cell.choice.largest_stable


def _lost(cell: CellRows) -> list[float]:
    return [score.lr for score in cell.scores if score.diverged or score.collapsed or score.failed]


def _course(rows: Iterable[RunRow], quantity: str) -> dict[float, list[float]]:
    course: dict[float, list[float]] = {}
    for row in rows:
        curve = row.losses if quantity == "loss" else row.dynamics
        for step, value in zip(curve.get("step", ()), curve.get(quantity, ()), strict=False):
            if value is not None and step is not None:
                course.setdefault(float(step), []).append(float(value))
    return course
