"""Where the runs of a sweep execute: what every executor offers, and the one that uses this process. No torch in here.

An executor does runs and tells of them; it stores no rows. Whoever takes a row from it appends it to the store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, Self

from asymlora.sweep.observer import SilentObserver, SweepObserver
from asymlora.sweep.run_record import RunJob, RunRow

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called with the step, the planned steps, and what is known at this step."""
MOST_TRIES = 3
"""How often a run is tried whose worker is lost with it. Ours: a worker that is killed for other reasons than its run
seldom meets the same run twice, and a run that kills its worker each time shall not stop the sweep."""


class Work(Protocol):
    """What does one run after another on what it has loaded: `asymlora.sweep.session.Session`."""

    def run(self, job: RunJob, *, progress: Progress | None = None) -> RunRow:
        """Do a run and return its row."""
        ...


class WorkMaker(Protocol):
    """Makes a `Work` in the process that will do it."""

    def __call__(self, folder: Path | None, threads: int | None, executor: str) -> Work:
        """Return the work.

        Args:
            folder: Where adapters are kept.
            threads: Of torch; None: as they are.
            executor: Its name, for the rows.
        """
        ...


class Executor(Protocol):
    """Does runs.

    Attributes:
        name: As it stands in the rows.
    """

    name: str

    def run(self, jobs: Sequence[RunJob], *, told: SweepObserver | None = None) -> Generator[RunRow]:
        """Do runs, and give each one's row as soon as it has ended.

        Of the observer only ``started``, ``progress`` and ``lost`` are called, from this thread; ``ended`` is left to
        whoever stores the row. When the generator is closed early, runs that go on are given up.

        Args:
            jobs: The runs, all of different ids.
            told: Hears of them; None: nobody does.

        Yields:
            Their rows in the order in which they end.
        """
        ...

    def close(self) -> None:
        """End what was started for the runs; nothing the second time."""
        ...

    def __enter__(self) -> Self:
        """Return itself."""
        ...

    def __exit__(self, *_: object) -> None:
        """Close it."""
        ...


class InProcess:
    """Does the runs in this process, one after another; model, data and draws are loaded once.

    Args:
        folder: The sweep's, for adapters that are kept.
        threads: Of torch; None: as they are.
        work: Makes what does a run.
    """

    name = "inline"

    def __init__(self, folder: Path, *, threads: int | None = None, work: WorkMaker | None = None) -> None:
        self._folder, self._threads, self._maker = folder, threads, work or session
        self._work: Work | None = None

    def run(self, jobs: Sequence[RunJob], *, told: SweepObserver | None = None) -> Generator[RunRow]:
        """Do runs, as `Executor.run`."""
        observer = told or SilentObserver()
        for job in jobs:
            observer.started(job)
            if self._work is None:
                self._work = self._maker(self._folder, self._threads, self.name)

            def progress(step: int, steps: int, values: Mapping[str, float], job: RunJob = job) -> None:
                observer.progress(job, step, steps, values)

            yield self._work.run(job, progress=progress)

    def close(self) -> None:
        """Let go of the loaded model."""
        self._work = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def session(folder: Path | None, threads: int | None, executor: str) -> Work:
    """Return a `Session`; torch and transformers are imported here and no earlier.

    Args:
        folder: Where adapters are kept.
        threads: Of torch; None: as they are.
        executor: Its name, for the rows.
    """
    from asymlora.sweep.session import Session

    return Session(folder=folder, threads=threads, executor=executor)


def lost_row(job: RunJob, error: str, *, executor: str) -> RunRow:
    """Return the row of a run that was lost with its worker each time it was tried.

    Args:
        job: The run.
        error: What is known of it, as a sentence.
        executor: Name of the executor.

    Returns:
        A row with status ``failed``; the run is tried again when the sweep is resumed.
    """
    return RunRow(
        id=job.id,
        phase=job.phase,
        arm=job.arm,
        axes=dict(job.axes),
        seed=job.seed,
        repeat=job.repeat,
        lr=job.recipe.train.lr,
        rank=job.recipe.adapter.rank,
        recipe=job.recipe.to_dict(),
        status="failed",
        error=error,
        planned_steps=job.recipe.train.steps,
        executor=executor,
        worker=os.getpid(),
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
    )
