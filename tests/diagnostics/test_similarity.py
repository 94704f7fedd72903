from __future__ import annotations

import math

import pytest
import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from asymlora.diagnostics.similarity import (
    A_similarity,
    B_similarity,
    angles_between,
    balanced_factors,
    chance_cka,
    chance_similarity,
    column_basis,
    linear_cka,
    principal_angles,
    subspace_similarity,
)
from asymlora.errors import SpecError
from frozen_draws import FLOAT, frame, gaussian

WIDTH = 40


def _pair(first: int = 5, second: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return gaussian(WIDTH, first, seed=generator), gaussian(WIDTH, second, seed=generator)


@pytest.mark.parametrize("seed", range(5))
def test_mixing_of_the_columns_changes_nothing(seed: int) -> None:
    # Z10: 1e-8.
    first, second = _pair(seed=seed)
    mixed = subspace_similarity(first @ gaussian(5, 5, seed=seed + 50), second @ gaussian(3, 3, seed=seed + 60))
    assert abs(mixed - subspace_similarity(first, second)) <= 1e-8


def test_an_adapters_own_mixing_changes_neither_factor() -> None:
    # B A = (B C)(C^-1 A).
    A, B, mixing = gaussian(4, WIDTH, seed=0), gaussian(WIDTH, 4, seed=1), gaussian(4, 4, seed=2)
    assert A_similarity(torch.linalg.solve(mixing, A), A) == pytest.approx(1.0, abs=1e-10)
    assert B_similarity(B @ mixing, B) == pytest.approx(1.0, abs=1e-10)


def test_the_score_is_symmetric_in_range_and_one_for_itself() -> None:
    # Z10. Exact symmetry up to the order of sums.
    for seed in range(20):
        first, second = _pair(seed=seed)
        assert subspace_similarity(first, second) == pytest.approx(subspace_similarity(second, first), abs=1e-14)
        assert 0.0 <= subspace_similarity(first, second) <= 1.0
        assert subspace_similarity(first, first) == pytest.approx(1.0, abs=1e-12)
        assert subspace_similarity(first, torch.cat([first, second], dim=1)) == pytest.approx(1.0, abs=1e-12)
    ends = torch.eye(WIDTH, dtype=FLOAT)
    assert subspace_similarity(ends[:, :4], ends[:, 4:10]) == 0.0


def test_no_rotation_of_the_space_changes_the_score() -> None:
    first, second = _pair()
    turn = frame(WIDTH, WIDTH, torch.Generator().manual_seed(1))
    assert subspace_similarity(turn @ first, turn @ second) == pytest.approx(
        subspace_similarity(first, second), abs=1e-12
    )
    assert subspace_similarity(turn @ first, second) != pytest.approx(subspace_similarity(first, second), abs=1e-3)


def test_the_score_is_the_mean_squared_cosine_of_the_principal_angles() -> None:
    for seed in range(5):
        first, second = _pair(seed=seed)
        angles = principal_angles(first, second)
        assert angles.cos().square().mean().item() == pytest.approx(subspace_similarity(first, second), abs=1e-12)
        assert torch.equal(angles, angles.sort().values)
        # Ours in ascending, SciPy's in descending order.
        assert angles.tolist() == pytest.approx(
            subspace_angles(first.numpy(), second.numpy())[::-1].tolist(), abs=1e-12
        )


@pytest.mark.parametrize("angle", [1e-12, 1e-8, 1e-3, 0.5, math.pi / 4, 1.5, math.pi / 2])
def test_small_angles_are_as_exact_as_large_ones(angle: float) -> None:
    # The cosine of 1e-8 is 1 in float64.
    turned = torch.tensor([[math.cos(angle), 0.0], [math.sin(angle), 0.0], [0.0, 1.0]], dtype=FLOAT)
    plane = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]], dtype=FLOAT)
    for first, second in ((plane, turned), (turned, plane)):
        assert principal_angles(first, second).tolist() == pytest.approx([0.0, angle], rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("rank", "other", "width"), [(8, 8, 256), (8, 2, 64), (1, 1, 16)])
def test_unrelated_subspaces_are_at_chance(rank: int, other: int, width: int) -> None:
    # Z10: r / d within 4 standard errors of 300 draws.
    generator = torch.Generator().manual_seed(rank)
    found = torch.tensor(
        [
            subspace_similarity(gaussian(width, rank, seed=generator), gaussian(width, other, seed=generator))
            for _ in range(300)
        ],
        dtype=FLOAT,
    )
    error = found.std().item() / 300**0.5
    assert abs(found.mean().item() - chance_similarity(rank, width, other)) <= 4 * error
    assert error < 0.1 * found.mean()
    assert chance_similarity(rank, width, other) == chance_similarity(other, width, rank) == rank / width


