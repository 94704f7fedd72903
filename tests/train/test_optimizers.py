from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from asymlora.errors import SpecError, UnknownKeyError, UnknownNameError
from asymlora.train.optimizers import (
    SCHEDULES,
    build_optimizer,
    optimizer_class,
    optimizer_names,
    scheduler_type,
)


def _groups(decay: float = 0.0, *, vectors: bool = False) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    groups: list[dict[str, Any]] = [
        {"name": "B", "params": [nn.Parameter(torch.randn(4, 2))], "lr": 0.01, "weight_decay": decay}
    ]
    if vectors:
        groups.append({"name": "norm", "params": [nn.Parameter(torch.ones(3))], "lr": 0.02, "weight_decay": 0.0})
    return groups


def test_every_optimizer_of_torch_is_offered_but_two() -> None:
    of_torch = {n.lower() for n, c in vars(torch.optim).items() if isinstance(c, type) and n != "Optimizer"}
    assert of_torch - set(optimizer_names()) == {"lbfgs", "sparseadam"}


@pytest.mark.parametrize("name", optimizer_names())
def test_each_optimizer_lowers_a_loss_and_keeps_the_groups(name: str) -> None:
    groups = _groups(vectors=name != "muon")
    parameters = [p for group in groups for p in group["params"]]
    optimizer = build_optimizer(name.upper(), groups)
    losses: list[float] = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = torch.stack([p.square().sum() for p in parameters]).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    made = [(g["name"], g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert made == [(g["name"], g["lr"], g["weight_decay"]) for g in groups]


def test_decay_is_that_of_the_groups_and_the_groups_are_not_changed() -> None:
    groups = _groups(0.3)
    before = [set(group) for group in groups]
    optimizer = build_optimizer("adamw", groups)
    parameter = groups[0]["params"][0]
    start = parameter.detach().clone()
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), start * (1 - 0.01 * 0.3))
    assert [set(group) for group in groups] == before


def test_options_reach_the_class_and_lists_become_tuples() -> None:
    made = build_optimizer("SGD", _groups(), {"momentum": 0.9, "nesterov": True})
    assert (made.defaults["momentum"], made.defaults["nesterov"]) == (0.9, True)
    assert build_optimizer("adafactor", _groups(), {"eps": [None, 1e-2]}).defaults["eps"] == (None, 1e-2)


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("adamww", {}, UnknownNameError, r"no optimizer 'adamww'\. Did you mean 'adamw'\? Known: adadelta, adafactor"),
        ("Optimizer", {}, UnknownNameError, "no optimizer 'Optimizer'"),
        ("LBFGS", {}, SpecError, "'LBFGS' needs a closure.*Take one of adadelta"),
        ("sparse_adam", {}, UnknownNameError, "no optimizer"),
        ("SparseAdam", {}, SpecError, "sparse gradients only"),
        ("adamw", {"lr": 0.1}, SpecError, r"holds lr, which each group.*train\.lr"),
        ("adamw", {"weight_decay": 0.1}, SpecError, r"train\.weight_decay"),
        ("adamw", {"beta": 0.9}, UnknownKeyError, "no option 'beta'.*Did you mean 'betas'.*Options: betas, eps"),
        ("adamw", {"maximize": True}, UnknownKeyError, "no option 'maximize'"),
        ("adamw", {"betas": [2.0, 0.9]}, SpecError, "AdamW refuses.*Invalid beta"),
        ("adamw", {"betas": 0.9}, SpecError, "AdamW refuses"),
        ("adamw", {"eps": "small"}, SpecError, "AdamW refuses"),
    ],
)
def test_wrong_names_and_options_are_refused(name: str, options: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        build_optimizer(name, _groups(), options)


def test_a_decay_that_would_be_ignored_is_refused() -> None:
    with pytest.raises(SpecError, match=r"Rprop has no weight decay, and it is above 0 for B\."):
        build_optimizer("rprop", _groups(0.1))


@pytest.mark.parametrize("key", ["lr", "weight_decay"])
def test_a_group_without_rate_or_decay_is_refused(key: str) -> None:
    groups = _groups()
    del groups[0][key]
    with pytest.raises(SpecError, match=f"group 'B' has no {key}"):
        build_optimizer("adamw", groups)


def test_muon_names_what_is_no_matrix() -> None:
    with pytest.raises(SpecError, match=r"norm has 1 \(first \(3,\)\).*adamw"):
        build_optimizer("muon", _groups(vectors=True))


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_schedule_works_with_no_further_number_and_warms_up(name: str) -> None:
    optimizer = build_optimizer("sgd", _groups())
    scheduler = get_scheduler(scheduler_type(name), optimizer, num_warmup_steps=3, num_training_steps=12)
    rates: list[float] = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == 0.0
    assert rates[3] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(0.01)


def test_an_unknown_schedule_is_refused_with_the_names() -> None:
    with pytest.raises(UnknownNameError, match=r"'cosin'\. Did you mean 'cosine'\? Known: linear"):
        scheduler_type("cosin")


def test_a_recipe_may_read_the_names_without_torch() -> None:
    light = "import sys, asymlora.train.optimizers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", light], check=False).returncode == 0


def test_a_class_is_checked_before_there_is_a_model() -> None:
    assert optimizer_class("NAdam", {"momentum_decay": 0.01}) is torch.optim.NAdam
