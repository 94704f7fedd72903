"""Dropout that keeps one bit a value for the backward pass, and never a mask as wide as the input.

On a CPU the bits are drawn from 16 random ones a value and packed by NumPy, which measures faster than drawing them
again (benchmarks/dropout_masks.py); elsewhere a seed is kept and the mask is drawn again from it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_STEPS = 65536


def kept_fraction(p: float) -> float:
    """Return the probability with which a value is kept: ``1 - p``, rounded to a multiple of ``2**-16``."""
    return 1.0 - min(round(p * _STEPS), _STEPS - 1) / _STEPS


def drop(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Drop entries of ``x`` at random and scale up the rest, as `torch.nn.functional.dropout` does.

    Draws from torch's global generator, so that `torch.manual_seed` and the state that gradient checkpointing restores
    decide the mask.

    Args:
        x: Shape ``(T, n)``.
        p: Fraction of the entries that is dropped, in (0, 1).

    Returns:
        The dropped input, shape ``(T, n)``; and what `drop_again` needs: packed bits, or a seed of 8 bytes.
    """
    if x.device.type != "cpu":
        seed = torch.empty((), dtype=torch.int64).random_()
        return drop_again(x, seed, p), seed
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.int16)[: x.numel()] >= min(round(p * _STEPS), _STEPS - 1) - _STEPS // 2
    return _scaled(x, kept.view(torch.uint8), p), torch.from_numpy(np.packbits(kept.numpy()))


def drop_again(x: Tensor, state: Tensor, p: float) -> Tensor:
    """Return ``x`` with the entries dropped that `drop` dropped.

    Args:
        x: Shape ``(T, n)``, of the shape and device that `drop` was given.
        state: What `drop` returned beside the dropped input.
        p: As for `drop`.

    Returns:
        Shape ``(T, n)``.
    """
    if x.device.type == "cpu":
        return _scaled(x, torch.from_numpy(np.unpackbits(state.numpy(), count=x.numel())), p)
    if x.is_meta:
        return x.new_empty(x.shape)
    generator = torch.Generator(x.device).manual_seed(int(state))
    kept = torch.empty(x.shape, dtype=x.dtype, device=x.device).bernoulli_(kept_fraction(p), generator=generator)
    return kept.mul_(x).mul_(1.0 / kept_fraction(p))


def _scaled(x: Tensor, kept: Tensor, p: float) -> Tensor:
    # A product with 0 would keep NaN and infinity where torch's own dropout keeps them too.
    return kept.view(x.shape).to(x.dtype).mul_(x).mul_(1.0 / kept_fraction(p))


@torch.library.custom_op(
    "asymlora::dropout_bits", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,), device_types=None
)
def dropout_bits(x: Tensor, p: float) -> Tensor:
    """Return a fresh dropout state for ``x``; for `torch.compile`, which cannot look into the drawing."""
    return drop(x, p)[1]


@dropout_bits.register_fake
def _(x: Tensor, p: float) -> Tensor:
    if x.device.type != "cpu":
        return torch.empty((), dtype=torch.int64)
    return torch.empty((x.numel() + 7) // 8, dtype=torch.uint8)


@torch.library.custom_op("asymlora::drop_by_bits", mutates_args=())
def drop_by_bits(x: Tensor, state: Tensor, p: float) -> Tensor:
    """Return what `drop_again` does, as an operator that `torch.compile` keeps whole."""
    return drop_again(x, state, p)


@drop_by_bits.register_fake
def _(x: Tensor, state: Tensor, p: float) -> Tensor:
    return x.new_empty(x.shape)  # contiguous, whatever the input is


def _keep_bits(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.p = inputs[2]  # pyright: ignore[reportAttributeAccessIssue]


def _drop_gradient(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
    (state,) = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
    return drop_by_bits(grad, state, ctx.p), None, None  # pyright: ignore[reportAttributeAccessIssue]


drop_by_bits.register_autograd(_drop_gradient, setup_context=_keep_bits)


def dropped(x: Tensor, p: float) -> Tensor:
    """Return ``x`` with entries dropped, differentiable to any order; keeps the bits for backward.

    Args:
        x: Any shape.
        p: Fraction dropped, in (0, 1).

    Returns:
        The shape of ``x``.
    """
    return drop_by_bits(x, dropout_bits(x, p), p)
