from __future__ import annotations

from dataclasses import asdict, dataclass

import pytest
import torch
from torch import Tensor

from asymlora.errors import SpecError
from asymlora.theory.covariance import participation_ratio
from asymlora.theory.factor_advantage import FactorAdvantage, explained_shares, factor_advantage, shares_of_one_row
from asymlora.theory.least_squares import explained_given_A
from frozen_draws import FLOAT, explained, frame, gaussian, mean_explained_given_A, power_law


def _low_variance_half(outputs: int, inputs: int) -> Tensor:
    delta = gaussian(outputs, inputs, seed=3)
    delta[:, : inputs // 2] = 0.0
    return delta


# Section 7.1 of papers/asymmetry.md: exponent of the inputs' power law, (out, in), whether Delta is on the low-variance
# half, rank, III_A / total, III_B / total, winner. Reported for 40-60 draws.
TABLE = [
    (0.0, (256, 256), False, 4, 0.0157, 0.0155, "tie"),
    (0.0, (256, 256), False, 16, 0.0624, 0.0625, "tie"),
    (0.0, (256, 256), False, 64, 0.2498, 0.2503, "tie"),
    (1.0, (256, 256), False, 4, 0.130, 0.016, "B-only"),
    (1.0, (256, 256), False, 16, 0.327, 0.063, "B-only"),
    (1.0, (256, 256), False, 64, 0.610, 0.251, "B-only"),
    (1.0, (256, 256), True, 4, 0.0044, 0.016, "A-only"),
    (1.0, (256, 256), True, 16, 0.022, 0.063, "A-only"),
    (1.0, (256, 256), True, 64, 0.134, 0.250, "A-only"),
    (0.0, (64, 256), False, 8, 0.031, 0.125, "A-only"),
    (0.0, (256, 64), False, 8, 0.125, 0.032, "B-only"),
    (1.0, (64, 256), False, 8, 0.232, 0.125, "B-only"),
]


@pytest.mark.parametrize(("exponent", "shape", "low", "rank", "by_B", "by_A", "winner"), TABLE)
def test_the_table_of_what_each_factor_explains(
    exponent: float, shape: tuple[int, int], low: bool, rank: int, by_B: float, by_A: float, winner: str
) -> None:
    cov = torch.diag(power_law(shape[1], exponent))
    delta = _low_variance_half(*shape) if low else gaussian(*shape, seed=3)
    found = factor_advantage(cov, delta, rank=rank)
    assert found.winner == winner
    measured_B, measured_A = explained(cov, delta, rank, draws=40, seed=rank)
    # A draw of III_A at rank 4 of a power law scatters by 20 %, so the mean of 40 by 3 %.
    assert measured_B.mean().item() == pytest.approx(found.explained_A, rel=0.06)
    assert measured_A.mean().item() == pytest.approx(found.explained_B, rel=0.06)
    # The paper file's figures are for another Delta, whose energy on the few strongest of 256 inputs is a matter of
    # luck with 64 outputs; they are held against the generic prediction where there is one.
    printed = found if low else factor_advantage(cov, outputs=shape[0], rank=rank)
    assert printed.explained_A / printed.total == pytest.approx(by_B, rel=0.06)
    assert printed.explained_B / printed.total == pytest.approx(by_A, rel=0.06)
    wins = (measured_B >= measured_A).double().mean().item()
    assert {"B-only": wins == 1.0, "A-only": wins == 0.0, "tie": 0.1 < wins < 0.9}[winner]


@pytest.mark.parametrize("exponent", [0.0, 0.1, 0.25, 0.5])
def test_the_generic_ratio_holds_for_light_tails(exponent: float) -> None:
    # Z4: within 10 % of d_out / PR up to exponent 0.5, at r = 8, d = 256.
    cov, delta = torch.diag(power_law(256, exponent)), gaussian(256, 256, seed=4)
    by_B, by_A = explained(cov, delta, 8, draws=60, seed=4)
    found = factor_advantage(cov, outputs=256, rank=8)
    assert found.generic_ratio == pytest.approx(256 / participation_ratio(cov), rel=1e-12)
    assert found.generic_ratio == pytest.approx((by_B.mean() / by_A.mean()).item(), rel=0.10)


@pytest.mark.parametrize("exponent", [0.25, 1.0, 2.0])
def test_the_generic_ratio_has_the_right_sign(exponent: float) -> None:
    # Z4.
    cov, delta = torch.diag(power_law(256, exponent)), gaussian(256, 256, seed=4)
    by_B, by_A = explained(cov, delta, 8, draws=20, seed=5)
    assert factor_advantage(cov, outputs=256, rank=8).generic_ratio > 1.0
    assert by_B.mean() > by_A.mean()


def test_the_generic_ratio_overstates_heavy_tails_and_the_ratio_at_the_rank_does_not() -> None:
    # Exponent 1, r = 8, d = 256: 11.2 predicted by d_out / PR, 7.1 measured (section 7.1).
    cov, delta = torch.diag(power_law(256, 1.0)), gaussian(256, 256, seed=6)
    generic = factor_advantage(cov, outputs=256, rank=8)
    generator = torch.Generator().manual_seed(0)
    mean, error = mean_explained_given_A(power_law(256, 1.0), delta, 8, draws=600, generator=generator)
    found = factor_advantage(cov, delta, rank=8)
    measured = mean / found.explained_B
    assert error / mean < 0.01
    assert found.ratio == pytest.approx(measured, rel=0.04)
    assert found.small_rank_ratio > 1.4 * measured
    assert generic.generic_ratio == pytest.approx(11.2, abs=0.05)
    assert generic.ratio == pytest.approx(7.1, rel=0.05)


@pytest.mark.parametrize(("rank", "tolerance"), [(2, 0.12), (4, 0.07), (8, 0.04), (32, 0.015)])
@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5, 2.0])
def test_the_ratio_at_the_rank_tightens_with_the_rank(exponent: float, rank: int, tolerance: float) -> None:
    variances, delta = power_law(128, exponent), gaussian(128, 128, seed=7)
    generator = torch.Generator().manual_seed(rank)
    mean, error = mean_explained_given_A(variances, delta, rank, draws=600, generator=generator)
    found = factor_advantage(torch.diag(variances), delta, rank=rank)
    assert found.explained_A == pytest.approx(mean, abs=tolerance * mean + 3 * error)
    # The criterion's own form is off by more, and from some rank on by any factor.
    assert found.small_rank_explained_A > found.explained_A


