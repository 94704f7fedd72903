"""How far a sweep is: counts by cell, the best so far, the time left. From what an observer hears; no torch in here."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from asymlora.sweep.run_record import RunJob, RunRow, cell_label


class BestSoFar(NamedTuple):
    """The rate that is ahead on validation.

    Attributes:
        lr: The rate.
        mean: Mean of the metric on the validation part over its runs.
        seeds: How many runs that is.
    """

    lr: float
    mean: float
    seeds: int


class TestSoFar(NamedTuple):
    """What the closing runs have reached.

    Attributes:
        mean: Mean of the metric on the test part.
        seeds: Over how many runs.
    """

    __test__ = False  # it is no test of pytest's

    mean: float
    seeds: int


@dataclass
class RunningRun:
    """A run that goes on.

    Attributes:
        job: What it is.
        step: Steps taken.
        steps: Steps that it will take; 0 until it is heard of.
        values: What was told last.
    """

    job: RunJob
    step: int = 0
    steps: int = 0
    values: dict[str, float] = field(default_factory=dict[str, float])


class CellProgress:
    """What is known of one cell.

    Attributes:
        rows: Its ended runs, by id.
        running: Ids of those that go on.
    """

    def __init__(self) -> None:
        self.rows: dict[str, RunRow] = {}
        self.running: set[str] = set()

    @property
    def ended(self) -> Counter[str]:
        """How many runs ended in each way."""
        return Counter(row.status for row in self.rows.values())

    @property
    def metric(self) -> str:
        """Name of the metric; empty before the first run has ended."""
        return next((row.metric for row in self.rows.values() if row.metric), "")

    def best(self) -> BestSoFar | None:
        """Return the rate with the best mean on validation; rates of which a run was pruned or diverged are out."""
        of_point: dict[tuple[float, str], list[RunRow]] = defaultdict(list)
        for row in self.rows.values():
            if row.phase in ("tuning", "search"):  # points of a search may share a rate
                of_point[row.lr, cell_label(row.arm, row.axes)].append(row)
        means: list[BestSoFar] = []
        for (lr, _), rows in of_point.items():
            values = [row.validation for row in rows if row.status == "finished" and row.validation is not None]
            if values and len(values) == sum(row.final for row in rows):
                means.append(BestSoFar(lr, statistics.fmean(values), len(values)))
        greater = all(row.greater_is_better for row in self.rows.values())
        return max(means, key=lambda best: best.mean if greater else -best.mean, default=None)

    def test(self) -> TestSoFar | None:
        """Return the mean of the closing runs on the test part, or None where none has ended."""
        closing = [row for row in self.rows.values() if row.phase == "closing" and row.test is not None]
        values = [row.test[row.metric] for row in closing if row.test is not None]
        return TestSoFar(statistics.fmean(values), len(values)) if values else None


class SweepProgress:
    """Counts what an observer hears.

    Args:
        clock: Seconds.

    Attributes:
        cells: What is known of each cell, by label.
        runs: Runs of the whole sweep as far as they are known.
        each: The same by cell, or None.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.cells: dict[str, CellProgress] = {}
        self.runs = 0
        self.each: Mapping[str, int] | None = None
        self._clock = clock
        self._running: dict[str, RunningRun] = {}
        self._steps_before = 0  # of the clock's start
        self._steps_ended = 0
        self._clock_began: float | None = None
        self._told = False
        self._planned_steps: list[int] = []

    @property
    def began(self) -> bool:
        """Whether a run was started in this session."""
        return self._clock_began is not None

    @property
    def running(self) -> int:
        """Runs that go on."""
        return len(self._running)

    @property
    def ended_runs(self) -> int:
        """Runs that have ended, those of an earlier session included unless they failed there."""
        return sum(len(cell.rows) for cell in self.cells.values())

    def planned(self, cells: Sequence[str], runs: int, *, each: Mapping[str, int] | None = None) -> None:
        """Take note of what is to be done.

        Args:
            cells: Labels of the cells.
            runs: Runs of the whole sweep.
            each: The same by cell, where it is known.
        """
        first = {label: self._cell(label) for label in cells}
        self.cells = {**first, **self.cells}
        self.runs, self.each = runs, each

    def started(self, job: RunJob) -> None:
        """Take note of a run that begins."""
        if self._clock_began is None:
            self._clock_began = self._clock()
        self._planned_steps.append(job.recipe.train.steps)
        self._running[job.id] = RunningRun(job)
        self._cell(self._label(job)).running.add(job.id)

    def progress(self, job: RunJob, step: int, steps: int, values: Mapping[str, float]) -> None:
        """Take note of how far a run is."""
        run = self._running.setdefault(job.id, RunningRun(job))
        run.step, run.steps = step, steps
        run.values.update(values)
        if not self._told:  # before its first step, the first run has loaded the model; the later ones need not
            self._told = True
            self._clock_began, self._steps_before = self._clock(), self._steps_ended + step

    def ended(self, row: RunRow) -> None:
        """Take note of how a run ended."""
        cell = self._cell(self._label(row))
        if self.began:
            self._steps_ended += row.steps
        elif not row.final:
            return  # it failed in an earlier session and will be done again
        cell.rows[row.id] = row
        self._gone(row.id)

    def lost(self, job: RunJob) -> None:
        """Take note of a run that will be done again."""
        self._gone(job.id)

    def waiting(self, label: str) -> int:
        """Return the runs of a cell that are not begun; 0 where it is not known.

        Args:
            label: The cell.
        """
        cell = self.cells[label]
        return max((self.each or {}).get(label, 0) - len(cell.rows) - len(cell.running), 0)

    def newest(self) -> RunningRun | None:
        """Return the run that was started last, of those that go on."""
        return next(reversed(self._running.values()), None)

    def share(self) -> float:
        """Return which share of the runs is done, those that go on counted in parts; in [0, 1]."""
        parts = sum(run.step / run.steps for run in self._running.values() if run.steps)
        return min((self.ended_runs + parts) / self.runs, 1.0) if self.runs else 0.0

    def seconds_left(self) -> float | None:
        """Return the seconds for the steps that are left at this session's seconds a step; None before it is known.

        It takes every run to go on to its last step, so early stopping makes it less.
        """
        going = sum(run.step for run in self._running.values())
        taken = self._steps_ended + going - self._steps_before
        if self._clock_began is None or taken <= 0:
            return None
        length = statistics.fmean(self._planned_steps)
        left = max((self.runs - self.ended_runs) * length - going, 0.0)
        return left * (self._clock() - self._clock_began) / taken

    def _cell(self, label: str) -> CellProgress:
        return self.cells.setdefault(label, CellProgress())

    def _label(self, run: RunJob | RunRow) -> str:
        # Each run of a search beyond a grid stands at a point of its own; they are shown as one cell, their arm.
        label = cell_label(run.arm, run.axes)
        return run.arm if run.phase == "search" and label not in self.cells else label

    def _gone(self, run: str) -> None:
        self._running.pop(run, None)
        for cell in self.cells.values():
            cell.running.discard(run)
