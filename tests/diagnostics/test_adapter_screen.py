from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from asymlora.diagnostics.adapter_records import adapter_records
from asymlora.diagnostics.adapter_screen import DEVIATIONS, LEAST_GROUP, LEAST_RATIO, SPIKE_SHARE, screen
from asymlora.diagnostics.health import Verdict
from asymlora.diagnostics.site_factors import SiteFactors
from frozen_draws import FLOAT, gaussian


def _site(name: str, A: Tensor, B: Tensor) -> SiteFactors:
    return SiteFactors(name=name, kind="linear", A=A, B=B, scaling=1.0)


def _adapter(layers: int = 8, *, rank: int = 4, roles: tuple[str, ...] = ("q", "v")) -> dict[str, SiteFactors]:
    """A sound adapter: random factors of one size."""
    names = [f"h.{layer}.{role}" for layer in range(layers) for role in roles]
    return {
        name: _site(name, gaussian(rank, 16, seed=2 * i), gaussian(12, rank, seed=2 * i + 1))
        for i, name in enumerate(names)
    }


def _screen(sites: dict[str, SiteFactors], **more: Any) -> dict[tuple[str, str | None], Verdict]:
    found = screen(adapter_records(sites.values(), **more))
    assert all(verdict.says and verdict.means and verdict.remedy and verdict.step == 0 for verdict in found)
    return {(verdict.name, verdict.factor): verdict for verdict in found}


def test_nothing_stands_out_in_sound_adapters() -> None:
    # With the base too, in which nothing is larger and bfloat16 keeps most of the update.
    sites = _adapter()
    assert not _screen(sites)
    weights = {name: 20 * gaussian(12, 16, seed=100 + i) for i, name in enumerate(sites)}
    assert not _screen(sites, weights=weights)
    assert not screen([])


def test_nan_is_named_with_its_site() -> None:
    sites = _adapter()
    sites["h.3.v"].B[0, 0] = math.nan
    found = _screen(sites)
    assert set(found) == {("not_finite", None)}
    assert found["not_finite", None].sites == ("h.3.v",)


def test_a_zero_B_at_some_sites_and_at_all_means_different_things() -> None:
    sites = _adapter()
    sites["h.3.v"].B.zero_()
    some = _screen(sites)
    assert set(some) == {("no_update", "B")}
    assert some["no_update", "B"].sites == ("h.3.v",)
    assert "add nothing" in some["no_update", "B"].means
    for site in sites.values():
        site.B.zero_()
    assert "not trained" in _screen(sites)["no_update", "B"].means
    assert _screen({"a": _site("a", torch.zeros(2, 4), torch.ones(3, 2))}).keys() == {("no_update", "A")}


@pytest.mark.parametrize("factor", [40.0, 1 / 40])
@pytest.mark.parametrize("letter", ["A", "B"])
def test_a_factor_of_another_size_is_an_outlier_of_its_group(letter: str, factor: float) -> None:
    sites = _adapter()
    getattr(sites["h.5.q"], letter).mul_(factor)
    found = _screen(sites)
    assert set(found) == {("norm_outlier", letter), ("norm_outlier", None)}
    verdict = found["norm_outlier", letter]
    assert verdict.sites == ("h.5.q",)
    assert verdict.value is not None
    middle = sorted(getattr(sites[f"h.{i}.q"], letter).norm().item() for i in range(8))
    assert verdict.value == pytest.approx(
        getattr(sites["h.5.q"], letter).norm().item() / ((middle[3] * middle[4]) ** 0.5), rel=1e-9
    )


def test_outliers_need_both_the_spread_and_the_ratio() -> None:
    # All the same but one: no spread at all, and a factor just below or above the ratio decides.
    for ratio, seen in ((0.98 * LEAST_RATIO, False), (1.02 * LEAST_RATIO, True)):
        sites = {
            f"h.{i}.q": _site(f"h.{i}.q", torch.eye(2, 8, dtype=FLOAT), torch.eye(6, 2, dtype=FLOAT)) for i in range(6)
        }
        sites["h.2.q"].B.mul_(ratio)
        assert (("norm_outlier", "B") in _screen(sites)) == seen
    # A group whose sizes differ widely anyway: ten times the median is within its spread.
    wide = {
        f"h.{i}.q": _site(f"h.{i}.q", torch.eye(2, 8, dtype=FLOAT), 4.0**i * torch.eye(6, 2, dtype=FLOAT))
        for i in range(7)
    }
    assert DEVIATIONS * 1.4826 * 2 * math.log(4) > 3 * math.log(4)
    assert ("norm_outlier", "B") not in _screen(wide)


