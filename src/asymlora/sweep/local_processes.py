"""Runs of a sweep in several processes of this machine. No torch in here."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from asymlora.sweep.executors import WorkMaker, lost_row, session
from asymlora.sweep.run_record import RunJob, RunRow
from asymlora.sweep.worker_processes import WorkerProcesses


class LocalProcesses(WorkerProcesses[RunJob, RunRow]):
    """Does the runs in worker processes of this machine; a run that was lost with its worker three times has failed.

    Args:
        folder: The sweep's, for adapters that are kept.
        workers: As for `asymlora.sweep.worker_processes.WorkerProcesses`.
        threads: Of torch, in each worker.
        memory_budget: As there.
        memory_each: As there.
        work: Makes in a worker what does a run; must be picklable.

    Raises:
        SpecError: A number is below 1.
    """

    name, what = "processes", "run"

    def __init__(
        self,
        folder: Path,
        *,
        workers: int | None = None,
        threads: int = 1,
        memory_budget: int | None = None,
        memory_each: int | None = None,
        work: WorkMaker = session,
    ) -> None:
        super().__init__(
            partial(work, folder, threads, self.name),
            workers=workers,
            threads=threads,
            memory_budget=memory_budget,
            memory_each=memory_each,
        )

    def given_up(self, job: RunJob, error: str) -> RunRow:
        """Return the row of a failed run."""
        said = f"{error} Resume the sweep to try it again, with fewer workers."
        return lost_row(job, said, executor=self.name)

    def peak(self, row: RunRow) -> int | None:
        """Return what the run has measured."""
        return row.peak_memory_bytes
