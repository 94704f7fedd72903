"""What one run did with its features, as hayou_features judges it, from a trace or from a row of a sweep. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asymlora.reproduce.evidence import MissingEvidenceError, Record, SweepEvidence
from asymlora.reproduce.rates_by_seed import tuned_rate
from asymlora.sweep.run_record import RunRow

Numbers = Sequence[float | None]
ARMS = ("init_a", "init_b")
PARTS = ("delta1", "delta2", "delta3")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Figures of one run.

    Attributes:
        Z_A: Size of ``Z_A`` at the end.
        growth: ``Z_A`` at the end over what it was first, zeros passed over.
        step: The measured step nearest to two thirds of the run, a number of updates.
        parts: Sizes of ``delta1``, ``delta2`` and ``delta3`` in that step.
        first_parts: Sizes of the same in the first measured step in which anything moved.
        moved: How far each factor ended from its start over the norm of that, by letter; none of a start of zeros.
    """

    Z_A: float
    growth: float
    step: int
    parts: tuple[float, float, float]
    first_parts: tuple[float, float, float]
    moved: Mapping[str, float]

    @property
    def of_B(self) -> float:
        """``delta2`` over ``delta1``: what B moved over what A moved."""
        return _over(self.parts[1], self.parts[0])

    @property
    def joint(self) -> float:
        """``delta3`` over ``delta1``, times the number of steps.

        It is about how far B has moved over its size: where every step is alike, one of t steps is a t-th of that.
        Where the rate falls linearly to zero, it is half of that after two thirds of the steps.
        """
        return self.step * _over(self.parts[2], self.parts[0])

    @property
    def balance(self) -> float:
        """The smaller one of ``delta1`` and ``delta2`` over the larger one: 1 where both factors count alike."""
        return _over(min(self.parts[:2]), max(self.parts[:2]))


def _over(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def reading_of(courses: Mapping[str, Numbers], *, steps: int, moved: Mapping[str, float | None]) -> Reading:
    """Return the reading of courses over the measured steps.

    Args:
        courses: ``step``, ``Z_A`` and the three parts, of one length; step 0 is the start.
        steps: Steps of the run.
        moved: By letter of the factor.

    Raises:
        MissingEvidenceError: A quantity was not measured, or never moved.
    """
    if absent := [name for name in ("step", "Z_A", *PARTS) if not courses.get(name)]:
        raise MissingEvidenceError(f"{', '.join(absent)} over the steps of a run")
    at = [int(step or 0) for step in courses["step"]]
    measured = [place for place, step in enumerate(at) if step > 0]
    rows = {place: tuple(courses[name][place] for name in PARTS) for place in measured}
    known = [place for place in measured if None not in rows[place]]
    moving = [place for place in known if any(rows[place])]
    grown = [size for size in courses["Z_A"] if size]
    last = courses["Z_A"][-1]
    if not moving or not grown or last is None:
        raise MissingEvidenceError("finite parts of the steps of a run")
    # Where the last third begins: earlier, the factor that started at zero is small whatever the width.
    late = min(known, key=lambda place: abs(at[place] - 2 * steps / 3))
    return Reading(
        Z_A=last,
        growth=last / grown[0],
        step=at[late],
        parts=_three(rows[late]),
        first_parts=_three(rows[moving[0]]),
        moved={letter: value for letter, value in moved.items() if value is not None},
    )


def _three(row: tuple[float | None, ...]) -> tuple[float, float, float]:
    first, second, third = (float(value or 0.0) for value in row)
    return first, second, third


def of_traces(records: Sequence[Record], width: int) -> dict[str, dict[int, Reading]]:
    """Return the readings of the teacher-student model at one width, by start and seed.

    Args:
        records: Of `asymlora.papers.student_points.measure_trace`.
        width: Width of the student.
    """
    found: dict[str, dict[int, Reading | None]] = {arm: {} for arm in ARMS}
    for record in records:
        if record["width"] == width:
            moved = {"A": record["moved_A"], "B": record["moved_B"]}
            found[record["scheme"]][record["seed"]] = _read(record, steps=record["step"][-1], moved=moved)
    return _complete(found, f"traces at width {width}")


def of_sweep(sweep: SweepEvidence) -> dict[str, dict[int, Reading]]:
    """Return the readings of the finished closing runs at the quoted rate, by start and seed.

    Args:
        sweep: Of Init[A] and Init[B], with what the factors did.
    """
    found = {arm: {row.seed: _of_run(row) for row in _closing(sweep, arm)} for arm in ARMS}
    return _complete(found, "closing runs that measured their factors")


def _of_run(row: RunRow) -> Reading | None:
    moved = {letter: (row.dynamics.get(f"moved_{letter}") or (None,))[-1] for letter in "AB"}
    return _read(row.dynamics, steps=row.planned_steps or row.steps, moved=moved)


def _closing(sweep: SweepEvidence, arm: str) -> list[RunRow]:
    rate = tuned_rate(sweep, arm)
    if rate is None:
        raise MissingEvidenceError(f"a best rate of {arm}")
    return [
        row for row in sweep.rows
        if row.arm == arm and row.phase == "closing" and row.status == "finished"
        and math.isclose(row.lr, rate, rel_tol=1e-4)
    ]  # fmt: skip


def _read(courses: Mapping[str, Any], *, steps: int, moved: Mapping[str, float | None]) -> Reading | None:
    # A run of which a size overflowed has no reading; the test leaves its seed out.
    try:
        return reading_of(courses, steps=steps, moved=moved)
    except MissingEvidenceError:
        return None


def _complete(found: Mapping[str, Mapping[int, Reading | None]], what: str) -> dict[str, dict[int, Reading]]:
    read = {
        arm: {seed: reading for seed, reading in sorted(of_arm.items()) if reading is not None}
        for arm, of_arm in found.items()
    }
    if not all(read.values()):
        raise MissingEvidenceError(what)
    return read
