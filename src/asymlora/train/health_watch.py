"""What a run does to see its factors: a probe batch, the rows and verdicts of each measured step, and a strict stop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from asymlora.diagnostics.dynamics import FeatureDynamics
from asymlora.diagnostics.health import Verdict
from asymlora.diagnostics.health_monitor import HealthMonitor
from asymlora.diagnostics.site_measurement import measures
from asymlora.errors import AsymloraError, UnhealthyError
from asymlora.peft_sites import sites
from asymlora.tasks.task import Batch, Prepared
from asymlora.train import processes
from asymlora.train.dynamics_callback import DynamicsCallback
from asymlora.train.method import Method
from asymlora.train.recipe import Recipe
from asymlora.train.run_folder import RunFolder
from asymlora.train.trainer import AdapterTrainer, last_checkpoint

PROBE_ROWS, PROBE_TOKENS = 8, 256
"""The probe batch holds the first validation rows, up to so many of them and tokens, and one at least."""
MOST_ROWS = 20_000
"""Rows of a run, one for each site and measured step: 30 MB of JSON."""
_EVERY = 20
_NUMBERS = ("Z_A", "Z_B", "delta1", "delta2", "delta3", "delta_Z_B", "norm_A", "norm_B", "update_A", "update_B")


def probe_batch(prepared: Prepared) -> Batch:
    """Return a small fixed batch: nothing is drawn, nothing augmented, and the same rows come in every run.

    Args:
        prepared: The task.

    Returns:
        What the model takes, without labels, on the model's device.
    """
    chosen, tokens = 0, 0
    for length in prepared.validation.lengths[:PROBE_ROWS]:
        tokens += length
        if chosen and tokens > PROBE_TOKENS:
            break
        chosen += 1
    batch = prepared.collator([prepared.validation[i] for i in range(chosen)])
    return {key: value.to(prepared.model.device) for key, value in batch.items() if key != "labels"}


def interval(recipe: Recipe, sites: int) -> int:
    """Return the steps between two measurements: those of the recipe, more where that would give too many rows.

    Args:
        recipe: The run.
        sites: How many sites it has.

    Example:
        >>> from asymlora.train.recipe import TrainRecipe
        >>> short, long = (Recipe(train=TrainRecipe(steps=steps)) for steps in (250, 100_000))
        >>> interval(short, 36), interval(long, 36)
        (20, 180)
    """
    fewest = math.ceil(recipe.train.steps * sites / MOST_ROWS)
    return max(recipe.train.dynamics_every or _EVERY, fewest)


def why_unmeasured(recipe: Recipe, network: nn.Module) -> str | None:
    """Return why the factors of a run are not measured, as a sentence, or None where they are.

    Args:
        recipe: The run.
        network: What it trains.
    """
    if recipe.train.dynamics_every == 0:
        return "The factors are not measured: train.dynamics_every=0."
    if recipe.train.sharding == "fsdp":
        return "The factors are not measured: under FSDP no process holds them whole."
    try:
        next(iter(sites(network)))
    except AsymloraError:
        return f"The factors are not measured: method={recipe.method!r} has none that asymlora reads."
    return None


class HealthWatch(TrainerCallback):
    """Measures, judges and writes in the first process; a strict one stops all of them at the first verdict.

    Build it before a checkpoint is loaded, so that a resumed run measures against the same start.

    Args:
        recipe: The run.
        prepared: Its task.
        method: What is trained.
        network: The model with what is trained on it.
        folder: Where rows and verdicts go; those of an interrupted run are gone on with.
        strict: Whether the first verdict stops the run.

    Attributes:
        note: Why the factors are not measured, or None.
    """

    def __init__(
        self,
        recipe: Recipe,
        prepared: Prepared,
        *,
        method: Method,
        network: nn.Module,
        folder: RunFolder,
        strict: bool = False,
    ) -> None:
        self.method = method
        self.folder = folder
        self.strict = strict
        self.note = why_unmeasured(recipe, network)
        self.every = interval(recipe, 0 if self.note else sum(1 for _ in sites(network)))
        self.dynamics: FeatureDynamics | None = None
        self.monitor: HealthMonitor | None = None
        self._measuring: DynamicsCallback | None = None
        self._fresh: list[Verdict] = []
        if not processes.is_first() or recipe.train.sharding == "fsdp":
            return
        self.monitor = HealthMonitor(network, heads=prepared.heads)
        self.monitor.recall(restored(row) for row in folder.dynamics())
        if self.note is None:
            self.dynamics = FeatureDynamics(network, probe_batch(prepared), every=self.every, observe=self._take)

    def add_to(self, trainer: AdapterTrainer) -> HealthWatch:
        """Let a trainer's steps be measured, and its trackers hear of them.

        Args:
            trainer: The run's.

        Returns:
            This watch.
        """
        if self.dynamics is not None:
            self._measuring = DynamicsCallback(self.dynamics).add_to(
                trainer
            )  # before this one, which reads what it has measured
        trainer.add_callback(self)
        return self

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take the model as it is now, a checkpoint or a fitted head loaded, for the start."""
        if self.monitor is not None:
            self.monitor.begin()
            self._see(())
        self._stop_if_strict(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look at a model without factors; stop a strict run."""
        step = state.global_step
        if not measures(step, self.every):
            return
        if self.monitor is not None and self.dynamics is None:
            self._see((), step)
        self._stop_if_strict(step)

    def close(self) -> dict[str, Any]:
        """Write ``health.json`` and return its content: ``sites`` and ``steps`` watched, ``note``, ``verdicts``."""
        found = () if self.monitor is None else self.monitor.verdicts()
        watched, steps = (0, 0) if self.monitor is None else self.monitor.watched
        told = [verdict.to_dict() for verdict in found]
        health = {"sites": watched, "steps": steps, "note": self.note, "verdicts": told}
        self.folder.write_health(health)
        return health

    def release(self) -> None:
        """Take off the hooks that a step has left which raised."""
        if self._measuring is not None:
            self._measuring.release()

    def _take(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.folder.record_dynamics(rows)
        self._see(rows)

    def _see(self, rows: Sequence[Mapping[str, Any]], step: int | None = None) -> None:
        assert self.monitor is not None
        if self.strict:
            self._fresh += self.monitor.observe(rows, step)
        else:
            self.monitor.take(rows, step)

    def _stop_if_strict(self, step: int) -> None:
        if self.strict:
            processes.on_first(lambda: self._refuse(step))

    def _refuse(self, step: int) -> None:
        if not self._fresh:
            return
        self.close()
        kept = last_checkpoint(self.folder.checkpoints, self.method)
        place = f"The last checkpoint is {kept}." if kept else "No checkpoint was written yet."
        first = self._fresh[0]
        raise UnhealthyError(
            f"Stopped at step {step} by its first verdict, {first.name}. {first.text} {place} Begin again with that"
            f" change, or go on as it is without --strict: --output {self.folder.path} --resume."
        )


def restored(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as it was before it became JSON: a number that is missing was not finite.

    Args:
        row: Of ``dynamics.jsonl``.
    """
    return {key: math.nan if value is None and key in _NUMBERS else value for key, value in row.items()}
