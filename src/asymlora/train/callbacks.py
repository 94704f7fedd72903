"""What a run says and writes down while it trains."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from asymlora.train.run_folder import RunFolder

_OF_THE_TRAINER = ("runtime", "_per_second", "_time")


class Observer(Protocol):
    """Who is told how a run goes on: a terminal, a notebook, a log."""

    def begun(self, folder: str) -> None:
        """Take note of the run's folder, from which it can be resumed."""
        ...

    def stage(self, text: str) -> None:
        """Take note of a stage of the run that begins, or of what one found."""
        ...

    def progress(self, what: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Take note of how far ``what`` is; ``values`` are the newest measurements by name."""
        ...


class Silent:
    """An observer that does nothing."""

    def begun(self, folder: str) -> None:
        """Do nothing."""

    def stage(self, text: str) -> None:
        """Do nothing."""

    def progress(self, what: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Do nothing."""


def quiet_transformers() -> None:
    """Keep transformers from printing load reports and bars of its own beside the observer's."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


class Recorder(TrainerCallback):
    """Writes records and tells the observer.

    Args:
        folder: Where records go.
        observer: Who is told.
        metric: The metric that choices are made by.
        seconds_before: Seconds that an interrupted run had trained before this one.
    """

    def __init__(
        self, folder: RunFolder, observer: Observer, *, metric: str = "accuracy", seconds_before: float = 0.0
    ) -> None:
        self.folder = folder
        self.observer = observer
        self.metric = metric
        self.seconds_before = seconds_before
        self.rates: dict[str, float] = {}
        self.values: dict[str, float] = {}
        self.started = time.monotonic()
        self.steps = 0
        self.step_seconds = 0.0
        self.step_started = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training so far, evaluation included, interrupted parts included."""
        return self.seconds_before + time.monotonic() - self.started

    def samples_per_second(self, batch_size: int) -> float | None:
        """Return rows per second of the steps that this process took, evaluation left out; None before the first."""
        return batch_size * self.steps / self.step_seconds if self.steps else None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self.started = time.monotonic()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock of the step."""
        self.step_started = time.monotonic()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Keep the rates that this step uses; the Trainer's own log knows the first group's only."""
        self.rates = {f"lr_{group['name']}": group["lr"] for group in given["optimizer"].param_groups}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop the clock of the step, and tell the observer."""
        self.step_seconds += time.monotonic() - self.step_started
        self.steps += 1
        self.observer.progress("training", state.global_step, state.max_steps, self.values)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Write a training record."""
        if logs and "loss" in logs:
            self.values["loss"] = logs["loss"]
            row = {key: logs[key] for key in ("loss", "grad_norm") if key in logs}
            self._record("train", state.global_step, {**row, **self.rates})

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        """Write a validation record."""
        row = {key.removeprefix("eval_"): value for key, value in metrics.items() if key.startswith("eval_")}
        row = {key: value for key, value in row.items() if not key.endswith(_OF_THE_TRAINER)}
        self.values["validation"] = row[self.metric]
        self._record("validation", state.global_step, row)
        self.observer.progress("training", state.global_step, state.max_steps, self.values)

    def _record(self, split: str, step: int, row: dict[str, float]) -> None:
        # JSON has no NaN; whether the run has diverged is the Trainer's to say, with step and rates.
        kept = {key: value if math.isfinite(value) else None for key, value in row.items()}
        self.folder.record({"split": split, "step": step, **kept, "wall_s": round(self.seconds, 3)})
