"""Each verdict by rows on both sides of its threshold, and by a training run that has it and one that has not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import asymlora as al
from asymlora.diagnostics.dynamics import FeatureDynamics
from asymlora.diagnostics.health import RULES, judge
from asymlora.diagnostics.health_monitor import HealthMonitor
from asymlora.site_view import saved_modules
from diagnostics.watched_runs import attached, batch, names, net, watched

N = 256  # n**(1/4) = 4 and n**(-1/2) = 1/16, exactly


def _row(step: int = 1, **changed: Any) -> dict[str, Any]:
    sizes = dict.fromkeys(("Z_A", "Z_B", "delta1", "delta2", "delta3", "delta_Z_B", "rms_x", "rms_base"), 1.0)
    factors = {f"{name}_{f}": 0.5 for name in ("grad", "norm", "update", "relative_update") for f in "AB"}
    facts = {"site": "q", "kind": "linear", "rank": 4, "fan_in": N, "outputs": 32, "trains_A": True, "trains_B": True}
    return {"step": step, **facts, **sizes, **factors, **changed}


def _rows(*steps: int, **changed: Any) -> list[dict[str, Any]]:
    return [_row(step, **changed) for step in steps]


def _names(rows: list[dict[str, Any]], **options: Any) -> list[tuple[str, str | None]]:
    return [(v.name, v.factor) for v in judge(rows, **options)]


class TestRows:
    """What decides, on both sides."""

    def test_rows_of_a_healthy_site_and_no_rows_have_no_verdict(self) -> None:
        assert judge(_rows(1, 2, 3, 20, 40)) == ()
        assert judge([]) == ()

    @pytest.mark.parametrize("missing", [None, 0.0])
    @pytest.mark.parametrize("factor", ["A", "B"])
    def test_no_gradient_needs_three_steps_without_one(self, factor: str, missing: float | None) -> None:
        gone = {f"grad_{factor}": missing}
        assert _names(_rows(1, 2, **gone)) == []
        (verdict,) = judge(_rows(1, 2, 3, **gone))
        assert (verdict.name, verdict.factor, verdict.step, verdict.sites) == ("no_gradient", factor, 3, ("q",))
        assert _names([*_rows(1, 2, 3, **gone), _row(20)]) == []

    def test_a_gradient_that_the_other_factors_zero_makes_zero_is_none_too_few(self) -> None:
        start = _row(1, grad_A=0.0, relative_update_B=None)
        assert _names([start, *_rows(2, 3, grad_A=0.0)]) == []
        assert _names([start, *_rows(2, 3, 20, grad_A=0.0)]) == [("no_gradient", "A")]

    def test_a_frozen_factor_owes_no_gradient_and_no_movement(self) -> None:
        frozen = {"trains_A": False, "grad_A": None, "update_A": 0.0, "relative_update_A": 0.0}
        assert _names(_rows(1, 2, 3, 20, 40, **frozen)) == []

    @pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, 2**-23), (torch.bfloat16, 2**-7)])
    def test_movement_below_a_quarter_of_the_types_eps_is_none(self, dtype: torch.dtype, eps: float) -> None:
        given = {("q", "B"): torch.finfo(dtype).eps}
        below = _rows(1, 2, 3, 20, relative_update_B=eps / 4 * 0.99)
        assert _names(below, eps=given) == [("not_moving", "B")]
        assert _names(below[:3], eps=given) == []  # may be a warm-up
        assert _names(_rows(1, 2, 3, 20, relative_update_B=eps / 4), eps=given) == []
        assert _names([*below, _row(40)], eps=given) == []

    def test_a_factor_at_zero_that_has_a_gradient_and_stays_there_is_not_moving(self) -> None:
        still = {"update_A": 0.0, "relative_update_A": None, "norm_A": 0.0}
        assert ("not_moving", "A") in _names(_rows(1, 2, 3, 20, **still))

    @pytest.mark.parametrize("missing", [None, 0.0])
    def test_zero_B_is_told_after_the_second_step_and_without_a_gradient_after_the_third(
        self, missing: float | None
    ) -> None:
        zero = {"norm_B": 0.0, "update_B": 0.0, "relative_update_B": None}
        assert _names(_rows(1, **zero)) == []
        assert judge(_rows(1, 2, **zero))[0].step == 2
        assert _names([_row(1, **zero), _row(2)]) == []
        waiting = {**zero, "grad_B": missing}
        assert ("B_zero", "B") not in _names(_rows(1, 2, **waiting))
        assert ("B_zero", "B") in _names(_rows(1, 2, 3, **waiting))

    @pytest.mark.parametrize(
        ("key", "name", "factor"), [("Z_A", "internal_instability", "A"), ("Z_B", "output_instability", "B")]
    )
    def test_growth_is_told_beyond_the_fourth_root_of_the_width(self, key: str, name: str, factor: str) -> None:
        assert _names([_row(1), _row(2, **{key: 3.99})]) == []
        (verdict,) = judge([_row(1), _row(2, **{key: 4.01}), _row(3, **{key: 8.0})])
        assert (verdict.name, verdict.factor, verdict.step, verdict.threshold) == (name, factor, 2, 0.25)
        assert verdict.value == pytest.approx(math.log(8) / math.log(N))
        assert "8 times" in verdict.says

    def test_a_narrow_layer_is_judged_as_one_of_64(self) -> None:
        assert _names([_row(1, fan_in=4), _row(2, fan_in=4, Z_B=64**0.25 - 0.01)]) == []
        assert _names([_row(1, fan_in=4), _row(2, fan_in=4, Z_B=64**0.25 + 0.01)]) == [("output_instability", "B")]

    def test_a_start_larger_than_the_input_is_no_growth(self) -> None:
        assert _names([_row(1, Z_A=10.0), _row(2, Z_A=20.0)]) == []
        assert _names([_row(1, Z_A=10.0), _row(2, Z_A=41.0)]) == [("internal_instability", "A")]
        # Begun at zero, or moved by more than its size in the first step: Z_A of then is no start.
        for moved in (None, 2.0):
            jumped = [_row(1, Z_A=10.0, relative_update_A=moved), _row(2, Z_A=20.0)]
            assert ("internal_instability", "A") in _names(jumped)
        assert _names([_row(1, Z_B=10.0, delta_Z_B=0.5), _row(2, Z_B=20.0)]) == []
        assert _names([_row(1, Z_B=10.0, delta_Z_B=10.0)]) == [("output_instability", "B")]

    def test_features_of_a_frozen_A_and_of_an_embedding_are_not_judged(self) -> None:
        large = [_row(1), _row(2, Z_A=100.0)]
        for changed in ({"trains_A": False}, {"kind": "embedding"}):
            assert _names([{**row, **changed} for row in large]) == []

    def test_the_width_of_an_embedding_is_that_of_its_output(self) -> None:
        rows = [_row(1), _row(2, Z_B=5.0)]
        assert _names([{**row, "kind": "embedding", "fan_in": 10, "outputs": 10_000} for row in rows]) == []
        assert _names([{**row, "kind": "embedding", "fan_in": 10_000, "outputs": 100} for row in rows])

    def test_a_base_without_an_output_of_rows_is_not_judged(self) -> None:
        assert _names([_row(1, rms_base=None), _row(2, rms_base=None, Z_B=0.5)]) == []

    @pytest.mark.parametrize(("small", "words"), [("delta1", "B alone moves"), ("delta2", "A alone moves")])
    def test_one_dead_delta_is_told_by_medians_of_later_steps(self, small: str, words: str) -> None:
        def rows(value: float, *steps: int) -> list[dict[str, Any]]:
            return [*_rows(1, 2, delta1=0.0), *_rows(*steps, **{small: value})]

        assert _names(rows(1 / 16, 3, 20, 40)) == []
        assert _names(rows(0.06, 3, 20)) == []
        (verdict,) = judge(rows(0.06, 3, 20, 40))
        assert (verdict.name, verdict.factor) == ("inefficient", None)
        assert (verdict.value, verdict.threshold) == (pytest.approx(0.06), pytest.approx(1 / 16))
        assert words in verdict.remedy
        assert _names([*rows(0.06, 3), *_rows(20, 40)]) == []  # the median of three

    def test_a_delta_that_still_rises_is_told_only_when_the_run_has_ended(self) -> None:
        def rows(exponent: float) -> list[dict[str, Any]]:
            return [_row(step, delta1=1e-4 * step**exponent) for step in (1, 2, 3, 20, 40, 60)]

        told = [("inefficient", None)]
        assert _names(rows(1.0)) == told  # all below 1/16
        assert _names(rows(1.0), goes_on=True) == []
        assert _names(rows(0.55), goes_on=True) == []
        assert _names(rows(0.45), goes_on=True) == _names(rows(0.0), goes_on=True) == told
        dead = _rows(1, 2, 3, 20, 40, delta2=0.0)
        assert _names(dead, goes_on=True) == told
        assert _names([*dead, *_rows(60, 80, delta2=1e-9)], goes_on=True) == []

    def test_one_trained_factor_and_an_embedding_are_not_inefficient(self) -> None:
        dead = _rows(1, 2, 3, 20, 40, delta1=0.0)
        for changed in ({"trains_A": False}, {"kind": "embedding"}):
            assert _names([{**row, **changed} for row in dead]) == []

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("key", ["Z_A", "grad_B", "delta3"])
    def test_the_first_number_that_is_not_finite_is_told_by_site_and_step(self, key: str, value: float) -> None:
        rows = [_row(1), _row(1, site="v"), _row(2), _row(2, site="v", **{key: value}), _row(3, **{key: value})]
        verdict = judge(rows)[0]
        assert (verdict.name, verdict.step, set(verdict.sites)) == ("non_finite", 2, {"q", "v"})
        assert verdict.says.startswith(f"{key} is {value} at step 2")

    def test_sites_of_one_trouble_are_one_verdict_in_the_models_order(self) -> None:
        rows = [_row(step, site=site, grad_B=None) for step in (1, 2, 3) for site in ("v", "q", "k")]
        (verdict,) = judge([*rows, *_rows(1, 2, 3, site="o")])
        assert verdict.sites == ("v", "q", "k")
        assert "v, q and 1 more (3 of 4 sites)" in verdict.says

    def test_every_rule_says_what_it_means_and_what_to_change(self) -> None:
        for rule in RULES:
            assert rule.means
            assert rule.remedy
            assert "<F>" not in rule.says + rule.means + rule.remedy


class TestRuns:
    """Real training: the trouble, and the same run without it."""

    @pytest.mark.parametrize("preset", ["lora", "init_a", "b_only", "a_only"])
    def test_fair_rates_have_no_verdict(self, preset: str) -> None:
        assert names(watched(attached(preset))) == []

    def test_too_large_a_rate_is_unstable_inside_and_at_the_output(self) -> None:
        assert set(names(watched(attached("lora"), lr=0.3))) >= {
            ("internal_instability", "A"),
            ("output_instability", "B"),
        }
        assert names(watched(attached("b_only"), lr=1.0)) == [("output_instability", "B")]

    def test_A_alone_is_unstable_inside_first(self) -> None:
        found = names(watched(attached("a_only"), lr=0.05, steps=40))
        assert ("internal_instability", "A") in found
        assert ("output_instability", "B") not in found

    def test_init_b_trains_A_alone_and_a_ratio_of_rates_wakes_B(self) -> None:
        assert names(watched(attached("init_b"), lr=0.001)) == [("inefficient", None)]
        # LoRA+: with B's rate n**(1/2) larger both parts are of one order.
        assert names(watched(attached("init_b"), lr=0.001, rates={"lr_B": 0.02})) == []

    def test_a_rate_of_zero_moves_nothing(self) -> None:
        found = names(watched(attached("lora"), rates={"lr_A": 1e-12}))
        assert ("not_moving", "A") in found
        assert ("not_moving", "B") not in found

    def test_B_out_of_the_optimizer_stays_zero(self) -> None:
        model = attached("lora")
        only_A = torch.optim.SGD([site.A for site in al.sites(model)], lr=0.01)
        assert ("B_zero", "B") in names(watched(model, optimizer=only_A))

    def test_A_out_of_the_optimizer_does_not_move_though_it_has_a_gradient(self) -> None:
        model = attached("lora")
        only_B = torch.optim.SGD([site.B for site in al.sites(model)], lr=0.1)
        found = names(watched(model, optimizer=only_B))
        assert ("not_moving", "A") in found
        assert ("no_gradient", "A") not in found

    def test_a_head_of_zeros_and_a_warm_up_are_no_zero_B(self) -> None:
        model = al.attach(net(), al.AdapterSpec.lora(rank=2, targets=["0"], modules_to_save=["4"]))
        nn.init.zeros_(saved_modules(model)["4"].weight)
        optimizer = torch.optim.AdamW(al.param_groups(model, lr=0.003))

        def warm_up(_: nn.Module, step: int) -> None:
            for group in optimizer.param_groups:
                group["lr"] = 0.003 * min(1.0, (step - 1) / 5)  # zero in the first step, as the Trainer's schedules

        assert ("B_zero", "B") not in names(watched(model, optimizer=optimizer, each=warm_up))

    def test_bfloat16_factors_round_small_updates_away_and_float32_does_not(self) -> None:
        def found(dtype: torch.dtype) -> list[tuple[str, str | None]]:
            model = attached("lora").to(dtype)
            x, y = batch()
            optimizer = torch.optim.Adam(al.param_groups(model, lr=1e-5))
            monitor = HealthMonitor(model)
            with FeatureDynamics(model, x[:8].to(dtype), every=5, observe=monitor.observe):
                for _ in range(10):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(x.to(dtype)).float(), y).backward()
                    optimizer.step()
            return names(monitor)

        assert ("not_moving", "A") in found(torch.bfloat16)
        assert ("not_moving", "A") not in found(torch.float32)

    def test_a_layer_cut_off_from_the_loss_has_no_gradient(self) -> None:
        class Cut(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.read, self.used = nn.Linear(64, 64), nn.Linear(64, 2)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.used(x + self.read(x).detach())

        for targets, expected in ((["read", "used"], {("no_gradient", "B"), ("B_zero", "B")}), (["used"], set())):
            model = al.attach(Cut(), al.AdapterSpec.b_only(rank=2, targets=targets))
            assert set(names(watched(model))) == expected

    def test_numbers_that_run_over_are_told_with_site_and_step(self) -> None:
        def overflow(model: nn.Module, step: int) -> None:
            if step == 5:
                next(iter(al.sites(model))).B.data.fill_(math.inf)

        verdict = watched(attached("lora"), each=overflow).verdicts()[0]
        assert (verdict.name, verdict.step, verdict.sites[0]) == ("non_finite", 5, "0")
