"""Whatever is put on a model and trained, the model is afterwards what it was."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from asymlora.train.restoring import restored, untouched


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


def _model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def _draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_parts_flags_and_hooks_are_put_back_and_draws_too() -> None:
    model = _model()
    model[0].weight.requires_grad_(False)
    modules, own = list(model.modules()), [sorted(vars(m)) for m in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    values = {name: t.clone() for name, t in model.state_dict().items()}
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    expected = _draw()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    with pytest.raises(RuntimeError, match="stopped"), untouched(model, heads=["2"]):
        model[0] = Wrapper(model[0])
        model[2].weight = nn.Parameter(torch.zeros(2, 3))
        model.register_forward_hook(lambda *_: None)
        model.note = "more"
        model.requires_grad_(True)
        model.train()
        model[1](torch.randn(4, 3)).sum().backward()
        with torch.no_grad():
            model[2].bias.add_(1)
        _draw()
        raise RuntimeError("stopped")
    assert [id(m) for m in model.modules()] == [id(m) for m in modules]
    assert [sorted(vars(m)) for m in model.modules()] == own
    assert [(id(p), p.requires_grad) for p in model.parameters()] == [(id(p), flag) for p, flag in flags]
    assert all(p.grad is None for p in model.parameters())
    assert not model._forward_hooks
    assert all(torch.equal(t, values[name]) for name, t in model.state_dict().items())
    assert _draw() == expected


def test_values_of_what_is_trained_are_put_back_inside() -> None:
    model = _model()
    model[0].requires_grad_(False)
    frozen, trained = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    with restored(model):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        assert not torch.equal(model[2].weight, trained)
    assert torch.equal(model[2].weight, trained)
    assert torch.equal(model[0].weight, frozen)
    assert model[2].weight.grad is None
