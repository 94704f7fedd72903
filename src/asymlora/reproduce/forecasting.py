"""How many runs an artefact has, how far it is, and what the disk must hold. No torch at import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from asymlora.reproduce.artefact import Part, SweepPart
from asymlora.reproduce.artefact_folder import ARTEFACT, Look, read_findings
from asymlora.reproduce.measured_store import MEASURED, MeasuredStore
from asymlora.reproduce.protocol import has_second, plan_of, points_of
from asymlora.sweep.grid import Cell, SweepPlan, cells
from asymlora.sweep.store import RunStore
from asymlora.sweep.sweep_folder import RUNS

ROW_BYTES = 100_000
"""More than a row takes with its curves."""


@dataclass(frozen=True, kw_only=True)
class PartRuns:
    """How many runs a part has before any grid has grown.

    Attributes:
        name: Name of the part.
        kind: ``sweep`` or ``measured``.
        arms: Cells of a sweep; empty for what is measured.
        first: Runs, or points, of the first look.
        both: Of both looks together; None where there is one.
    """

    name: str
    kind: Literal["sweep", "measured"]
    arms: tuple[str, ...]
    first: int
    both: int | None


def part_runs(part: Part) -> PartRuns:
    """Return how many runs a part has.

    Args:
        part: The part.
    """
    sweeps = isinstance(part, SweepPart)
    return PartRuns(
        name=part.name,
        kind="sweep" if sweeps else "measured",
        arms=tuple(cell.label for cell in cells(part.plan)) if sweeps else (),
        first=_count(part, "first"),
        both=_count(part, "second") if has_second(part) else None,
    )


def runs_of_cell(plan: SweepPlan) -> int:
    """Return the runs of one cell of a plan before its grid has grown.

    Args:
        plan: The plan.
    """
    points = len(plan.rates) if plan.tunes else 0
    if plan.search is not None:
        points = plan.search.trials
    return points * len(plan.tuning_seeds) + len(plan.closing_seeds) + plan.repeats


def _count(part: Part, look: Look) -> int:
    if not isinstance(part, SweepPart):
        return len(points_of(part, look))
    plan = plan_of(part, look)
    return len(cells(plan)) * runs_of_cell(plan)


def status(parts: Sequence[Part], folder: Path) -> str:
    """Return how far the run of an artefact is, in words.

    Args:
        parts: Its parts.
        folder: Where it runs.

    Returns:
        ``not begun``, ``done``, or how many of its runs there are; grids that have grown make them more.
    """
    if not (folder / ARTEFACT).is_file():
        return "not begun"
    found = read_findings(folder)
    if found is not None and found["finished"]:
        return "done"
    second = found["second"] if found is not None else []
    planned = sum(_count(part, "second" if part.name in second else "first") for part in parts)
    there = sum(_stored(part, folder / part.name) for part in parts)
    return f"{there:,} of {max(planned, there):,} runs"


def _stored(part: Part, path: Path) -> int:
    store = RunStore(path / RUNS) if isinstance(part, SweepPart) else MeasuredStore(path / MEASURED)
    return len(store.finished())


def bytes_to_write(plan: SweepPlan, planned: Sequence[Cell]) -> int:
    """Return about what a sweep writes at its largest: its rows, and the adapters of its closing runs.

    Args:
        plan: The plan.
        planned: Its cells.
    """
    from asymlora.sweep.matching import ModelCosts

    costs = ModelCosts()
    adapters = sum(costs.kept_bytes(cell.recipe) for cell in planned)
    return len(plan.closing_seeds) * adapters + len(planned) * runs_of_cell(plan) * ROW_BYTES
