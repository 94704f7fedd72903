r"""One step's change of the features of a site, split into what each factor did; exact for any step of any size.

Legend: ``k`` rows, ``n`` fan in, ``m`` outputs, ``r`` rank, ``t`` the step.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import Tensor

from asymlora.errors import IdentityError

LARGEST_ERROR = 1e-5
"""Largest relative error of the identity that rounding explains (check C1 of our notes on the paper)."""
PARTS = ("Z_A", "Z_B", "delta1", "delta2", "delta3", "delta_Z_B", "identity_error")


class Factors(NamedTuple):
    """Both factors of a site as matrices at one time.

    Attributes:
        A: Down factor, shape ``(r, n)``.
        B: Up factor, shape ``(m, r)``.
    """

    A: Tensor
    B: Tensor


def split(x: Tensor, before: Factors, after: Factors, *, scaling: float) -> Tensor:
    r"""Return the sizes of the features after a step, and of the three parts of their change.

    .. math::
        Z_A = A_t x, \quad Z_B = s B_t A_t x, \quad
        \delta_1 = s B_{t-1} \Delta Z_A, \quad \delta_2 = s\, \Delta B\, Z_A^{t-1}, \quad
        \delta_3 = s\, \Delta B\, \Delta Z_A, \qquad
        Z_B^t - Z_B^{t-1} = \delta_1 + \delta_2 + \delta_3

    The left side of the identity is computed from the factors of the two times, not from the parts.

    Args:
        x: Probe input, shape ``(k, n)``; or ids, shape ``(k,)``, for which ``A`` holds a code each.
        before: Factors before the step. A factor that is the very tensor of ``after`` has not moved.
        after: Factors after it, of the same dtype.
        scaling: The whole multiplier ``s``.

    Returns:
        Shape ``(7,)``, in the order of `PARTS`: six root mean squares, and the Frobenius norm of the difference of both
        sides over the larger of ``|Z_B|`` before and after; 0 where all is 0.

    Source:
        Hayou, Ghosh, Yu, 2024, "The Impact of Initialization on LoRA Finetuning Dynamics", section 2 of our notes; the
        larger of the two norms, so that a step onto zero has an error too: ours.
    """
    x = x if x.dim() == 1 else x.to(after.A.dtype)
    moved_A, moved_B = after.A is not before.A, after.B is not before.B
    earlier_A = read(x, before.A)
    Z_A = read(x, after.A) if moved_A else earlier_A
    up_before, up = scaling * before.B.t(), scaling * after.B.t()
    earlier_B, Z_B = earlier_A @ up_before, Z_A @ up
    change = Z_B - earlier_B
    none = torch.zeros((), dtype=Z_B.dtype, device=Z_B.device)
    step_A = read(x, after.A - before.A) if moved_A else None
    step_B = scaling * (after.B - before.B).t() if moved_B else None
    parts = (
        step_A @ up_before if step_A is not None else None,
        earlier_A @ step_B if step_B is not None else None,
        step_A @ step_B if step_A is not None and step_B is not None else None,
    )
    left_over = change
    for part in parts:
        left_over = left_over if part is None else left_over - part
    norm = torch.linalg.vector_norm
    sizes = [norm(Z_B), *(none if part is None else norm(part) for part in parts), norm(change), norm(left_over)]
    features = torch.stack(sizes) / math.sqrt(Z_B.numel())
    scale = torch.maximum(features[0], norm(earlier_B) / math.sqrt(Z_B.numel()))
    error = torch.where(features[5] == 0, none, features[5] / scale)
    return torch.cat([(norm(Z_A) / math.sqrt(Z_A.numel()))[None], features[:5], error[None]])


def checked_split(x: Tensor, before: Factors, after: Factors, *, scaling: float, site: str, step: int) -> list[float]:
    """Return what `split` does, once the identity was found to hold.

    Where it fails in float32 the site is computed anew in float64: float32 products may run in a shorter format on an
    accelerator, and a change that nearly cancels leaves rounding alone.

    Args:
        x: As for `split`.
        before: As for `split`.
        after: As for `split`.
        scaling: As for `split`.
        site: Name of the site, for the message.
        step: Number of the step, for the message.

    Returns:
        Seven numbers in the order of `PARTS`. Those that are not finite are passed on.

    Raises:
        IdentityError: Both sides differ by more than rounding, in float64 too.
    """
    found = split(x, before, after, scaling=scaling).tolist()
    if found[-1] > LARGEST_ERROR and after.A.dtype != torch.float64:
        found = _in_float64(x, before, after, scaling=scaling)
    if found[-1] > LARGEST_ERROR:
        raise IdentityError(
            f"{site}, step {step}: the change of Z_B and the sum of its three parts differ by {found[-1]:.2g} of Z_B;"
            f" rounding explains at most {LARGEST_ERROR:g}. The products of this machine are wrong, or the factors were"
            " written to while they were read: measure on another device, and report it if it fails there too."
        )
    return found


def _in_float64(x: Tensor, before: Factors, after: Factors, *, scaling: float) -> list[float]:
    wide_A, wide_B = (t.cpu().double() for t in after)
    earlier = Factors(
        wide_A if before.A is after.A else before.A.cpu().double(),
        wide_B if before.B is after.B else before.B.cpu().double(),
    )
    x = x.cpu() if x.dim() == 1 else x.cpu().double()
    return split(x, earlier, Factors(wide_A, wide_B), scaling=scaling).tolist()


def read(x: Tensor, A: Tensor) -> Tensor:
    """Return ``Z_A``, shape ``(k, r)``: the product with rows, or the codes of ids."""
    return F.embedding(x, A.t()) if x.dim() == 1 else x @ A.t()
