"""Put a network back as it was after a training: its values, its parts and what hangs on them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig

_PARTS = ("_parameters", "_buffers", "_modules")


@contextmanager
def restored(network: nn.Module) -> Iterator[None]:
    """Put back, at the end, all that a training changes: values, gradients, modes, hooks, wrappers and random states.

    Args:
        network: What is trained inside.

    Yields:
        Nothing.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    tensors = [*parameters, *network.buffers()]
    values, grads = [t.detach().clone() for t in tensors], [p.grad for p in parameters]
    own = _attributes(network)
    with _same_draws():
        for parameter in parameters:
            parameter.grad = None
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, values, strict=True):
                    tensor.copy_(value)
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.grad = grad
            _put_back(own)


@contextmanager
def untouched(model: nn.Module, heads: Sequence[str] = ()) -> Iterator[None]:
    """Put back, at the end, all that wraps and replaces parts of a model, and what it does to the parts.

    For what a method puts on a model: modules, parameters and buffers are the objects that they were, with their flags,
    gradients, hooks and attributes. Values are put back of buffers and ``heads`` alone, so that it costs no second
    model: those of what is trained besides are `restored`'s, inside.

    Args:
        model: The model, before anything is put on it.
        heads: Paths of modules whose values change.

    Yields:
        Nothing.
    """
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    inside = [p for path in heads for p in model.get_submodule(path).parameters()]
    values = [(tensor, tensor.detach().clone()) for tensor in (*inside, *model.buffers())]
    own = _attributes(model, parts=True)
    with _same_draws():
        try:
            yield
        finally:
            _put_back(own)
            for parameter, trained, grad in parameters:
                parameter.requires_grad_(trained)
                parameter.grad = grad
            with torch.no_grad():
                for tensor, value in values:
                    tensor.copy_(value)


@contextmanager
def _same_draws() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


Tables = list[tuple[dict[Any, Any], dict[Any, Any]]]


def _put_back(tables: Tables) -> None:
    for kept, content in tables:
        kept.clear()
        kept.update(content)


def _attributes(network: nn.Module, *, parts: bool = False) -> Tables:
    # Each module's own attributes, its tables of hooks and its configuration's, with what they hold now: Accelerate
    # leaves its autocast there, checkpointing its flags and hooks, the Trainer a cache that is switched off.
    found: dict[int, dict[Any, Any]] = {}
    for module in network.modules():
        of_module = vars(module)
        hooks = [value for name, value in of_module.items() if "hooks" in name and isinstance(value, dict)]
        inner = [of_module[name] for name in _PARTS if parts]
        configs = [vars(value) for value in of_module.values() if isinstance(value, PreTrainedConfig)]
        found |= {id(table): table for table in (of_module, *hooks, *inner, *configs)}
    return [(table, dict(table)) for table in found.values()]
