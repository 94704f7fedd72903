"""Runs of a sweep on a Ray cluster, or on a local Ray: the only door to Ray. No torch in here.

Ray places the runs, and does one again whose worker was lost. A worker keeps a model loaded from run to run. It need
not see the sweep's folder: adapters come back with the rows and are written by the process that asked for them.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self

from asymlora.atomic import remove_folder, staged_folder
from asymlora.errors import MissingPackageError, SpecError
from asymlora.sweep.executors import MOST_TRIES, Progress, Work, WorkMaker, lost_row, session
from asymlora.sweep.observer import SilentObserver, SweepObserver
from asymlora.sweep.run_record import RunJob, RunRow

_LOOK_S = 1.0


class _Told(NamedTuple):
    """How far a run is; at step 0, that it has begun.

    Attributes:
        id: Of the run.
        step: Steps taken.
        steps: Steps that it will take.
        values: What is known at this step.
    """

    id: str
    step: int
    steps: int
    values: Mapping[str, float]


class RayExecutor:
    """Does the runs as tasks of Ray.

    Args:
        folder: The sweep's, for adapters that are kept; only this process need see it.
        address: Of the cluster, as ``ray.init`` takes it; None: what ``RAY_ADDRESS`` names, else a local Ray. A
            connection that is there already is used and left open.
        threads: Of torch, and cores that Ray sets aside for a run.
        work: Makes in a worker what does a run; must be picklable.

    Raises:
        MissingPackageError: Ray is not installed.
        SpecError: No cluster answers at the address, or none of its machines has as many cores as ``threads``.
    """

    name = "ray"

    def __init__(
        self, folder: Path, *, address: str | None = None, threads: int = 1, work: WorkMaker = session
    ) -> None:
        self._ray = _ray()
        self._folder = folder
        self._ours = not self._ray.is_initialized()
        if self._ours:
            _connect(self._ray, address)
        if threads > (most := _most_cores(self._ray)):  # Ray would wait for such a machine for ever
            if self._ours:
                self._ray.shutdown()
            raise SpecError(
                f"threads={threads} is more than the cores that any machine of the Ray cluster offers ({most:g}). Give"
                f" --threads up to {most:g}."
            )
        self._board = self._ray.remote(num_cpus=0, max_restarts=-1)(_Board).remote()
        self._task = self._ray.remote(num_cpus=threads, max_retries=MOST_TRIES - 1)(_do)
        self._arguments = (work, threads, self._board, os.getcwd())

    def run(self, jobs: Sequence[RunJob], *, told: SweepObserver | None = None) -> Generator[RunRow]:
        """Do runs, as `asymlora.sweep.executors.Executor.run`.

        Args:
            jobs: The runs, all of different ids.
            told: Hears of them, within a second; None: nobody does.

        Yields:
            Their rows in the order in which they end. A run that was lost with its worker three times is a failed one.

        Raises:
            Exception: What a run raised in its worker.
        """
        heard = _Heard(jobs, told or SilentObserver())
        pending: dict[Any, RunJob] = {self._task.remote(job, *self._arguments): job for job in jobs}
        try:
            while pending:
                done, _ = self._ray.wait(list(pending), timeout=_LOOK_S)
                self._hear(heard)
                for reference in done:
                    job = pending.pop(reference)
                    row = self._row(reference, job)
                    heard.ended(job)
                    yield row
        finally:
            # Of a Ray that is closed nothing goes on, and to cancel would start another one (ray 2.60, AUTO_INIT_APIS).
            for reference in pending if self._ray.is_initialized() else ():
                self._ray.cancel(reference, force=True)

    def _hear(self, heard: _Heard) -> None:
        # Without the board the sweep only tells less.
        with suppress(self._ray.exceptions.RayError):
            heard.take(self._ray.get(self._board.take.remote(), timeout=_LOOK_S))

    def _row(self, reference: Any, job: RunJob) -> RunRow:
        try:
            row, files = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            error.cause.add_note(f"In a worker of Ray:\n{error}")
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            # Its text names machines and their addresses, which a row must not.
            said = f"Ray lost the run's worker {MOST_TRIES} times ({type(error).__name__})."
            return lost_row(job, f"{said} Resume the sweep to try it again.", executor=self.name)
        try:
            self._keep(self._folder / str(row.adapter), files)
        except OSError as error:
            return lost_row(job, f"The adapter could not be kept: {error.strerror or error}.", executor=self.name)
        return row

    def _keep(self, path: Path, files: Mapping[str, bytes]) -> None:
        if not files:
            return
        if path.exists():
            remove_folder(path)
        with staged_folder(path) as staging:
            for name, content in files.items():
                file = staging / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)

    def close(self) -> None:
        """End the connection, and a local Ray with it, unless it was there before."""
        if not self._ray.is_initialized():
            return
        if self._ours:
            self._ray.shutdown()
        else:
            self._ray.kill(self._board)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Heard:
    """Passes on what workers tell of the runs that go on."""

    def __init__(self, jobs: Sequence[RunJob], observer: SweepObserver) -> None:
        self._jobs = {job.id: job for job in jobs}
        self._observer = observer
        self._begun: set[str] = set()

    def take(self, news: Sequence[_Told]) -> None:
        """Pass on what was told of runs that have not ended."""
        for told in news:
            job = self._jobs.get(told.id)
            if job is None:
                continue
            if told.step > 0 and told.id in self._begun:
                self._observer.progress(job, told.step, told.steps, told.values)
            elif told.step == 0:
                self._begins(job)

    def ended(self, job: RunJob) -> None:
        """Leave out what is told of this run from now on."""
        if job.id not in self._begun:
            self._begins(job)
        del self._jobs[job.id]

    def _begins(self, job: RunJob) -> None:
        if job.id in self._begun:
            self._observer.lost(job, "Ray lost the run's worker and does the run again in another.")
        self._begun.add(job.id)
        self._observer.started(job)


class _Board:
    """Holds what workers tell until it is taken; an actor, as tasks of Ray have no other way to tell of themselves."""

    def __init__(self) -> None:
        self._news: list[_Told] = []

    def tell(self, told: _Told) -> None:
        """Take note."""
        self._news.append(told)

    def take(self) -> list[_Told]:
        """Return what was told since the last time."""
        news, self._news = self._news, []
        return news


def _do(job: RunJob, maker: WorkMaker, threads: int, board: Any, where: str) -> tuple[RunRow, dict[str, bytes]]:
    """Do a run in a worker of Ray; return its row and the files of its adapter."""
    with suppress(OSError):  # a recipe may name files from where the sweep was begun, on machines that see them there
        os.chdir(where)
    board.tell.remote(_Told(job.id, 0, job.recipe.train.steps, {}))
    work, folder = _at_work(maker, threads)
    row = work.run(job, progress=_teller(board, job))
    if row.adapter is None:
        return row, {}
    adapter = folder / row.adapter
    files = {f.relative_to(adapter).as_posix(): f.read_bytes() for f in sorted(adapter.rglob("*")) if f.is_file()}
    shutil.rmtree(adapter)
    return row, files


@cache
def _at_work(maker: WorkMaker, threads: int) -> tuple[Work, Path]:
    """Return what does runs in this process, made once, and the folder that it keeps adapters in."""
    folder = Path(tempfile.mkdtemp(prefix="asymlora-"))
    return maker(folder, threads, RayExecutor.name), folder


def _teller(board: Any, job: RunJob) -> Progress:
    def tell(step: int, steps: int, values: Mapping[str, float]) -> None:
        if step > 0:
            board.tell.remote(_Told(job.id, step, steps, dict(values)))

    return tell


def _connect(ray: Any, address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SpecError(
            f"No Ray cluster answers at address={address!r} ({' '.join(str(error).split())[:300]}). Give the address"
            " that `ray start --head` has printed, or none for a local Ray."
        ) from None


def _most_cores(ray: Any) -> float:
    return max((node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingPackageError("The executor ray needs Ray: pip install 'asymlora[cluster]'.") from None
    return ray
