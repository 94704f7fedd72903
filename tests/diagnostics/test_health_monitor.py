"""The monitor beside real training loops: what is told, when, and once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import asymlora as al
from asymlora.diagnostics.dynamics import FeatureDynamics
from asymlora.diagnostics.health_monitor import HealthMonitor
from asymlora.errors import UnknownNameError
from diagnostics.watched_runs import RANK, attached, names, net, watched
from peft_models import BERT


def _peft_net(**given: Any) -> Any:
    torch.manual_seed(0)
    return get_peft_model(net(), LoraConfig(r=RANK, target_modules=["0", "2"], **given))


def _freeze_by_flag(model: nn.Module) -> None:
    for site in al.sites(model):
        site.A.requires_grad_(False)


def _reference_pass(model: Any, step: int) -> None:
    if step == 4:  # as DPO and KL penalties do it
        with model.disable_adapter():
            pass


def test_a_healthy_peft_model_has_no_verdict() -> None:
    assert names(watched(_peft_net())) == []


def test_a_factor_frozen_by_flag_is_thawed_by_a_reference_pass_and_a_buffer_is_not() -> None:
    flagged = _peft_net()
    _freeze_by_flag(flagged)
    monitor = HealthMonitor(flagged)
    trained = torch.optim.AdamW([p for p in flagged.parameters()], lr=0.003, weight_decay=0.0)
    watched(flagged, optimizer=trained, monitor=monitor, each=_reference_pass)
    # Thawed before step 4, so its bits change in that step; both are seen at the next measured one.
    told = [(v.name, v.factor, v.step) for v in monitor.verdicts()]
    assert told[:2] == [("frozen_changed", "A", 5)] * 2
    held = al.freeze(_peft_net(), "A")
    assert names(watched(held, each=_reference_pass)) == []


def test_each_verdict_is_told_once_and_when_it_is_new() -> None:
    told: list[tuple[int, list[str]]] = []

    class Listening(HealthMonitor):
        def observe(self, rows: Any, step: int | None = None) -> Any:
            new = super().observe(rows, step)
            told.append((rows[0]["step"], [v.name for v in new]))
            return new

    model = attached("lora")
    watched(model, lr=0.3, monitor=Listening(model))
    assert [step for step, _ in told] == [1, 2, 3, 5, 10, 15, 20, 25]
    everything = [name for _, new in told for name in new]
    assert sorted(everything) == sorted(set(everything))
    assert {"internal_instability", "output_instability"} <= set(everything)
    assert not told[0][1]


def test_a_layer_that_the_model_never_calls_is_told_at_the_first_step() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.tanh(self.used(x)))

    model = al.attach(Skips(), al.AdapterSpec.lora(rank=2, targets=["used", "idle"]))
    verdicts = watched(model, steps=3).verdicts()
    assert [(v.name, v.sites, v.step) for v in verdicts] == [("uncalled_site", ("idle",), 0)]
    assert names(watched(al.attach(Skips(), al.AdapterSpec.lora(rank=2, targets=["used"])), steps=3)) == []


def _train_bert(model: Any, *, trained: Any, heads: Any = None, lr: float = 0.01) -> HealthMonitor:
    monitor = HealthMonitor(model, heads=heads)
    inputs = BERT.inputs()
    optimizer = torch.optim.AdamW(trained, lr=lr)
    with FeatureDynamics(model, inputs, every=5, observe=monitor.observe):
        for _ in range(6):
            optimizer.zero_grad()
            model(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
            optimizer.step()
    return monitor


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def test_a_head_out_of_modules_to_save_is_told_and_one_frozen_on_purpose_is_not() -> None:
    model = BERT.peft(fill=False)
    assert names(_train_bert(model, trained=_trained(model))) == [("frozen_head", None)]
    model = BERT.peft(fill=False)
    assert names(_train_bert(model, trained=_trained(model), heads=())) == []
    model = BERT.peft(fill=False, modules_to_save=["classifier"])
    assert names(_train_bert(model, trained=_trained(model))) == []


def test_a_head_that_no_optimizer_has_is_told_after_the_third_step() -> None:
    model = BERT.peft(fill=False, modules_to_save=["classifier"])
    factors = [p for name, p in model.named_parameters() if "lora_" in name]
    (verdict,) = _train_bert(model, trained=factors).verdicts()
    assert (verdict.name, verdict.sites, verdict.step) == ("frozen_head", ("classifier",), 5)


def test_a_wrong_target_is_told_before_the_training() -> None:
    assert [v.sites for v in HealthMonitor(BERT.peft(target_modules=["query", "valeu"]), heads=()).verdicts()] == [
        ("valeu",)
    ]


def test_beginning_again_takes_the_bits_of_now_and_keeps_what_was_frozen() -> None:
    model = _peft_net()
    _freeze_by_flag(model)
    monitor = HealthMonitor(model)
    for site in al.sites(model):
        site.A.data.mul_(2.0)  # a checkpoint is loaded
    monitor.begin()
    assert monitor.observe((), step=1) == ()
    model.set_adapter("default")
    monitor.begin()
    (verdict,) = monitor.observe((), step=2)
    assert "requires a gradient" in verdict.says


def test_a_model_without_sites_is_watched_for_heads_and_numbers() -> None:
    model: Any = BERT.build()
    monitor = HealthMonitor(model)
    assert not monitor.has_sites
    for step in (1, 2, 3):
        assert monitor.observe((), step=step) == ()
    (verdict,) = monitor.observe((), step=20)  # nothing has stepped it
    assert (verdict.name, verdict.value) == ("frozen_head", 0.0)
    model.classifier.weight.data[0, 0] = float("nan")
    assert [v.name for v in monitor.observe((), step=40)] == ["non_finite"]
    assert monitor.watched == (0, 0)


def test_watched_counts_sites_and_steps() -> None:
    assert watched(attached("b_only"), steps=7).watched == (2, 4)


def test_an_unknown_head_is_refused_with_the_outermost_modules() -> None:
    with pytest.raises(UnknownNameError, match="outermost here: 0, 1, 2, 3, 4"):
        HealthMonitor(attached("lora"), heads=["classifier"])
