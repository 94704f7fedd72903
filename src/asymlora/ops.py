"""The low-rank product: exact, with few temporaries, and keeping for backward only what the trained factors need.

``T`` tokens, ``n`` features in, ``m`` features out, ``r`` rank. A code is the ``r``-wide product of a factor with the
input (``A x``) or with the gradient of the output (``B^T g``). Plain tensors in and out; what a layer is and what is
trained is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import Tensor

from asymlora.dropout import drop, drop_again, dropped
from asymlora.orders import LOW_RANK, Order, choose_order

_TILE = 512  # tokens cast at a time where input and factors differ in dtype: a tile of them stays in the cache


class _Plan(NamedTuple):
    scaling: float
    dropout: float
    dtype: torch.dtype  # of the thin products
    order: Order = LOW_RANK


def adapted_linear(
    x: Tensor, W0: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, *, scaling: float, dropout: float = 0.0
) -> Tensor:
    r"""Return ``x W0^T + bias + s * dropout(x) A^T B^T`` of a frozen dense layer, in one pass.

    The base product runs in here, and its buffer receives the update. For backward are kept: ``x`` only if ``A``
    requires a gradient, the code only if ``B`` does, one bit a value (or a seed) of dropout.

    Args:
        x: Input, shape ``(..., n)``.
        W0: Base weight, shape ``(m, n)``; of the dtype of ``x``, not trained.
        bias: Base bias, shape ``(m,)``, or None; not trained.
        A: Down factor, shape ``(r, n)``.
        B: Up factor, shape ``(m, r)``.
        scaling: The whole multiplier ``s``.
        dropout: Fraction of the entries of the branch's input that is dropped, in [0, 1).

    Returns:
        Shape ``(..., m)``, in the dtype of ``x``.
    """
    dtype = _product_dtype(x, A)
    order = LOW_RANK
    # In reduced precision folding would round the update away.
    if not dropout and x.dtype is dtype is W0.dtype and dtype in _FOLDED and x.device.type == "cpu":
        (r, n), m = A.shape, W0.shape[0]
        tokens = x.numel() // n if n else 0
        order = choose_order(tokens, n, m, r, trains_A=A.requires_grad, input_grad=x.requires_grad)
    return _Product.apply(x, None, W0, bias, A, B, _Plan(scaling, dropout, dtype, order))


def add_low_rank(out: Tensor, x: Tensor, A: Tensor, B: Tensor, *, scaling: float, dropout: float = 0.0) -> Tensor:
    r"""Return ``out + s * dropout(x) A^T B^T``, in the dtype of ``out``.

    For any base layer: its output is given and not written to. What is kept for backward is as for `adapted_linear`.

    Args:
        out: Output of the base layer, shape ``(..., m)``.
        x: Input of the layer, shape ``(..., n)``.
        A: Down factor, shape ``(r, n)``.
        B: Up factor, shape ``(m, r)``.
        scaling: The whole multiplier ``s``.
        dropout: Fraction of the entries of ``x`` that is dropped, in [0, 1).

    Returns:
        Shape ``(..., m)``, a new tensor.
    """
    return _Product.apply(x, out, None, None, A, B, _Plan(scaling, dropout, _product_dtype(x, A)))


def add_low_rank_plain(out: Tensor, x: Tensor, A: Tensor, B: Tensor, *, scaling: float, dropout: float = 0.0) -> Tensor:
    r"""Return ``out + s * dropout(x) A^T B^T`` by torch's own operations.

    For `torch.compile`, which fuses by itself, and for second derivatives; slower and no leaner than autograd is.

    Args:
        out: As for `add_low_rank`.
        x: As for `add_low_rank`.
        A: As for `add_low_rank`.
        B: As for `add_low_rank`.
        scaling: As for `add_low_rank`.
        dropout: As for `add_low_rank`.

    Returns:
        Shape ``(..., m)``.
    """
    kept = dropped(x, dropout) if dropout else x
    code = F.linear(kept, A.to(kept.dtype)) * scaling
    return out + F.linear(code, B.to(code.dtype)).to(out.dtype)


_FOLDED = (torch.float32, torch.float64)


def _product_dtype(x: Tensor, A: Tensor) -> torch.dtype:
    # Processors are faster in float32, a tile of x cast at a time; accelerators in x's own type.
    kind = x.device.type
    if kind in ("cpu", "meta"):
        return torch.promote_types(torch.promote_types(x.dtype, A.dtype), torch.float32)
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _Product(torch.autograd.Function):
    """The base product (``W0`` given) or a given output (``out``), plus the scaled low-rank product."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        out: Tensor | None,
        W0: Tensor | None,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        plan: _Plan,
    ) -> Tensor:
        x_grad, _, _, _, A_grad, B_grad, _ = ctx.needs_input_grad
        with _exactly_as_written(x):
            result, code, state = _forward(x, out, W0, bias, A, B, plan, keeps_code=B_grad)
        ctx.save_for_backward(
            x if A_grad else None,
            code if B_grad else None,
            state,
            W0 if x_grad else None,
            A if x_grad else None,
            B if x_grad or A_grad else None,
        )
        ctx.plan, ctx.x_shape, ctx.x_dtype = plan, x.shape, x.dtype
        return result.view(*x.shape[:-1], result.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "asymlora's fused product has no second derivative. Run this part under asymlora.unfused(model), which"
                " uses torch's own operations and can be differentiated to any order."
            )
        x, code, state, W0, A, B = ctx.saved_tensors
        x_grad, out_grad, _, _, A_grad, B_grad, _ = ctx.needs_input_grad
        plan: _Plan = ctx.plan
        g = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_A = g_code = None
        with _exactly_as_written(grad):
            grad_B = _outer(code, g, plan).t() if B_grad else None
            folds = plan.order.folds_backward and W0 is not None
            if A_grad or (x_grad and not folds):
                g_code = _code(g, B.t(), plan)
            if A_grad:
                read = x.reshape(-1, x.shape[-1])
                grad_A = _outer(g_code, read if state is None else drop_again(read, state, plan.dropout), plan)
            if x_grad and folds:
                grad_x = torch.mm(g, torch.addmm(W0, B, A, alpha=plan.scaling))
            elif x_grad:
                grad_x = _input_gradient(g, g_code, W0, A, state, plan)
        return (
            None if grad_x is None else grad_x.to(ctx.x_dtype).view(ctx.x_shape),
            grad if out_grad else None,
            None,
            None,
            grad_A,
            grad_B,
            None,
        )


