"""Runs without a model: the metric is a formula of arm, rate, seed and step; what a sweep must find is known."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from asymlora.sweep.executors import Progress
from asymlora.sweep.pruning import is_behind
from asymlora.sweep.run_record import RunJob, RunRow


@dataclass
class Bowl:
    """A metric that falls with the distance of the rate from the arm's best one, in octaves.

    Attributes:
        best: Best rate by arm.
        height: Metric there, by arm; 0.9 where none is given.
        edge: Rate from which on runs diverge.
        noise: Standard deviation between seeds.
        broken: Arms whose runs fail.
        done: Ids of the runs that were done, in order.
    """

    best: Mapping[str, float]
    height: Mapping[str, float] = field(default_factory=dict[str, float])
    edge: float = math.inf
    noise: float = 0.0
    broken: tuple[str, ...] = ()
    done: list[str] = field(default_factory=list[str])

    def run(self, job: RunJob, *, progress: Progress | None = None) -> RunRow:
        """Do a run."""
        self.done.append(job.id)
        lr, steps = job.recipe.train.lr, job.recipe.train.steps
        if job.arm in self.broken:
            return _row(job, status="failed", error="It is broken.")
        if lr >= self.edge:
            return _row(job, status="diverged", error="The loss is nan.", diverged_at=3, steps=2, metric="accuracy")
        every = job.recipe.train.evaluate_every
        scores: dict[int, float] = {}
        for step in range(every, steps + 1, every):
            scores[step] = self.value(job, step)
            behind = job.rivals is not None and step < steps and is_behind(
                job.rivals, scores, every=every, eta=job.prune_eta, greater_is_better=True
            )  # fmt: skip
            if behind:
                break
        taken = max(scores)
        kept = scores[taken]
        test = {"accuracy": kept} if job.scores_test and taken == steps else None
        return _row(
            job,
            status="finished" if taken == steps else "pruned",
            steps=taken,
            validation=kept,
            best_step=taken,
            test=test,
            scores={"step": [float(step) for step in scores], "value": list(scores.values())},
            metric="accuracy",
        )

    def value(self, job: RunJob, step: int) -> float:
        """Return the metric of a run at a step."""
        octaves = math.log2(job.recipe.train.lr / self.best[job.arm])
        draw = random.Random(f"{job.seed} {job.arm} {job.recipe.train.lr}").gauss(0, self.noise)
        learnt = step / job.recipe.train.steps
        return self.height.get(job.arm, 0.9) - 0.01 * octaves**2 - 0.3 * (1 - learnt) + draw


def work_of(bowl: Bowl, folder: Path | None, threads: int | None, executor: str) -> Bowl:
    """Return the bowl, where an executor asks for what does its runs."""
    return bowl


def _row(job: RunJob, **values: object) -> RunRow:
    given: dict[str, object] = {
        "id": job.id,
        "phase": job.phase,
        "arm": job.arm,
        "axes": dict(job.axes),
        "seed": job.seed,
        "repeat": job.repeat,
        "lr": job.recipe.train.lr,
        "rank": job.recipe.adapter.rank,
        "recipe": job.recipe.to_dict(),
        "planned_steps": job.recipe.train.steps,
        **values,
    }
    return RunRow(**given)  # pyright: ignore[reportArgumentType]
