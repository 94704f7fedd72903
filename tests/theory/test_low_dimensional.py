from __future__ import annotations

import pytest
import torch
from torch import Tensor

from asymlora.errors import SpecError
from asymlora.theory.least_squares import best_B_given_A, explained_given_A, explained_given_B, total_variance
from asymlora.theory.low_dimensional import expected_gap, reparameterised_B
from frozen_draws import FLOAT, explained, frame, gaussian

IN, OUT, RANK = 24, 20, 4


def _inputs(dimensions: int, seed: int = 0) -> Tensor:
    return gaussian(200, dimensions, seed=seed) @ gaussian(dimensions, IN, seed=seed + 1)


def _factors(rank: int = RANK, seed: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return gaussian(rank, IN, seed=generator), gaussian(OUT, rank, seed=generator)


@pytest.mark.parametrize("rank", [4, 16, 64])
def test_the_gap_is_the_mean_over_frozen_factors(rank: int) -> None:
    # Z5: rank-r isotropic inputs, d = 128, 400 draws of U; 0.5 % or 4 standard errors.
    d, variance = 128, 2.0
    generator = torch.Generator().manual_seed(rank)
    basis = frame(d, rank, generator)
    cov, delta = variance * basis @ basis.T, gaussian(d, d, seed=generator)
    total = variance * torch.trace(basis.T @ delta.T @ delta @ basis).item()
    by_A = torch.tensor(
        [explained_given_B(frame(d, rank, generator), cov=cov, delta=delta) for _ in range(400)], dtype=FLOAT
    )
    predicted = expected_gap(rank, cov=cov, delta=delta)
    assert abs(predicted / ((1 - rank / d) * total) - 1) <= 1e-10
    error = by_A.std() / 400**0.5
    assert abs((total - by_A.mean()) - predicted) <= max(0.005 * predicted, 4 * error)
    # III_A is the same for every Q, with orthonormal rows or not.
    for seed in range(20):
        for A in (frame(d, rank, torch.Generator().manual_seed(seed)).T, gaussian(rank, d, seed=seed)):
            assert abs(explained_given_A(A, cov=cov, delta=delta) / total - 1) <= 1e-8


def test_the_gap_holds_for_unequal_variances_and_few_outputs() -> None:
    x = _inputs(3)
    cov, delta = x.T @ x / len(x), gaussian(OUT, IN, seed=5)
    by_B, by_A = explained(cov, delta, RANK, draws=400, seed=6)
    gaps = by_B - by_A
    assert abs(gaps.mean() - expected_gap(RANK, cov=cov, delta=delta)) <= 4 * gaps.std() / 400**0.5
    assert gaps.std() > 0


def test_the_gap_is_refused_where_a_frozen_A_loses_something() -> None:
    x = _inputs(RANK + 1)
    cov, delta = x.T @ x / len(x), gaussian(OUT, IN, seed=5)
    with pytest.raises(SpecError, match="5 dimensions, more than rank=4"):
        expected_gap(RANK, cov=cov, delta=delta)
    by_B = explained_given_A(gaussian(RANK, IN, seed=1), cov=cov, delta=delta)
    assert by_B < 0.999 * total_variance(cov=cov, delta=delta)


@pytest.mark.parametrize("dimensions", [1, RANK - 1, RANK])
@pytest.mark.parametrize("seed", range(4))
def test_any_update_moves_onto_any_Q_if_the_inputs_are_few_dimensional(dimensions: int, seed: int) -> None:
    # Z6: 1e-8 on the support, relative to the outputs.
    x, (A, B) = _inputs(dimensions, seed), _factors()
    onto = gaussian(RANK, IN, seed=40 + seed)
    moved = reparameterised_B(A, B, onto=onto, cov=x.T @ x / len(x))
    wanted = x @ A.T @ B.T
    assert (x @ onto.T @ moved.T - wanted).abs().max() <= 1e-8 * wanted.abs().max()


def test_off_the_support_the_moved_update_is_another() -> None:
    x, (A, B) = _inputs(RANK), _factors()
    onto = gaussian(RANK, IN, seed=40)
    moved = reparameterised_B(A, B, onto=onto, cov=x.T @ x / len(x))
    assert (moved @ onto - B @ A).norm() > 0.1 * (B @ A).norm()


def test_inputs_of_twice_the_rank_cannot_be_moved() -> None:
    # Z6: the best that Q can do is off by more than 1e-3.
    x, (A, B) = _inputs(2 * RANK), _factors()
    cov, onto = x.T @ x / len(x), gaussian(RANK, IN, seed=40)
    with pytest.raises(SpecError, match=r"8 dimensions and Q .* tells 4 of them apart"):
        reparameterised_B(A, B, onto=onto, cov=cov)
    closest = best_B_given_A(onto, cov=cov, delta=B @ A)
    wanted = x @ A.T @ B.T
    assert (x @ onto.T @ closest.T - wanted).abs().max() > 1e-3 * wanted.abs().max()


def test_a_Q_that_is_blind_to_an_input_is_refused() -> None:
    cov = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=FLOAT))
    blind = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=FLOAT)
    with pytest.raises(SpecError, match=r"2 dimensions and Q .* tells 1 of them apart"):
        reparameterised_B(torch.ones(1, 3, dtype=FLOAT), torch.ones(2, 1, dtype=FLOAT), onto=blind, cov=cov)


def test_a_rank_of_single_precision_inputs_is_recognised() -> None:
    x, (A, B) = _inputs(RANK).float(), _factors()
    onto = gaussian(RANK, IN, seed=40).float()
    moved = reparameterised_B(A.float(), B.float(), onto=onto, cov=x.T @ x / len(x))
    wanted = x @ A.float().T @ B.float().T
    assert (x @ onto.T @ moved.T - wanted).abs().max() <= 1e-3 * wanted.abs().max()


def test_shapes_that_do_not_fit_are_refused() -> None:
    A, B = _factors()
    with pytest.raises(SpecError, match="A of shape"):
        reparameterised_B(A, B[:, :3], onto=A, cov=torch.eye(IN, dtype=FLOAT))
    with pytest.raises(SpecError, match="rank=21 does not fit"):
        expected_gap(21, cov=torch.eye(IN, dtype=FLOAT), delta=torch.ones(OUT, IN, dtype=FLOAT))
