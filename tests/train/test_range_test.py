"""The range test on the one loop: it finds where small models are lost, and leaves nothing behind."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from asymlora.errors import SpecError
from asymlora.tasks.preparing import prepare_task
from asymlora.tasks.task import Prepared
from asymlora.train import processes
from asymlora.train.methods import METHODS
from asymlora.train.range_rules import RangeSettings, RangeTest
from asymlora.train.range_test import range_test
from asymlora.train.recipe import Recipe, TrainRecipe, at_rate
from train.test_every_task import TASKS

SHORT = RangeSettings(steps=12, probe_steps=2, most_probes=1, highest=100.0)
LONG = RangeSettings(steps=24, probe_steps=3, highest=100.0)


def _ready(mapping: dict[str, Any]) -> tuple[Recipe, Prepared, nn.Module]:
    recipe = Recipe.from_dict(mapping)
    prepared = prepare_task(recipe.task, recipe.model, recipe.data, head_seed=recipe.train.seed)
    return recipe, prepared, METHODS[recipe.method].put_on(prepared.model, recipe, prepared.heads)


def _state(network: nn.Module) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in network.state_dict().items()}


def _own_state(network: nn.Module) -> dict[str, dict[str, str]]:
    # The repr of a hook, of a bound method and of a container that holds them names the very object.
    kept = {"_parameters", "_buffers", "_modules"}
    return {
        name: {key: repr(value) for key, value in vars(module).items() if key not in kept}
        for name, module in network.named_modules()
    }


def _without_seconds(test: RangeTest) -> dict[str, Any]:
    return {key: value for key, value in test.to_dict().items() if key != "seconds"}


@pytest.mark.optional  # two whole range tests: a quarter of a minute
def test_it_finds_an_edge_and_gives_the_same_figures_twice(small_recipe: dict[str, Any]) -> None:
    recipe, prepared, network = _ready(small_recipe)
    found = range_test(recipe, prepared, network, settings=LONG)
    assert found.outcome == "found"
    assert found.suggested == found.edge / 4
    assert any(probe.rate == found.edge and probe.stable for probe in found.probes)
    assert any(probe.rate == pytest.approx(2 * found.edge) and not probe.stable for probe in found.probes)
    assert found.steps == len(found.points) + sum(len(probe.losses) for probe in found.probes)
    again = range_test(recipe, prepared, network, settings=LONG)
    assert _without_seconds(again) == _without_seconds(found)


def test_a_probe_sees_the_batches_and_the_draws_of_the_ramp(small_recipe: dict[str, Any]) -> None:
    # With a rate that moves nothing, the losses of both are equal to the bit, dropout included.
    small_recipe["adapter"]["dropout"] = 0.5
    recipe, prepared, network = _ready(small_recipe)
    still = RangeSettings(lowest=1e-30, highest=1e-29, steps=16, probe_steps=4, most_probes=1)
    found = range_test(recipe, prepared, network, settings=still)
    assert found.probes[0].losses == tuple(point.loss for point in found.points[:4])
    assert found.probes[0].change == 0.0
    assert (found.outcome, found.edge) == ("highest stable", 1e-29)


def test_everything_is_put_back(small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    small_recipe["train"] |= {"precision": "bfloat16", "gradient_checkpointing": True}
    before_files = {file.name for file in tmp_path.iterdir()}
    recipe, prepared, network = _ready(small_recipe)
    trained = next(p for p in network.parameters() if p.requires_grad)
    trained.grad = torch.ones_like(trained)
    grad, state = trained.grad, _state(network)
    flags = {name: p.requires_grad for name, p in network.named_parameters()}
    modes = {name: (name == "" or len(name) % 2 == 0) for name, _ in network.named_modules()}
    for name, module in network.named_modules():
        module.training = modes[name]
    draws = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # pyright: ignore
    own = _own_state(network)
    range_test(recipe, prepared, network, settings=SHORT)
    assert _state(network) == state
    assert trained.grad is grad
    assert {name: p.requires_grad for name, p in network.named_parameters()} == flags
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert random.getstate() == draws[0]
    assert np.random.get_state()[1].tolist() == draws[1]  # pyright: ignore
    assert torch.equal(torch.get_rng_state(), draws[2])
    assert _own_state(network) == own
    assert {file.name for file in tmp_path.iterdir()} == before_files


def test_it_is_put_back_after_an_error_too(small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, prepared, network = _ready(small_recipe)
    state, steps = _state(network), []

    def stopped(done: int, loss: float) -> None:
        steps.append(done)
        if done == 4:
            raise KeyboardInterrupt

    class Watcher:
        def begun(self, folder: str) -> None: ...

        def stage(self, text: str) -> None: ...

        def progress(self, what: str, done: int, total: int, values: Any) -> None:
            stopped(done, values["loss"])

    with pytest.raises(KeyboardInterrupt):
        range_test(recipe, prepared, network, settings=SHORT, observer=Watcher())
    assert steps[-1] == 4
    assert _state(network) == state


@pytest.mark.optional  # a range test of each kind of model
@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_range(task: str, tmp_path: Path) -> None:
    made = TASKS[task](tmp_path)
    recipe, prepared, network = _ready({"task": task, **made, "adapter": {"preset": "lora", "rank": 2}})
    state = _state(network)
    found = range_test(recipe, prepared, network, settings=SHORT)
    assert len(found.points) <= SHORT.steps
    assert all(np.isfinite(point.loss) for point in found.points[:3])
    assert _state(network) == state


@pytest.mark.parametrize("method", ["full", "peft:lora"])
def test_other_methods_have_theirs(method: str, small_recipe: dict[str, Any]) -> None:
    adapter = {"rank": 2, "A": {"init": "kaiming_uniform"}} if method == "peft:lora" else {}
    recipe, prepared, network = _ready({**small_recipe, "method": method, "adapter": adapter})
    state = _state(network)
    range_test(recipe, prepared, network, settings=SHORT)
    assert _state(network) == state


def test_rates_keep_the_ratios_of_the_recipe(small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    small_recipe["adapter"]["preset"] = "lora"
    small_recipe["train"] |= {"lr": 0.01, "lr_B": 0.04, "lr_head": 0.001}
    recipe, prepared, network = _ready(small_recipe)
    seen: list[dict[str, float]] = []
    step = torch.optim.AdamW.step

    def spied(self: Any, *args: Any, **options: Any) -> Any:
        seen.append({group["name"]: group["lr"] for group in self.param_groups})
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", spied)
    found = range_test(recipe, prepared, network, settings=SHORT)
    assert [rates["A"] for rates in seen[: len(found.points)]] == pytest.approx([p.rate for p in found.points])
    assert seen[-1]["A"] == pytest.approx(found.probes[0].rate)
    for rates in seen:
        assert rates["B"] == pytest.approx(4 * rates["A"])
        assert rates["head"] == pytest.approx(0.1 * rates["A"])


def test_absolute_rates_move_with_the_rate() -> None:
    moved = at_rate(TrainRecipe(lr=0.01, lr_A=0.02, lr_head=0.001, steps=7), 0.1)
    assert (moved.lr, moved.lr_A, moved.lr_B, moved.steps) == (0.1, pytest.approx(0.2), None, 7)
    assert moved.lr_head == pytest.approx(0.01)
    assert at_rate(TrainRecipe(lr=0.002, lr_B=0.01), 4.6e-5).lr_B == 0.00023  # no digits of rounding in the recipe


def test_a_loss_that_is_lost_at_the_start_is_refused(small_recipe: dict[str, Any]) -> None:
    recipe, prepared, network = _ready(small_recipe)
    broken = replace(prepared, loss=lambda outputs, labels, count: outputs.logits.sum() * float("nan"))
    with pytest.raises(SpecError, match=r"not finite.*1e-06"):
        range_test(recipe, broken, network, settings=SHORT)


def test_several_processes_are_refused(small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, prepared, network = _ready(small_recipe)
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(SpecError, match="one process"):
        range_test(recipe, prepared, network, settings=SHORT)
