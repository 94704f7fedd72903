"""Starts of factors that are slow to draw, kept from run to run of one base model."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

from asymlora.installing import Factors, drawn_factors
from asymlora.schema import to_mapping
from asymlora.spec import AdapterSpec

SLOW_SECONDS = 0.1
"""A draw is kept if it took at least so long: those from singular vectors do, 1.5 s for the 36 layers of a small
encoder (measured); normal and orthonormal ones take 0.02 to 0.1 s."""
MOST_BYTES = 256 * 2**20


class KeptDraws:
    """Does what `drawn_factors` does, and remembers the newest slow draws; for one base model.

    Args:
        slow_seconds: A draw that takes at least so long is kept.
        most_bytes: The oldest go when all together are larger.
    """

    def __init__(self, *, slow_seconds: float = SLOW_SECONDS, most_bytes: int = MOST_BYTES) -> None:
        self.slow_seconds = slow_seconds
        self.most_bytes = most_bytes
        self._kept: OrderedDict[str, Factors] = OrderedDict()

    def __call__(self, bases: Mapping[str, nn.Module], spec: AdapterSpec) -> Factors:
        """Return the start of both factors of every site, tensors of the caller's own.

        Args:
            bases: Base layers by path.
            spec: The adapter, its seed included.
        """
        key = json.dumps({"spec": to_mapping(spec), "sites": list(bases)}, sort_keys=True)
        if key in self._kept:
            self._kept.move_to_end(key)
            return _copied(self._kept[key])
        started = time.monotonic()
        drawn = drawn_factors(bases, spec)
        if time.monotonic() - started >= self.slow_seconds:
            self._kept[key] = _copied(drawn)
            while sum(map(_size, self._kept.values())) > self.most_bytes:
                self._kept.popitem(last=False)
        return drawn


def _copied(factors: Factors) -> Factors:
    # Sites that share an A have the very tensor, and go on sharing the copy.
    copies: dict[int, Tensor] = {}

    def copied(tensor: Tensor) -> Tensor:
        return copies.setdefault(id(tensor), tensor.clone())

    return {name: (copied(A), copied(B)) for name, (A, B) in factors.items()}


def _size(factors: Factors) -> int:
    return sum(t.numel() * t.element_size() for pair in factors.values() for t in pair)
