from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asymlora.errors import MissingPackageError, SpecError
from asymlora.sweep.ray_executor import RayExecutor, _do, _Heard, _Told
from asymlora.sweep.run_record import RunJob
from stub_work import Ear, StubMaker, job

TESTS = str(Path(__file__).parents[1])
pytestmark = pytest.mark.timeout(900)  # to start and to end Ray takes minutes where other work holds both cores


class _Call:
    def __init__(self, heard: list[_Told]) -> None:
        self.remote = heard.append


class _Board:
    """Answers as an actor of Ray does, without Ray."""

    def __init__(self) -> None:
        self.heard: list[_Told] = []
        self.tell = _Call(self.heard)


def test_a_worker_keeps_its_work_and_hands_over_the_files_of_its_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    board, maker, where = _Board(), StubMaker(tmp_path), str(tmp_path)
    row, files = _do(job(3, keeps_adapter=True), maker, 1, board, where)
    _, none = _do(job(4), StubMaker(tmp_path), 1, board, where)
    assert files == {"config": b"3", "deep/weights": bytes([3]) * 1000}
    assert none == {}
    assert Path.cwd() == tmp_path
    _do(job(4), maker, 1, board, "/not/on/this/machine")
    assert Path.cwd() == tmp_path
    assert (row.executor, row.adapter) == ("ray", f"adapters/{job(3).id}")
    assert len((tmp_path / "made").read_text().splitlines()) == 1
    assert [(told.id, told.step) for told in board.heard] == [(job(s).id, step) for s in (3, 4, 4) for step in (0, 5)]
    # Nothing of it stays where it was kept, so the same run can come again.
    assert _do(job(3, keeps_adapter=True), maker, 1, board, where)[1] == files


def test_what_workers_tell_becomes_what_an_observer_hears() -> None:
    ear, jobs = Ear(), [job(1), job(2)]
    heard = _Heard(jobs, ear)
    begun = [_Told(each.id, 0, 10, {}) for each in jobs]
    step = [_Told(each.id, 5, 10, {"loss": 0.5}) for each in jobs]
    heard.take([step[0], begun[0], step[0]])  # of a run that is not said to have begun, nothing is told
    heard.ended(jobs[1])  # its row came before its news
    heard.take([begun[1], step[1], begun[0], step[0]])
    assert ear.heard == [
        ("started", 1),
        ("progress", 1),
        ("started", 2),
        ("lost", 1),
        ("started", 1),
        ("progress", 1),
    ]


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"needs Ray: pip install 'asymlora\[cluster\]'"):
        RayExecutor(tmp_path)


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    """A local Ray of two cores that was there before."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", TESTS)  # its workers import the stub
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


@pytest.mark.optional  # starts Ray: some 15 s
def test_runs_are_done_again_when_lost_and_all_else_comes_back(started: Any, tmp_path: Path) -> None:
    ear = Ear()
    folder = tmp_path / "sweep"
    jobs: list[RunJob] = [job(1, keeps_adapter=True), job(2, arm="dies once"), job(3, arm="dies always"), job(4)]
    (folder / "adapters" / jobs[0].id).mkdir(parents=True)  # of an attempt that was killed before its row
    with RayExecutor(folder, work=StubMaker(tmp_path)) as executor:
        rows = {row.seed: row for row in executor.run(jobs, told=ear)}
        with pytest.raises(ValueError, match="seed 5 is wrong") as caught:
            list(executor.run([job(5, arm="raises")]))
    assert {seed: row.status for seed, row in rows.items()} == {
        1: "finished",
        2: "finished",
        3: "failed",
        4: "finished",
    }
    assert (folder / str(rows[1].adapter) / "deep" / "weights").read_bytes() == bytes([1]) * 1000
    assert [f.name for f in (folder / "adapters").iterdir()] == [jobs[0].id]
    begun = (tmp_path / "begun").read_text().splitlines()
    assert [begun.count(each.id) for each in jobs] == [1, 2, 3, 1]
    assert "Ray lost the run's worker 3 times (WorkerCrashedError)" in str(rows[3].error)
    assert 'raise ValueError(f"seed {job.seed} is wrong")' in caught.value.__notes__[0]
    assert {("started", seed) for seed in (1, 2, 3, 4)} <= set(ear.heard)
    assert started.is_initialized()  # it was not ours to end
    # More threads than any machine has are refused instead of waited for.
    with pytest.raises(SpecError, match=r"threads=99 is more than the cores .* \(2\)"):
        RayExecutor(tmp_path, threads=99)
    assert started.is_initialized()


OWN = """
import sys
import time
from pathlib import Path
from asymlora.sweep.ray_executor import RayExecutor
from stub_work import StubMaker, job

folder = Path(sys.argv[1])
with RayExecutor(folder, work=StubMaker(folder)) as executor:
    rows = executor.run([job(1), job(2, arm="waits")])
    print(next(rows).seed, flush=True)
    while len((folder / "begun").read_text().splitlines()) < 2:
        time.sleep(0.1)
    rows.close()  # ends the run that waits
    print("left", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.optional  # starts Ray: some 15 s
def test_a_ray_of_our_own_is_quiet_and_ends_with_us_however_we_end(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": TESTS}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", OWN, str(tmp_path)], env=environment, text=True, **pipes) as driver:
        assert driver.stdout.readline() == "1\n"
        assert driver.stdout.readline() == "left\n"
        made = [int(pid) for pid in (tmp_path / "made").read_text().splitlines()]
        driver.kill()
        assert driver.stderr.read() == ""
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in made):
        assert time.monotonic() < end
        time.sleep(0.2)
