"""A low-rank layer by the C kernel, as one autograd function: float32 on the CPU, without dropout."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import Tensor

from asymlora.autocasting import as_written
from asymlora.cpu_kernel import Kernel, is_float32, kernel, readable, rows_of, runs_as_called
from asymlora.orders import LOW_RANK, Order

NO_SECOND_DERIVATIVE = (
    "asymlora's fused product has no second derivative. Run this part under asymlora.unfused(model), which uses torch's"
    " own operations and can be differentiated to any order."
)


class Frozen(NamedTuple):
    """What a product reads and never gives a gradient: to autograd one argument, where each tensor costs a microsecond.

    Attributes:
        W0: Base weight, shape ``(m, n)``, or None where the output of the base layer is given.
        bias: Base bias, shape ``(m,)``, or None.
        scaling: The whole multiplier ``s``.
        order: Whether ``W0`` is folded.
    """

    W0: Tensor | None
    bias: Tensor | None
    scaling: float
    order: Order = LOW_RANK


class KernelProduct(torch.autograd.Function):
    """The base product (``W0`` given) or a given output (``out``), plus the scaled low-rank product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, out: Tensor | None, A: Tensor, B: Tensor, frozen: Frozen) -> Tensor:
        """Return ``x W0^T + bias + s * x A^T B^T``, or ``out + s * x A^T B^T``.

        Args:
            ctx: What backward reads.
            x: Input, shape ``(..., n)``.
            out: Output of the base layer, shape ``(..., m)``, not written to; or None.
            A: Down factor, shape ``(r, n)``.
            B: Up factor, shape ``(m, r)``.
            frozen: Base layer, scale and order.

        Returns:
            Shape ``(..., m)``.
        """
        x_grad, _, A_grad, B_grad, _ = ctx.needs_input_grad
        W0, bias, scaling, order = frozen
        products = _kernel()
        x = x.contiguous()
        code = None
        if order.folds_forward:
            assert W0 is not None
            result = F.linear(x, torch.addmm(W0, B, A, alpha=scaling), bias)
        elif W0 is not None:
            result = F.linear(x, W0, bias)
        else:
            assert out is not None
            result = out.clone(memory_format=torch.contiguous_format)
        result = _checked(x, A, B, result)
        if not order.folds_forward:
            code = products.add(result, x, A, rows_of(B), scaling)
        elif B_grad:
            code = products.code(x, A)
        # Backward of a layer whose input needs no gradient does not read the base.
        ctx.save_for_backward(
            x if A_grad else None,
            code if B_grad else None,
            W0 if x_grad else None,
            A if x_grad else None,
            B if x_grad or A_grad else None,
        )
        ctx.scaling, ctx.folds, ctx.sizes = scaling, order.folds_backward, A.shape
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradients of the arguments of `forward`.

        Raises:
            RuntimeError: A second derivative is asked for.
        """
        if torch.is_grad_enabled():
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        saved = x, code, W0, A, B = ctx.saved_tensors
        x_grad, out_grad, *_ = ctx.needs_input_grad
        # Hooks may have brought other tensors back, and the gradient is whatever the graph above gives.
        native = readable(grad) and all(map(is_float32, saved)) and runs_as_called()
        if not native:
            with as_written("cpu"):
                grads = _by_torch(grad, *saved, scaling=ctx.scaling)
            return grads[0], grad if out_grad else None, *grads[1:], None
        g = grad.contiguous()
        grad_x = None
        if x_grad:
            weight = torch.addmm(W0, B, A, alpha=ctx.scaling) if ctx.folds else W0
            grad_x = torch.matmul(g, weight) if weight is not None else g.new_zeros(*g.shape[:-1], ctx.sizes[1])
        grad_A, grad_rows = _kernel().backward(
            g,
            None if A is None else A.contiguous(),
            None if B is None else rows_of(B),
            x=None if x is None else x.contiguous(),
            code=None if code is None else code.contiguous(),
            grad_x=None if ctx.folds else grad_x,
            sizes=ctx.sizes,
            scaling=ctx.scaling,
        )
        grad_B = None if grad_rows is None else grad_rows.t()
        return grad_x, grad if out_grad else None, grad_A, grad_B, None


def _by_torch(
    grad: Tensor,
    x: Tensor | None,
    code: Tensor | None,
    W0: Tensor | None,
    A: Tensor | None,
    B: Tensor | None,
    *,
    scaling: float,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of ``x``, ``A`` and ``B``, for gradients and saved tensors of any kind."""
    g = grad.reshape(-1, grad.shape[-1])
    grad_x = grad_A = None
    grad_B = scaling * (g.t() @ code) if code is not None else None
    if B is not None:
        g_code = scaling * (g @ B)
        if x is not None:
            grad_A = g_code.t() @ x.reshape(-1, x.shape[-1])
        if A is not None:
            grad_x = g_code @ A if W0 is None else g @ W0 + g_code @ A
            grad_x = grad_x.reshape(*grad.shape[:-1], A.shape[1])
    return grad_x, grad_A, grad_B


def _checked(x: Tensor, A: Tensor, B: Tensor, result: Tensor) -> Tensor:
    """Return the base layer's output without gaps; refuse what C would read or write beyond its end.

    Raises:
        RuntimeError: Shapes do not fit.
    """
    (r, n), (m, of_B) = A.shape, B.shape
    if x.shape[-1] != n or of_B != r or result.shape[-1] != m or result.numel() * n != x.numel() * m:
        raise RuntimeError(
            f"An input of shape {tuple(x.shape)}, A {tuple(A.shape)}, B {tuple(B.shape)} and a base output of shape"
            f" {tuple(result.shape)} do not fit: they are (..., n), (r, n), (m, r) and (..., m)."
        )
    return result.contiguous()  # that of a sparse weight is not


def _kernel() -> Kernel:
    found = kernel()
    assert found is not None  # `takes` was asked
    return found
