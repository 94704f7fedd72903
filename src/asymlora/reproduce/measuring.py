"""Points of a measured part, one after another in this process or in several of this machine. No torch in here."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from asymlora.errors import LostProcessError
from asymlora.reproduce.evidence import Record
from asymlora.reproduce.measured_store import MeasuredRow
from asymlora.sweep.choosing_executor import parse_bytes
from asymlora.sweep.executors import Progress
from asymlora.sweep.worker_processes import WorkerProcesses

Measure = Callable[[Mapping[str, Any]], Iterable[Record]]
"""From a point to its records: `asymlora.reproduce.artefact.MeasuredPart.measure`."""
Measuring = Callable[[Measure, Mapping[str, Mapping[str, Any]]], Generator[MeasuredRow]]
"""From a measure and points by id to their rows, in the order in which they end."""


@dataclass(frozen=True)
class PointJob:
    """One point to be measured.

    Attributes:
        id: As `asymlora.reproduce.measured_store.point_id`.
        point: Its settings.
    """

    id: str
    point: Mapping[str, Any]


@dataclass(frozen=True)
class PointWork:
    """Measures one point after another.

    Attributes:
        measure: From a point to its records.
        threads: Of torch, if that is known; it stands in the rows.
    """

    measure: Measure
    threads: int | None = None

    def run(self, job: PointJob, *, progress: Progress | None = None) -> MeasuredRow:
        """Measure a point and return its row.

        Args:
            job: The point.
            progress: Not told anything: a measurement has no steps that all of them share.
        """
        began = time.monotonic()
        records = [dict(record) for record in self.measure(job.point)]
        seconds, ended = time.monotonic() - began, datetime.now(UTC).isoformat(timespec="seconds")
        return MeasuredRow(
            id=job.id, point=dict(job.point), records=records, seconds=round(seconds, 3), ended=ended,
            threads=self.threads,
        )  # fmt: skip


def measured_here(measure: Measure, points: Mapping[str, Mapping[str, Any]]) -> Generator[MeasuredRow]:
    """Measure points in this process, one after another.

    Args:
        measure: From a point to its records.
        points: By id.

    Yields:
        Their rows.
    """
    work = PointWork(measure)
    for job in _jobs(points):
        yield work.run(job)


def measuring_in(
    executor: str, *, workers: int | None, threads: int | None, memory: str | None, memory_gib: float | None
) -> Measuring:
    """Return how points are measured beside the runs of an executor.

    Args:
        executor: ``processes``: in as many, as with small models two of one thread are faster than one of two. Any
            other: in this process.
        workers: Most processes at once; None: as many as there are cores for, and memory.
        threads: Of torch, in each; None: one.
        memory: That all may have together, as text (``12GiB``); None: what is free at the start, or with ``workers``
            given whatever they take.
        memory_gib: That a process needs at most, as the artefact states it; None: one process alone, unless their
            number is given.

    Returns:
        From a measure and points to rows. In processes a measure must be picklable, and a point that is lost with its
        process each time it is tried is a `LostProcessError`.

    Raises:
        SpecError: ``memory`` is no size, or a number is below 1.
    """
    if executor != "processes":
        return measured_here
    budget = None if memory is None else parse_bytes(memory)
    each = None if memory_gib is None else int(memory_gib * 2**30)

    def measured_in_processes(measure: Measure, points: Mapping[str, Mapping[str, Any]]) -> Generator[MeasuredRow]:
        processes = _PointProcesses(
            partial(PointWork, measure, threads or 1), workers=workers, threads=threads or 1, memory_budget=budget,
            memory_each=each,
        )  # fmt: skip
        with processes, closing(processes.run(_jobs(points))) as rows:
            yield from rows

    return measured_in_processes


class _PointProcesses(WorkerProcesses[PointJob, MeasuredRow]):
    what = "measurement"

    def given_up(self, job: PointJob, error: str) -> MeasuredRow:
        raise LostProcessError(
            f"{error} The point was {dict(job.point)!r}. Go on with the same command and fewer --workers, or more"
            " memory; what was measured stays."
        )

    def peak(self, row: MeasuredRow) -> int | None:
        return None


def _jobs(points: Mapping[str, Mapping[str, Any]]) -> Sequence[PointJob]:
    return [PointJob(id, point) for id, point in points.items()]
