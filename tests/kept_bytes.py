"""Bytes that autograd keeps between forward and backward, each storage counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor


def kept_for_backward(
    forward: Callable[[], object], *, owned: Iterable[Tensor] = (), named: Mapping[str, Tensor] | None = None
) -> dict[str, int]:
    """Run a forward pass and return the bytes of the storages that it keeps.

    Args:
        forward: What is run.
        owned: Parameters and buffers, which are there anyway and are not counted.
        named: Tensors whose storages are counted under a name of their own.

    Returns:
        Bytes by name, the rest under ``other``.
    """
    skipped = {t.untyped_storage().data_ptr() for t in owned}
    names = {t.untyped_storage().data_ptr(): name for name, t in (named or {}).items()}
    alive: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        alive[tensor.untyped_storage().data_ptr()] = tensor  # kept, so that no address comes up twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    kept: dict[str, int] = {}
    for pointer, tensor in alive.items():
        if pointer not in skipped:
            name = names.get(pointer, "other")
            kept[name] = kept.get(name, 0) + tensor.untyped_storage().nbytes()
    del result
    return kept
