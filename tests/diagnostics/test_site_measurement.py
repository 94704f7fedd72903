from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import asymlora as al
from asymlora.diagnostics.probe import capture
from asymlora.diagnostics.site_measurement import MeasuredSite, SiteMeasurement, measures
from cases import SmallBlock


def _measured(model: nn.Module, x: Tensor, **options: Any) -> SiteMeasurement:
    found = list(al.sites(model))
    probe = capture(model, x, found, max_rows=64)
    sites = [MeasuredSite(site=site, adapter=None, read=probe.inputs[site.name]) for site in found]
    return SiteMeasurement(sites, every=options.pop("every", 1), observe=options.pop("observe", None))


def _block(preset: str = "b_only") -> nn.Module:
    return al.attach(SmallBlock(8), al.AdapterSpec.parse(preset, rank=2, targets=("q", "v")))


def test_what_is_trained_is_what_requires_a_gradient_now() -> None:
    model = _block("lora")
    measurement = _measured(model, torch.randn(5, 8))
    assert {id(p) for p in measurement.parameters()} == {id(f) for s in al.sites(model) for f in (s.A, s.B)}
    for site in al.sites(model):
        site.A.requires_grad_(False)
    assert {id(p) for p in measurement.parameters()} == {id(site.B) for site in al.sites(model)}


def test_frozen_factors_are_not_copied_before_a_step() -> None:
    measurement = _measured(_block("b_only"), torch.randn(5, 8))
    measurement.before(1)
    assert len(measurement._before) == 2
    measurement.after(1)
    assert not measurement._before
    assert not measurement._gradients


def test_a_step_by_hand_gives_rows_to_records_and_observer() -> None:
    told: list[Any] = []
    model, x = _block("b_only"), torch.randn(5, 8)
    measurement = _measured(model, x, observe=told.append)
    site = next(iter(al.sites(model)))
    measurement.before(7)
    site.B.grad = torch.full_like(site.B, 8.0)
    measurement.gradients([site.B], scale=4.0)
    with torch.no_grad():
        site.B.add_(0.5)
    measurement.after(7)
    assert told == [measurement.records]
    q, v = measurement.records
    assert (q["step"], q["site"], v["site"]) == (7, "q", "v")
    assert q["grad_B"] == pytest.approx(2.0 * 16**0.5)
    assert q["update_B"] == pytest.approx(0.5 * 16**0.5)
    assert q["delta2"] == q["delta_Z_B"] == q["Z_B"] > 0
    assert (v["grad_B"], v["update_B"], v["Z_B"]) == (None, 0.0, 0.0)
    # Every output of q has the same weight on both codes: a matrix of rank 1.
    assert q["effective_rank"] == pytest.approx(1.0, abs=1e-4)
    assert q["stable_rank"] == pytest.approx(1.0, abs=1e-6)


def test_sparse_gradients_have_the_norm_of_the_dense_ones() -> None:
    measurement = _measured(_block("b_only"), torch.randn(5, 8))
    parameter = measurement.parameters()[0]
    places, entries = torch.tensor([[0, 0], [1, 1]]), torch.tensor([1.0, 2.0])  # one entry, in two parts
    parameter.grad = torch.sparse_coo_tensor(places, entries, parameter.shape, check_invariants=True)
    measurement.gradients([parameter])
    assert measurement._gradients[id(parameter)].item() == 3.0


def test_the_scale_is_read_at_each_step() -> None:
    model = _block("b_only")
    with torch.no_grad():
        for site in al.sites(model):
            site.B.normal_()
    measurement = _measured(model, torch.randn(5, 8))
    measurement.after(1)
    for site in al.sites(model):
        site.layer.scaling *= 3
    measurement.after(2)
    first, _, later, _ = measurement.records
    assert later["scaling"] == 3 * first["scaling"]
    assert later["Z_B"] == pytest.approx(3 * first["Z_B"], rel=1e-6)
    assert later["singular_values"] == pytest.approx([3 * value for value in first["singular_values"]], rel=1e-6)


def test_what_is_computed_in_follows_input_and_factors() -> None:
    for dtype, wanted in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        model = _block("lora").to(dtype)
        sites = _measured(model, torch.randn(5, 8, dtype=dtype)).sites
        assert {site.dtype for site in sites} == {site.start.A.dtype for site in sites} == {wanted}


def test_measured_are_the_first_three_and_each_multiple() -> None:
    assert [step for step in range(1, 14) if measures(step, 5)] == [1, 2, 3, 5, 10]
    assert [step for step in range(1, 5) if measures(step, 1)] == [1, 2, 3, 4]
