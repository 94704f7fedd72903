from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer

from asymlora.diagnostics.optimizer_steps import OptimizerSteps


class _Told:
    """Writes down what it is told, and wants every step or every other one."""

    def __init__(self, parameters: list[Tensor], *, wanted: Iterable[int] = range(1, 100)) -> None:
        self.held = parameters
        self.wanted = set(wanted)
        self.events: list[object] = []

    def parameters(self) -> list[Tensor]:
        return [p for p in self.held if p.requires_grad]

    def wants(self, step: int) -> bool:
        return step in self.wanted

    def before(self, step: int) -> None:
        self.events.append(("before", step, [p.item() for p in self.held]))

    def gradients(self, parameters: Iterable[Tensor], *, scale: float) -> None:
        self.events.append(("gradients", sorted(p.grad.item() / scale for p in parameters if p.grad is not None)))

    def after(self, step: int) -> None:
        self.events.append(("after", step, [p.item() for p in self.held]))


def _parameters(count: int = 2) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(())) for _ in range(count)]


def _descend(*optimizers: torch.optim.Optimizer) -> None:
    """One step of each, with gradients of -1, so that each parameter grows by one."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = -torch.ones(())
        optimizer.step()


def _hooks() -> int:
    return len(torch_optimizer._global_optimizer_pre_hooks) + len(torch_optimizer._global_optimizer_post_hooks)


def _sgd(*parameters: Tensor) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1.0)


def test_one_optimizer_makes_one_step_a_call() -> None:
    held = _parameters()
    told, other = _Told(held), _sgd(*_parameters(1))
    steps, optimizer = OptimizerSteps(told), _sgd(*held)
    _descend(optimizer)
    steps.listen()
    _descend(optimizer, other, optimizer)
    steps.stop(finish=True)
    _descend(optimizer)
    assert steps.step == 2
    assert told.events == [
        ("before", 1, [1.0, 1.0]),
        ("gradients", [-1.0, -1.0]),
        ("after", 1, [2.0, 2.0]),
        ("before", 2, [2.0, 2.0]),
        ("gradients", [-1.0, -1.0]),
        ("after", 2, [3.0, 3.0]),
    ]
    assert (steps.strangers, steps.heard) == (True, True)


def test_steps_that_are_not_wanted_are_counted_only() -> None:
    held = _parameters()
    told = _Told(held, wanted=(3,))
    steps, optimizer = OptimizerSteps(told), _sgd(*held)
    steps.listen()
    for _ in range(4):
        _descend(optimizer)
    steps.stop(finish=True)
    assert steps.step == 4
    assert [event[:2] for event in told.events if event[0] != "gradients"] == [("before", 3), ("after", 3)]


def test_two_optimizers_with_a_part_each_make_one_step() -> None:
    held = _parameters()
    told = _Told(held)
    steps, first, second = OptimizerSteps(told), _sgd(held[0]), _sgd(held[1])
    steps.listen()
    for _ in range(2):
        _descend(first, second)
    steps.stop(finish=True)
    assert steps.step == 2
    assert told.events == [
        ("before", 1, [0.0, 0.0]),
        ("gradients", [-1.0]),
        ("gradients", [-1.0]),
        ("after", 1, [1.0, 1.0]),
        ("before", 2, [1.0, 1.0]),
        ("gradients", [-1.0]),
        ("gradients", [-1.0]),
        ("after", 2, [2.0, 2.0]),
    ]


def test_a_parameter_that_no_optimizer_holds_does_not_hold_a_step_up_for_ever() -> None:
    held = _parameters()
    told = _Told(held)
    steps, optimizer = OptimizerSteps(told), _sgd(held[0])
    steps.listen()
    _descend(optimizer)
    assert steps.step == 0  # another optimizer may be about to step
    _descend(optimizer)
    assert steps.step == 2  # none did, and none is waited for again
    steps.stop(finish=True)
    assert [event[1:] for event in told.events if event[0] == "after"] == [(1, [1.0, 0.0]), (2, [2.0, 0.0])]


@pytest.mark.parametrize("finish", [True, False])
def test_a_step_that_waits_is_over_or_dropped_at_the_end(finish: bool) -> None:
    held = _parameters()
    told = _Told(held)
    steps = OptimizerSteps(told)
    steps.listen()
    _descend(_sgd(held[0]))
    steps.stop(finish=finish)
    assert steps.step == finish
    assert any(event[0] == "after" for event in told.events) is finish


def test_an_optimizer_that_fails_takes_no_step_and_the_next_one_counts() -> None:
    held = _parameters(1)
    told = _Told(held)
    steps, optimizer = OptimizerSteps(told), _sgd(*held)

    def broken() -> float:
        raise ZeroDivisionError

    steps.listen()
    with pytest.raises(ZeroDivisionError):
        optimizer.step(broken)
    assert steps.step == 0
    _descend(optimizer)
    steps.stop(finish=True)
    assert steps.step == 1
    assert [event for event in told.events if event[0] == "after"] == [("after", 1, [1.0])]
    assert not optimizer._optimizer_step_pre_hooks


def test_gradients_are_those_that_the_step_uses() -> None:
    held = _parameters(1)
    told = _Told(held)
    steps, optimizer = OptimizerSteps(told), _sgd(*held)

    def doubled(optimizer: torch.optim.Optimizer, *_: object) -> None:
        held[0].grad = 2 * held[0].grad

    def closure() -> float:
        held[0].grad = torch.full((), -7.0)
        return 0.0

    steps.listen()
    hook = optimizer.register_step_pre_hook(doubled)
    _descend(optimizer)
    hook.remove()
    optimizer.step(closure)
    steps.stop(finish=True)
    # Of a closure the first reading is of the step before, the second counts.
    assert [event[1] for event in told.events if event[0] == "gradients"] == [[-2.0], [-2.0], [-7.0]]


def test_a_parameter_thawed_or_added_later_is_seen() -> None:
    held = _parameters()
    held[1].requires_grad_(False)
    told = _Told(held)
    steps, optimizer = OptimizerSteps(told), _sgd(held[0])
    steps.listen()
    _descend(optimizer)
    held[1].requires_grad_(True)
    optimizer.add_param_group({"params": [held[1]]})
    _descend(optimizer)
    steps.stop(finish=True)
    assert [event[1] for event in told.events if event[0] == "gradients"] == [[-1.0], [-1.0, -1.0]]
    assert steps.step == 2


def test_hooks_go_when_told_and_with_the_object() -> None:
    before = _hooks()
    steps = OptimizerSteps(_Told(_parameters()))
    assert not steps.listening
    steps.listen()
    assert steps.listening
    assert _hooks() == before + 2
    steps.stop(finish=True)
    assert _hooks() == before
    assert not steps.listening

    steps.listen()
    gone = weakref.ref(steps)
    del steps
    gc.collect()
    assert gone() is None
    assert _hooks() == before


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_that_skips_a_step_is_no_step(fused: bool) -> None:
    held = _parameters(1)
    told = _Told(held)
    # A fused optimizer is called for a step that it leaves out, and with gradients that are still scaled.
    steps, optimizer = OptimizerSteps(told), torch.optim.SGD(held, lr=1.0, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    steps.listen()
    for gradient in (float("inf"), 1.0):
        scaler.scale(gradient * held[0]).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    steps.stop(finish=True)
    assert steps.step == 1
    assert [event[1] for event in told.events if event[0] == "gradients"] == [[1.0]]


def test_the_gradient_of_a_parameter_that_no_optimizer_holds_is_read_too() -> None:
    held = _parameters()
    told = _Told(held)
    steps, optimizer = OptimizerSteps(told), _sgd(held[0])
    steps.listen()
    held[1].grad = torch.full((), 5.0)
    _descend(optimizer)
    _descend(optimizer)
    late = _sgd(held[1])  # from now on it has one, which reads it at its own step
    late.step()
    _descend(optimizer)
    steps.stop(finish=True)
    assert [event[1] for event in told.events if event[0] == "gradients"] == [[-1.0, 5.0], [-1.0, 5.0], [5.0], [-1.0]]