def test_dependent_columns_count_once() -> None:
    first, second = _pair()
    for dependent in (
        torch.cat([first, first @ gaussian(5, 4, seed=1)], dim=1),
        torch.cat([first, torch.zeros_like(second)], dim=1),
    ):
        assert subspace_similarity(dependent, second) == pytest.approx(subspace_similarity(first, second), abs=1e-10)
        assert len(principal_angles(dependent, dependent)) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_to_a_short_dtype_opens_no_direction(dtype: torch.dtype) -> None:
    # Rank 2 in 8 columns: rounding fills the other six at random.
    first, second = gaussian(1024, 2, seed=0) @ gaussian(2, 8, seed=1), gaussian(1024, 8, seed=2)
    rounded = first.to(dtype)
    assert len(principal_angles(rounded, second)) == 2
    assert subspace_similarity(rounded, first) == pytest.approx(1.0, abs=1e-3)
    # A full-rank factor keeps all of its directions.
    assert len(principal_angles(second.to(dtype), second)) == 8


def test_a_given_tolerance_decides_what_counts() -> None:
    first = torch.diag(torch.tensor([1.0, 1e-3, 0.0], dtype=FLOAT))
    whole = torch.eye(3, dtype=FLOAT)
    assert [len(principal_angles(first, whole, tolerance=t)) for t in (0.0, 1e-4, 1e-2)] == [2, 2, 1]


def test_a_zero_factor_has_no_subspace_to_compare() -> None:
    first, _ = _pair()
    zero = torch.zeros(WIDTH, 3, dtype=FLOAT)
    for pair in ((zero, first), (first, zero), (zero, zero), (torch.zeros(WIDTH, 0, dtype=FLOAT), first)):
        assert math.isnan(subspace_similarity(*pair))
        assert principal_angles(*pair).shape == (0,)


