from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from asymlora.diagnostics.undisturbed import undisturbed


class _Restless(nn.Module):
    """Draws, counts its calls in buffers, and would notice a call of ``train`` or ``eval``."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.5)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(2))
        self.register_buffer("nothing", None)
        self.switched = 0

    def train(self, mode: bool = True) -> nn.Module:
        self.switched += 1
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.norm(x)
        self.norm.running_mean = torch.ones(3)  # another tensor under the same name
        random.random()
        np.random.rand()
        return self.drop(x) + torch.rand(3)


def _state(model: nn.Module) -> list[object]:
    buffers = [(name, id(b), b.clone()) for name, b in model.named_buffers()]
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    return [[m.training for m in model.modules()], buffers, drawn]


def _assert_same(before: list, after: list) -> None:
    assert before[0] == after[0]
    for (name, place, value), (name_now, place_now, value_now) in zip(before[1], after[1], strict=True):
        assert (name, place) == (name_now, place_now)
        assert torch.equal(value, value_now)
    assert torch.equal(before[2][0], after[2][0])
    assert before[2][1] == after[2][1]
    assert (before[2][2] == after[2][2]).all()


@pytest.mark.parametrize("raises", [False, True])
def test_flags_buffers_and_generators_are_put_back(raises: bool) -> None:
    torch.manual_seed(0)
    model = _Restless()
    model.drop.eval()  # a flag of its own, unlike the model's
    switched = model.switched
    before = _state(model)
    if raises:
        with pytest.raises(ZeroDivisionError), undisturbed(model):
            model(torch.randn(4, 3))
            _ = 1 / 0
    else:
        with undisturbed(model):
            assert not any(m.training for m in model.modules())
            out = model(torch.randn(4, 3, requires_grad=True))
        assert not out.requires_grad
    _assert_same(before, _state(model))
    assert model.switched == switched


def test_without_it_the_same_call_leaves_traces() -> None:
    model = _Restless()
    before = _state(model)
    model(torch.randn(4, 3))
    with pytest.raises(AssertionError):
        _assert_same(before, _state(model))


class _Squashed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.line(x))


@pytest.mark.optional  # torch._dynamo takes seconds to import
def test_nothing_is_compiled_meanwhile() -> None:
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        compiled.append(1)
        return graph.forward

    model = _Squashed()
    model.compile(backend=backend)
    assert "torch._dynamo" in sys.modules
    with undisturbed(model):
        model(torch.ones(1, 3))
    assert not compiled
    model(torch.ones(1, 3))
    assert compiled
