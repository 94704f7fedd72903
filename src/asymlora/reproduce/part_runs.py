"""One part of an artefact: its sweep or its measurements are done as far as they are missing. No torch in here."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from asymlora.errors import AsymloraError, DivergedError, SpecError
from asymlora.reproduce.artefact import MeasuredPart, Part, SweepPart
from asymlora.reproduce.measured_store import MEASURED, MeasuredStore
from asymlora.reproduce.measuring import Measuring, measured_here
from asymlora.reproduce.protocol import plan_of, points_of
from asymlora.reproduce.run_records import Look, PartRecords
from asymlora.sweep.executors import Executor
from asymlora.sweep.grid import Cell, SweepPlan
from asymlora.sweep.observer import SilentObserver, SweepObserver
from asymlora.sweep.run_record import RunJob, RunRow
from asymlora.sweep.store import RunStore, refused_writes_said
from asymlora.sweep.sweep_folder import RUNS, SweepFolder, claim, require_same_base, stored_plan


class Watcher(Protocol):
    """What is told while an artefact is run, all from one thread."""

    def stage(self, text: str) -> None:
        """Hear in a sentence what is done now."""

    def sweeping(self, part: str) -> AbstractContextManager[SweepObserver]:
        """Return who is told of one sweep."""
        ...

    def measured(self, part: str, done: int, points: int) -> None:
        """Hear how many points of a part are there."""


class SilentWatcher:
    """A watcher that does nothing."""

    def stage(self, text: str) -> None:
        """Do nothing."""

    def sweeping(self, part: str) -> AbstractContextManager[SweepObserver]:
        """Return an observer that does nothing."""
        return nullcontext(SilentObserver())

    def measured(self, part: str, done: int, points: int) -> None:
        """Do nothing."""


def ready(plan: SweepPlan) -> tuple[Sequence[Cell], int]:
    """Return the cells of a plan, each checked against its model, and about what their runs write.

    Args:
        plan: The plan.

    Returns:
        The cells, and bytes.
    """
    from asymlora.reproduce.forecasting import bytes_to_write
    from asymlora.sweep.cell_checks import ready_cells

    found = ready_cells(plan)
    return found, bytes_to_write(plan, found)


@dataclass(frozen=True, kw_only=True)
class Means:
    """How an artefact is run, and who is told.

    Attributes:
        executor: From a sweep's folder to what does its runs.
        threads: Of torch in each run; None: as the executor has it.
        command: What was typed.
        watcher: Who is told.
        ready: From a plan to its cells, checked against their models, and the bytes that its runs write.
        measuring: How points are measured.
    """

    executor: Callable[[Path], Executor]
    threads: int | None = None
    command: str = ""
    watcher: Watcher = field(default_factory=SilentWatcher)
    ready: Callable[[SweepPlan], tuple[Sequence[Cell], int]] = ready
    measuring: Measuring = measured_here


class Did(NamedTuple):
    """What a session did of a part.

    Attributes:
        new: Runs or points that it has done.
        failed: Those of them that failed, and are done again by the next session.
    """

    new: int
    failed: int = 0


def do_part(part: Part, look: Look, path: Path, means: Means) -> Did:
    """Do what is missing of one look at a part.

    Args:
        part: The part.
        look: Which look.
        path: Its folder.
        means: How runs are done, and who is told.

    Returns:
        How much that was.

    Raises:
        SpecError: It was begun with another protocol that cannot be gone on with.
        AsymloraError: Whatever a sweep raises, with the name of the part and in words of this command.
    """
    with _part_named(part.name):
        if isinstance(part, SweepPart):
            return _sweep(plan_of(part, look), path, part.name, means)
        return _measure(part, look, path, means)


def final_rows(part: Part, path: Path) -> frozenset[str]:
    """Return the ids of the rows that a part's folder holds and that need not be done again.

    Args:
        part: The part.
        path: Its folder.
    """
    return (RunStore(path / RUNS) if isinstance(part, SweepPart) else MeasuredStore(path / MEASURED)).finished()


def first_records(part: Part, path: Path) -> PartRecords:
    """Return which records of a part are those of the first look: of its seeds, or of its points.

    Args:
        part: The part.
        path: Its folder.
    """
    if not isinstance(part, SweepPart):
        return PartRecords(rows=tuple(points_of(part, "first")))
    plan = part.plan
    rows = tuple(
        row.id
        for row in RunStore(path / RUNS).rows()
        if row.seed in (plan.closing_seeds if row.phase == "closing" else plan.tuning_seeds)
    )
    return PartRecords(rows=rows, plan=plan.to_dict())


class _Counted:
    # An executor that counts what it does: the runs of a plan that are in the store are never given to it.
    def __init__(self, executor: Executor) -> None:
        self.executor, self.name = executor, executor.name
        self.ended: dict[str, bool] = {}

    def run(self, jobs: Sequence[RunJob], *, told: SweepObserver | None = None) -> Generator[RunRow]:
        with closing(self.executor.run(jobs, told=told)) as rows:
            for row in rows:
                self.ended[row.id] = row.final
                yield row

    def close(self) -> None:
        self.executor.close()

    def __enter__(self) -> Self:
        self.executor.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self.executor.__exit__(*raised)


def _sweep(plan: SweepPlan, path: Path, name: str, means: Means) -> Did:
    from asymlora.sweep.engine import run_sweep

    if means.threads is not None:
        plan = replace(plan, threads=means.threads)
    place: SweepFolder = claim(path, resume=True, overwrite=False)
    if place.resumes:
        _require_same_place(path, plan)
        require_same_base(path, plan.to_dict())
    cells, needed_bytes = means.ready(plan)
    place.check_space(needed_bytes)
    counted = _Counted(means.executor(path))
    with means.watcher.sweeping(name) as observer, counted:
        run_sweep(plan, cells, place, executor=counted, observer=observer, command=means.command)
    return Did(len(counted.ended), sum(not final for final in counted.ended.values()))


def _require_same_place(path: Path, plan: SweepPlan) -> None:
    # The place is a part of each run's name, so the same data elsewhere are other runs.
    was, now = (_data_name(one) for one in (stored_plan(path), plan.to_dict()))
    if was != now:
        raise SpecError(
            f"The sweep in {path} was begun with data that stood at {was}, and now they are to be read from {now}. Type"
            " --data-root and --out as they were typed then, from the same folder; or choose another --out."
        )


def _data_name(plan: Mapping[str, Any]) -> str | None:
    return ((plan.get("recipe") or {}).get("data") or {}).get("name")


def _measure(part: MeasuredPart, look: Look, path: Path, means: Means) -> Did:
    watcher = means.watcher
    with refused_writes_said(path, then="go on with the same command"):
        path.mkdir(parents=True, exist_ok=True)
    store = MeasuredStore(path / MEASURED)
    points, every = points_of(part, look), points_of(part, "second")
    there = {row.id: row for row in store.rows()}
    for warning in store.warnings():
        watcher.stage(warning)
    if stale := [row.point for row in there.values() if row.id not in every]:
        raise SpecError(
            f"{store.path} holds {len(stale)} points that are none of this part's, like {dict(stale[0])!r}: it was"
            " begun with other settings, or measured by an older version of the part. Begin anew with --overwrite, or"
            " choose another --out."
        )
    missing = {id: point for id, point in points.items() if id not in there}
    done = len(points) - len(missing)
    watcher.measured(part.name, done, len(points))
    with closing(means.measuring(part.measure, missing)) as rows:
        for row in rows:
            store.append(row)
            done += 1
            watcher.measured(part.name, done, len(points))
    return Did(len(missing))


@contextmanager
def _part_named(name: str) -> Iterator[None]:
    # Errors of sweeps speak of an option that is not needed here, as going on is automatic.
    try:
        yield
    except DivergedError:
        raise
    except AsymloraError as error:
        said = str(error).replace("go on with --resume", "go on with the same command")
        raise type(error)(f"Part {name}: {said}") from error
