"""Jobs in several processes of this machine, within its cores and its memory. No torch in here.

Each worker keeps what it has loaded from job to job. It gets one job at a time over a pipe of its own, so that nothing
of another job is lost with it, and it ends with the process that started it, however that ends.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

from asymlora.errors import LostProcessError
from asymlora.schema import refuse_values
from asymlora.sweep.executors import MOST_TRIES, Progress
from asymlora.train.run_folder import peak_bytes

_SPAWN = multiprocessing.get_context("spawn")
_LOOK_S = 2.0  # a process that a worker started may hold its pipe open, so its end is looked for as well
_TELL_S = 0.2


JobT = TypeVar("JobT")
RowT = TypeVar("RowT")
_Does = TypeVar("_Does", contravariant=True)
_Gives = TypeVar("_Gives", covariant=True)


class Worker(Protocol[_Does, _Gives]):
    """What does one job after another in a worker process, on what it has loaded."""

    def run(self, job: _Does, *, progress: Progress | None = None) -> _Gives:
        """Do a job and return its row, which can be pickled."""
        ...


class Told(Protocol[_Does]):
    """What is told of jobs, as `asymlora.sweep.observer.SweepObserver` is of runs."""

    def started(self, job: _Does) -> None:
        """Hear that a job has begun."""

    def progress(self, job: _Does, step: int, steps: int, values: Mapping[str, float]) -> None:
        """Hear how far it is."""

    def lost(self, job: _Does, reason: str) -> None:
        """Hear that it was lost with its worker and will be done again."""


class _Step(NamedTuple):
    """How far a job is, and the peak of its process."""

    step: int
    steps: int
    values: Mapping[str, float]
    peak: int | None


class _Ended(NamedTuple):
    """What a job has given."""

    row: Any


class _Raised(NamedTuple):
    """What a job raised, and where."""

    error: Exception
    trace: str


class _Gone(NamedTuple):
    """The worker has ended."""

    reason: str


_Message = _Step | _Ended | _Raised | _Gone


@dataclass
class _Process(Generic[JobT]):
    process: Any
    pipe: Connection
    what: str
    job: JobT | None = None

    def messages(self) -> Iterator[_Message]:
        """Give what it has sent, and last that it has gone, if so."""
        try:
            while self.pipe.poll():
                yield self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(_LOOK_S)
            yield _Gone(self.reason())
            return
        if not self.process.is_alive() and not self.pipe.poll():
            yield _Gone(self.reason())

    def reason(self) -> str:
        """Say how it ended."""
        code = self.process.exitcode
        how = f"exit code {code}"
        if code is not None and code < 0:
            with suppress(ValueError):
                how = signal.Signals(-code).name
            if how == "SIGKILL":
                how += ", as the system does where memory is short"
        return f"The worker process {self.process.pid} ended in the middle of the {self.what} ({how})."

    def end(self) -> None:
        """End it at once: whatever it has finished is told, and its files appear whole or not at all."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