def test_one_row_of_two_directions_has_a_closed_form() -> None:
    for first, second in ((1.0, 1.0), (9.0, 1.0), (1e6, 1.0), (1.0, 1e-6)):
        shares = shares_of_one_row(torch.tensor([first, second], dtype=FLOAT))
        wanted = first**0.5 / (first**0.5 + second**0.5)
        assert shares.tolist() == pytest.approx([wanted, 1 - wanted], rel=1e-10)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 3.0])
def test_the_shares_of_one_row_are_its_mean(exponent: float) -> None:
    variances = power_law(40, exponent)
    shares = shares_of_one_row(variances)
    assert shares.sum().item() == pytest.approx(1.0, abs=1e-12)
    squares = gaussian(100_000, 40, seed=1).square() * variances
    each = squares / squares.sum(dim=1, keepdim=True)
    assert ((each.mean(dim=0) - shares).abs() <= 4.5 * each.std(dim=0) / 100_000**0.5).all()


def test_at_rank_one_the_prediction_is_exact_and_the_small_rank_form_is_not() -> None:
    variances, delta = power_law(32, 1.5), gaussian(20, 32, seed=8)
    found = factor_advantage(torch.diag(variances), delta, rank=1)
    generator = torch.Generator().manual_seed(1)
    mean, error = mean_explained_given_A(variances, delta, 1, draws=20_000, generator=generator)
    assert found.explained_A == found.rank_one_explained_A
    assert abs(found.explained_A - mean) <= 4 * error
    assert found.small_rank_explained_A - mean > 20 * error


