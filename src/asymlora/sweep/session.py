"""Runs of a sweep one after another in one process, on a model and rows that are loaded once."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from asymlora.errors import AsymloraError, DivergedError, SpecError
from asymlora.sweep.loaded_base import LoadedBase, base_key
from asymlora.sweep.run_record import RunJob, RunRow
from asymlora.sweep.single_run import SingleRun
from asymlora.train.callbacks import quiet_transformers
from asymlora.train.run_folder import peak_bytes
from asymlora.train.run_watch import Progress


class Session:
    """Does runs, each to the result that `asymlora finetune` gives for its recipe, bit for bit, in any order.

    What is kept from run to run: the model, its rows and tokenizer, the head that is fitted on the frozen model, fresh
    heads by seed, and starts of factors that are slow to draw. One base is kept at a time: with a recipe of another
    task, model or data the one before is dropped.

    Args:
        folder: The sweep's, where adapters are kept; None: none is.
        threads: Threads of torch; None: as they are.
        executor: What the rows say of where they were done.

    Attributes:
        loads: How often a base was loaded.
    """

    def __init__(self, *, folder: Path | None = None, threads: int | None = None, executor: str = "inline") -> None:
        self.folder = folder
        self.threads = threads
        self.executor = executor
        self.loads = 0
        self._base: LoadedBase | None = None
        self._key = ""

    def run(self, job: RunJob, *, progress: Progress | None = None) -> RunRow:
        """Do one run.

        Args:
            job: The run.
            progress: Told after each step: steps done, steps in all, and the newest values by name.

        Returns:
            Its row. A run that diverged or failed has one too, with the reason.

        Raises:
            SpecError: The adapter is to be kept, and this session has no folder.
        """
        if job.keeps_adapter and self.folder is None:
            raise SpecError("A job keeps its adapter, and this session has no folder. Give Session(folder=...).")
        quiet_transformers()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        with _only_new_garbage():
            return self._row(job, self._done(job, progress))

    def _done(self, job: RunJob, progress: Progress | None) -> dict[str, Any]:
        run: SingleRun | None = None
        try:
            run = SingleRun(self._loaded(job), job, folder=self.folder, progress=progress)
            run.do()
        except DivergedError as error:
            return _ended(run, "diverged", str(error), step=error.step)
        except Exception as error:  # whatever one arm meets, the others go on
            said = str(error) if isinstance(error, AsymloraError) else f"{type(error).__name__}: {error}".rstrip(": ")
            return _ended(run, "failed", said)
        return run.found

    def _loaded(self, job: RunJob) -> LoadedBase:
        key = base_key(job.recipe)
        if self._base is None or key != self._key:
            self._base = None  # before the next one is read: two models may not fit
            self._base, self._key = LoadedBase(job.recipe), key
            self.loads += 1
        return self._base

    def _row(self, job: RunJob, found: dict[str, Any]) -> RunRow:
        recipe = job.recipe
        return RunRow(
            id=job.id,
            phase=job.phase,
            arm=job.arm,
            axes=dict(job.axes),
            seed=job.seed,
            repeat=job.repeat,
            lr=recipe.train.lr,
            rank=recipe.adapter.rank,
            recipe=recipe.to_dict(),
            planned_steps=recipe.train.steps,
            threads=torch.get_num_threads(),
            peak_memory_bytes=peak_bytes(),
            executor=self.executor,
            worker=os.getpid(),
            ended=datetime.now(UTC).isoformat(timespec="seconds"),
            **found,
        )


def _ended(run: SingleRun | None, status: str, error: str, *, step: int | None = None) -> dict[str, Any]:
    found = {} if run is None else dict(run.found)
    for name in ("validation", "best_step", "test", "weights_digest", "adapter"):
        found.pop(name, None)
    if status == "diverged":
        found["diverged_at"] = found.get("steps", 0) if step is None else step
    return {**found, "status": status, "error": error}


@contextmanager
def _only_new_garbage() -> Iterator[None]:
    # The Trainer collects garbage at the start of each run, which takes most of a second over all that the libraries
    # hold. What was there before is put aside for so long; what a run leaves, models in cycles among it, goes at once.
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        if ours:
            gc.unfreeze()