class _Silence:
    def started(self, job: Any) -> None:
        """Do nothing."""

    def progress(self, job: Any, step: int, steps: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def lost(self, job: Any, reason: str) -> None:
        """Do nothing."""


@dataclass
class _Round(Generic[JobT]):
    waiting: deque[JobT]
    observer: Told[JobT]
    tries: Counter[int] = field(default_factory=Counter[int])
    """By the identity of the job, which whoever asked for it holds."""

    def is_put_back(self, job: JobT, reason: str) -> bool:
        """Put a lost job back, unless it was tried often enough."""
        self.tries[id(job)] += 1
        if self.tries[id(job)] >= MOST_TRIES:
            return False
        self.observer.lost(job, reason)
        self.waiting.appendleft(job)
        return True


class WorkerProcesses(ABC, Generic[JobT, RowT]):
    """Does jobs in worker processes of this machine.

    Unless their number is given, one worker begins; when its first steps have shown what a job needs, as many more are
    started as there are cores for, and as fit in the memory together.

    Args:
        make: Makes in a worker what does its jobs; must be picklable.
        workers: Most worker processes at once; None: as many as there are cores for, and memory.
        threads: Of torch, in each worker.
        memory_budget: Bytes that all workers may have together; None: what is free at the start, or with ``workers``
            given whatever they take.
        memory_each: Bytes that a worker needs at most; None: measured in the first.

    Raises:
        SpecError: A number is below 1.
    """

    what = "job"
    """What a job is called in messages."""

    def __init__(
        self,
        make: Callable[[], Worker[JobT, RowT]],
        *,
        workers: int | None = None,
        threads: int = 1,
        memory_budget: int | None = None,
        memory_each: int | None = None,
    ) -> None:
        given = {
            "workers": workers,
            "threads": threads,
            "memory_budget": memory_budget,
            "memory_each": memory_each,
        }
        refuse_values([f"{key}={v} must be at least 1" for key, v in given.items() if v is not None and v < 1])
        self._make = make
        self._threads = threads
        self._most = workers or max(1, _cores() // threads)
        self._budget = memory_budget if memory_budget or workers else _free_bytes()
        self._need = memory_each
        self._workers: list[_Process[JobT]] = []

    @abstractmethod
    def given_up(self, job: JobT, error: str) -> RowT:
        """Return the row of a job that was lost with its worker each time it was tried, or raise.

        Args:
            job: The job.
            error: What is known of it, as a sentence.
        """

    @abstractmethod
    def peak(self, row: RowT) -> int | None:
        """Return the bytes that the job of a row has needed; None: unknown.

        Args:
            row: The row.
        """

    @property
    def allowed(self) -> int:
        """How many workers there may be, as far as is known by now."""
        if self._budget is None or self._most == 1:
            return self._most
        if self._need is None:
            return 1
        return min(self._most, max(1, self._budget // self._need))

    def run(self, jobs: Sequence[JobT], *, told: Told[JobT] | None = None) -> Generator[RowT]:
        """Do jobs. When the generator is closed early, those that go on are given up.

        Args:
            jobs: The jobs, which can be pickled.
            told: Hears of them; None: nobody does.

        Yields:
            Their rows in the order in which they end.

        Raises:
            Exception: What a job raised in its worker, with the trace of the worker as a note.
        """
        round_ = _Round(deque(jobs), told or _Silence())
        try:
            self._hand_out(round_)
            while any(worker.job for worker in self._workers):
                for worker, message in self._messages():
                    row = self._heard(message, worker, round_)
                    self._hand_out(round_)  # before the row is given away: a worker shall not wait for its reader
                    if row is not None:
                        yield row
        finally:
            for worker in [worker for worker in self._workers if worker.job]:
                self._dismiss(worker)

    def _messages(self) -> Iterator[tuple[_Process[JobT], _Message]]:
        ready = wait([worker.pipe for worker in self._workers], timeout=_LOOK_S)
        for worker in list(self._workers):
            if worker.pipe in ready or not worker.process.is_alive():
                for message in worker.messages():
                    yield worker, message

    def _heard(self, message: _Message, worker: _Process[JobT], round_: _Round[JobT]) -> RowT | None:
        job = worker.job
        match message:
            case _Step():
                self._measured(message.peak)
                if job is not None:
                    round_.observer.progress(job, message.step, message.steps, message.values)
            case _Ended():
                row: RowT = message.row
                self._measured(self.peak(row))
                worker.job = None
                return row
            case _Raised():
                message.error.add_note(f"In a worker process:\n{message.trace}")
                raise message.error
            case _Gone():
                self._dismiss(worker)
                if job is not None and not round_.is_put_back(job, message.reason):
                    return self.given_up(job, f"{message.reason} It was tried {MOST_TRIES} times.")
        return None

    def _hand_out(self, round_: _Round[JobT]) -> None:
        for worker in [worker for worker in self._workers if not worker.process.is_alive() and not worker.job]:
            self._dismiss(worker)
        while round_.waiting:
            worker = next((worker for worker in self._workers if worker.job is None), None)
            if worker is None and len(self._workers) >= self.allowed:
                return
            worker = worker or self._start()
            worker.job = round_.waiting.popleft()
            with suppress(OSError):  # it has died meanwhile, which the next look finds
                worker.pipe.send(worker.job)
            round_.observer.started(worker.job)

    def _start(self) -> _Process[JobT]:
        ours, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_serve, args=(theirs, self._make), daemon=True)
        # Before torch is imported there; what the worker is started with holds also where its main module imports it.
        with _environment({"OMP_NUM_THREADS": str(self._threads)}), _without_interrupts():
            process.start()
        theirs.close()
        worker = _Process[JobT](process=process, pipe=ours, what=self.what)
        self._workers.append(worker)
        return worker

    def _dismiss(self, worker: _Process[JobT]) -> None:
        worker.end()
        if worker in self._workers:  # one that died after its row is found twice: by _hand_out, and by its pipe
            self._workers.remove(worker)

    def _measured(self, peak: int | None) -> None:
        if peak is not None:
            self._need = max(self._need or 0, peak)

    def close(self) -> None:
        """End the workers."""
        for worker in list(self._workers):
            self._dismiss(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(pipe: Connection, make: Callable[[], Worker[Any, Any]]) -> None:
    """Do jobs in a worker process until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches every process of a terminal; the first one ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work: Worker[Any, Any] | None = None
    with suppress(EOFError, BrokenPipeError):
        while True:
            job = pipe.recv()
            try:
                work = work or make()
                answer = _Ended(work.run(job, progress=_teller(pipe)))
            except Exception as error:
                answer = _Raised(_picklable(error), traceback.format_exc())
            pipe.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _teller(pipe: Connection) -> Progress:
    last = -_TELL_S

    def tell(step: int, steps: int, values: Mapping[str, float]) -> None:
        nonlocal last
        if time.monotonic() - last >= _TELL_S:
            last = time.monotonic()
            pipe.send(_Step(step, steps, dict(values), peak_bytes() if step else None))

    return tell


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return LostProcessError(f"A job ended with {type(error).__name__}: {error}")
    return error


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Let a process that is started in here not be interrupted from the terminal while it imports."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # else started below, which unblocks the signal too early
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_bytes() -> int | None:
    from asymlora.train.memory_check import available_bytes  # imports torch

    return available_bytes()
