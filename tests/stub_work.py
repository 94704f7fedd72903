"""Work without a model for tests of executors: importable in spawned processes and in workers of Ray."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from asymlora.sweep.executors import Progress, lost_row
from asymlora.sweep.observer import SilentObserver
from asymlora.sweep.run_record import RunJob, RunRow
from asymlora.sweep.store import RunStore
from asymlora.train.recipe import Recipe


def job(seed: int, *, arm: str = "plain", **changes: Any) -> RunJob:
    """Return a run; its arm says what `Stub` does."""
    recipe = Recipe.from_dict({"train": {"seed": seed, "steps": 10}})
    return RunJob(recipe=recipe, phase="tuning", arm=arm, seed=seed, **changes)


def row(seed: int, **changes: Any) -> RunRow:
    """Return the row of such a run."""
    ended = replace(lost_row(job(seed), "", executor="inline"), status="finished", error=None, validation=seed / 10)
    return replace(ended, **changes)


def write_rows(path: str, seeds: list[int]) -> None:
    """Append rows of 20 kB to a store, as one of several writers."""
    store = RunStore(path)
    for seed in seeds:
        store.append(row(seed, losses={"step": list(range(2000)), "loss": [0.5] * 2000}))


@dataclass(frozen=True)
class StubMaker:
    """Makes `Stub`; equal where it is pickled and back.

    Attributes:
        marks: Folder in which the work notes what it does.
        peak: Peak memory that its rows tell.
    """

    marks: Path
    peak: int | None = None

    def __call__(self, folder: Path | None, threads: int | None, executor: str) -> Stub:
        return Stub(self, folder, executor)


class Stub:
    """Does what the arm of a run says: plain, dies once, dies always, raises, waits, keeps."""

    def __init__(self, maker: StubMaker, folder: Path | None, executor: str) -> None:
        self.maker, self.folder, self.executor = maker, folder, executor
        self.note("made", str(os.getpid()))

    def note(self, name: str, line: str) -> None:
        with (self.maker.marks / name).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def run(self, job: RunJob, *, progress: Progress | None = None) -> RunRow:
        self.note("begun", job.id)
        died = self.maker.marks / f"died-{job.id}"
        if job.arm == "dies always" or (job.arm == "dies once" and not died.exists()):
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if job.arm == "raises":
            raise ValueError(f"seed {job.seed} is wrong")
        if job.arm == "waits":
            time.sleep(60)
        if progress is not None:
            progress(5, 10, {"loss": 0.5})
        return self._row(job)

    def _row(self, job: RunJob) -> RunRow:
        ended = replace(lost_row(job, "", executor=self.executor), status="finished", error=None)
        adapter = None
        if job.keeps_adapter and self.folder is not None:
            adapter = f"adapters/{job.id}"
            (self.folder / adapter / "deep").mkdir(parents=True)
            (self.folder / adapter / "deep" / "weights").write_bytes(bytes([job.seed]) * 1000)
            (self.folder / adapter / "config").write_text(str(job.seed))
        return replace(ended, adapter=adapter, peak_memory_bytes=self.maker.peak, worker=os.getpid())


class Ear(SilentObserver):
    """Notes what an executor tells."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []
        self.reasons: list[str] = []

    def started(self, job: RunJob) -> None:
        self.heard.append(("started", job.seed))

    def progress(self, job: RunJob, step: int, steps: int, values: Mapping[str, float]) -> None:
        assert (step, steps, values) == (5, 10, {"loss": 0.5})
        self.heard.append(("progress", job.seed))

    def lost(self, job: RunJob, reason: str) -> None:
        self.heard.append(("lost", job.seed))
        self.reasons.append(reason)