def test_the_small_rank_form_is_the_limit_of_many_equal_directions() -> None:
    # Relative to the exact mean of one row the error falls as the inputs become more.
    errors: list[float] = []
    for width in (8, 64, 512):
        variances = torch.linspace(0.5, 1.5, width, dtype=FLOAT)
        found = factor_advantage(torch.diag(variances), outputs=width, rank=1)
        errors.append(abs(found.small_rank_explained_A / found.rank_one_explained_A - 1))
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-3


def test_shares_solve_their_equation_and_a_full_rank_explains_all() -> None:
    for variances in (power_law(50, 2.0), torch.tensor([1e12, 1.0, 1e-12], dtype=FLOAT)):
        for rank in range(1, len(variances)):
            shares = explained_shares(variances, rank)
            assert shares.sum().item() == pytest.approx(rank, rel=1e-12)
            # Every share gives the same lambda.
            strengths = (variances * (1 / shares - 1))[shares < 0.999]
            assert strengths.numel() == 0 or strengths.max() / strengths.min() <= 1 + 1e-6
        assert explained_shares(variances, len(variances)).tolist() == [1.0] * len(variances)


@pytest.mark.parametrize("rank", [3, 5])
def test_inputs_of_no_more_dimensions_than_the_rank_are_explained_whole(rank: int) -> None:
    x = gaussian(100, 3, seed=1) @ gaussian(3, 16, seed=2)
    cov, delta = x.T @ x / 100, gaussian(10, 16, seed=3)
    found = factor_advantage(cov, delta, rank=rank)
    assert found.explained_A == pytest.approx(found.total, rel=1e-10)
    assert found.explained_A == pytest.approx(explained_given_A(gaussian(rank, 16, seed=4), cov=cov, delta=delta))


def test_no_change_of_basis_changes_anything_and_scale_changes_no_ratio() -> None:
    x, delta = gaussian(100, 16, seed=1) * power_law(16, 0.5), gaussian(10, 16, seed=3)
    cov = x.T @ x / 100
    generator = torch.Generator().manual_seed(0)
    turn_in, turn_out = frame(16, 16, generator), frame(10, 10, generator)
    found = factor_advantage(cov, delta, rank=2)
    turned = factor_advantage(turn_in @ cov @ turn_in.T, turn_out @ delta @ turn_in.T, rank=2)
    assert asdict(turned) == pytest.approx(asdict(found), rel=1e-9)
    scaled = factor_advantage(4.0 * cov, 3.0 * delta, rank=2)
    for name in ("ratio", "small_rank_ratio", "generic_ratio", "effective_inputs"):
        assert getattr(scaled, name) == pytest.approx(getattr(found, name), rel=1e-10)
    assert scaled.alignment == pytest.approx(4.0 * found.alignment, rel=1e-10)
    # Turning the inputs alone is another problem.
    assert factor_advantage(turn_in @ cov @ turn_in.T, delta, rank=2).ratio != pytest.approx(found.ratio, rel=1e-3)


def test_a_generic_update_is_the_mean_of_random_ones() -> None:
    cov = torch.diag(power_law(24, 1.0))
    generic = factor_advantage(cov, outputs=400, rank=3)
    drawn = factor_advantage(cov, gaussian(400, 24, seed=9), rank=3)
    for name in ("total", "explained_A", "explained_B", "alignment"):
        assert getattr(drawn, name) == pytest.approx(getattr(generic, name), rel=0.1)
    assert generic.small_rank_ratio == pytest.approx(generic.generic_ratio, rel=1e-12)


@dataclass(frozen=True)
class _Draw:
    """A random problem: what was predicted, and III_A / III_B as measured over uniform frozen factors."""

    predicted: FactorAdvantage
    measured: float


