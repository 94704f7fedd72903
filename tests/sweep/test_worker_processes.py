from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asymlora.errors import SpecError
from asymlora.sweep.local_processes import LocalProcesses
from stub_work import Ear, StubMaker, job


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def _until(holds: object, *, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    assert callable(holds)
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_workers_do_all_runs_and_keep_what_they_have_made(tmp_path: Path) -> None:
    ear = Ear()
    with LocalProcesses(tmp_path, workers=2, work=StubMaker(tmp_path)) as executor:
        rows = list(executor.run([job(seed) for seed in range(6)], told=ear))
        more = list(executor.run([job(7)], told=ear))
    assert sorted(row.seed for row in rows) == list(range(6))
    assert {row.executor for row in rows} == {"processes"}
    made = {int(pid) for pid in _lines(tmp_path / "made")}
    assert len(made) == len(_lines(tmp_path / "made")) <= 2
    assert {row.worker for row in rows + more} <= made
    assert sorted(ear.heard) == sorted((what, seed) for seed in [*range(6), 7] for what in ("started", "progress"))
    assert not any(_alive(pid) for pid in made)


def test_a_run_whose_worker_is_killed_is_done_again_in_another(tmp_path: Path) -> None:
    ear = Ear()
    jobs = [job(1), job(2, arm="dies once"), job(3)]
    with LocalProcesses(tmp_path, workers=1, work=StubMaker(tmp_path)) as executor:
        rows = list(executor.run(jobs, told=ear))
    assert [(row.seed, row.status) for row in rows] == [(1, "finished"), (2, "finished"), (3, "finished")]
    # With one worker the order is exact: the lost run is the next one.
    assert [what for what in ear.heard if what[0] != "progress"] == [
        ("started", 1),
        ("started", 2),
        ("lost", 2),
        ("started", 2),
        ("started", 3),
    ]
    assert "ended in the middle of the run (SIGKILL" in ear.reasons[0]
    assert rows[0].worker != rows[1].worker == rows[2].worker


def test_a_worker_that_died_idle_is_replaced_and_no_run_counts_as_lost(tmp_path: Path) -> None:
    ear = Ear()
    with LocalProcesses(tmp_path, workers=1, work=StubMaker(tmp_path)) as executor:
        (first,) = executor.run([job(1)])
        os.kill(first.worker, signal.SIGKILL)
        _until(lambda: not _alive(first.worker))
        (second,) = executor.run([job(2)], told=ear)
    assert second.worker != first.worker
    assert ("lost", 2) not in ear.heard


def test_what_a_run_raises_comes_through_with_the_workers_trace(tmp_path: Path) -> None:
    with LocalProcesses(tmp_path, workers=1, work=StubMaker(tmp_path)) as executor:
        with pytest.raises(ValueError, match="seed 4 is wrong") as caught:
            list(executor.run([job(4, arm="raises")]))
        assert 'raise ValueError(f"seed {job.seed} is wrong")' in caught.value.__notes__[0]
        assert [row.seed for row in executor.run([job(5)])] == [5]


def test_leaving_early_ends_the_runs_that_go_on_and_begins_no_other(tmp_path: Path) -> None:
    jobs = [job(1), job(2, arm="waits"), job(3)]
    with LocalProcesses(tmp_path, workers=1, work=StubMaker(tmp_path)) as executor:
        rows = executor.run(jobs)
        pid = next(rows).worker
        _until(lambda: jobs[1].id in _lines(tmp_path / "begun"))
        rows.close()
        assert not _alive(pid)
    assert jobs[2].id not in _lines(tmp_path / "begun")


def test_more_workers_start_when_the_first_has_shown_what_fits(tmp_path: Path) -> None:
    limits = {"workers": 8, "memory_budget": 10 * 2**30}
    with LocalProcesses(tmp_path, **limits, work=StubMaker(tmp_path)) as executor:
        assert executor.allowed == 1
        list(executor.run([job(1)]))  # told with its progress: a process without torch, far below 1 GiB
        assert executor.allowed == 8
    with LocalProcesses(tmp_path, **limits, work=StubMaker(tmp_path, peak=3 * 2**30)) as executor:
        list(executor.run([job(1)]))  # told with its row
        assert executor.allowed == 3


@pytest.mark.parametrize(
    ("workers", "budget", "each", "allowed"),
    [(8, 3500, 1000, 3), (2, 3500, 1000, 2), (2, 10, 1000, 1), (5, None, None, 5)],
)
def test_cores_and_memory_both_bound_the_workers(
    tmp_path: Path, workers: int, budget: int | None, each: int | None, allowed: int
) -> None:
    executor = LocalProcesses(tmp_path, workers=workers, memory_budget=budget, memory_each=each)
    assert executor.allowed == allowed


def test_cores_bound_the_workers_where_their_number_is_not_given(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    assert LocalProcesses(tmp_path, memory_budget=10**6, memory_each=1).allowed == cores
    assert LocalProcesses(tmp_path, threads=cores, memory_budget=10**6, memory_each=1).allowed == 1
    with pytest.raises(SpecError, match="workers=0 must be at least 1; threads=-1 must be at least 1"):
        LocalProcesses(tmp_path, workers=0, threads=-1)


def test_workers_have_their_threads_before_torch_and_this_process_keeps_its_own(tmp_path: Path) -> None:
    before = os.environ.get("OMP_NUM_THREADS")
    with LocalProcesses(tmp_path, workers=1, threads=3, work=StubMaker(tmp_path)) as executor:
        (row,) = executor.run([job(1)])
        environment = Path(f"/proc/{row.worker}/environ").read_bytes().split(b"\0")
    assert b"OMP_NUM_THREADS=3" in environment
    assert os.environ.get("OMP_NUM_THREADS") == before


PARENT = """
import sys
from pathlib import Path
from asymlora.sweep.executors import InProcess
from asymlora.sweep.local_processes import LocalProcesses
from asymlora.sweep.run_record import RunJob
from asymlora.train.recipe import Recipe
from stub_work import StubMaker, job

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with LocalProcesses(folder, workers=2, work=StubMaker(folder)) as executor:
        list(executor.run([job(1, arm="waits"), job(2, arm="waits")]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )
    with parent:
        _until(lambda: len(_lines(tmp_path / "begun")) == 2)
        pids = [int(pid) for pid in _lines(tmp_path / "made")]
        parent.send_signal(how)
        parent.wait(10)
        _until(lambda: not any(_alive(pid) for pid in pids), seconds=5)
        assert parent.stderr is not None
        said = parent.stderr.read()
    assert said.count("Traceback") == (1 if how == signal.SIGINT else 0), said
