"""Sweeps that are ended by SIGKILL at random moments, again and again, until they are done.

What they hold then is held against a whole sweep in one process, so equal rows and adapters on Ray are shown here too.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from asymlora.sweep.run_record import RunRow
from asymlora.sweep.sweep_folder import read_sweep
from asymlora.train.recipe import Recipe
from cases import small_reviews, write_small_encoder

KILLS = int(os.environ.get("ASYMLORA_KILLS", "3"))
"""Kills for each executor; 20 for the full figure. Ray takes half a minute to start, so where nothing is said it has"
" one."""
SEEDS = 2 + KILLS // 4  # so that there are runs enough to be killed in


class Sweep(NamedTuple):
    """A sweep as it is typed."""

    recipe: Path

    def start(self, folder: Path, executor: str) -> subprocess.Popen[bytes]:
        """Begin it, or go on with it."""
        words = ["--arm", "b_only", "--arm", "init_a", "--lr", "1e-3,1e-2", "--no-grow", "--threads", "1", "--no-page"]
        seeds = ["--seeds", str(SEEDS), "--tuning-seeds", "1", "--executor", executor, "--resume"]
        command = [sys.executable, "-m", "asymlora", "sweep", str(self.recipe), *words, *seeds, "--out", str(folder)]
        log = folder.with_suffix(".log").open("ab")
        with log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    root = tmp_path_factory.mktemp("killed")
    rows = small_reviews()
    data = root / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe: dict[str, Any] = {
        "model": {"name": str(write_small_encoder(root / "small-bert")), "pooling": "mean"},
        "data": {"name": str(data), "group": "film", "max_tokens": 16},
        "adapter": {"rank": 2},
        "train": {"steps": 12, "evaluate_every": 4, "batch_size": 8},
    }
    file = root / "recipe.yaml"
    file.write_text(Recipe.from_dict(recipe).to_yaml())
    return Sweep(file)


@pytest.fixture(scope="module")
def uninterrupted(sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the sweep that nothing happened to, in one process."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "sweep"
    assert sweep.start(folder, "inline").wait() == 0, _said(folder)
    return folder


def _said(folder: Path) -> str:
    return folder.with_suffix(".log").read_text(errors="replace")[-3000:]


def _lines(folder: Path) -> list[str]:
    file = folder / "runs.jsonl"
    return file.read_text().splitlines()[1:] if file.exists() else []


def _kill_at_a_random_moment(running: subprocess.Popen[bytes], folder: Path, moments: random.Random) -> bool:
    """Whether it was killed before it had ended by itself."""
    before, more = len(_lines(folder)), moments.choice((0, 1, 1, 2))
    end = time.monotonic() + 200
    while more and len(_lines(folder)) < before + more and running.poll() is None:
        assert time.monotonic() < end, _said(folder)
        time.sleep(0.02)
    # With no row waited for: while it starts, loads its model, or does its first run.
    time.sleep(moments.uniform(0, 1.0 if more else 15.0))
    running.send_signal(signal.SIGKILL)
    return running.wait() == -signal.SIGKILL


def _results(folder: Path) -> list[dict[str, Any]]:
    return sorted((row.result() for row in read_sweep(folder).rows), key=lambda result: result["id"])


def _adapters(folder: Path) -> dict[str, bytes]:
    files = [file for file in (folder / "adapters").rglob("*") if file.is_file()]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def _refuse_twice(folder: Path) -> None:
    rows: list[RunRow] = []
    for line in _lines(folder):
        if not line.endswith("# torn") and line.endswith("}"):
            rows.append(RunRow.from_dict(json.loads(line)))
    twice = [run for run, times in Counter(row.id for row in rows if row.final).items() if times > 1]
    assert not twice


@pytest.mark.optional  # starts the command line anew for each kill: some minutes
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("executor", ["inline", "processes", "ray"])
def test_a_sweep_that_is_killed_and_resumed_holds_what_the_uninterrupted_one_holds(
    sweep: Sweep, uninterrupted: Path, tmp_path: Path, executor: str
) -> None:
    moments, kills, sweeps = random.Random(executor), 0, 0
    asked = 1 if executor == "ray" and "ASYMLORA_KILLS" not in os.environ else KILLS
    wanted = _results(uninterrupted)
    assert len(wanted) >= 4 + 2 * SEEDS
    while kills < asked:
        folder, sweeps = tmp_path / f"sweep-{sweeps}", sweeps + 1
        ended = False
        while kills < asked and not ended:
            ended = not _kill_at_a_random_moment(sweep.start(folder, executor), folder, moments)
            kills += not ended
            _refuse_twice(folder)
        assert sweep.start(folder, executor).wait() == 0, _said(folder)
        assert _results(folder) == wanted
        assert Counter(json.loads(line)["id"] for line in _lines(folder) if line.endswith("}")) == Counter(
            result["id"] for result in wanted
        )
        assert _adapters(folder) == _adapters(uninterrupted)
        assert not list(folder.rglob(".incomplete-*"))
