"""The low-rank product. Plain tensors in and out; what a layer is and what is trained is decided elsewhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import Tensor

_MERGE_ROWS = 1024


def add_low_rank(out: Tensor, x: Tensor, A: Tensor, B: Tensor, *, scaling: float) -> Tensor:
    r"""Return ``out + scaling * x A^T B^T``, in the dtype of ``out``.

    ``out`` is not written to. The scale is applied to the ``rank``-wide code, the smallest tensor there is. Autograd
    keeps ``x`` only if ``A`` is trained and the code only if ``B`` is.

    Args:
        out: Output of the base layer, shape ``(..., out)``.
        x: Input of the layer, shape ``(..., in)``.
        A: Down factor, shape ``(rank, in)``.
        B: Up factor, shape ``(out, rank)``.
        scaling: The whole multiplier ``s``.

    Returns:
        Shape ``(..., out)``.
    """
    code = F.linear(x, A.to(x.dtype)) * scaling
    return out + F.linear(code, B.to(code.dtype)).to(out.dtype)


def merged_weight(W0: Tensor, A: Tensor, B: Tensor, *, scaling: float) -> Tensor:
    """Return ``W0 + scaling * B A`` with a single rounding, in the dtype of ``W0``.

    The sum is formed in float64, a block of rows at a time, so the result is the float64 value rounded once.

    Args:
        W0: Base weight, shape ``(out, in)``.
        A: Down factor, shape ``(rank, in)``.
        B: Up factor, shape ``(out, rank)``.
        scaling: The whole multiplier ``s``.

    Returns:
        A new tensor of the shape, dtype and device of ``W0``.
    """
    # Apple's GPUs have no float64.
    wide = torch.device("cpu") if W0.device.type == "mps" else W0.device
    merged = torch.empty_like(W0)
    down = A.detach().to(wide, torch.float64) * scaling
    for start in range(0, W0.shape[0], _MERGE_ROWS):
        rows = slice(start, start + _MERGE_ROWS)
        delta_W = B.detach()[rows].to(wide, torch.float64) @ down
        merged[rows] = (W0.detach()[rows].to(wide, torch.float64) + delta_W).to(W0.device, W0.dtype)
    return merged
