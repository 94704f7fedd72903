"""One code for several layers that read the same input through one frozen ``A``."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from asymlora.ops import code_of


class SharedCode:
    """The code ``A x`` of layers that read the same input through one frozen ``A``, computed once.

    The input is known again by identity and version; it is not kept alive. The code is dropped when every layer of the
    group has read it, or the input is gone. An inference tensor has no version, so its code is computed for each layer.

    Args:
        sites: Paths of the layers in the group.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        self.sites = tuple(sites)
        self.A: Tensor | None = None
        self._last: tuple[Any, ...] | None = None  # one tuple, so that threads see whole states only

    def code(self, x: Tensor, A: Tensor, p: float) -> Tensor:
        """Return ``A x`` as ``(T, rank)``, from the last call if it was for this input.

        Args:
            x: Input, shape ``(..., n)``.
            A: The shared factor, shape ``(rank, n)``.
            p: Fraction dropped; the layers of a group share one mask.
        """
        if x.is_inference() or A.is_inference():
            return code_of(x, A, dropout=p)
        state = x._version, A._version, p, torch.is_grad_enabled()
        if (last := self._last) is not None:
            source, then, code, left = last
            if source() is x and then == state:
                self._last = (source, then, code, left - 1) if left > 1 else None
                return code
        code = code_of(x, A, dropout=p)
        self._last = (weakref.ref(x, self._forget), state, code, len(self.sites) - 1)
        return code

    def _forget(self, source: weakref.ref[Tensor]) -> None:
        if (last := self._last) is not None and last[0] is source:
            self._last = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}
