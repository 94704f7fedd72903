"""Runs of a sweep in several processes of this machine, within its cores and its memory. No torch in here.

Each worker keeps a model loaded from run to run. It gets one run at a time over a pipe of its own, so that nothing of
another run is lost with it, and it ends with the process that started it, however that ends.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple, Self

from asymlora.errors import LostProcessError
from asymlora.schema import refuse_values
from asymlora.sweep.executors import MOST_TRIES, Progress, Work, WorkMaker, lost_row, session
from asymlora.sweep.observer import SilentObserver, SweepObserver
from asymlora.sweep.run_record import RunJob, RunRow
from asymlora.train.run_folder import peak_bytes

_SPAWN = multiprocessing.get_context("spawn")
_LOOK_S = 2.0  # a process that a worker started may hold its pipe open, so its end is looked for as well
_TELL_S = 0.2


class _Told(NamedTuple):
    """How far a run is, and the peak of its process."""

    step: int
    steps: int
    values: Mapping[str, float]
    peak: int | None


class _Raised(NamedTuple):
    """What a run raised, and where."""

    error: Exception
    trace: str


class _Gone(NamedTuple):
    """The worker has ended."""

    reason: str


_Message = _Told | RunRow | _Raised | _Gone


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    job: RunJob | None = None

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
        return f"The worker process {self.process.pid} ended in the middle of the run ({how})."

    def end(self) -> None:
        """End it at once: whatever it has finished is told, and its files appear whole or not at all."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


@dataclass
class _Round:
    waiting: deque[RunJob]
    observer: SweepObserver
    tries: Counter[str] = field(default_factory=Counter[str])

    def lost(self, job: RunJob, reason: str) -> RunRow | None:
        """Put a lost run back, or return its row when it was tried often enough."""
        self.tries[job.id] += 1
        if self.tries[job.id] < MOST_TRIES:
            self.observer.lost(job, reason)
            self.waiting.appendleft(job)
            return None
        error = f"{reason} It was tried {MOST_TRIES} times. Resume the sweep to try it again, with fewer workers."
        return lost_row(job, error, executor=LocalProcesses.name)


class LocalProcesses:
    """Does the runs in worker processes of this machine.

    Unless their number is given, one worker begins; when its first steps have shown what a run needs, as many more are
    started as there are cores for, and as fit in the memory together.

    Args:
        folder: The sweep's, for adapters that are kept.
        workers: Most worker processes at once; None: as many as there are cores for, and memory.
        threads: Of torch, in each worker.
        memory_budget: Bytes that all workers may have together; None: what is free at the start, or with ``workers``
            given whatever they take.
        memory_each: Bytes that a worker needs at most; None: measured in the first.
        work: Makes in a worker what does a run; must be picklable.

    Raises:
        SpecError: A number is below 1.
    """

    name = "processes"

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
        given = {
            "workers": workers,
            "threads": threads,
            "memory_budget": memory_budget,
            "memory_each": memory_each,
        }
        refuse_values([f"{key}={v} must be at least 1" for key, v in given.items() if v is not None and v < 1])
        self._arguments = (work, folder, threads)
        self._threads = threads
        self._most = workers or max(1, _cores() // threads)
        self._budget = memory_budget if memory_budget or workers else _free_bytes()
        self._need = memory_each
        self._workers: list[_Worker] = []

    @property
    def allowed(self) -> int:
        """How many workers there may be, as far as is known by now."""
        if self._budget is None or self._most == 1:
            return self._most
        if self._need is None:
            return 1
        return min(self._most, max(1, self._budget // self._need))

    def run(self, jobs: Sequence[RunJob], *, told: SweepObserver | None = None) -> Generator[RunRow]:
        """Do runs, as `asymlora.sweep.executors.Executor.run`.

        Args:
            jobs: The runs, all of different ids.
            told: Hears of them; None: nobody does.

        Yields:
            Their rows in the order in which they end. A run that was lost with its worker three times is a failed one.

        Raises:
            Exception: What a run raised in its worker, with the trace of the worker as a note.
        """
        round_ = _Round(deque(jobs), told or SilentObserver())
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

    def _messages(self) -> Iterator[tuple[_Worker, _Message]]:
        ready = wait([worker.pipe for worker in self._workers], timeout=_LOOK_S)
        for worker in list(self._workers):
            if worker.pipe in ready or not worker.process.is_alive():
                for message in worker.messages():
                    yield worker, message

    def _heard(self, message: _Message, worker: _Worker, round_: _Round) -> RunRow | None:
        job = worker.job
        match message:
            case _Told():
                self._measured(message.peak)
                if job is not None:
                    round_.observer.progress(job, message.step, message.steps, message.values)
            case RunRow():
                self._measured(message.peak_memory_bytes)
                worker.job = None
                return message
            case _Raised():
                message.error.add_note(f"In a worker process:\n{message.trace}")
                raise message.error
            case _Gone():
                self._dismiss(worker)
                return None if job is None else round_.lost(job, message.reason)
        return None

    def _hand_out(self, round_: _Round) -> None:
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

    def _start(self) -> _Worker:
        ours, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
        # Before torch is imported there; what the worker is started with holds also where its main module imports it.
        with _environment({"OMP_NUM_THREADS": str(self._threads)}), _without_interrupts():
            process.start()
        theirs.close()
        worker = _Worker(process=process, pipe=ours)
        self._workers.append(worker)
        return worker

    def _dismiss(self, worker: _Worker) -> None:
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


def _serve(pipe: Connection, maker: WorkMaker, folder: Path, threads: int) -> None:
    """Do runs in a worker process until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches every process of a terminal; the first one ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work: Work | None = None
    with suppress(EOFError, BrokenPipeError):
        while True:
            job = pipe.recv()
            try:
                work = work or maker(folder, threads, LocalProcesses.name)
                answer = work.run(job, progress=_teller(pipe))
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
            pipe.send(_Told(step, steps, dict(values), peak_bytes() if step else None))

    return tell


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return LostProcessError(f"A run ended with {type(error).__name__}: {error}")
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
