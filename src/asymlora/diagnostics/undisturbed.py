"""Running a model once in between without a trace: what a later training step computes stays bit for bit the same."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_PACKED_ENTRIES = 1 << 20
"""Integer buffers above this are a quantised layer's packed weights, which no forward pass writes to."""


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Let a model run in eval mode without gradients, and put back everything that this could have changed.

    Put back are the training flag of every module (the flag itself: no module's own ``train`` or ``eval`` is called),
    every buffer, in place, and the state of the random generators of torch, Python and NumPy. Nothing is compiled
    meanwhile, so that what `torch.compile` has made stays as it is.

    Args:
        model: Any model.

    Yields:
        Nothing.
    """
    flags = [(module, module.training) for module in model.modules()]
    buffers = [_Held(module, name) for module in model.modules() for name in module._buffers]
    with ExitStack() as stack:
        stack.enter_context(_generators_kept(model))
        if "torch._dynamo" in sys.modules:  # nothing is compiled otherwise, and the import takes a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.no_grad())
        try:
            for module, _ in flags:
                module.training = False
            yield
        finally:
            for module, was in flags:
                module.training = was
            for buffer in buffers:
                buffer.put_back()


class _Held:
    """A buffer as it was."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name
        self.tensor = module._buffers[name]
        self.values: Tensor | None = None
        self.version = -1
        if self.tensor is not None and not self.tensor.is_inference():
            self.version = self.tensor._version
            if self.tensor.is_floating_point() or self.tensor.numel() <= _PACKED_ENTRIES:
                self.values = self.tensor.detach().clone()

    def put_back(self) -> None:
        self.module._buffers[self.name] = self.tensor
        if self.tensor is not None and self.values is not None and self.tensor._version != self.version:
            self.tensor.copy_(self.values)


@contextmanager
def _generators_kept(model: nn.Module) -> Iterator[None]:
    numpy: Any = sys.modules.get("numpy")
    states = random.getstate(), None if numpy is None else numpy.random.get_state()
    devices = {p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}
    kinds = sorted({device.type for device in devices})
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind in kinds:
            if kind == "mps":
                stack.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
                continue
            of_kind = [device.index or 0 for device in devices if device.type == kind]
            stack.enter_context(torch.random.fork_rng(devices=of_kind, device_type=kind))
        try:
            yield
        finally:
            random.setstate(states[0])
            if numpy is not None:
                numpy.random.set_state(states[1])
