"""The parts of a run as they are kept: a head for ``artefact.json``, and short rows. No torch in here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asymlora.reproduce.kept_rows import compact_measured, compact_run, rounded, without_places
from asymlora.reproduce.measured_store import MEASURED, MeasuredRow, MeasuredStore
from asymlora.reproduce.run_records import FirstLook, PartRecords
from asymlora.sweep.sweep_folder import PLAN, SweepRecords, read_sweep

SECOND = "second"
"""Key of a kept row that the first look did not have."""


@dataclass(frozen=True, kw_only=True)
class KeptPart:
    """One part.

    Attributes:
        name: Its name.
        head: What ``artefact.json`` says of it.
        rows: Its rows in short form.
        sessions: What was typed, of a sweep.
        environment: On what, of a sweep.
    """

    name: str
    head: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    sessions: Sequence[Mapping[str, Any]] = ()
    environment: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def seconds(self) -> float:
        """How long it took, all runs one after another."""
        return self.head["seconds"]


def kept_parts(folder: Path, look: FirstLook | None) -> Iterator[KeptPart]:
    """Yield the parts of a run that have records, in short form.

    Args:
        folder: Of the run.
        look: What its first look had; None: all that there is.
    """
    for path in sorted(folder.iterdir()):
        had = look.records.get(path.name) if look is not None and path.name in look.second else None
        if (path / PLAN).is_file():
            records = read_sweep(path)
            if records.rows:
                yield _sweep_part(path.name, records, had)
        elif (path / MEASURED).is_file():
            rows = MeasuredStore(path / MEASURED).rows()
            if rows:
                yield _measured_part(path.name, rows, had)


def _sweep_part(name: str, records: SweepRecords, had: PartRecords | None) -> KeptPart:
    rows = records.rows
    seconds = sum(row.setup_seconds + row.train_seconds + row.evaluate_seconds for row in rows)
    memory = max((row.peak_memory_bytes or 0 for row in rows), default=0)
    head = {
        "kind": "sweep",
        "runs": len(rows),
        "seconds": rounded(seconds),
        "threads": sorted({row.threads for row in rows}),
        "memory_gib": rounded(memory / 2**30, 3) or None,
        "ended": _days(row.ended for row in rows),
        "plan": without_places(dict(records.plan)),
    }
    if had is not None:
        head["first_plan"] = without_places(dict(had.plan or records.plan))
    short = [_looked(compact_run(row), row.id, had) for row in rows]
    return KeptPart(name=name, head=head, rows=short, sessions=records.sessions, environment=records.environment)


def _looked(kept: dict[str, Any], id: str, had: PartRecords | None) -> dict[str, Any]:
    # A row that the first look did not have says so.
    return kept if had is None or id in had.rows else {**kept, SECOND: True}


def _measured_part(name: str, rows: Sequence[MeasuredRow], had: PartRecords | None) -> KeptPart:
    head = {
        "kind": "measured",
        "points": len(rows),
        "records": sum(len(row.records) for row in rows),
        "seconds": rounded(sum(row.seconds for row in rows)),
        "ended": _days(row.ended for row in rows),
    }
    threads = [row.threads for row in rows if row.threads is not None]
    if len(threads) == len(rows):  # else some had all of torch's threads
        head["threads"] = sorted(set(threads))
    return KeptPart(name=name, head=head, rows=[_looked(compact_measured(row), row.id, had) for row in rows])


def _days(times: Iterable[str]) -> list[str]:
    days = sorted({time[:10] for time in times if time})
    return days[:1] + days[1:][-1:]