def test_the_forms_for_the_factors_take_rows_of_A_and_columns_of_B() -> None:
    first, second = _pair()
    wanted = subspace_similarity(first, second)
    assert A_similarity(first.T, second.T) == pytest.approx(wanted, abs=1e-14)
    assert B_similarity(first, second) == pytest.approx(wanted, abs=1e-14)
    assert A_similarity(first.T.reshape(5, 10, 2, 2), second.T.reshape(3, 10, 2, 2)) == pytest.approx(wanted, abs=1e-14)
    assert B_similarity(first.reshape(WIDTH, 5, 1, 1), second.reshape(WIDTH, 3, 1, 1)) == pytest.approx(
        wanted, abs=1e-14
    )


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (torch.ones(3, 2), torch.ones(4, 2), r"shapes \(3, 2\) and \(4, 2\)"),
        (torch.ones(3), torch.ones(3, 2), r"shapes \(3,\) and \(3, 2\)"),
        (torch.full((3, 2), float("nan")), torch.ones(3, 2), "NaN or infinity"),
        (torch.ones(3, 2).long(), torch.ones(3, 2), "torch.int64"),
    ],
)
def test_matrices_that_cannot_be_compared_are_refused(first: Tensor, second: Tensor, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        subspace_similarity(first, second)


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(SpecError, match=r"tolerance=1\.0"):
        subspace_similarity(torch.eye(3), torch.eye(3), tolerance=1.0)
    for rank, width, other in ((0, 4, None), (5, 4, None), (2, 4, 5)):
        with pytest.raises(SpecError, match="do not fit width=4"):
            chance_similarity(rank, width, other)


def test_bases_that_are_known_give_the_angles_of_the_matrices() -> None:
    first, second = _pair()
    angles = angles_between(column_basis(first), column_basis(second))
    assert torch.equal(angles, principal_angles(first, second))
    basis = column_basis(torch.cat([first, first], dim=1))
    assert basis.shape == (WIDTH, 5)
    assert torch.allclose(basis.T @ basis, torch.eye(5, dtype=FLOAT), atol=1e-13)
    assert torch.allclose(basis @ (basis.T @ first), first, atol=1e-12)
    assert column_basis(torch.zeros(WIDTH, 3)).shape == (WIDTH, 0)


# CKA -----------------------------------------------------------------------------------------------------------------


def test_cka_is_the_cosine_of_the_two_gram_matrices() -> None:
    # <X X^T, Y Y^T> / (|X X^T| |Y Y^T|): the same number by the d x d matrices that the formula avoids.
    for seed in range(5):
        first, second = _pair(seed=seed)
        one, other = first @ first.T, second @ second.T
        cosine = ((one * other).sum() / (one.norm() * other.norm())).item()
        assert linear_cka(first, second) == pytest.approx(cosine, abs=1e-13)
        assert linear_cka(first, second) == pytest.approx(linear_cka(second, first), abs=1e-14)
        assert linear_cka(first, first) == pytest.approx(1.0, abs=1e-13)


def test_cka_of_the_columns_survives_rotation_and_scale_and_no_other_mixing() -> None:
    first, second = _pair()
    plain = linear_cka(first, second)
    turn = frame(5, 5, torch.Generator().manual_seed(3))
    assert linear_cka(-7.0 * first @ turn, 0.1 * second) == pytest.approx(plain, abs=1e-13)
    assert abs(linear_cka(first @ gaussian(5, 5, seed=4), second) - plain) > 1e-3
    # Orthonormal columns leave nothing to weigh: there it is the mean squared cosine times min over geometric mean.
    equal = linear_cka(column_basis(first), column_basis(second))
    assert equal == pytest.approx(subspace_similarity(first, second) * 3 / math.sqrt(15), abs=1e-13)


@pytest.mark.parametrize("seed", range(5))
def test_no_mixing_of_an_adapter_changes_any_similarity_of_its_factors(seed: int) -> None:
    # Z10: 1e-8, for random invertible C on either side.
    A, B, other_A, other_B = (
        gaussian(*shape, seed=10 * seed + i) for i, shape in enumerate([(4, 30), (20, 4), (3, 30), (20, 3)])
    )
    mixing, other = gaussian(4, 4, seed=seed + 100), gaussian(3, 3, seed=seed + 200)
    plain = balanced_factors(A, B), balanced_factors(other_A, other_B)
    mixed = (
        balanced_factors(torch.linalg.solve(mixing, A), B @ mixing),
        balanced_factors(torch.linalg.solve(other, other_A), other_B @ other),
    )
    for side in (0, 1):
        assert abs(linear_cka(mixed[0][side], mixed[1][side]) - linear_cka(plain[0][side], plain[1][side])) <= 1e-8
        assert abs(chance_cka(mixed[0][side], mixed[1][side]) - chance_cka(plain[0][side], plain[1][side])) <= 1e-8
    assert abs(A_similarity(torch.linalg.solve(mixing, A), other_A) - A_similarity(A, other_A)) <= 1e-8
    angles = principal_angles(B @ mixing, other_B) - principal_angles(B, other_B)
    assert angles.abs().max() <= 1e-8
    # The factors themselves, unbalanced, do change.
    assert abs(linear_cka((B @ mixing), other_B) - linear_cka(B, other_B)) > 1e-3


def test_balanced_factors_are_factors_of_the_product_with_equal_gram_matrices() -> None:
    A, B = gaussian(4, 30, seed=0), gaussian(20, 4, seed=1)
    down, up = balanced_factors(A, B)
    assert torch.allclose(up @ down.T, B @ A, atol=1e-12)
    spectrum = torch.diag(torch.linalg.svdvals(B @ A)[:4])
    assert torch.allclose(down.T @ down, spectrum, atol=1e-12)
    assert torch.allclose(up.T @ up, spectrum, atol=1e-12)


def test_cka_of_unrelated_directions_is_at_chance_whatever_the_spectra() -> None:
    # Within 4 standard errors of 400 draws: a false alarm in one of 16,000 runs.
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([5.0, 2.0, 1.0, 0.1], dtype=FLOAT), torch.tensor([3.0, 3.0], dtype=FLOAT)
    draws = [[frame(WIDTH, len(size), generator) * size for size in sizes] for _ in range(400)]
    found = torch.tensor([linear_cka(*draw) for draw in draws], dtype=FLOAT)
    participation = [(size.square().sum() ** 2 / (size**4).sum()).item() for size in sizes]
    wanted = math.sqrt(participation[0] * participation[1]) / WIDTH
    error = found.std().item() / 20
    assert abs(found.mean().item() - wanted) <= 4 * error
    assert error < 0.1 * wanted
    assert chance_cka(*draws[0]) == pytest.approx(wanted, rel=1e-12)
    # The chance level of CCA, which weighs directions alike, is another.
    assert abs(found.mean().item() - chance_similarity(4, WIDTH, 2)) > 4 * error


def test_cka_counts_dependent_columns_and_a_zero_matrix_has_none() -> None:
    first, second = _pair()
    zero = torch.zeros(WIDTH, 3, dtype=FLOAT)
    assert linear_cka(torch.cat([first, zero], dim=1), second) == pytest.approx(linear_cka(first, second), abs=1e-14)
    for pair in ((zero, first), (first, zero), (zero, zero), (torch.zeros(WIDTH, 0, dtype=FLOAT), first)):
        assert math.isnan(linear_cka(*pair))
        assert math.isnan(chance_cka(*pair))
    down, up = balanced_factors(gaussian(4, 30, seed=0), torch.zeros(20, 4))
    assert not down.any()
    assert not up.any()


@pytest.mark.parametrize("function", [linear_cka, chance_cka])
def test_cka_refuses_what_cannot_be_compared(function: object) -> None:
    assert callable(function)
    with pytest.raises(SpecError, match=r"shapes \(3, 2\) and \(4, 2\)"):
        function(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(SpecError, match="NaN or infinity"):
        function(torch.full((3, 2), math.inf), torch.ones(3, 2))
