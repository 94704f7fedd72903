"""A sweep from its plan to its summary: tuning, growth of the grids, closing runs, comparison of adapters, analysis.

What is run depends on the plan and on results alone, never on the time at which they come; so a sweep that was
interrupted ends with the runs of one that was not, on any executor.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from asymlora.errors import SpecError, SweepFailedError
from asymlora.sweep.analysis import analyse
from asymlora.sweep.executors import Executor
from asymlora.sweep.grid import Cell, SweepPlan, choice, closing_jobs, tuning_jobs
from asymlora.sweep.kept_adapters import compare_kept
from asymlora.sweep.observer import SilentObserver, SweepObserver
from asymlora.sweep.pruning import with_rivals
from asymlora.sweep.rates import order_of_rates
from asymlora.sweep.run_record import RunJob, RunRow, cell_label
from asymlora.sweep.search_runs import search_cell
from asymlora.sweep.store import RunStore
from asymlora.sweep.summary import Summary
from asymlora.sweep.sweep_folder import SweepFolder, changed_environment

FIRST_FAILURES = 3
"""A sweep whose first so many runs all failed, and none has ended otherwise, is stopped: the others would fail too."""


def run_sweep(
    plan: SweepPlan,
    cells: Sequence[Cell],
    folder: SweepFolder,
    *,
    executor: Executor,
    observer: SweepObserver | None = None,
    command: str = "",
) -> Summary:
    """Do all runs of a plan that are not done yet, and say what they show.

    Args:
        plan: The plan.
        cells: Its cells, budgets matched (`asymlora.sweep.cell_checks.ready_cells`).
        folder: A claimed folder; it holds the records, the kept adapters and, at the end, the summary.
        executor: Where the runs are done.
        observer: Who is told how it goes on.
        command: What was typed, for the records.

    Returns:
        The summary; it also stands in ``summary.json``.

    Raises:
        SweepFailedError: The first runs all failed.
        RunFolderError: The folder cannot be written any more; what was stored stays.
    """
    watcher = observer or SilentObserver()
    with folder.begun(plan.to_yaml(), command=command) as store:
        for warning in (*store.warnings(), *_changes(folder)):
            watcher.stage(warning)
        runs = SweepRuns(store, executor, watcher, cells)
        runs.recall()
        runs.expect(dict.fromkeys((cell.label for cell in cells), _first_count(plan)))
        _tune(plan, cells, runs)
        best = _best_cells(plan, cells, runs)
        watcher.stage("Closing runs on fresh seeds, scored on the test part")
        runs.do([job for cell, lr in best for job in closing_jobs(plan, cell, lr)])
        watcher.stage("Comparing the adapters of the closing runs")
        rows = runs.rows()
        similar, trouble = compare_kept(rows, folder.path)
        if trouble:
            watcher.stage(trouble)
        folder.write_similarity(similar)
        summary = analyse(plan.to_dict(), rows)
        folder.write_summary(summary.to_dict())
    watcher.finished(summary.to_dict())
    return summary


@dataclass(kw_only=True)
class _Known:
    # Rows by id, of the runs that were asked for.
    rows: dict[str, RunRow] = field(default_factory=dict[str, RunRow])
    ended: int = 0
    failed: int = 0


class SweepRuns:
    """Does runs that are not in the store, stores them, and gives the rows of all that were asked for.

    Args:
        store: The store.
        executor: Where runs are done.
        watcher: Who is told.
        cells: The cells, for what is told.
    """

    def __init__(self, store: RunStore, executor: Executor, watcher: SweepObserver, cells: Sequence[Cell]) -> None:
        self.store = store
        self.executor = executor
        self.watcher = watcher
        self.cells = cells
        self._known = _Known()
        self._expected: Counter[str] = Counter()

    def recall(self) -> None:
        """Tell of the runs that were done before."""
        mine = {cell.arm for cell in self.cells}
        for row in self.store.rows():
            if row.arm in mine and row.final:
                self.watcher.ended(row)

    def expect(self, runs: Mapping[str, int]) -> None:
        """Tell that so many more runs are to be done.

        Args:
            runs: How many, by label of the cell.
        """
        self._expected.update(runs)
        self.watcher.planned(list(self._expected), self._expected.total(), each=self._expected)

    def do(self, jobs: Sequence[RunJob]) -> list[RunRow]:
        """Do runs.

        Args:
            jobs: The runs; those that are in the store are not done again.

        Returns:
            Their rows, in the order of the jobs.

        Raises:
            SpecError: A run is in the store under another name, or was for something else.
            SweepFailedError: The first runs of the sweep all failed.
        """
        # By id: a sampler may propose one point twice.
        missing = {job.id: job for job in jobs if not self._take(job, self.store.get(job.id))}
        if missing:
            # Left early, it gives up the runs that go on at once: when it is collected, its executor may be closed.
            with closing(self.executor.run(list(missing.values()), told=self.watcher)) as rows:
                for row in rows:
                    self._add(row)
        return [self._known.rows[job.id] for job in jobs]

    def _add(self, row: RunRow) -> None:
        self.store.append(row)
        self.watcher.ended(row)
        self._known.ended += 1
        self._known.failed += row.status == "failed"
        self._known.rows[row.id] = row
        self._stop_if_all_fail(row)

    def rows(self) -> list[RunRow]:
        """Return the rows of all runs that were asked for."""
        return list(self._known.rows.values())

    def of(self, cell: Cell) -> list[RunRow]:
        """Return the rows of one cell.

        Args:
            cell: The cell.
        """
        return [row for row in self.rows() if row.arm == cell.arm and dict(row.axes) == dict(cell.axes)]

    def _take(self, job: RunJob, row: RunRow | None) -> bool:
        # Whether a stored row answers the job. Reports read the names in the store, so it must be what the row says.
        if row is None or not row.final:
            return False
        if row.phase != job.phase:
            raise SpecError(
                f"Seed {job.seed} of {job.arm} at rate {job.recipe.train.lr:g} was a {row.phase} run of this sweep, and"
                f" is now to be a {job.phase} run. Take seeds that were for nothing else (--seeds, --tuning-seeds), or"
                " another --out."
            )
        if _place(row) != _place(job):
            raise SpecError(
                f"{cell_label(job.arm, job.axes)!r} is what this sweep has run as {cell_label(row.arm, row.axes)!r}."
                " Give it that name (--arm NAME=...) and those axes again, or choose another --out."
            )
        self._known.rows[job.id] = row
        return True

    def _stop_if_all_fail(self, row: RunRow) -> None:
        # Not where others have ended before: of a sweep that is resumed, an arm that always fails may be what is left.
        if self._known.failed == self._known.ended == FIRST_FAILURES and not self.store.finished():
            raise SweepFailedError(
                f"The first {FIRST_FAILURES} runs of the sweep failed, so the others were not begun. The last one said:"
                f" {row.error} Mend that, then go on with --resume; failed runs are done again."
            )


def _place(one: RunJob | RunRow) -> tuple[str, str]:
    # As JSON has it, where a tuple is a list.
    return one.arm, json.dumps(dict(one.axes), sort_keys=True)


def _first_count(plan: SweepPlan) -> int:
    # Runs of a cell before its grid has grown.
    points = len(plan.rates) if plan.tunes else 0
    if plan.search is not None:
        points = plan.search.trials
    return points * len(plan.tuning_seeds) + len(plan.closing_seeds) + plan.repeats


def _changes(folder: SweepFolder) -> list[str]:
    changed = changed_environment(folder.path) if folder.resumes else []
    if not changed:
        return []
    return [f"Not the machine or the versions that the sweep began with (then / now): {'; '.join(changed)}."]


# Tuning --------------------------------------------------------------------------------------------------------------


def _tune(plan: SweepPlan, cells: Sequence[Cell], runs: SweepRuns) -> None:
    if plan.search is not None:
        return
    if not plan.tunes:
        return
    runs.watcher.stage("Tuning runs, scored on the validation part")
    waves = order_of_rates(plan.rates)
    if not plan.prune:  # nothing waits for anything
        waves = [[lr for wave in waves for lr in wave]]
    for wave in waves:
        _do_wave(plan, runs, {cell.label: (cell, tuple(wave)) for cell in cells})
    while grown := _grown(plan, cells, runs):
        runs.expect({label: len(rates) * len(plan.tuning_seeds) for label, (_, rates) in grown.items()})
        for label, (_, rates) in grown.items():
            for lr in rates:
                runs.watcher.grown(label, lr)
        _do_wave(plan, runs, grown)


def _do_wave(plan: SweepPlan, runs: SweepRuns, wave: Mapping[str, tuple[Cell, tuple[float, ...]]]) -> None:
    jobs: list[RunJob] = []
    for cell, rates in wave.values():
        asked = tuning_jobs(plan, cell, rates)
        jobs += with_rivals(asked, runs.of(cell)) if plan.prune else asked
    runs.do(jobs)


def _grown(plan: SweepPlan, cells: Sequence[Cell], runs: SweepRuns) -> dict[str, tuple[Cell, tuple[float, ...]]]:
    wanted = {cell.label: (cell, _next_rates(plan, runs.of(cell))) for cell in cells}
    return {label: (cell, rates) for label, (cell, rates) in wanted.items() if rates}


def _next_rates(plan: SweepPlan, rows: Sequence[RunRow]) -> tuple[float, ...]:
    found = choice(plan, rows, greater_is_better=greater_is_better(rows)).next_rates
    tried = {row.lr for row in rows if row.phase == "tuning"}
    return tuple(lr for lr in found if lr not in tried)  # failed runs wait for the next session


def _best_cells(plan: SweepPlan, cells: Sequence[Cell], runs: SweepRuns) -> list[tuple[Cell, float]]:
    best: list[tuple[Cell, float]] = []
    for cell in cells:
        if plan.search is not None:
            found = search_cell(plan, cell, runs)
            if found is not None:
                best.append((found, found.recipe.train.lr))
            continue
        if not plan.tunes:
            best.append((cell, plan.rates[0]))
            continue
        rows = runs.of(cell)
        chosen = choice(plan, rows, greater_is_better=greater_is_better(rows)).best
        if chosen is not None:
            best.append((cell, chosen.lr))
        else:
            runs.watcher.stage(f"{cell.label}: no rate has all of its tuning runs, so there is none to close with.")
    return best


def greater_is_better(rows: Sequence[RunRow]) -> bool:
    """Return whether more of the metric of some rows is better; what failed before it was known does not say.

    Args:
        rows: The rows.
    """
    return next((row.greater_is_better for row in rows if row.metric), True)
