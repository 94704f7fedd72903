from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import asymlora as al
from asymlora.diagnostics import adapter_records as module
from asymlora.diagnostics.adapter_records import adapter_records, merge_loss, moved
from asymlora.diagnostics.site_factors import SiteFactors, site_factors
from asymlora.errors import AttachError
from asymlora.site_view import sites as own_sites
from cases import KIND_MODELS, fill_factors, small_net
from frozen_draws import FLOAT, gaussian


def site(A: Tensor, B: Tensor, *, name: str = "h.0.q", scaling: float = 1.0, **more: Any) -> SiteFactors:
    """One linear site."""
    return SiteFactors(name=name, kind="linear", A=A, B=B, scaling=scaling, **more)


def _random(rank: int = 6, *, seed: int = 0, **more: Any) -> SiteFactors:
    return site(gaussian(rank, 30, seed=seed), gaussian(20, rank, seed=seed + 1), **more)


def test_every_number_is_that_of_the_dense_product() -> None:
    one = _random(scaling=0.7)
    dense = 0.7 * one.B @ one.A
    values = torch.linalg.svdvals(dense)[:6]
    (row,) = adapter_records([one])
    assert (row["site"], row["group"], row["layer"]) == ("h.0.q", "h.*.q", 0)
    assert (row["rank"], row["fan_in"], row["outputs"], row["scaling"]) == (6, 30, 20, 0.7)
    assert row["norm_update"] == pytest.approx(dense.norm().item(), rel=1e-12)
    assert row["spectral_norm"] == pytest.approx(torch.linalg.matrix_norm(dense, 2).item(), rel=1e-12)
    assert row["singular_values"] == pytest.approx(values.tolist(), rel=1e-12)
    shares = values / values.sum()
    assert row["effective_rank"] == pytest.approx(math.exp(-(shares * shares.log()).sum().item()), rel=1e-12)
    assert row["stable_rank"] == pytest.approx((dense.norm() / values[0]).item() ** 2, rel=1e-12)
    assert row["largest_share"] == pytest.approx(1 / row["stable_rank"], rel=1e-12)
    assert row["directions"] == 6
    for letter, factor in (("A", one.A), ("B", one.B)):
        assert row[f"norm_{letter}"] == pytest.approx(factor.norm().item(), rel=1e-14)
        assert row[f"rms_{letter}"] == pytest.approx(factor.square().mean().sqrt().item(), rel=1e-14)
        assert row[f"max_{letter}"] == factor.abs().max().item()
    assert row["moved_A"] is row["moved_B"] is row["trains_A"] is row["relative_update"] is None


def test_what_a_cut_loses_is_the_best_cut_of_the_dense_product() -> None:
    (row,) = adapter_records([_random(rank=6)])
    one = _random(rank=6)
    left, values, right = torch.linalg.svd(one.B @ one.A, full_matrices=False)
    assert row["truncation_ranks"] == [3, 1]
    for rank, error in zip(row["truncation_ranks"], row["truncation_errors"], strict=True):
        gap = one.B @ one.A - left[:, :rank] * values[:rank] @ right[:rank]
        assert error == pytest.approx((gap.norm() / (one.B @ one.A).norm()).item(), rel=1e-12)
    assert adapter_records([_random(rank=1)])[0]["truncation_ranks"] == []


def test_no_mixing_of_the_factors_changes_what_is_said_of_the_update() -> None:
    one, mixing = _random(), gaussian(6, 6, seed=9)
    other = site(torch.linalg.solve(mixing, one.A), one.B @ mixing)
    plain, mixed = adapter_records([one])[0], adapter_records([other])[0]
    for field in (
        "norm_update",
        "spectral_norm",
        "effective_rank",
        "stable_rank",
        "singular_values",
        "truncation_errors",
    ):
        assert mixed[field] == pytest.approx(plain[field], rel=1e-8)
    assert mixed["norm_A"] != pytest.approx(plain["norm_A"], rel=1e-3)


def test_movement_is_the_distance_from_the_start_over_its_size() -> None:
    start = gaussian(2, 8, seed=0).float()
    one = site(1.5 * start, gaussian(6, 2, seed=1).float(), starts=(start, torch.zeros(6, 2)))
    (row,) = adapter_records([one])
    assert row["moved_A"] == pytest.approx(0.5, rel=1e-6)
    assert row["moved_B"] is None
    # Rounding to the type that the factor is stored in is no movement.
    assert moved(start.bfloat16(), start) == 0.0
    assert moved(start, None) is None


def test_a_zero_factor_leaves_no_ratio() -> None:
    (row,) = adapter_records([site(gaussian(4, 9, seed=0), torch.zeros(7, 4, dtype=FLOAT))])
    assert row["finite"]
    assert (row["norm_B"], row["norm_update"], row["spectral_norm"], row["directions"]) == (0.0, 0.0, 0.0, 0)
    assert row["effective_rank"] is row["stable_rank"] is row["largest_share"] is None
    assert row["truncation_errors"] == [None, None]


