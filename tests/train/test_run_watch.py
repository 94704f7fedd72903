from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from asymlora.train.run_watch import RunWatch

ARGS: Any = TrainingArguments.__new__(TrainingArguments)


def test_what_is_not_finite_is_not_kept() -> None:
    watch, state, control = RunWatch("accuracy"), TrainerState(global_step=50, max_steps=100), TrainerControl()
    watch.on_log(ARGS, state, control, logs={"loss": 0.5})
    watch.on_log(ARGS, state, control, logs={"loss": math.inf})
    watch.on_log(ARGS, state, control, logs={"train_runtime": 1.0})
    watch.on_evaluate(ARGS, state, control, metrics={"eval_accuracy": 0.25, "eval_runtime": 2.0})
    watch.on_evaluate(ARGS, state, control, metrics={"eval_accuracy": math.nan, "eval_runtime": 1.0})
    assert watch.losses == {"step": [50], "loss": [0.5]}
    assert watch.scores == {"step": [50], "value": [0.25]}
    assert watch.values == {"loss": 0.5, "validation": 0.25}
    assert watch.evaluate_seconds == 3.0
    assert not control.should_training_stop


def test_it_asks_after_each_score_but_the_last_and_stops() -> None:
    asked: list[dict[int, float]] = []

    def behind(own: Mapping[int, float]) -> bool:
        asked.append(dict(own))
        return own[max(own)] < 0.5

    watch, control = RunWatch("accuracy", behind=behind), TrainerControl()
    for step, score, stops in ((10, 0.6, False), (20, 0.4, True)):
        state = TrainerState(global_step=step, max_steps=30)
        watch.on_evaluate(ARGS, state, control, metrics={"eval_accuracy": score})
        assert (watch.pruned, control.should_training_stop) == (stops, stops)
    assert asked == [{10: 0.6}, {10: 0.6, 20: 0.4}]
    last, control = RunWatch("accuracy", behind=behind), TrainerControl()
    last.on_evaluate(ARGS, TrainerState(global_step=30, max_steps=30), control, metrics={"eval_accuracy": 0.1})
    assert not last.pruned
    assert len(asked) == 2