def test_a_small_group_has_no_outliers() -> None:
    for layers, seen in ((LEAST_GROUP - 1, False), (LEAST_GROUP, True)):
        sites = _adapter(layers, roles=("q",))
        sites["h.0.q"].B.mul_(100)
        assert (("norm_outlier", "B") in _screen(sites)) == seen


def _with_spectrum(values: list[float]) -> SiteFactors:
    rank = len(values)
    return _site(
        "a", torch.eye(rank, 16, dtype=FLOAT), torch.eye(12, rank, dtype=FLOAT) * torch.tensor(values, dtype=FLOAT)
    )


def test_one_direction_that_holds_nearly_all_is_a_spike() -> None:
    # Squares: 9 of 9 + 3 * other^2.
    for share, seen in ((SPIKE_SHARE - 0.01, False), (SPIKE_SHARE + 0.01, True)):
        other = math.sqrt(9 * (1 / share - 1) / 3)
        found = _screen({"a": _with_spectrum([3.0, other, other, other])})
        assert (set(found) == {("rank_one_spike", None)}) == seen
        if seen:
            assert found["rank_one_spike", None].value == pytest.approx(share, rel=1e-12)
    # Of few directions one always holds much.
    assert not _screen({"a": _with_spectrum([3.0, 0.1, 0.1])})


def test_directions_that_do_nothing_are_counted() -> None:
    sites = _adapter()
    sites["h.1.q"].B[:, 3] = 0
    sites["h.2.q"].A[1] = sites["h.2.q"].A[0]
    sites["h.2.q"].A[2] = sites["h.2.q"].A[0]
    found = _screen(sites)
    assert set(found) == {("dead_directions", None)}
    assert found["dead_directions", None].sites == ("h.1.q", "h.2.q")
    assert "at h.2.q 2 of 4" in found["dead_directions", None].says
    assert found["dead_directions", None].value == 0.5


def test_factors_that_float16_cannot_hold_are_named_and_a_rescaling_helps() -> None:
    sites = _adapter(2)
    for site in sites.values():
        site.A.mul_(1e5)
        site.B.mul_(1e-5)
    found = _screen(sites)
    assert set(found) == {("half_precision_range", "A"), ("half_precision_range", "B")}
    assert "becomes infinite" in found["half_precision_range", "A"].means
    assert "multiply B by a large number c and divide A by it" in found["half_precision_range", "B"].remedy
    for site in sites.values():
        site.A.mul_(1e-5)
        site.B.mul_(1e5)
    assert not _screen(sites)


def test_a_site_that_only_some_layers_lack_is_named() -> None:
    sites = _adapter()
    del sites["h.3.v"]
    found = _screen(sites)
    assert set(found) == {("missing_sites", None)}
    assert found["missing_sites", None].sites == ("h.3.v",)
    # Whole layers that were left out, and places that few layers have, are a choice.
    few = _adapter()
    for layer in range(8):
        del few[f"h.{layer}.q"]
        if layer in (1, 2):
            del few[f"h.{layer}.v"]
    assert not _screen(few)
    rare = _adapter()
    for layer in range(3, 8):
        del rare[f"h.{layer}.v"]
    assert not _screen(rare)


def test_an_update_larger_than_the_base_weight_is_named() -> None:
    sites = _adapter(1, roles=("q",))
    weight = gaussian(12, 16, seed=50)
    size = (sites["h.0.q"].B @ sites["h.0.q"].A).norm() / weight.norm()
    for ratio, seen in ((0.99, False), (1.01, True)):
        found = _screen(sites, weights={"h.0.q": weight * size / ratio})
        assert (("larger_than_base", None) in found) == seen
    assert not _screen(sites)


def test_an_update_that_rounding_eats_is_named() -> None:
    sites = _adapter(1, roles=("q",))
    for factor, seen in ((1.0, False), (1e-4, True)):
        sites["h.0.q"].B.mul_(factor)
        found = _screen(sites, weights={"h.0.q": 10 * gaussian(12, 16, seed=50)})
        assert (set(found) == {("lost_in_merge", None)}) == seen
    worst = found["lost_in_merge", None].value
    assert (
        worst
        == adapter_records(sites.values(), weights={"h.0.q": 10 * gaussian(12, 16, seed=50)})[0]["merge_error_bfloat16"]
    )