def test_a_site_that_is_not_finite_says_so_and_nothing_else() -> None:
    broken = site(torch.full((2, 4), math.nan), torch.ones(3, 2), name="b")
    whole, row = adapter_records([_random(), broken])
    assert (row["finite"], row["rank"], row["norm_A"], row["norm_update"]) == (False, 2, None, None)
    assert set(row) == set(whole)
    json.dumps(row, allow_nan=False)


# Merging -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_loss_is_that_of_the_dense_sum(dtype: torch.dtype) -> None:
    one, weight = _random(scaling=1e-3), gaussian(20, 30, seed=5).float()
    base = weight.to(dtype).double()
    update = 1e-3 * one.B @ one.A
    rounded = (base + update).to(dtype).double()
    error, lost = merge_loss(one, weight, dtype)
    assert error == pytest.approx(((rounded - base - update).norm() / update.norm()).item(), rel=1e-12)
    assert lost == pytest.approx((rounded == base).double().mean().item(), abs=1e-12)
    assert 0 < lost < 1


def test_rounding_loss_depends_on_the_size_of_the_update() -> None:
    weight = gaussian(20, 30, seed=5)
    # Multiples of 1/4 below 32 are exact in bfloat16, whose numbers have 8 bits: nothing is lost.
    grid = torch.randint(-16, 16, (20, 30), generator=torch.Generator().manual_seed(0)).double()
    exact = site(torch.eye(2, 30, dtype=FLOAT), 0.25 * torch.ones(20, 2, dtype=FLOAT))
    assert merge_loss(exact, grid, torch.bfloat16) == (0.0, 0.0)
    # An update far below the spacing of the numbers is lost whole.
    error, lost = merge_loss(_random(scaling=1e-9), weight, torch.bfloat16)
    assert (error, lost) == pytest.approx((1.0, 1.0), abs=1e-3)
    assert merge_loss(_random(scaling=0.0), weight, torch.bfloat16) == (0.0, 0.0)


def test_an_overflow_is_infinite() -> None:
    one = site(torch.ones(1, 4), torch.full((3, 1), 1e5))
    error, lost = merge_loss(one, torch.ones(3, 4), torch.float16)
    assert math.isinf(error)
    assert math.isnan(lost)
    assert math.isfinite(merge_loss(one, torch.ones(3, 4), torch.bfloat16)[0])


def test_rows_of_a_large_weight_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    one, weight = _random(scaling=1e-3), gaussian(20, 30, seed=5)
    monkeypatch.setattr(module, "MOST_MERGED", 150)
    some = merge_loss(one, weight, torch.bfloat16)
    monkeypatch.undo()
    fewer = site(one.A, one.B[::4], scaling=1e-3)
    assert some == merge_loss(fewer, weight[::4], torch.bfloat16)
    assert some != merge_loss(one, weight, torch.bfloat16)


@pytest.mark.parametrize("case", KIND_MODELS[:2], ids=lambda case: case.name)
def test_weights_of_every_kind_give_what_the_merge_of_the_model_measures(case: Any) -> None:
    targets = [target for target in case.targets if target != "grouped"]
    base = case.build().to(torch.bfloat16)
    model: nn.Module = al.attach(base, al.AdapterSpec.lora(rank=2, targets=targets))
    fill_factors(model, size=0.05)
    weights = {s.name: s.layer.matrix_of(s.layer.base_layer, s.weight.detach()) for s in own_sites(model)}
    rows = {row["site"]: row for row in adapter_records(model, weights=weights)}
    for error in al.merge_errors(model):
        row = rows[error.site]
        assert row["merge_error_bfloat16"] == pytest.approx(error.relative_error, rel=1e-9)
        assert row["merge_lost_bfloat16"] == pytest.approx(error.unmoved, rel=1e-9)
        wanted = row["norm_update"] / weights[error.site].double().norm().item()
        assert row["relative_update"] == pytest.approx(wanted, rel=1e-12)


def test_another_base_is_refused_with_both_shapes() -> None:
    model = al.attach(small_net(), al.AdapterSpec.lora(rank=2, targets=["block.q", "block.v"]))
    with pytest.raises(AttachError, match=r"block\.q is \(8, 9\), and its update \(8, 8\); block\.v is not in it"):
        adapter_records(site_factors(model), weights={"block.q": torch.ones(8, 9)})


def test_a_model_in_training_keeps_its_gradients() -> None:
    model = al.attach(small_net(), al.AdapterSpec.lora(rank=2, targets=["block.q"]))
    adapter_records(model)
    assert all(p.requires_grad and p.grad is None for p in model.parameters() if p.requires_grad)


def test_a_convolution_in_groups_has_no_merge_and_the_others_keep_theirs() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 4, 1))
    weights = {name: layer.weight.detach().flatten(1) for name, layer in model.named_children()}
    al.attach(model, al.AdapterSpec(rank=2, targets=["0", "1"]))
    fill_factors(model)
    grouped, plain = adapter_records(model, weights=weights)
    assert grouped["relative_update"] is grouped["merge_error_bfloat16"] is None
    assert grouped["norm_update"] > 0
    assert plain["merge_error_bfloat16"] > 0
    with pytest.raises(AttachError, match="not the one"):
        adapter_records(model, weights={**weights, "0": weights["0"][:, :-1]})
