from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import asymlora as al
from asymlora.theory.block_cost import Batch
from asymlora.theory.estimate import Estimate, estimate
from asymlora.theory.step_peak import Training

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BATCH = Batch(size=2, length=8)
SPEC = al.AdapterSpec.b_only(rank=4, targets="all-linear", modules_to_save=("classifier",))


def _bert() -> BertForSequenceClassification:
    return BertForSequenceClassification(BertConfig(**SMALL, vocab_size=50))


def _ways(model: nn.Module, spec: al.AdapterSpec = SPEC, **fields: Any) -> dict[str, Estimate]:
    return {way.way: way for way in estimate(model, spec, batch=BATCH, **fields)}


def test_every_way_trains_the_values_that_the_real_model_would() -> None:
    ways = _ways(_bert())
    assert list(ways) == ["full fine-tuning", "LoRA", "as asked", "LoRA, nf4 base", "as asked, nf4 base"]
    assert ways["full fine-tuning"].trained_values == sum(p.numel() for p in _bert().parameters())
    for way, spec in (("LoRA", replace(SPEC, A=al.AdapterSpec.lora().A)), ("as asked", SPEC)):
        model = al.attach(_bert(), spec)
        trained = [p for p in model.parameters() if p.requires_grad]
        assert ways[way].trained_values == sum(p.numel() for p in trained)
        optimizer = torch.optim.AdamW(trained)
        for p in trained:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        state = sum(t.numel() * t.element_size() for s in optimizer.state.values() for t in s.values())
        assert ways[way].training.optimizer == state


def test_files_are_those_that_are_written(tmp_path: Path) -> None:
    asked = _ways(_bert())["as asked"]
    model = al.attach(_bert(), SPEC)
    al.save_adapter(model, tmp_path / "peft")
    al.save_adapter(model, tmp_path / "seed", compress=True)
    assert asked.file_bytes == (tmp_path / "peft" / "adapter_model.safetensors").stat().st_size
    assert asked.seed_file_bytes == (tmp_path / "seed" / "factors.safetensors").stat().st_size


def test_a_frozen_factor_saves_state_and_activations_and_two_products_of_flops() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=50))
    spec = al.AdapterSpec.b_only(rank=4, targets="all-linear")
    ways = _ways(model, spec)
    lora, asked = ways["LoRA"], ways["as asked"]
    assert asked.training.total < lora.training.total
    assert asked.saved_bytes is not None
    assert lora.saved_bytes is not None
    assert asked.saved_bytes < lora.saved_bytes
    adapted = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    assert lora.flops is not None
    assert asked.flops is not None
    assert lora.flops.total - asked.flops.total == sum(2 * 4 * m.in_features for m in adapted)
    assert lora.bound.gap > asked.bound.gap


def test_four_bits_shrink_the_base_alone() -> None:
    ways = _ways(_bert())
    packed, plain = ways["as asked, nf4 base"], ways["as asked"]
    assert packed.base_bytes < plain.base_bytes
    # One matrix at a time is unpacked: the largest has 32 x 64 values.
    unpacked = 4 * 32 * 64
    assert plain.base_bytes - packed.base_bytes - unpacked == (plain.peak_bytes or 0) - (packed.peak_bytes or 0)
    assert packed.training == plain.training
    assert list(_ways(_bert(), training=Training(base="nf4"))) == ["full fine-tuning", "LoRA", "as asked"]


def test_nothing_of_the_base_is_frozen_in_full_fine_tuning() -> None:
    model = _bert()
    whole = _ways(model)["full fine-tuning"]
    assert whole.base_bytes == sum(b.numel() * b.element_size() for b in model.buffers())
    assert whole.trained_fraction == 1
    assert whole.file_bytes == 4 * whole.trained_values


def test_what_is_asked_for_is_not_said_twice() -> None:
    assert list(_ways(_bert(), al.AdapterSpec.lora(rank=4)))[:2] == ["full fine-tuning", "LoRA"]
    assert "as asked" not in _ways(_bert(), al.AdapterSpec.lora(rank=4))


def test_an_unknown_architecture_is_counted_without_activations() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    asked = _ways(model, al.AdapterSpec.b_only(rank=2, targets=("0", "2")))["as asked"]
    assert (asked.saved_bytes, asked.peak_bytes) == (None, None)
    assert asked.trained_values == 2 * (6 + 4)
    assert asked.flops is None


def test_a_model_without_values_gives_the_same() -> None:
    with torch.device("meta"):
        empty = _bert()
    assert [w.to_dict() for w in _ways(empty).values()] == [w.to_dict() for w in _ways(_bert()).values()]


@pytest.mark.parametrize("name", ["way", "trained_values", "parameters_bytes", "flops_forward", "bound_gap"])
def test_a_record_is_flat(name: str) -> None:
    record = _ways(_bert())["LoRA"].to_dict()
    assert name in record
    assert not any(isinstance(value, (dict, tuple, list)) for value in record.values())
