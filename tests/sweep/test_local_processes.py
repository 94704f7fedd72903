from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asymlora.sweep.executors import InProcess
from asymlora.sweep.local_processes import LocalProcesses
from asymlora.sweep.run_record import RunJob
from asymlora.train.recipe import Recipe
from stub_work import StubMaker, job


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def test_adapters_are_written_by_the_worker_where_they_stay(tmp_path: Path) -> None:
    with LocalProcesses(tmp_path, workers=1, work=StubMaker(tmp_path)) as executor:
        (row,) = executor.run([job(3, keeps_adapter=True)])
    assert (tmp_path / str(row.adapter) / "config").read_text() == "3"


def test_a_run_that_kills_each_of_its_workers_fails_the_third_time_and_the_others_go_on(tmp_path: Path) -> None:
    jobs = [job(1, arm="dies always"), job(2)]
    with LocalProcesses(tmp_path, workers=1, work=StubMaker(tmp_path)) as executor:
        rows = list(executor.run(jobs))
    assert [(row.seed, row.status) for row in rows] == [(1, "failed"), (2, "finished")]
    assert "It was tried 3 times. Resume the sweep to try it again" in str(rows[0].error)
    assert _lines(tmp_path / "begun").count(jobs[0].id) == 3


@pytest.mark.optional  # torch in two more processes: some 30 s
def test_rows_and_adapters_equal_those_of_this_process(tmp_path: Path, small_recipe: dict[str, Any]) -> None:
    def small(seed: int) -> RunJob:
        recipe = Recipe.from_dict({**small_recipe, "train": {**small_recipe["train"], "seed": seed}})
        return RunJob(recipe=recipe, phase="closing", arm="b_only", seed=seed, scores_test=True, keeps_adapter=True)

    jobs = [small(seed) for seed in range(4)]
    with InProcess(tmp_path / "inline", threads=1) as executor:
        wanted = list(executor.run(jobs))
    with LocalProcesses(tmp_path / "processes", workers=2) as executor:
        rows = sorted(executor.run(jobs), key=lambda row: row.seed)
    assert len({row.worker for row in rows}) == 2
    assert [row.status for row in wanted] == ["finished"] * 4
    assert [row.result() for row in rows] == [row.result() for row in wanted]
    for row in rows:
        here, there = (tmp_path / where / str(row.adapter) for where in ("inline", "processes"))
        assert {f.name: f.read_bytes() for f in there.iterdir()} == {f.name: f.read_bytes() for f in here.iterdir()}
