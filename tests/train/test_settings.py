"""What a recipe's training fields do, seen from outside: a run with the field against one without."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import asymlora as al
from asymlora.errors import SpecError, UnknownNameError
from asymlora.train.recipe import Recipe
from asymlora.train.run import RunResult, finetune
from asymlora.train.run_folder import RunFolder

Run = Callable[..., tuple[RunResult, Path]]


@pytest.fixture
def run(small_recipe: dict[str, Any], tmp_path: Path) -> Run:
    """Run the small recipe with some parts changed."""

    def run(name: str = "run", **parts: Any) -> tuple[RunResult, Path]:
        changed = {key: {**small_recipe[key], **value} for key, value in parts.items() if isinstance(value, dict)}
        plain = {key: value for key, value in parts.items() if not isinstance(value, dict)}
        recipe = Recipe.from_dict({**small_recipe, **changed, **plain})
        return finetune(recipe, output=tmp_path / name), tmp_path / name

    return run


def _factors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def _rates(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == "train"]


def test_a_ratio_of_rates_and_absolute_ones_are_those_of_the_steps(run: Run) -> None:
    loraplus = {"preset": "lora", "B": {"init": "zeros", "lr_ratio": 16.0}}
    (row, *_) = _rates(run("ratio", adapter=loraplus, train={"schedule": "constant", "warmup_fraction": 0.0})[1])
    assert (row["lr_A"], row["lr_B"], row["lr_head"]) == (0.01, pytest.approx(0.16), 0.01)
    absolute = {"lr_A": 1e-4, "lr_B": 1e-3, "lr_head": 1e-2, "schedule": "constant", "warmup_fraction": 0.0}
    (row, *_) = _rates(run("absolute", adapter={"preset": "lora"}, train=absolute)[1])
    assert (row["lr_A"], row["lr_B"], row["lr_head"], row["lr_norm"]) == (1e-4, 1e-3, 1e-2, 1e-2)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "polynomial", "inverse_sqrt"])
def test_a_schedule_has_its_course(run: Run, schedule: str) -> None:
    train = {"schedule": schedule, "evaluate_every": 1, "steps": 8, "warmup_fraction": 0.25}
    rates = [row["lr_B"] for row in _rates(run(train=train)[1])]
    assert rates[0] == 0.0
    assert rates[2] == max(rates) == pytest.approx(0.01)
    assert rates[7] == pytest.approx(
        {
            "constant": 0.01,
            "linear": 0.01 * (1 - 5 / 6),
            "cosine": 0.01 * (1 + torch.cos(torch.tensor(torch.pi * 5 / 6)).item()) / 2,
            "polynomial": 1e-7 + (0.01 - 1e-7) * (1 - 5 / 6),
            "inverse_sqrt": 0.01 * (2 / 7) ** 0.5,
        }[schedule],
        rel=1e-3,
    )


def test_an_optimizer_by_its_name_trains_and_resumes_to_the_same_bits(
    run: Run, small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"optimizer": "SGD", "optimizer_options": {"momentum": 0.9, "nesterov": True}, "lr": 0.1}
    _, whole = run("sgd", train=train)
    plain = _factors(run("adamw", train={"lr": 0.1})[1])
    assert any(not torch.equal(value, plain[name]) for name, value in _factors(whole).items())
    recipe = Recipe.from_dict({**small_recipe, "train": {**small_recipe["train"], **train}})
    _cut_after(recipe, tmp_path / "cut", monkeypatch, step=8)
    finetune(recipe, output=tmp_path / "cut", resume=True)
    assert all(torch.equal(value, _factors(whole)[name]) for name, value in _factors(tmp_path / "cut").items())


class _StopError(Exception):
    pass


def _cut_after(recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch, *, step: int) -> None:
    """Begin a run and break it off when the record of a validation at or after ``step`` is written."""
    record = RunFolder.record

    def stop(self: RunFolder, row: Any) -> None:
        record(self, row)
        if row["split"] == "train" and row["step"] >= step:
            raise _StopError

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "record", stop)
        with pytest.raises(_StopError):
            finetune(recipe, output=folder)


def test_a_wrong_optimizer_is_found_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'adamw'"):
        run(train={"optimizer": "adamwe"})
    assert not (tmp_path / "run").exists()


def _without_dropout(encoder: str, folder: Path) -> str:
    shutil.copytree(encoder, folder)
    config = json.loads((folder / "config.json").read_text())
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps({**config, **none}))
    return str(folder)


def test_accumulating_two_batches_is_one_of_twice_the_size(
    run: Run, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["model"]["name"] = _without_dropout(small_recipe["model"]["name"], tmp_path / "encoder")
    train = {"optimizer": "sgd", "lr": 0.05, "max_grad_norm": 0.0, "evaluate_every": 12}  # no choice of a best step
    one = _factors(run("one", train={**train, "batch_size": 16})[1])
    two = _factors(run("two", train={**train, "batch_size": 8, "gradient_accumulation": 2})[1])
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)  # another order of summation, twelve steps


def test_clipping_bounds_the_step_of_plain_descent(run: Run) -> None:
    train = {"optimizer": "sgd", "lr": 1.0, "steps": 1, "evaluate_every": 1, "warmup_fraction": 0.0}
    sizes = {}
    for limit in (1e-3, 0.0):
        _, folder = run(f"limit {limit}", train={**train, "max_grad_norm": limit})
        factors = {name: value for name, value in _factors(folder).items() if "lora_B" in name}
        sizes[limit] = torch.stack([value.norm() for value in factors.values()]).norm().item()
    assert sizes[1e-3] <= 1e-3 * (1 + 1e-4)  # B starts at zero: its size is its part of the clipped step
    assert sizes[0.0] > 2e-3


@pytest.mark.parametrize("pooling", ["mean", "native"])
def test_gradient_checkpointing_changes_no_number(run: Run, pooling: str) -> None:
    plain = _factors(run("plain", model={"pooling": pooling})[1])
    again = _factors(run("again", model={"pooling": pooling}, train={"gradient_checkpointing": True})[1])
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-7)


def test_bfloat16_trains_in_another_precision_with_weights_in_float32(run: Run) -> None:
    plain = _factors(run("plain")[1])
    result, folder = run("bf16", train={"precision": "bfloat16"})
    half = _factors(folder)
    assert result.steps == 12
    assert {value.dtype for value in half.values()} == {torch.float32}
    trained = [name for name in half if "lora_B" in name]
    assert any(not torch.equal(half[name], plain[name]) for name in trained)
    near = [torch.cosine_similarity(half[n].flatten(), plain[n].flatten(), dim=0).item() for n in trained]
    assert sum(near) / len(near) > 0.9


def test_patience_ends_a_run_that_gets_no_better(run: Run) -> None:
    # A rate so small that no validation row changes sides: no score is better than the first.
    train = {"lr": 1e-12, "steps": 40, "evaluate_every": 2}
    assert run("patient", train=train)[0].steps == 40
    result, _ = run("impatient", train={**train, "patience": 3})
    assert (result.steps, result.best_step) == (8, 2)


def test_tensorboard_gets_the_rates_and_the_scores(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, folder = run(train={"report_to": ["tensorboard"]})
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    names = set(events.Tags()["scalars"])
    assert {"train/loss", "eval/accuracy"} <= names
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    validation = [(row["step"], row["accuracy"]) for row in rows if row["split"] == "validation"]
    told = [(event.step, event.value) for event in events.Scalars("eval/accuracy")]
    assert told == [(step, pytest.approx(value)) for step, value in validation]


def test_the_gradient_correction_changes_the_run_and_resumes_to_the_same_bits(
    run: Run, small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Gaussian rows: an orthonormal A would only be a factor that Adam divides out.
    adapter = {"preset": "b_only", "rank": 2, "A": {"init": "gaussian", "trainable": False}}
    _, whole = run("whole", adapter=adapter, train={"gradient_correction": True})
    plain = _factors(run("plain", adapter=adapter)[1])
    assert any(not torch.equal(value, plain[name]) for name, value in _factors(whole).items() if "lora_B" in name)
    parts = {"adapter": adapter, "train": {**small_recipe["train"], "gradient_correction": True}}
    recipe = Recipe.from_dict({**small_recipe, **parts})
    _cut_after(recipe, tmp_path / "cut", monkeypatch, step=8)
    finetune(recipe, output=tmp_path / "cut", resume=True)
    assert all(torch.equal(value, _factors(whole)[name]) for name, value in _factors(tmp_path / "cut").items())
    with pytest.raises(SpecError, match="this adapter trains A"):
        run("refused", adapter={"preset": "lora"}, train={"gradient_correction": True})


def test_a_step_that_cannot_fit_is_refused_with_the_remedy_and_may_be_tried(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asymlora.train.memory_check.available_bytes", lambda *_, **__: 2**16)
    with pytest.raises(SpecError, match="batch_size"):
        run()
    assert not (tmp_path / "run").exists()
    assert run(train={"memory_check": False})[0].steps == 12


def test_sharding_on_a_cpu_is_an_error_and_not_something_else(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecError, match="Accelerate runs DDP instead without a word"):
        run(train={"sharding": "fsdp"})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["full", "head", "peft:lora", "peft:lora_fa", "peft:adalora", "peft:ia3"])
def test_every_method_runs_predicts_and_merges(run: Run, method: str, tmp_path: Path, small_recipe: Any) -> None:
    from asymlora.train.saved_run import load_run, merge_run

    small_recipe["adapter"] = {}
    rate = {} if method == "peft:lora_fa" else {"lr": 0.01}
    result, folder = run(method=method, train=rate)
    assert result.method == method
    assert result.trained_parameters > 0
    assert result.head_parameters == 2 * 16 + 2  # PEFT's copy of a head counts once
    before = load_run(folder).answer(["a good film", "the dull plot"])
    merged = load_run(merge_run(folder, tmp_path / "merged")).answer(["a good film", "the dull plot"])
    for one, other in zip(before, merged, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-5)


def test_the_same_start_is_given_to_every_method(run: Run, small_recipe: Any) -> None:
    small_recipe["adapter"] = {}
    results = [run(method.replace(":", " "), method=method)[0] for method in ("adapter", "head", "full", "peft:lora")]
    assert len({result.before for result in results}) == 1
    assert all(result.before == result.baseline for result in results)
    trained = [result.trained_parameters for result in results]
    assert trained[1] == results[0].head_parameters < trained[0] < trained[3] < trained[2] == results[2].full_parameters


def test_an_adapter_over_a_packed_base_trains(run: Run) -> None:
    assert al.__all__  # torch and the library are loaded before bitsandbytes looks for devices
    result, _ = run(model={"base": "int8"})
    assert result.steps == 12
