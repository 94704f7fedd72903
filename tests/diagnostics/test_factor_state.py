from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import asymlora as al
from asymlora.diagnostics.factor_state import (
    as_matrix,
    current,
    current_scaling,
    distances,
    own_scale,
    refuse_divided,
    state_of,
)
from asymlora.errors import AttachError
from cases import fill_factors, small_net
from peft_models import GPT2, IMAGES


def _filled_net() -> nn.Module:
    spec = al.AdapterSpec.lora(rank=2, targets=("table", "line", "plane", "grouped", "q"))
    model = al.attach(small_net(), spec)
    fill_factors(model)
    return model


def test_distances_are_those_of_the_vectors() -> None:
    now, before, start = (torch.tensor(v, dtype=torch.float64) for v in ([[0.0, 3.0]], [[0.0, 2.0]], [[2.0, 0.0]]))
    assert distances(now, before, start).tolist() == pytest.approx(
        [3.0, 1.0, 2.0, math.sqrt(13), 2.0, math.pi / 2], rel=1e-15
    )
    assert distances(now, now, now).tolist() == [3.0, 0.0, 3.0, 0.0, 3.0, 0.0]
    assert distances(-now, now, now)[-1].item() == pytest.approx(math.pi)


@pytest.mark.parametrize("angle", [1e-8, 1e-3, 1.0])
def test_small_angles_are_as_exact_as_large_ones(angle: float) -> None:
    start = torch.tensor([1.0, 0.0], dtype=torch.float64)
    turned = 5 * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    assert distances(turned, start, start)[-1].item() == pytest.approx(angle, rel=1e-7)


def test_zero_factors_leave_no_ratio_and_no_number_stays_no_number() -> None:
    zero, one, bad = torch.zeros(2, 2), torch.ones(2, 2), torch.full((2, 2), math.nan)
    assert state_of(distances(one, zero, zero).tolist()) == {
        "norm": 2.0,
        "update": 2.0,
        "relative_update": None,
        "moved": None,
        "angle": None,
    }
    assert state_of(distances(zero, one, one).tolist()) == {
        "norm": 0.0,
        "update": 2.0,
        "relative_update": 1.0,
        "moved": 1.0,
        "angle": None,
    }
    broken = state_of(distances(bad, one, one).tolist())
    assert all(value is not None and math.isnan(value) for value in broken.values())


def test_matrices_multiply_to_the_change_that_the_layer_makes() -> None:
    model = _filled_net()
    for site in al.sites(model):
        A, B = (as_matrix(site, f, current(site, f, None), torch.float64) for f in ("A", "B"))
        assert A.dtype == B.dtype == torch.float64
        assert A.shape[0] == B.shape[1] == 2
        if site.name != "grouped":
            own_A, own_B = site.layer.update()
            assert torch.equal(B @ A, own_B.double() @ own_A.double())
    # In two groups of one code each: every output reads the code of its own group.
    grouped = next(site for site in al.sites(model) if site.name == "grouped")
    B = as_matrix(grouped, "B", grouped.B, torch.float32)
    assert B.shape == (8, 2)
    assert torch.equal(B[:4, 0], grouped.B.flatten()[:4])
    assert torch.equal(B[4:, 1], grouped.B.flatten()[4:])
    assert not B[:4, 1].any()
    assert not B[4:, 0].any()


def test_a_matrix_is_a_copy() -> None:
    site = next(iter(al.sites(_filled_net())))
    kept = as_matrix(site, "A", site.A, site.A.dtype)
    before = kept.clone()
    with torch.no_grad():
        site.A.add_(1)
    assert torch.equal(kept, before)


@pytest.mark.parametrize("case", [GPT2, IMAGES], ids=["gpt2", "images"])
def test_factors_and_scale_of_peft_layers_are_read_as_they_are_now(case: object) -> None:
    model = case.peft()  # pyright: ignore[reportAttributeAccessIssue]
    for site in al.sites(model):
        assert current(site, "A", "default") is site.A
        assert current(site, "B", "default") is site.B
        site.layer.scaling["default"] = 9.0  # pyright: ignore[reportIndexIssue]
        assert current_scaling(site, "default") == 9.0


def test_an_embedding_that_scales_its_output_has_a_scale_of_its_own() -> None:
    model = _filled_net()
    assert {own_scale(site) for site in al.sites(model)} == {1.0}
    model.table.base_layer.embed_scale = torch.tensor(3.0)  # pyright: ignore[reportAttributeAccessIssue]
    assert [own_scale(site) for site in al.sites(model) if site.name == "table"] == [3.0]


def test_factors_that_are_not_here_whole_are_refused() -> None:
    site = next(iter(al.sites(_filled_net())))
    refuse_divided(site, site.A, site.B)
    divided = torch.ones(2, 2)
    divided.full_tensor = lambda: divided  # pyright: ignore[reportAttributeAccessIssue]
    for factor in (divided, torch.empty(0), torch.ones(8)):
        with pytest.raises(AttachError, match=r"table are divided over processes \(FSDP, DeepSpeed\).*one device"):
            refuse_divided(site, factor)
    with pytest.raises(AttachError, match="meta device"):
        refuse_divided(site, torch.empty(2, 2, device="meta"))
