from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import asymlora.ops
from asymlora.ops import adapted_linear, add_low_rank, add_low_rank_plain, laid_out
from asymlora.orders import Order

ORDERS = tuple(Order(*flags) for flags in itertools.product((False, True), repeat=2))
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Problem(NamedTuple):
    """Arguments of one layer: ``x`` of ``dtype``, factors of ``factors``."""

    x: Tensor
    W0: Tensor
    bias: Tensor
    A: Tensor
    B: Tensor
    scaling: float


@st.composite
def problems(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Problem:
    """Layers of any small shape, rank and mixture of types."""
    lead = draw(st.lists(st.integers(0, 5), max_size=3))
    n, m = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    r = draw(st.integers(1, min(n, m)))
    dtype = draw(st.sampled_from(dtypes))
    factors = draw(st.sampled_from([dtype, *((torch.float32,) if dtype is not torch.float64 else ())]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def values(*shape: int, of: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(of)

    B = values(m, r, of=factors)
    return Problem(
        x=values(*lead, n, of=dtype),
        W0=values(m, n, of=dtype),
        bias=values(m, of=dtype),
        A=values(r, n, of=factors),
        B=laid_out(B) if draw(st.booleans()) else B,
        scaling=draw(st.sampled_from([0.25, 1.0, 2.0, 7.5])),
    )


def _exact(p: Problem, weight: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients in float64, and the same sums of absolute values, which bound the rounding."""
    results: list[list[Tensor]] = []
    for absolute in (False, True):
        x, W0, bias, A, B, g = (
            (t.double().abs() if absolute else t.double()) for t in (p.x, p.W0, p.bias, p.A, p.B, weight)
        )
        flat, up = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
        merged = W0 + p.scaling * B @ A
        found = [x @ merged.T + bias, g @ merged, p.scaling * (up @ B).T @ flat, p.scaling * up.T @ (flat @ A.T)]
        results.append(found)
    return results[0], results[1]


def _computed(p: Problem, weight: Tensor, function: Any) -> list[Tensor]:
    x, A, B = (t.clone().requires_grad_() for t in (p.x, p.A, p.B))
    out = function(x, A, B)
    return [out.detach(), *torch.autograd.grad(out, (x, A, B), weight)]


def _assert_rounding_only(p: Problem, weight: Tensor, computed: list[Tensor]) -> None:
    # A sum of k products in unit roundoff u is off by at most k u times the sum of absolute values; at most two such
    # sums follow one another, and a few conversions.
    exact, size = _exact(p, weight)
    u = max(torch.finfo(t.dtype).eps for t in (p.x, p.A))
    n, m, r, tokens = p.x.shape[-1], p.W0.shape[0], p.A.shape[0], weight.reshape(-1, weight.shape[-1]).shape[0]
    terms = max(n, m, tokens) + r + 4
    for found, wanted, bound in zip(computed, exact, size, strict=True):
        assert found.shape == wanted.shape
        assert ((found.double() - wanted).abs() <= terms * u * bound + torch.finfo(found.dtype).tiny * terms).all()


@given(problem=problems(), seed=st.integers(0, 1000))
def test_every_way_to_the_product_is_the_dense_formula_to_rounding(problem: Problem, seed: int) -> None:
    p = problem
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn((*p.x.shape[:-1], p.W0.shape[0]), generator=generator).to(p.x.dtype)

    def base(x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, p.W0, p.bias)

    ways: list[Any] = [
        lambda x, A, B: add_low_rank(base(x), x, A, B, scaling=p.scaling),
        lambda x, A, B: add_low_rank_plain(base(x), x, A, B, scaling=p.scaling),
    ]
    for way in ways:
        _assert_rounding_only(p, weight, _computed(p, weight, way))
    with pytest.MonkeyPatch.context() as patch:
        for order in ORDERS:
            patch.setattr(asymlora.ops, "choose_order", lambda *shape, order=order: order)
            computed = _computed(p, weight, lambda x, A, B: adapted_linear(x, p.W0, p.bias, A, B, scaling=p.scaling))
            _assert_rounding_only(p, weight, computed)


@given(problem=problems((torch.float64,)))
def test_the_bound_would_see_a_wrong_scale(problem: Problem) -> None:
    # The control: a scale that is off by a millionth is no rounding.
    p = problem
    weight = torch.ones((*p.x.shape[:-1], p.W0.shape[0]), dtype=torch.float64)
    if p.x.numel() == 0:
        return
    wrong = _computed(p, weight, lambda x, A, B: adapted_linear(x, p.W0, p.bias, A, B, scaling=p.scaling * (1 + 1e-6)))
    with pytest.raises(AssertionError):
        _assert_rounding_only(p, weight, wrong)
