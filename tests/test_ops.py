from __future__ import annotations

import pytest
import torch
from torch import Tensor

from asymlora.ops import add_low_rank, merged_weight


def _case(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 5, 7), (3, 5, 6), (2, 6), (7, 2))
    out, x, A, B = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    return out, x, A, B


def test_is_the_dense_formula() -> None:
    out, x, A, B = _case()
    dense = out + 0.5 * x @ (B @ A).T
    assert torch.allclose(add_low_rank(out, x, A, B, scaling=0.5), dense, rtol=0, atol=1e-14)


def test_gradients_are_those_of_the_dense_formula() -> None:
    out, x, A, B = (t.requires_grad_() for t in _case())
    assert torch.autograd.gradcheck(lambda *t: add_low_rank(*t, scaling=0.5), (out, x, A, B))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_output_has_the_dtype_of_the_base_output_with_float32_factors(dtype: torch.dtype) -> None:
    out, x, A, B = _case()
    assert add_low_rank(out.to(dtype), x.to(dtype), A.float(), B.float(), scaling=2.0).dtype == dtype


def test_base_output_is_not_written_to() -> None:
    out, x, A, B = _case()
    before = out.clone()
    add_low_rank(out, x, A, B, scaling=2.0)
    assert torch.equal(out, before)


def _kept_for_backward(trained: str) -> set[tuple[int, ...]]:
    out, x, A, B = _case()
    for letter, factor in (("A", A), ("B", B)):
        factor.requires_grad_(letter in trained)
    shapes: set[tuple[int, ...]] = set()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (shapes.add(tuple(t.shape)), t)[1], lambda t: t):
        add_low_rank(out, x, A, B, scaling=2.0)
    return shapes


def test_frozen_A_keeps_no_input_for_backward() -> None:
    # 15 tokens: (15, 6) or (3, 5, 6) would be the input.
    wide = {(15, 6), (3, 5, 6)}
    assert not wide & _kept_for_backward("B")
    assert wide & _kept_for_backward("A")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_merged_weight_is_the_float64_value_rounded_once(dtype: torch.dtype, size: float) -> None:
    generator = torch.Generator().manual_seed(1)
    W0 = torch.randn(2500, 33, generator=generator, dtype=torch.float64).to(dtype)
    A = torch.randn(5, 33, generator=generator) * size
    B = torch.randn(2500, 5, generator=generator)
    exact = W0.double() + 0.7 * (B.double() @ A.double())
    merged = merged_weight(W0, A, B, scaling=0.7)
    assert merged.dtype == dtype
    unit = torch.finfo(dtype).eps * exact.abs().clamp(min=torch.finfo(dtype).tiny)
    assert ((merged.double() - exact).abs() <= unit).all()


def test_a_float32_product_would_not_be_within_one_unit() -> None:
    # The control: the same bound fails where the sum is formed in float32 (cancelling terms).
    generator = torch.Generator().manual_seed(1)
    A = torch.randn(64, 33, generator=generator)
    B = torch.randn(2500, 64, generator=generator)
    W0 = -(B @ A) * 0.7 + 1e-3 * torch.randn(2500, 33, generator=generator)
    exact = W0.double() + 0.7 * (B.double() @ A.double())
    unit = torch.finfo(torch.float32).eps * exact.abs()
    assert ((W0 + 0.7 * (B @ A)).double() - exact).abs().gt(unit).any()
    assert (merged_weight(W0, A, B, scaling=0.7).double() - exact).abs().le(unit).all()
