"""Runs that are watched: what they write, that their numbers are the same, and that a strict one stops."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from asymlora.cli import main
from asymlora.errors import DivergedError, SpecError, UnhealthyError
from asymlora.tasks.preparing import prepare_task
from asymlora.train.health_watch import MOST_ROWS, PROBE_ROWS, interval, probe_batch, restored, why_unmeasured
from asymlora.train.methods import METHODS
from asymlora.train.recipe import Recipe, TrainRecipe
from asymlora.train.run import RunResult, finetune

LORA = {"preset": "lora", "rank": 2, "targets": ["query", "value"]}


def _recipe(small_recipe: dict[str, Any], **parts: Any) -> Recipe:
    merged = {key: {**small_recipe.get(key, {}), **v} if isinstance(v, dict) else v for key, v in parts.items()}
    return Recipe.from_dict({**small_recipe, **merged})


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "dynamics.jsonl").read_text().splitlines()]


def _losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [row["loss"] for row in records if "loss" in row]


@pytest.mark.parametrize("adapter", [{"preset": "b_only", "rank": 2, "dropout": 0.1}, LORA])
def test_watching_changes_no_bit_of_the_training(
    small_recipe: dict[str, Any], tmp_path: Path, adapter: dict[str, Any]
) -> None:
    for name, every in (("off", 0), ("on", 1)):
        recipe = _recipe(small_recipe, adapter=adapter, train={"dynamics_every": every})
        finetune(recipe, output=tmp_path / name)
    on, off = (tmp_path / name for name in ("on", "off"))
    weights = [(folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in (on, off)]
    assert weights[0] == weights[1]
    assert _losses(on) == _losses(off)
    assert not (off / "dynamics.jsonl").exists()
    assert {row["step"] for row in _rows(on)} == set(range(1, 13))


def test_rows_and_verdicts_stand_in_the_folder_and_in_the_result(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    result = finetune(_recipe(small_recipe, train={"dynamics_every": 5}), output=tmp_path / "run")
    rows = _rows(tmp_path / "run")
    assert sorted({row["step"] for row in rows}) == [1, 2, 3, 5, 10]
    assert result.watched_steps == 5
    assert result.watched_sites == len({row["site"] for row in rows}) > 0
    health = json.loads((tmp_path / "run" / "health.json").read_text())
    assert health == {"sites": result.watched_sites, "steps": 5, "note": None, "verdicts": []}
    assert result.health == ()
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (stored["health"], stored["watched_steps"]) == ([], 5)


def test_an_interrupted_run_goes_on_with_the_same_rows(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(small_recipe, adapter={**LORA, "dropout": 0.1}, train={"dynamics_every": 2})
    finetune(recipe, output=tmp_path / "whole")
    healthy, calls = nn.functional.cross_entropy, 0

    def breaking(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        return healthy(*args, **kwargs) * (float("nan") if calls == 8 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(nn.functional, "cross_entropy", breaking)
        with pytest.raises(DivergedError):
            finetune(recipe, output=tmp_path / "cut")
    assert max(row["step"] for row in _rows(tmp_path / "cut")) == 6  # the checkpoint is of step 4
    resumed = finetune(recipe, output=tmp_path / "cut", resume=True)
    assert _rows(tmp_path / "cut") == _rows(tmp_path / "whole")
    assert resumed.watched_steps == len({1, 2, 3, 4, 6, 8, 10, 12})


def _unstable(small_recipe: dict[str, Any]) -> Recipe:
    train = {"lr": 3.0, "warmup_fraction": 0.0, "max_grad_norm": 0.0, "lr_head": 0.01, "schedule": "constant"}
    return _recipe(small_recipe, adapter=LORA, train={**train, "dynamics_every": 4})


def test_a_strict_run_stops_at_its_first_verdict_and_can_go_on(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = _unstable(small_recipe)
    with pytest.raises(UnhealthyError) as caught:
        finetune(recipe, output=tmp_path / "run", strict=True)
    said = str(caught.value)
    health = json.loads((tmp_path / "run" / "health.json").read_text())
    first = next(v for v in health["verdicts"] if v["name"] in said)
    assert all(first[part] in said for part in ("says", "means", "remedy"))
    assert f"Stopped at step {first['step']} by its first verdict" in said
    assert "No checkpoint was written yet." in said
    assert "go on as it is without --strict" in said
    assert max(row["step"] for row in _rows(tmp_path / "run")) == first["step"] <= 3
    assert not (tmp_path / "run" / "result.json").exists()
    gone_on = finetune(recipe, output=tmp_path / "run", resume=True)
    assert {"output_instability"} <= {verdict["name"] for verdict in gone_on.health}


def test_a_strict_run_without_a_verdict_ends_with_the_weights_of_a_plain_one(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe = _recipe(small_recipe)
    for strict in (True, False):
        finetune(recipe, output=tmp_path / str(strict), strict=strict)
    weights = [(tmp_path / n / "adapter" / "adapter_model.safetensors").read_bytes() for n in ("True", "False")]
    assert weights[0] == weights[1]


def test_strict_on_the_command_line_ends_with_a_sentence_and_code_2(
    small_recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(_unstable(small_recipe).to_yaml())
    assert main(["finetune", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "run"), "--strict"]) == 2
    assert "asymlora: Stopped at step" in capsys.readouterr().err


def test_strict_without_measurements_is_refused_before_a_folder_is_made(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=r"measures none.*at least 1.*leave out --strict"):
        finetune(_recipe(small_recipe, train={"dynamics_every": 0}), output=tmp_path / "run", strict=True)
    assert not (tmp_path / "run").exists()


class TestOtherMethods:
    """What is watched where there are no factors of ours."""

    @pytest.fixture
    def ran(self, small_recipe: dict[str, Any], tmp_path: Path) -> Any:
        def run(method: str, **adapter: Any) -> RunResult:
            recipe = {**small_recipe, "method": method, "adapter": adapter}
            recipe["train"] = {**small_recipe["train"], "dynamics_every": 4}
            return finetune(Recipe.from_dict(recipe), output=tmp_path / "run")

        return run

    def test_pefts_lora_is_measured(self, ran: Any, tmp_path: Path) -> None:
        result = ran("peft:lora", **LORA)
        assert (result.watched_steps, result.watched_sites) == (6, 4)
        assert {row["step"] for row in _rows(tmp_path / "run")} == {1, 2, 3, 4, 8, 12}

    @pytest.mark.parametrize("method", ["full", "head", "peft:ia3"])
    def test_a_method_without_factors_is_watched_at_its_head(self, ran: Any, tmp_path: Path, method: str) -> None:
        result = ran(method)
        assert (result.health, result.watched_sites) == ((), 0)
        assert not (tmp_path / "run" / "dynamics.jsonl").exists()
        assert f"method={method!r}" in json.loads((tmp_path / "run" / "health.json").read_text())["note"]


def test_a_head_that_stands_still_is_told_at_the_end(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(small_recipe, train={"lr_head": 1e-30, "dynamics_every": 4})
    (verdict,) = finetune(recipe, output=tmp_path / "run").health
    assert (verdict["name"], verdict["sites"], verdict["step"]) == ("frozen_head", ["classifier"], 4)


def test_the_probe_batch_is_small_the_same_and_draws_nothing(small_recipe: dict[str, Any]) -> None:
    recipe = _recipe(small_recipe)
    prepared = prepare_task(recipe.task, recipe.model, recipe.data, head_seed=0)
    before = torch.get_rng_state()
    one, two = probe_batch(prepared), probe_batch(prepared)
    assert torch.equal(torch.get_rng_state(), before)
    assert "labels" not in one
    assert one["input_ids"].shape[0] == PROBE_ROWS
    assert all(torch.equal(one[key], two[key]) for key in one)
    long = dataclasses.replace(prepared, validation=_Long(prepared.validation))
    assert probe_batch(long)["input_ids"].shape[0] == 1


class _Long:
    """Rows that say they are longer than the whole probe may be."""

    def __init__(self, items: Any) -> None:
        self.items = items
        self.lengths = [1000] * len(items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def test_long_runs_are_measured_less_often() -> None:
    def steps(count: int) -> Recipe:
        return Recipe(train=TrainRecipe(steps=count, dynamics_every=7))

    assert interval(steps(250), 36) == 7
    assert interval(steps(100_000), 210) == 1050
    assert 100_000 / interval(steps(100_000), 210) * 210 <= MOST_ROWS


def test_why_nothing_is_measured_is_a_sentence() -> None:
    model = nn.Linear(4, 4)
    assert why_unmeasured(Recipe(train=TrainRecipe(dynamics_every=0)), model) == (
        "The factors are not measured: train.dynamics_every=0."
    )
    assert "FSDP" in str(why_unmeasured(Recipe(train=TrainRecipe(sharding="fsdp")), model))
    assert "method='full'" in str(why_unmeasured(Recipe(method="full"), model))
    assert set(METHODS) >= {"full", "head", "peft:ia3"}


def test_a_restored_row_has_nan_where_a_number_was_not_finite_and_none_where_there_was_none() -> None:
    row = restored({"Z_A": None, "norm_B": 1.0, "grad_A": None, "relative_update_B": None})
    assert math.isnan(row["Z_A"])
    assert (row["norm_B"], row["grad_A"], row["relative_update_B"]) == (1.0, None, None)


@pytest.mark.optional  # launches two processes, 30 seconds
@pytest.mark.timeout(600)
def test_strict_stops_two_processes_with_one_sentence(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(_unstable(small_recipe).to_dict(), sort_keys=False))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "asymlora", "finetune", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*launcher, *command, "--strict"], capture_output=True, text=True, check=False, env=environment, timeout=500
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert said.count("asymlora: Stopped at step") == 1, said[-3000:]
    assert 'Traceback (most recent call last):\n  File "<frozen runpy>"' not in said.partition("Stopped at")[0]
    assert (tmp_path / "run" / "health.json").is_file()
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.optional  # the first command itself on the embedded model and data, with fewer steps: half a minute
@pytest.mark.parametrize(("preset", "expected"), [("b_only", set()), ("init_b", {"inefficient"})])
def test_verdicts_on_the_embedded_model(tmp_path: Path, preset: str, expected: set[str]) -> None:
    given = {"adapter": {"preset": preset}, "train": {"steps": 40, "batch_size": 16, "head_start": "random"}}
    given["data"] = {"max_rows": 640, "max_scored_rows": 64}
    result = finetune(Recipe.from_dict(given), output=tmp_path / "run")
    assert {verdict["name"] for verdict in result.health} == expected
