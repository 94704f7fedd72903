from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from asymlora.train.callbacks import Recorder, Silent
from asymlora.train.run_folder import RunFolder


class _Told(Silent):
    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int, dict[str, float]]] = []

    def progress(self, what: str, done: int, total: int, values: Mapping[str, float]) -> None:
        self.seen.append((what, done, total, dict(values)))


@pytest.fixture
def arguments(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)


def test_records_carry_each_groups_own_rate_of_the_step_they_were_used_in(
    tmp_path: Path, arguments: TrainingArguments
) -> None:
    state, control = TrainerState(), TrainerControl()
    state.global_step, state.max_steps = 3, 9
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"name": "A", "params": [weights[0]], "lr": 0.1}, {"name": "B", "params": [weights[1]], "lr": 0.4}]
    )
    told = _Told()
    recorder = Recorder(RunFolder(path=tmp_path), told, seconds_before=100.0)
    recorder.on_train_begin(arguments, state, control)
    recorder.on_pre_optimizer_step(arguments, state, control, optimizer=optimizer)
    optimizer.param_groups[1]["lr"] = 0.0  # the scheduler goes on before the Trainer logs
    recorder.on_log(arguments, state, control, logs={"loss": 0.5, "grad_norm": 1.5, "learning_rate": 0.1})
    recorder.on_log(arguments, state, control, logs={"train_runtime": 1.0})  # the Trainer's closing log is no record
    recorder.on_evaluate(arguments, state, control, metrics={"eval_loss": 0.7, "eval_accuracy": 0.25, "epoch": 1.0})
    recorder.on_step_end(arguments, state, control)
    rows = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert all(100.0 <= row.pop("wall_s") < 160.0 for row in rows)
    assert rows == [
        {"split": "train", "step": 3, "loss": 0.5, "grad_norm": 1.5, "lr_A": 0.1, "lr_B": 0.4},
        {"split": "validation", "step": 3, "loss": 0.7, "accuracy": 0.25},
    ]
    assert told.seen[-1] == ("training", 3, 9, {"loss": 0.5, "validation": 0.25})


def test_what_is_no_number_is_recorded_as_null(tmp_path: Path, arguments: TrainingArguments) -> None:
    state, control = TrainerState(), TrainerControl()
    recorder = Recorder(RunFolder(path=tmp_path), Silent())
    recorder.on_log(arguments, state, control, logs={"loss": 0.5, "grad_norm": float("inf")})
    recorder.on_evaluate(arguments, state, control, metrics={"eval_loss": float("nan"), "eval_accuracy": 0.5})
    train, validation = (json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines())
    assert (train["loss"], train["grad_norm"]) == (0.5, None)
    assert (validation["loss"], validation["accuracy"]) == (None, 0.5)
