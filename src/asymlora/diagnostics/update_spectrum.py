"""Singular values of the updates ``s*B*A`` of many sites at once, without forming one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from asymlora.diagnostics.feature_split import Factors


def singular_values(factors: Sequence[Factors], scalings: Sequence[float]) -> list[list[float]]:
    """Return the singular values of ``s*B*A`` for each pair of factors, largest first.

    Takes ``O((n + m) r^2)`` operations a pair. Pairs of the same shapes run in one call.

    Args:
        factors: Pairs of an ``A`` of shape ``(r, n)`` and a ``B`` of shape ``(m, r)``.
        scalings: The multiplier ``s`` of each.

    Returns:
        ``min(r, n, m)`` numbers each; all NaN where a factor or their product is not finite.

    Example:
        >>> singular_values([Factors(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0], [4.0]]))], [0.5])
        [[5.0]]

    Source:
        As for `asymlora.diagnostics.product_spectrum.product_svd`.
    """
    found: list[list[float]] = [[] for _ in factors]
    alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, (A, B) in enumerate(factors):
        alike[A.shape, B.shape, A.dtype, A.device].append(i)
    for places in alike.values():
        A, B = (torch.stack(tensors) for tensors in zip(*(factors[i] for i in places), strict=True))
        for place, values in zip(places, _batched(A, B), strict=True):
            found[place] = [abs(scalings[place]) * value for value in values]
    return found


def _batched(A: Tensor, B: Tensor) -> list[list[float]]:
    """Return the singular values of ``B A``, for ``A`` of shape ``(b, r, n)`` and ``B`` of shape ``(b, m, r)``."""
    finite = A.isfinite().flatten(1).all(1) & B.isfinite().flatten(1).all(1)
    # LAPACK refuses what is not finite, for all of the batch.
    A, B = (torch.where(finite[:, None, None], t, torch.zeros_like(t)) for t in (A, B))
    up, down = torch.linalg.qr(B, mode="r").R, torch.linalg.qr(A.mT, mode="r").R
    middle = up @ down.mT
    finite &= middle.isfinite().flatten(1).all(1)  # finite factors can have a product that overflows
    values = torch.linalg.svdvals(torch.where(finite[:, None, None], middle, torch.zeros_like(middle)))
    return torch.where(finite[:, None], values, torch.full_like(values, math.nan)).tolist()
