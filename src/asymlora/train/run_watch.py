"""What is kept of a run that writes no records: its losses and scores, and a stop where it is behind others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Told steps done, steps in all and the newest values by name."""
Behind = Callable[[Mapping[int, float]], bool]
"""Asked with the scores so far, by step, whether to stop."""


class RunWatch(TrainerCallback):
    """Keeps losses and scores, tells how far the run is, and stops it where others are ahead.

    Args:
        metric: The metric that choices are made by.
        progress: Who is told after each step; None: nobody.
        behind: Asked after each score but that of the last step; None: the run is never stopped early.

    Attributes:
        losses: ``step`` and ``loss``; what is not finite is left out.
        scores: ``step`` and ``value``, likewise.
        evaluate_seconds: Seconds of scoring the validation part.
        pruned: Whether the run was stopped early.
    """

    def __init__(self, metric: str, *, progress: Progress | None = None, behind: Behind | None = None) -> None:
        self.metric = metric
        self.progress = progress
        self.behind = behind
        self.losses: dict[str, list[Any]] = {"step": [], "loss": []}
        self.scores: dict[str, list[Any]] = {"step": [], "value": []}
        self.values: dict[str, float] = {}
        self.evaluate_seconds = 0.0
        self.pruned = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Tell how far the run is."""
        if self.progress is not None:
            self.progress(state.global_step, state.max_steps, self.values)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Keep a loss."""
        if logs and math.isfinite(logs.get("loss", math.nan)):
            self.values = {**self.values, "loss": float(logs["loss"])}
            self.losses["step"].append(state.global_step)
            self.losses["loss"].append(float(logs["loss"]))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        """Keep a score, and stop where the run is behind."""
        self.evaluate_seconds += float(metrics.get("eval_runtime", 0.0))
        score = float(metrics[f"eval_{self.metric}"])
        if not math.isfinite(score):
            return
        self.values = {**self.values, "validation": score}
        self.scores["step"].append(state.global_step)
        self.scores["value"].append(score)
        if self.behind is None or state.global_step >= state.max_steps:
            return
        if self.behind(dict(zip(self.scores["step"], self.scores["value"], strict=True))):
            self.pruned = control.should_training_stop = True
