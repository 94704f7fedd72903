"""Whether autocast is on, and a way around it for code that chooses its dtypes itself."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

_AS_IT_IS = nullcontext()


def autocasts(kind: str) -> bool:
    """Return whether autocast is on for a kind of device; torch cannot be asked about ``meta``.

    Args:
        kind: Type of a device.
    """
    return kind != "meta" and torch.is_autocast_enabled(kind)


def as_written(kind: str) -> AbstractContextManager[Any]:
    """Return a context in which every product runs in the dtype of its arguments, autocast or not.

    Args:
        kind: Type of a device.
    """
    return torch.autocast(kind, enabled=False) if autocasts(kind) else _AS_IT_IS