def _exactly_as_written(x: Tensor) -> AbstractContextManager[Any]:
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _AS_IT_IS


_AS_IT_IS = nullcontext()


def _forward(
    x: Tensor,
    out: Tensor | None,
    W0: Tensor | None,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    plan: _Plan,
    *,
    keeps_code: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    x2 = x.reshape(-1, x.shape[-1])
    folds = plan.order.folds_forward and W0 is not None
    read, state = drop(x2, plan.dropout) if plan.dropout else (x2, None)
    code = _code(read, A, plan) if keeps_code or not folds else None
    if W0 is None:
        assert out is not None
        result = out.reshape(-1, out.shape[-1]).clone()
    else:
        weight = torch.addmm(W0, B, A, alpha=plan.scaling) if folds else W0
        result = torch.mm(x2, weight.t()) if bias is None else torch.addmm(bias, x2, weight.t())
    if not folds:
        assert code is not None
        _add_expanded(result, code, B.t(), plan)
    return result, code, state


def _input_gradient(
    g: Tensor, g_code: Tensor, W0: Tensor | None, A: Tensor, state: Tensor | None, plan: _Plan
) -> Tensor:
    if W0 is not None and state is None:
        grad_x = torch.mm(g, W0)
        _add_expanded(grad_x, g_code, A, plan)
        return grad_x
    branch = torch.mm(g_code.t(), A.to(plan.dtype))
    if state is not None:
        branch = drop_again(branch, state, plan.dropout)
    return branch if W0 is None else torch.mm(g, W0).add_(branch)


# The four thin products. The layouts are those that measured fastest (benchmarks/product_costs.py): a gradient as
# (r, T) times (T, m) costs a seventh of the (m, T) times (T, r) that autograd would run for a linear layer.


def _code(x: Tensor, factor: Tensor, plan: _Plan) -> Tensor:
    """Return ``s * factor x^T``, shape ``(r, T)`` (in memory the other way round where that is faster)."""
    narrow = factor.to(plan.dtype)
    if x.dtype is plan.dtype:
        code = torch.mm(x, narrow.t()).t() if plan.order.tokens_first else torch.mm(narrow, x.t())
        return code.mul_(plan.scaling)
    code = torch.empty(x.shape[0], narrow.shape[0], dtype=plan.dtype, device=x.device)
    for rows in _tiles(x):
        torch.mm(x[rows].to(plan.dtype), narrow.t(), out=code[rows])
    return code.mul_(plan.scaling).t()


def _add_expanded(total: Tensor, code: Tensor, factor: Tensor, plan: _Plan) -> None:
    """Add ``code^T factor`` to ``total`` in place; ``factor`` is ``(r, m)`` or ``(r, n)``."""
    wide = factor.to(plan.dtype)
    if total.dtype is plan.dtype:
        total.addmm_(code.t(), wide)
        return
    for rows in _tiles(total):
        total[rows].add_(torch.mm(code.t()[rows], wide))


def _outer(code: Tensor, x: Tensor, plan: _Plan) -> Tensor:
    """Return ``code x``, the sum over tokens of the outer products, shape ``(r, n)`` or ``(r, m)``."""
    if x.dtype is plan.dtype:
        return torch.mm(code, x)
    total = torch.zeros(code.shape[0], x.shape[1], dtype=plan.dtype, device=x.device)
    for rows in _tiles(x):
        total.addmm_(code[:, rows], x[rows].to(plan.dtype))
    return total


def _tiles(x: Tensor) -> Iterator[slice]:
    return (slice(start, start + _TILE) for start in range(0, x.shape[0], _TILE))


_MERGE_ROWS = 1024


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
