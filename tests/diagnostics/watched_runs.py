"""Small nets that train for real while they are watched, for the tests of verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import asymlora as al
from asymlora.diagnostics.dynamics import FeatureDynamics
from asymlora.diagnostics.health_monitor import HealthMonitor

WIDTH, RANK = 64, 4
STEPS, EVERY = 25, 5


def net(width: int = WIDTH) -> nn.Sequential:
    """Two tanh layers and a head, at the sizes of the theory: every layer's output is of order 1."""
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)]
    with torch.no_grad():
        for layer in layers[::2]:
            layer.weight.normal_(0.0, width**-0.5, generator=generator)
            layer.bias.zero_()
    return nn.Sequential(*layers)


def batch(count: int = 64, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    """Inputs of order 1, and labels that a few of their entries decide."""
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(1))
    return x, (x[:, :8].sum(1) > 0).long()


def attached(preset: str = "lora", **given: Any) -> nn.Module:
    """The net with an adapter of ours on both layers."""
    return al.attach(net(), al.AdapterSpec.parse(preset, rank=RANK, targets=["0", "2"], **given))


def watched(
    model: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    lr: float = 0.003,
    steps: int = STEPS,
    each: Callable[[nn.Module, int], object] | None = None,
    monitor: HealthMonitor | None = None,
    rates: Mapping[str, float] | None = None,
) -> HealthMonitor:
    """Train a model in a loop of its own, and return who has watched it.

    ``each`` is called before each step with the model and the step's number.
    """
    x, y = batch()
    optimizer = optimizer or torch.optim.AdamW(al.param_groups(model, lr=lr, weight_decay=0.0, **(rates or {})))
    monitor = monitor or HealthMonitor(model)
    with FeatureDynamics(model, x[:16], every=EVERY, observe=monitor.observe):
        for step in range(1, steps + 1):
            if each is not None:
                each(model, step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return monitor


def names(monitor: HealthMonitor) -> list[tuple[str, str | None]]:
    """Names and factors of the verdicts."""
    return [(verdict.name, verdict.factor) for verdict in monitor.verdicts()]
