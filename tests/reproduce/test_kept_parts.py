from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from asymlora.reproduce.kept_parts import SECOND, kept_parts
from asymlora.reproduce.measured_store import MeasuredStore
from asymlora.reproduce.run_records import FirstLook, PartRecords
from asymlora.sweep.sweep_folder import read_sweep
from reproduce.made_artefact import run_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folder(tmp_path_factory.mktemp("run") / "run")


def test_each_part_has_a_head_and_a_row_for_each_run_or_point(run: Path) -> None:
    task, toy = kept_parts(run, None)
    assert (task.name, task.head["kind"], task.head["runs"], len(task.rows)) == ("task", "sweep", 24, 24)
    assert (toy.name, toy.head["kind"], toy.head["points"], len(toy.rows)) == ("toy", "measured", 2, 2)
    assert task.seconds == task.head["seconds"]
    assert not any(SECOND in row for part in (task, toy) for row in part.rows)
    assert "first_plan" not in task.head


def test_rows_that_the_first_look_did_not_have_say_so(run: Path) -> None:
    ids = [row.id for row in read_sweep(run / "task").rows]
    records = {"task": PartRecords(rows=tuple(ids[:20]), plan={"rates": [0.5]}), "toy": PartRecords(rows=())}
    look = FirstLook(findings={}, second=("task",), protocols={}, records=records)
    task, toy = kept_parts(run, look)
    assert [row.get(SECOND, False) for row in task.rows] == [False] * 20 + [True] * 4
    assert task.head["first_plan"] == {"rates": [0.5]}
    assert not any(SECOND in row for row in toy.rows)  # it had no second look


@pytest.mark.parametrize(("threads", "told"), [((1, 2), [1, 2]), ((1, None), None), ((None, None), None)])
def test_threads_of_measurements_are_told_where_all_are_known(
    tmp_path: Path, threads: tuple[int | None, ...], told: list[int] | None
) -> None:
    folder = run_folder(tmp_path / "run")
    file = folder / "toy" / "measured.jsonl"
    rows = MeasuredStore(file).rows()
    file.unlink()
    for row, count in zip(rows, threads, strict=True):
        MeasuredStore(file).append(replace(row, threads=count))
    _, toy = kept_parts(folder, None)
    assert toy.head.get("threads") == told
