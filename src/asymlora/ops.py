"""The low-rank product: exact, with few temporaries, and keeping for backward only what the trained factors need.

``T`` tokens, ``n`` features in, ``m`` features out, ``r`` rank. A code is the ``r``-wide product of a factor with the
input (``A x``) or with the gradient of the output (``B^T g``). Plain tensors in and out; what a layer is and what is
trained is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import Tensor

from asymlora.autocasting import as_written
from asymlora.cpu_kernel import readable, takes
from asymlora.cpu_product import NO_SECOND_DERIVATIVE, Frozen, KernelProduct
from asymlora.dropout import drop, drop_again, dropped
from asymlora.orders import KERNEL_COSTS, LOW_RANK, NARROW_BELOW, Order, choose_order

_TILE = 512  # tokens cast at a time where input and factors differ in dtype: a tile of them stays in the cache


class _Plan(NamedTuple):
    scaling: float
    dropout: float
    dtype: torch.dtype  # of the thin products
    order: Order = LOW_RANK


def adapted_linear(
    x: Tensor,
    W0: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
    code: Tensor | None = None,
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
        code: What `code_of` gave for ``x`` and ``A``, where several layers share it; dropout is then in it.

    Returns:
        Shape ``(..., m)``, in the dtype of ``x``.
    """
    if code is None and not dropout and takes(x, A, B):
        (r, n), m = A.shape, W0.shape[0]
        order = choose_order(x.numel() // n, n, m, r, A.requires_grad, x.requires_grad, KERNEL_COSTS)
        return KernelProduct.apply(x, None, A, B, Frozen(W0, bias, scaling, order))
    x2 = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if code is None:
        order = _order(x2, W0, A, B) if not dropout else None
        if order is None or order.folds_forward or order.folds_backward:
            plan = _Plan(scaling, dropout, _product_dtype(x, A), order or LOW_RANK)
            out = _Product.apply(x2, None, W0, bias, A, B, plan)
            return out if x2 is x else out.view(*x.shape[:-1], out.shape[1])
        code = F.linear(x2, A)
    # Torch's own autograd keeps exactly what the trained factors need, and costs less than a function of ours. The
    # scale on the code costs less than as the alpha of the product, which autograd applies to both gradients.
    out = F.linear(x2, W0, bias).addmm_(code * scaling, _along_rows(B))
    return out if x2 is x else out.view(*x.shape[:-1], out.shape[1])


def _order(x: Tensor, W0: Tensor, A: Tensor, B: Tensor) -> Order | None:
    """Return the order for a dense layer without dropout; None where the dtypes differ."""
    if not x.dtype is A.dtype is B.dtype:
        return None
    if x.dtype in _FOLDED and x.device.type == "cpu":
        (r, n), m = A.shape, W0.shape[0]
        return choose_order(x.shape[0], n, m, r, A.requires_grad, x.requires_grad)
    # Elsewhere nothing was measured, and in reduced precision folding would round the update away.
    return None if x.device.type == "cpu" else LOW_RANK


def add_low_rank(
    out: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
    code: Tensor | None = None,
) -> Tensor:
    r"""Return ``out + s * dropout(x) A^T B^T``, in the dtype of ``out``.

    For any base layer: its output is given and not written to. What is kept for backward is as for `adapted_linear`.

    Args:
        out: Output of the base layer, shape ``(..., m)``.
        x: Input of the layer, shape ``(..., n)``.
        A: Down factor, shape ``(r, n)``.
        B: Up factor, shape ``(m, r)``.
        scaling: The whole multiplier ``s``.
        dropout: Fraction of the entries of ``x`` that is dropped, in [0, 1).
        code: As for `adapted_linear`.

    Returns:
        Shape ``(..., m)``, a new tensor.
    """
    if code is None and not dropout and takes(x, A, B) and readable(out):
        return KernelProduct.apply(x, out, A, B, Frozen(None, None, scaling))
    dtype = _product_dtype(x, A)
    if out.dtype is B.dtype and (code is not None or (not dropout and x.dtype is A.dtype is out.dtype is dtype)):
        code = code_of(x, A) if code is None else code
        return torch.addmm(out.reshape(-1, out.shape[-1]), code * scaling, _along_rows(B)).view(out.shape)
    return _Product.apply(x, out, None, None, A, B, _Plan(scaling, dropout, dtype))


def laid_out(B: Tensor) -> Tensor:
    """Return an up factor in the memory layout that the products read fastest: as its transpose.

    Args:
        B: Up factor, shape ``(m, r)``.

    Returns:
        The same values and shape; its transpose is contiguous.
    """
    return B.t().contiguous().t() if B.dim() == 2 else B


def _along_rows(B: Tensor) -> Tensor:
    # Of a B that can be read along its rows autograd forms the gradient as (r, T) times (T, m), for a seventh of what
    # (m, T) times (T, r) costs. One that is not `laid_out` (PEFT's, FSDP's) is copied, and the copy kept for backward.
    return B.t() if B.stride(0) == 1 or B.shape[1] >= NARROW_BELOW else B.t().contiguous()


def code_of(x: Tensor, A: Tensor, *, dropout: float = 0.0) -> Tensor:
    """Return the code ``dropout(x) A^T``, shape ``(T, r)``, for several layers that read the same input.

    Args:
        x: Input, shape ``(..., n)``.
        A: Down factor, shape ``(r, n)``, of the dtype of ``x``.
        dropout: Fraction of the entries of ``x`` that is dropped, in [0, 1).

    Returns:
        Shape ``(T, r)``.
    """
    x2 = x.reshape(-1, x.shape[-1])
    return F.linear(dropped(x2, dropout) if dropout else x2, A)


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
        x2 = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        with as_written(x.device.type):
            read, state = drop(x2, plan.dropout) if plan.dropout else (x2, None)
            folds = plan.order.folds_forward
            code = _code(read, A, plan) if B_grad or not folds else None
            if W0 is not None:
                result = F.linear(x2, torch.addmm(W0, B, A, alpha=plan.scaling) if folds else W0, bias)
            else:
                assert out is not None
                result = out.reshape(-1, out.shape[-1]).clone()
            if not folds:
                assert code is not None
                _add_expanded(result, code, B.t(), plan)
        ctx.save_for_backward(
            x if A_grad else None,
            code if B_grad else None,
            state if x_grad or A_grad else None,
            W0 if x_grad else None,
            A if x_grad or A_grad else None,
            B,
        )
        ctx.plan, ctx.x_like = plan, (x.shape, x.dtype)
        return result if x2 is x else result.view(*x.shape[:-1], result.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        x, code, state, W0, A, B = ctx.saved_tensors
        x_grad, out_grad, _, _, A_grad, B_grad, _ = ctx.needs_input_grad
        plan: _Plan = ctx.plan
        g = grad if grad.dim() == 2 else grad.reshape(-1, grad.shape[-1])
        grad_x = grad_A = grad_B = g_code = None
        with as_written(g.device.type):
            if B_grad:
                # Straight in the layout of B where that is no slower: what is not would be copied into it.
                narrow = B.stride(0) == 1 or B.shape[1] < NARROW_BELOW
                grad_B = _gradient(B.t(), code.t(), g, plan).t() if narrow else _gradient(B, g.t(), code, plan)
            folds = plan.order.folds_backward
            if A_grad or (x_grad and not folds):
                g_code = _code(g, B.t(), plan)
            if A_grad:
                assert g_code is not None
                read = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
                read = read if state is None else drop_again(read, state, plan.dropout)
                grad_A = _gradient(A, g_code.t(), read, plan)
            if x_grad:
                shape, dtype = ctx.x_like
                if folds:
                    grad_x = torch.mm(g, torch.addmm(W0, B, A, alpha=plan.scaling))
                else:
                    assert g_code is not None
                    grad_x = _input_gradient(g, g_code, W0, A, state, plan)
                grad_x = grad_x.to(dtype).view(shape)
        return grad_x, grad if out_grad else None, None, None, grad_A, grad_B, None


def _input_gradient(
    g: Tensor, g_code: Tensor, W0: Tensor | None, A: Tensor, state: Tensor | None, plan: _Plan
) -> Tensor:
    if W0 is not None and state is None:
        grad_x = torch.mm(g, W0)
        _add_expanded(grad_x, g_code, A, plan)
        return grad_x
    branch = torch.mm(g_code, A.to(plan.dtype)).mul_(plan.scaling)
    if state is not None:
        branch = drop_again(branch, state, plan.dropout)
    return branch if W0 is None else torch.mm(g, W0).add_(branch)


# The thin products. Layouts, and the scale as the alpha of a product rather than a pass of its own, are those that
# measured fastest (benchmarks/product_costs.py): a gradient as (r, T) times (T, m) costs a seventh of the (m, T) times
# (T, r) that autograd runs for a linear layer.


def _code(x: Tensor, factor: Tensor, plan: _Plan) -> Tensor:
    """Return ``x factor^T``, shape ``(T, r)``."""
    if x.dtype is factor.dtype is plan.dtype:
        return F.linear(x, factor)
    narrow = factor.to(plan.dtype).t()
    code = torch.empty(x.shape[0], narrow.shape[1], dtype=plan.dtype, device=x.device)
    for rows in _tiles(x):
        torch.mm(x[rows].to(plan.dtype), narrow, out=code[rows])
    return code


def _add_expanded(total: Tensor, code: Tensor, factor: Tensor, plan: _Plan) -> None:
    """Add ``s * code factor`` to ``total`` in place; ``factor`` is ``(r, m)`` or ``(r, n)``."""
    if total.dtype is factor.dtype is plan.dtype:
        total.addmm_(code, factor, alpha=plan.scaling)
        return
    wide = factor.to(plan.dtype)
    for rows in _tiles(total):
        total[rows].add_(torch.mm(code[rows], wide), alpha=plan.scaling)


def _gradient(factor: Tensor, left: Tensor, right: Tensor, plan: _Plan) -> Tensor:
    """Return ``s * left right``, the gradient of ``factor`` and of its shape: a code, and what it was a code of."""
    if left.dtype is right.dtype is factor.dtype is plan.dtype:
        return torch.addmm(factor, left, right, beta=0, alpha=plan.scaling)  # the factor lends its shape only
    total = torch.zeros(factor.shape, dtype=plan.dtype, device=factor.device)
    for rows in _tiles(right):
        total.addmm_(left[:, rows].to(plan.dtype), right[rows].to(plan.dtype), alpha=plan.scaling)
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


def rounding_error(W0: Tensor, merged: Tensor, A: Tensor, B: Tensor, *, scaling: float) -> tuple[float, float, float]:
    """Return how far a merged weight is from the float64 value of ``W0 + scaling * B A``.

    Args:
        W0: Base weight, shape ``(m, n)``.
        merged: What `merged_weight` returned.
        A: Down factor, shape ``(r, n)``.
        B: Up factor, shape ``(m, r)``.
        scaling: The whole multiplier ``s``.

    Returns:
        Largest absolute difference; Frobenius norm of the difference over that of the update; fraction of the entries
        that the update does not move though it is not zero there.
    """
    largest = error = size = unmoved = 0.0
    down = A.detach().double() * scaling
    for start in range(0, W0.shape[0], _MERGE_ROWS):
        rows = slice(start, start + _MERGE_ROWS)
        delta_W = B.detach()[rows].double() @ down
        gap = merged[rows].double() - (W0[rows].double() + delta_W)
        largest = max(largest, gap.abs().max().item())
        error, size = error + gap.square().sum().item(), size + delta_W.square().sum().item()
        unmoved += ((merged[rows] == W0[rows]) & (delta_W != 0)).sum().item()
    return largest, (error / size) ** 0.5 if size else 0.0, unmoved / W0.numel()
