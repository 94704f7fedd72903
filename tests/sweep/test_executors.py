from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from asymlora.sweep.executors import Executor, InProcess, lost_row
from stub_work import Ear, StubMaker, job


def test_runs_are_done_in_turn_on_one_work(tmp_path: Path) -> None:
    ear = Ear()
    executor: Executor = InProcess(tmp_path, work=StubMaker(tmp_path))
    with executor:
        rows = [*executor.run([job(3), job(1)], told=ear), *executor.run([job(2)])]
    assert [row.seed for row in rows] == [3, 1, 2]
    assert {row.executor for row in rows} == {"inline"}
    assert ear.heard == [("started", 3), ("progress", 3), ("started", 1), ("progress", 1)]
    assert len((tmp_path / "made").read_text().splitlines()) == 1


def test_a_run_begins_only_when_the_row_before_is_taken(tmp_path: Path) -> None:
    # So that what ended is stored whenever the sweep is interrupted.
    ear = Ear()
    rows = InProcess(tmp_path, work=StubMaker(tmp_path)).run([job(1), job(2)], told=ear)
    next(rows)
    rows.close()
    assert ear.heard == [("started", 1), ("progress", 1)]


def test_what_a_run_raises_comes_through_and_the_next_call_goes_on(tmp_path: Path) -> None:
    with InProcess(tmp_path, work=StubMaker(tmp_path)) as executor:
        with pytest.raises(ValueError, match="seed 4 is wrong"):
            list(executor.run([job(4, arm="raises"), job(5)]))
        assert [row.seed for row in executor.run([job(5)])] == [5]


def test_a_lost_run_leaves_a_failed_row_of_its_job() -> None:
    mine = job(2, arm="init_a", axes={"train.batch_size": 4}, repeat=1)
    row = lost_row(mine, "Lost.", executor="ray")
    assert (row.id, row.arm, row.axes, row.seed, row.repeat) == (mine.id, "init_a", {"train.batch_size": 4}, 2, 1)
    assert (row.status, row.final, row.error, row.planned_steps) == ("failed", False, "Lost.", 10)
    assert (row.lr, row.rank, row.recipe) == (mine.recipe.train.lr, mine.recipe.adapter.rank, mine.recipe.to_dict())


@pytest.mark.parametrize("name", ["executors", "worker_processes", "local_processes", "store", "sweep_folder"])
def test_what_a_worker_imports_first_loads_no_torch(name: str) -> None:
    # OMP_NUM_THREADS must be set in a worker before torch is imported there.
    light = f"import sys, asymlora.sweep.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", light], check=False).returncode == 0
