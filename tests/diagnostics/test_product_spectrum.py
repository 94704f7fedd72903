from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from asymlora.diagnostics.product_spectrum import (
    effective_rank,
    finite_float64,
    product_svd,
    rounding_tolerance,
    stable_rank,
    truncation_error,
)
from asymlora.errors import SpecError
from frozen_draws import FLOAT, gaussian


@pytest.mark.parametrize(("rank", "inputs", "outputs"), [(4, 30, 20), (1, 7, 5), (6, 4, 9), (8, 5, 3)])
def test_decomposition_is_that_of_the_dense_product(rank: int, inputs: int, outputs: int) -> None:
    A, B = gaussian(rank, inputs, seed=rank), gaussian(outputs, rank, seed=rank + 50)
    found = product_svd(A, B, scaling=0.7)
    kept = min(rank, inputs, outputs)
    dense = 0.7 * B @ A
    assert torch.allclose(found.values, torch.linalg.svdvals(dense)[:kept], atol=1e-12)
    assert torch.allclose(found.left * found.values @ found.right.T, dense, atol=1e-12)
    for vectors in (found.left, found.right):
        assert torch.allclose(vectors.T @ vectors, torch.eye(kept, dtype=FLOAT), atol=1e-12)


def test_a_float32_product_is_decomposed_in_float64() -> None:
    A, B = gaussian(3, 30, seed=0).float(), gaussian(20, 3, seed=1).float()
    values = product_svd(A, B).values
    assert values.dtype == FLOAT
    assert torch.allclose(values, torch.linalg.svdvals(B.double() @ A.double())[:3], rtol=1e-12)


def test_ratios_of_a_known_spectrum() -> None:
    values = torch.tensor([2.0, 1.0, 1.0, 0.0], dtype=FLOAT)
    # Shares 1/2, 1/4, 1/4: entropy (1/2 + 1/4*2 + 1/4*2) log 2.
    assert effective_rank(values) == pytest.approx(2**1.5, rel=1e-14)
    assert stable_rank(values) == 1.5
    assert [truncation_error(values, rank) for rank in range(5)] == pytest.approx(
        [1.0, math.sqrt(2 / 6), math.sqrt(1 / 6), 0.0, 0.0], abs=1e-15
    )


def test_ratios_depend_on_no_scale_however_small() -> None:
    values = torch.tensor([3.0, 2.0, 1.0], dtype=FLOAT)
    for function in (effective_rank, stable_rank, lambda v: truncation_error(v, 1)):
        assert function(values * 1e-200) == pytest.approx(function(values), rel=1e-12)


def test_a_zero_product_has_no_ratio() -> None:
    zero = product_svd(gaussian(3, 8, seed=0), torch.zeros(6, 3, dtype=FLOAT)).values
    assert not zero.any()
    assert (effective_rank(zero), stable_rank(zero), truncation_error(zero, 1)) == (None, None, None)


def test_truncation_error_is_that_of_the_best_cut_of_the_dense_matrix() -> None:
    A, B = gaussian(6, 30, seed=0), gaussian(20, 6, seed=1)
    dense = B @ A
    left, values, right = torch.linalg.svd(dense, full_matrices=False)
    spectrum = product_svd(A, B).values
    for rank in (1, 2, 5):
        cut = left[:, :rank] * values[:rank] @ right[:rank]
        wanted = ((dense - cut).norm() / dense.norm()).item()
        assert truncation_error(spectrum, rank) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_is_below_the_tolerance_is_rounding(dtype: torch.dtype) -> None:
    # Rank 2 in 6 columns, rounded to the type: the other four directions are rounding, and a full rank is not.
    A = gaussian(6, 400, seed=0)
    B = gaussian(300, 2, seed=1) @ gaussian(2, 6, seed=2)
    stored = A.to(dtype), B.to(dtype)
    values = product_svd(*stored).values
    assert int((values > rounding_tolerance(*stored) * values[0]).sum()) == 2
    full = product_svd(stored[0], gaussian(300, 6, seed=3).to(dtype)).values
    assert int((full > rounding_tolerance(*stored) * full[0]).sum()) == 6


def test_the_less_exact_factor_decides_the_tolerance() -> None:
    exact, rough = torch.zeros(4, 4, dtype=torch.float32), torch.zeros(4, 4, dtype=torch.bfloat16)
    assert rounding_tolerance(exact, rough) == rounding_tolerance(rough) == 2.0**-7
    assert rounding_tolerance(exact) == 2.0**-23 * 4


@pytest.mark.parametrize(
    ("A", "B", "words"),
    [
        (torch.ones(2, 4), torch.ones(3, 3), r"A \(2, 4\) and B \(3, 3\) are no factors"),
        (torch.ones(2, 4, 1), torch.ones(3, 2), "no factors of one matrix"),
        (torch.full((2, 4), math.nan), torch.ones(3, 2), "NaN or infinity"),
        (torch.ones(2, 4), torch.ones(3, 2).long(), "torch.int64"),
    ],
)
def test_what_has_no_product_is_refused(A: Tensor, B: Tensor, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        product_svd(A, B)


def test_finite_matrices_pass_without_their_history() -> None:
    leaf = torch.ones(2, 2, requires_grad=True)
    passed = finite_float64(leaf)
    assert passed.dtype == FLOAT
    assert not passed.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_tolerance_of_half_precision_lets_small_directions_of_a_large_rank_stand(dtype: torch.dtype) -> None:
    # The last of 64 is 2 % of the largest, eight times float16's and twice bfloat16's tolerance; rounding is less.
    sizes = torch.logspace(0, math.log10(0.02), 64, dtype=torch.float64)
    A = torch.linalg.qr(gaussian(256, 64, seed=0))[0].mT * sizes[:, None]
    B = torch.linalg.qr(gaussian(128, 64, seed=1))[0]
    stored = A.to(dtype), B.to(dtype)
    for factors, left in (
        (stored, 64),
        (((A * (sizes > 0.1)[:, None]).to(dtype), stored[1]), int((sizes > 0.1).sum())),
    ):
        values = product_svd(*factors).values
        assert int((values > rounding_tolerance(*factors) * values[0]).sum()) == left
