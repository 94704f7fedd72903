from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from asymlora.diagnostics.feature_split import Factors
from asymlora.diagnostics.update_spectrum import singular_values


def _pair(n: int, m: int, r: int, seed: int) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return Factors(*(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((r, n), (m, r))))


def _dense(pair: Factors, scaling: float) -> Tensor:
    values = torch.linalg.svdvals(scaling * pair.B @ pair.A)
    return values[: min(*pair.A.shape, *pair.B.shape)]


def test_values_are_those_of_the_dense_product_whatever_the_shapes_beside() -> None:
    shapes = [(9, 7, 3), (12, 5, 2), (9, 7, 3), (4, 9, 4), (6, 6, 1)]
    pairs = [_pair(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    scalings = [2.0, 0.5, -1.0, 1.0, 3.0]
    for found, pair, scaling in zip(singular_values(pairs, scalings), pairs, scalings, strict=True):
        assert found == pytest.approx(_dense(pair, scaling).tolist(), rel=1e-12)


def test_zero_and_dependent_factors_have_values_of_zero() -> None:
    pair = _pair(9, 7, 3, seed=0)
    assert singular_values([Factors(pair.A, torch.zeros(7, 3, dtype=torch.float64))], [1.0]) == [[0.0, 0.0, 0.0]]
    (found,) = singular_values([Factors(pair.A[:1].expand(3, 9), pair.B)], [1.0])
    assert found[0] > 1.0
    assert max(found[1:]) < 1e-14 * found[0]


def test_one_site_that_is_not_finite_leaves_the_others_alone() -> None:
    good, bad = _pair(9, 7, 3, seed=0), _pair(9, 7, 3, seed=1)
    bad.B[2, 1] = math.inf
    first, second, third = singular_values([good, bad, good], [1.0, 1.0, 1.0])
    assert first == third == pytest.approx(_dense(good, 1.0).tolist(), rel=1e-12)
    assert all(math.isnan(value) for value in second)


def test_a_product_that_overflows_is_no_failure() -> None:
    found = singular_values(
        [Factors(torch.ones(4, 8), torch.full((8, 4), 3e38)), Factors(torch.eye(2), torch.eye(2))], [1.0, 1.0]
    )
    assert all(math.isnan(value) for value in found[0])
    assert found[1] == [1.0, 1.0]


def test_no_site_no_values() -> None:
    assert singular_values([], []) == []
