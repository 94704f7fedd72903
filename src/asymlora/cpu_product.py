"""A low-rank layer by the C kernel, as one autograd function: float32 on the CPU, without dropout."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import Tensor

from asymlora.cpu_kernel import Kernel, kernel, rows_of
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
            if B_grad:
                code = products.code(x, A)
            result = F.linear(x, torch.addmm(W0, B, A, alpha=scaling), bias)
        else:
            if W0 is not None:
                result = F.linear(x, W0, bias)
            else:
                assert out is not None
                result = out.clone(memory_format=torch.contiguous_format)
            code = products.add(result, x, A, rows_of(B), scaling)
        # Backward of a layer whose input needs no gradient does not read the base.
        ctx.save_for_backward(
            x if A_grad else None, code if B_grad else None, W0 if x_grad else None, A, B if x_grad or A_grad else None
        )
        ctx.scaling, ctx.folds = scaling, order.folds_backward
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradients of the arguments of `forward`.

        Raises:
            RuntimeError: A second derivative is asked for.
        """
        if torch.is_grad_enabled():
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        x, code, W0, A, B = ctx.saved_tensors
        x_grad, out_grad, *_ = ctx.needs_input_grad
        scaling: float = ctx.scaling
        g = grad.resolve_neg().contiguous()
        grad_x = added_to = None
        if x_grad:
            if ctx.folds:
                grad_x = torch.matmul(g, torch.addmm(W0, B, A, alpha=scaling))
            elif W0 is not None:
                grad_x = added_to = torch.matmul(g, W0)
            else:
                grad_x = added_to = g.new_zeros(*g.shape[:-1], A.shape[1])
        grad_A, grad_rows = _kernel().backward(
            g, A, None if B is None else rows_of(B), x=x, code=code, grad_x=added_to, scaling=scaling
        )
        return grad_x, grad if out_grad else None, grad_A, grad_rows.t() if grad_rows is not None else None, None


def _kernel() -> Kernel:
    found = kernel()
    assert found is not None  # `takes` was asked
    return found
