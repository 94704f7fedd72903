from __future__ import annotations

import pytest
import torch

from asymlora.errors import SpecError
from asymlora.theory.covariance import checked_cov, eigen, participation_ratio
from frozen_draws import FLOAT, frame, gaussian, power_law


def test_participation_ratio_counts_equal_directions_and_no_rotation_changes_it() -> None:
    for dimensions in (1, 3, 8):
        variances = torch.zeros(8, dtype=FLOAT)
        variances[:dimensions] = 2.5
        turn = frame(8, 8, torch.Generator().manual_seed(dimensions))
        assert participation_ratio(torch.diag(variances)) == pytest.approx(dimensions, rel=1e-14)
        assert participation_ratio((turn * variances) @ turn.T) == pytest.approx(dimensions, rel=1e-12)


def test_participation_ratio_is_between_one_and_the_rank_and_does_not_see_scale() -> None:
    x = gaussian(20, 6, seed=0) * power_law(6, 1.0).sqrt()
    cov = x.T @ x / 20
    variances = torch.linalg.eigvalsh(cov)
    found = participation_ratio(cov)
    assert found == pytest.approx((variances.sum() ** 2 / variances.square().sum()).item(), rel=1e-12)
    assert 1.0 < found < 6.0
    # Squares of such variances are not representable in float64.
    assert participation_ratio(cov * 1e-200) == pytest.approx(found, rel=1e-12)


def test_eigen_leaves_rounding_out_in_the_precision_of_the_input() -> None:
    x = gaussian(50, 3, seed=1) @ gaussian(3, 40, seed=2)
    for dtype in (torch.float64, torch.float32):
        cov = (x.to(dtype).T @ x.to(dtype)) / 50
        variances, directions = eigen(cov)
        assert variances.shape == (3,)
        assert torch.allclose((directions * variances) @ directions.T, cov.double(), atol=1e-4)
        assert (variances[:-1] >= variances[1:]).all()


@pytest.mark.parametrize(
    ("cov", "words"),
    [
        (torch.ones(2, 3), r"shape \(2, 3\)\. A covariance is square"),
        (torch.ones(4), r"shape \(4,\)\. Give a floating matrix"),
        (torch.tensor([[1.0, 0.2], [0.1, 1.0]]), "not symmetric: entries differ by up to 0.1"),
        (torch.zeros(2, 2), "all zero"),
        (torch.diag(torch.tensor([1.0, -0.5])), "negative variance -0.5"),
        (torch.full((2, 2), float("inf")), "holds NaN or infinity"),
        (torch.eye(2).long(), "torch.int64"),
    ],
)
def test_what_is_no_covariance_is_refused(cov: torch.Tensor, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        participation_ratio(cov)


def test_a_negative_eigenvalue_is_refused_and_rounding_is_not() -> None:
    with pytest.raises(SpecError, match="negative eigenvalue -1"):
        eigen(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    cov = torch.tensor([[1.0, 0.1], [0.1 + 1e-6, 1.0]])
    assert torch.equal(checked_cov(cov), checked_cov(cov).T)