def _variances(width: int, generator: torch.Generator) -> Tensor:
    kind, strength = torch.rand(2, generator=generator, dtype=FLOAT).tolist()
    position = torch.arange(width, dtype=FLOAT)
    if kind < 0.25:
        return power_law(width, 1.5 * strength)
    if kind < 0.5:
        return torch.exp(-8.0 * strength * position / width)
    if kind < 0.75:
        return torch.where(position < width // 8, 1.0 + 9.0 * strength, 1.0).double()
    return 0.5 + torch.rand(width, generator=generator, dtype=FLOAT)


def _draw(generator: torch.Generator) -> _Draw:
    """Draw a spectrum, a shape, a rank of 1 to 4 and an update: generic, aligned or anti-aligned; full or rank 2."""
    sides = torch.tensor((16, 32, 64, 96))[torch.randint(4, (2,), generator=generator)].tolist()
    inputs, outputs = sides
    rank = (1, 2, 4)[int(torch.randint(3, (), generator=generator))]
    alignment, kind = torch.rand(2, generator=generator, dtype=FLOAT).tolist()
    variances = _variances(inputs, generator)
    # A third each: exponent 0, (0, 1), (-1, 0) of the variance.
    exponent = (0.0, alignment, -alignment)[int(torch.randint(3, (), generator=generator))]
    delta = gaussian(outputs, inputs, seed=generator)
    if kind < 0.3:
        delta = gaussian(outputs, 2, seed=generator) @ gaussian(2, inputs, seed=generator)
    delta = delta * variances**exponent
    predicted = factor_advantage(torch.diag(variances), delta, rank=rank)
    mean, error = 0.0, 0.0
    for draws in (200, 800, 3200):
        mean, error = mean_explained_given_A(variances, delta, rank, draws=draws, generator=generator)
        if abs(mean - predicted.explained_B) > 4 * error:
            break
    return _Draw(predicted, mean / predicted.explained_B)


MARGIN = 1.1
"""The stated margin: a predicted ratio between 1 / 1.1 and 1.1 is not counted."""


def _hits(draws: list[_Draw], name: str) -> tuple[float, float]:
    """Fraction of right signs outside the margin, and fraction of draws inside it."""
    ratios = [(getattr(draw.predicted, name), draw.measured) for draw in draws]
    outside = [pair for pair in ratios if not 1 / MARGIN <= pair[0] <= MARGIN]
    right = sum((predicted > 1) == (measured > 1) for predicted, measured in outside)
    return right / len(outside), 1 - len(outside) / len(ratios)


def _check_signs(draws: list[_Draw]) -> None:
    for name in ("small_rank_ratio", "ratio"):
        right, inside = _hits(draws, name)
        assert right >= 0.99
        assert inside <= 0.2
    # Both answers occur often, so neither "always B" nor "always A" would pass.
    assert 0.3 <= sum(draw.measured > 1 for draw in draws) / len(draws) <= 0.7
    # d_out / PR alone, which knows nothing of Delta, would not pass.
    assert _hits(draws, "generic_ratio")[0] < 0.95


def test_the_criterion_has_the_right_sign_outside_a_margin_of_ten_per_cent() -> None:
    generator = torch.Generator().manual_seed(0)
    _check_signs([_draw(generator) for _ in range(250)])


@pytest.mark.optional  # 15 seconds
def test_the_criterion_has_the_right_sign_in_many_draws() -> None:
    generator = torch.Generator().manual_seed(1)
    _check_signs([_draw(generator) for _ in range(1500)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"outputs": None}, "outputs=None without a delta"),
        ({"outputs": 0}, "outputs=0 without a delta"),
        ({"delta": torch.ones(3, 4)}, "outputs=8 beside a delta"),
        ({"delta": torch.ones(3, 5), "outputs": None}, r"delta of shape \(3, 5\) does not fit"),
        ({"delta": torch.zeros(3, 4), "outputs": None}, "nothing to explain"),
        ({"rank": 5}, "rank=5 does not fit"),
        ({"rank": 0}, "rank=0 does not fit"),
        ({"cov": torch.ones(4, 4).triu()}, "not symmetric"),
        ({"cov": torch.ones(4, 4) - 2 * torch.eye(4)}, "negative variance|negative eigenvalue"),
        ({"cov": torch.zeros(4, 4)}, "all zero"),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], words: str) -> None:
    arguments: dict[str, object] = {"cov": torch.eye(4), "outputs": 8, "rank": 2} | change
    with pytest.raises(SpecError, match=words):
        factor_advantage(**arguments)  # pyright: ignore[reportArgumentType]
