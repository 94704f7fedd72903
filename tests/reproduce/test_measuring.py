from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from asymlora.errors import LostProcessError, SpecError
from asymlora.papers import catalogue
from asymlora.reproduce.artefact import MeasuredPart
from asymlora.reproduce.evidence import Record
from asymlora.reproduce.measured_store import MeasuredRow
from asymlora.reproduce.measuring import measured_here, measuring_in

POINTS: Mapping[str, Mapping[str, Any]] = {str(width): {"width": width} for width in range(6)}


def _in_processes(**options: Any) -> Any:
    return measuring_in("processes", **{"workers": None, "threads": None, "memory": None, "memory_gib": 0.1, **options})


def measure(point: Mapping[str, Any]) -> list[Record]:
    """Return where it was measured, under which number of threads."""
    return [{**point, "process": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")}]


def refused(point: Mapping[str, Any]) -> list[Record]:
    """Refuse the point."""
    raise SpecError(f"No width {point['width']}.")


def deadly(point: Mapping[str, Any]) -> list[Record]:
    """Die at one point as of a short memory: at the first try of it, or always."""
    mark = Path(point["marks"]) / str(point["width"])
    if point["width"] == 3 and (point["always"] or not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [dict(point)]


def _settings(rows: list[MeasuredRow]) -> list[Mapping[str, Any]]:
    return sorted((row.point for row in rows), key=lambda point: point["width"])


def test_processes_measure_what_this_process_does() -> None:
    here = list(measured_here(measure, POINTS))
    assert {row.records[0]["process"] for row in here} == {os.getpid()}
    assert [row.point for row in here] == list(POINTS.values())
    assert {row.threads for row in here} == {None}
    there = list(_in_processes(workers=2, threads=3)(measure, POINTS))
    assert _settings(there) == _settings(here)
    assert {row.id for row in there} == {row.id for row in here}
    processes = {row.records[0]["process"] for row in there}
    assert os.getpid() not in processes
    assert len(processes) <= 2
    assert {row.threads for row in there} == {3}
    assert {row.records[0]["threads"] for row in there} == {"3"}


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_other_executors_leave_measurements_to_this_process(executor: str) -> None:
    measuring = measuring_in(executor, workers=None, threads=None, memory=None, memory_gib=1.0)
    assert measuring is measured_here


def test_one_process_alone_where_the_memory_holds_one() -> None:
    rows = list(_in_processes(memory="1.5GiB", memory_gib=1.0)(measure, POINTS))
    assert len({row.records[0]["process"] for row in rows}) == 1


def test_what_a_measurement_raises_is_raised_here() -> None:
    with pytest.raises(SpecError, match="No width") as caught:
        list(_in_processes(workers=1)(refused, POINTS))
    assert "In a worker process" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("always", [False, True])
def test_a_point_that_is_lost_with_its_process_is_measured_again(tmp_path: Path, always: bool) -> None:
    points = {key: {**point, "marks": str(tmp_path), "always": always} for key, point in POINTS.items()}
    measuring = _in_processes(workers=1)
    if not always:
        assert len(list(measuring(deadly, points))) == len(POINTS)
        return
    found: list[MeasuredRow] = []
    with pytest.raises(LostProcessError, match=r"SIGKILL.* tried 3 times\. The point was .*fewer --workers"):
        for row in measuring(deadly, points):
            found.append(row)
    assert [row.point["width"] for row in found] == [0, 1, 2]


def test_rows_of_an_older_version_are_read_and_written_as_they_were() -> None:
    row = MeasuredRow(id="a", point={"width": 8}, records=[], seconds=1.0, ended="")
    assert "threads" not in row.to_dict()
    assert MeasuredRow.from_dict(row.to_dict()) == row
    told = MeasuredRow(**{**asdict(row), "threads": 2})
    assert MeasuredRow.from_dict(told.to_dict()) == told


@pytest.mark.parametrize("artefact", list(catalogue.every()), ids=lambda artefact: artefact.name)
def test_every_measured_part_can_be_given_to_a_process(artefact: Any, tmp_path: Path) -> None:
    for scale in (artefact.small, artefact.paper):
        for part in scale.parts(tmp_path):
            if isinstance(part, MeasuredPart):
                assert type(pickle.loads(pickle.dumps(part.measure))) is type(part.measure)
