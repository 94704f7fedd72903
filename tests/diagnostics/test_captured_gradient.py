"""Shares of the first update, against the formulas of theory.least_squares and against draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asymlora.diagnostics.captured_gradient import SiteMeasures, measure_site, measure_sites
from asymlora.diagnostics.covariance import gather_moments
from asymlora.diagnostics.site_moments import SiteMoments
from asymlora.errors import SpecError
from asymlora.theory.factor_advantage import factor_advantage
from asymlora.theory.least_squares import best_low_rank, explained_given_A, explained_given_B, total_variance
from frozen_draws import frame, gaussian

IN, OUT = 16, 12
NAMES = ("random", "activation", "singular", "gradient")


def _moments(fan_in: int = IN, outputs: int = OUT, *, power: float = 1.0, seed: int = 0, rows: int = 60) -> SiteMoments:
    """A linear layer whose inputs have variances of a power law in a random basis."""
    torch.manual_seed(seed)
    layer = nn.Linear(fan_in, outputs).double()
    basis = frame(fan_in, fan_in, torch.Generator().manual_seed(seed))
    scales = torch.arange(1.0, fan_in + 1, dtype=torch.float64) ** (-power / 2)
    x = gaussian(rows, fan_in, seed=seed + 1) * scales @ basis.mT
    wanted = gaussian(rows, outputs, seed=seed + 2)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) - wanted).square().mean()

    return gather_moments(nn.Sequential(layer), [x], loss=loss, targets=["0"])["0"]


def _dense(moments: SiteMoments) -> dict[str, Any]:
    assert moments.gradient is not None
    return {"cov": moments.inputs.matrix(), "delta": moments.gradient.double()}  # pyright: ignore[reportAttributeAccessIssue]


def _top(matrix: Tensor, rank: int) -> Tensor:
    return torch.linalg.eigh(matrix).eigenvectors[:, -rank:]


@pytest.mark.parametrize("seed", range(3))
def test_held_factors_reach_what_least_squares_says(seed: int) -> None:
    moments = _moments(seed=seed)
    known = _dense(moments)
    total = total_variance(**known)
    left, _, right = torch.linalg.svd(moments.weight, full_matrices=False)  # pyright: ignore[reportArgumentType]
    for shares in measure_site(moments).shares:
        r = shares.rank
        expected = {
            "activation_A": explained_given_A(_top(known["cov"], r).mT, **known),
            "singular_A": explained_given_A(right[:r], **known),
            "gradient_B": explained_given_B(_top(moments.output_gradients.matrix(), r), **known),
            "singular_B": explained_given_B(left[:, :r], **known),
            "best": best_low_rank(r, **known).explained,
            "random_A": factor_advantage(known["cov"], known["delta"], rank=r).explained_A,
        }
        for name, value in expected.items():
            assert getattr(shares, name) == pytest.approx(value / total, rel=1e-9), name
        assert shares.random_B == r / OUT


def test_shares_of_the_weight_are_those_of_inputs_of_variance_one() -> None:
    moments = _moments()
    known = {"cov": torch.eye(IN, dtype=torch.float64), "delta": _dense(moments)["delta"]}
    total = total_variance(**known)
    left, _, right = torch.linalg.svd(moments.weight, full_matrices=False)  # pyright: ignore[reportArgumentType]
    for shares in measure_site(moments).shares:
        r = shares.rank
        expected = {
            "weight_activation_A": explained_given_A(_top(_dense(moments)["cov"], r).mT, **known),
            "weight_singular_A": explained_given_A(right[:r], **known),
            "weight_gradient_B": explained_given_B(_top(moments.output_gradients.matrix(), r), **known),
            "weight_singular_B": explained_given_B(left[:, :r], **known),
            "weight_best": best_low_rank(r, **known).explained,
        }
        for name, value in expected.items():
            assert getattr(shares, name) == pytest.approx(value / total, rel=1e-9), name
        assert (shares.weight_random_A, shares.weight_random_B) == (r / IN, r / OUT)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_share_of_a_random_factor_is_the_mean_over_draws(power: float) -> None:
    moments = _moments(power=power)
    known, draws = _dense(moments), 150
    total = total_variance(**known)
    for shares in measure_site(moments, ranks=(1, 4)).shares:
        r = shares.rank
        down = torch.tensor([explained_given_A(gaussian(r, IN, seed=s), **known) / total for s in range(draws)])
        up = torch.tensor([explained_given_B(gaussian(OUT, r, seed=s), **known) / total for s in range(draws)])
        for found, drawn, bias in ((shares.random_A, down, 0.0 if r == 1 else 0.07), (shares.random_B, up, 0.0)):
            # Four standard errors; above rank 1 the deterministic equivalent is high by up to 7 % at rank 4.
            error = 4 * drawn.std() / draws**0.5
            assert drawn.mean() - error <= found <= drawn.mean() * (1 + bias) + error


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_shares_are_fractions_that_grow_with_the_rank_and_none_is_above_the_best(power: float) -> None:
    shares = measure_site(_moments(power=power)).shares
    assert [s.rank for s in shares] == [1, 2, 4, 8, 12]
    for name in NAMES:
        for side in ("A", "B"):
            for space, best in (("", "best"), ("weight_", "weight_best")):
                if not hasattr(shares[0], f"{space}{name}_{side}"):
                    continue
                curve = [getattr(s, f"{space}{name}_{side}") for s in shares]
                assert all(0 <= value <= getattr(s, best) + 1e-12 for s, value in zip(shares, curve, strict=True))
                assert curve == sorted(curve)
    last = shares[-1]
    assert last.best == pytest.approx(1.0)
    # A B of full rank holds nothing back; an A of rank 12 of 16 does.
    assert last.random_B == 1.0
    assert last.gradient_B == pytest.approx(1.0)
    assert last.activation_A < 1.0


def test_a_change_of_basis_of_inputs_and_outputs_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    x, wanted = gaussian(50, IN, seed=generator) * torch.linspace(0.1, 2, IN), gaussian(50, OUT, seed=generator)
    weight = gaussian(OUT, IN, seed=generator)
    turn_in, turn_out = frame(IN, IN, generator), frame(OUT, OUT, generator)

    def measured(x: Tensor, wanted: Tensor, weight: Tensor) -> SiteMeasures:
        model = nn.Sequential(nn.Linear(IN, OUT, bias=False)).double()
        model[0].weight.data = weight

        def loss(model: nn.Module, batch: Tensor) -> Tensor:
            return (model(batch) - wanted).square().mean()

        return measure_site(gather_moments(model, [x], loss=loss, targets=["0"])["0"])

    plain = measured(x, wanted, weight)
    turned = measured(x @ turn_in.mT, wanted @ turn_out.mT, turn_out @ weight @ turn_in.mT)
    assert turned.input_ratio == pytest.approx(plain.input_ratio, rel=1e-9)
    assert turned.output_ratio == pytest.approx(plain.output_ratio, rel=1e-9)
    for before, after in zip(plain.shares, turned.shares, strict=True):
        assert vars(after) == pytest.approx(vars(before), rel=1e-7)


@pytest.mark.parametrize("factor", [1e-30, 1e20])
def test_the_size_of_the_loss_changes_nothing(factor: float) -> None:
    moments = _moments()
    before = measure_site(moments).shares
    moments.gradient *= factor  # pyright: ignore[reportOperatorIssue]
    for first, second in zip(before, measure_site(moments).shares, strict=True):
        assert vars(second) == pytest.approx(vars(first), rel=1e-9)


def test_an_embeddings_shares_are_those_of_its_one_hot_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, OUT), nn.Tanh()).double()
    ids = torch.randint(0, 15, (60,)) ** 2 // 14

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) * gaussian(60, OUT, seed=1)).mean()

    moments = gather_moments(model, [ids], loss=loss, targets=["0"])["0"]
    onehot = nn.functional.one_hot(ids, 20).double()
    cov, delta = onehot.mT @ onehot / 60, moments.gradient
    assert delta is not None
    total = total_variance(cov=cov, delta=delta)
    right = torch.linalg.svd(moments.weight, full_matrices=False).Vh  # pyright: ignore[reportArgumentType]
    measures = measure_site(moments)
    assert (measures.fan_in, measures.outputs, measures.rows, measures.kind) == (20, OUT, 60, "embedding")
    for shares in measures.shares:
        r = shares.rank
        expected = {
            "random_A": factor_advantage(cov, delta, rank=r).explained_A,
            "singular_A": explained_given_A(right[:r], cov=cov, delta=delta),
            "best": best_low_rank(r, cov=cov, delta=delta).explained,
        }
        for name, value in expected.items():
            assert getattr(shares, name) == pytest.approx(value / total, rel=1e-9), name


def test_a_sketch_gives_the_shares_of_what_it_keeps_and_says_what_it_leaves_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 10)).double()
    x = gaussian(400, 200, seed=0) * torch.arange(1.0, 201) ** -1.0

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) - 1).square().mean()

    (whole,) = measure_sites(gather_moments(model, [x], loss=loss, targets=["0"]))
    (sketched,) = measure_sites(gather_moments(model, [x], loss=loss, targets=["0"], sketch_above=64))
    assert whole.missed == 0
    assert 0 < sketched.missed < 0.01
    for first, second in zip(whole.shares, sketched.shares, strict=True):
        # What is left out is below 1 % of the trace.
        assert second.random_A == pytest.approx(first.random_A, abs=0.02)
        assert second.activation_A == pytest.approx(first.activation_A, abs=0.02)


def test_isotropic_inputs_with_few_outputs_reverse_the_order() -> None:
    few, many = measure_site(_moments(32, 4, power=0.0, rows=2000)), measure_site(_moments(32, 64, power=2.0))
    assert few.generic_ratio < 1 < many.generic_ratio
    assert few.shares[1].random_A < few.shares[1].random_B
    assert many.shares[1].random_A > many.shares[1].random_B


def test_a_large_mean_fills_one_dimension_and_the_rest_is_told() -> None:
    def measured(x: Tensor) -> SiteMeasures:
        model = nn.Sequential(nn.Linear(IN, OUT)).double()
        return measure_site(gather_moments(model, [x], loss=lambda m, x: m(x).square().mean(), targets=["0"])["0"])

    x = gaussian(400, IN, seed=0)
    plain, shifted = measured(x), measured(x + 30)
    assert shifted.input_ratio < 1.1 < 10 < plain.input_ratio
    assert shifted.centred_ratio == pytest.approx(plain.centred_ratio, rel=1e-9)
    assert measured(torch.ones(5, IN).double()).centred_ratio is None


def test_without_a_gradient_the_ratios_are_there_and_the_reason() -> None:
    moments = _moments()
    expected = measure_site(moments)
    moments.gradient, moments.why_no_gradient = None, "too large"
    measures = measure_site(moments)
    assert measures.shares == ()
    assert measures.why_no_shares == "too large"
    assert (measures.input_ratio, measures.output_ratio) == (expected.input_ratio, expected.output_ratio)
    (record,) = measures.to_records()
    assert record["site"] == "0"
    assert "random_A" not in record


def test_a_gradient_of_zeros_has_no_shares() -> None:
    model = nn.Sequential(nn.Linear(4, 3))

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) * 0).sum()

    (measures,) = measure_sites(gather_moments(model, [torch.ones(2, 4)], loss=loss, targets=["0"]))
    assert measures.shares == ()
    assert measures.why_no_shares == "its gradient is zero"


def test_a_weight_that_is_no_plain_one_has_no_singular_start() -> None:
    moments = _moments()
    moments.base.weight = nn.Parameter(torch.zeros(OUT, IN, dtype=torch.int8), requires_grad=False)
    shares = measure_site(moments).shares[0]
    assert shares.singular_A is shares.singular_B is shares.weight_singular_A is None
    assert shares.random_A > 0


def test_records_are_flat_rows_by_rank() -> None:
    records = measure_site(_moments()).to_records()
    assert [record["rank"] for record in records] == [1, 2, 4, 8, 12]
    assert {"site", "kind", "input_ratio", "output_ratio", "generic_ratio", "random_A", "best"} <= records[0].keys()
    assert all(isinstance(v, str | int | float) or v is None for record in records for v in record.values())


def test_ranks_are_cut_at_the_limit_and_checked() -> None:
    moments = _moments()
    assert [s.rank for s in measure_site(moments, ranks=(2, 50)).shares] == [2, OUT]
    with pytest.raises(SpecError, match="1 or more"):
        measure_site(moments, ranks=(0, 2))
    with pytest.raises(SpecError, match="seen no input"):
        measure_site(SiteMoments.of("idle", nn.Linear(3, 2)))
