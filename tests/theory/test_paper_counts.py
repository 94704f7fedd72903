"""Parameter counts of Zhu et al. 2024 (arXiv:2402.16842), from the models' configurations alone, beside those printed.

Which layers the paper adapts is not told; the counts say it. Where no choice gives the printed number, both stand here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

import asymlora as al
from asymlora.theory.cost import training_bytes
from asymlora.theory.model_shapes import ModelShape, read_model


def _roberta_large() -> nn.Module:
    shape: dict[str, Any] = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    sizes: dict[str, Any] = {"intermediate_size": 4096, "vocab_size": 50265, "max_position_embeddings": 514}
    return RobertaForSequenceClassification(RobertaConfig(**shape, **sizes, type_vocab_size=1))


def _bart_large() -> nn.Module:
    return BartForConditionalGeneration(BartConfig())  # the defaults are those of facebook/bart-large


def _llama_2_7b() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig())  # the defaults are those of Llama-7B, which Llama-2-7B shares


def _vit_b_16() -> nn.Module:
    return ViTForImageClassification(ViTConfig())  # the defaults are those of vit-base-patch16-224


def _vit_trunk() -> nn.Module:
    return ViTModel(ViTConfig())


@lru_cache(maxsize=8)
def _on_meta(build: Any) -> nn.Module:
    with torch.device("meta"):
        return build()


def _shape(build: Any, preset: str, rank: int, targets: tuple[str, ...]) -> ModelShape:
    return read_model(_on_meta(build), getattr(al.AdapterSpec, preset)(rank=rank, targets=targets))


QV, QKV = ("query", "value"), ("query", "key", "value")
LLAMA_QV, BART_QKV = ("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj")


@pytest.mark.parametrize(
    ("build", "millions"),
    [(_roberta_large, 355.4), (_bart_large, 406.3), (_llama_2_7b, 6738.4), (_vit_trunk, 86.4)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_base_models_are_those_of_the_paper(build: Any, millions: float) -> None:
    assert read_model(_on_meta(build)).base_values / 1e6 == pytest.approx(millions, abs=0.05)


def test_roberta_lora_is_on_queries_and_values_only() -> None:
    printed = 0.8  # "0.8", in millions, though headed as a percentage
    on_qv, on_qkv = (_shape(_roberta_large, "lora", 8, targets).trained_values for targets in (QV, QKV))
    assert (on_qv, on_qkv) == (786_432, 1_179_648)
    assert round(on_qv / 1e6, 1) == printed
    assert round(on_qkv / 1e6, 1) == 1.2 != printed  # what "every query, key and value matrix" would give


def test_roberta_percentages_are_millions() -> None:
    base = read_model(_on_meta(_roberta_large)).base_values
    lora = _shape(_roberta_large, "lora", 8, QV).trained_values
    assert round(100 * lora / base, 1) == 0.2 != 0.8


@pytest.mark.parametrize("preset", ["b_only", "a_only"])
@pytest.mark.parametrize(("rank", "exact", "printed"), [(8, 393_216, 0.3), (16, 786_432, 0.8)])
def test_one_factor_of_roberta_at_twice_the_rank_has_as_many_values(
    preset: str, rank: int, exact: int, printed: float
) -> None:
    count = _shape(_roberta_large, preset, rank, QV).trained_values
    assert count == exact
    assert (round(count / 1e6, 1) == printed) == (rank == 16)  # 0.39 rounds to 0.4, and 0.3 is printed: cut off
    assert int(count / 1e5) / 10 == (0.3 if rank == 8 else 0.7)  # but then 0.786 would have been cut to 0.7


@pytest.mark.parametrize(("preset", "rank"), [("lora", 8), ("b_only", 16), ("a_only", 16)])
def test_bart_has_the_printed_share_on_queries_keys_and_values(preset: str, rank: int) -> None:
    shape = _shape(_bart_large, preset, rank, BART_QKV)
    assert shape.trained_values == 36 * 3 * 2048 * 8 == 1_769_472  # 36 attentions: 12 + 12, and 12 across
    assert shape.trained_values / 1e6 == pytest.approx(1.77, abs=0.005)
    share = 100 * shape.trained_values / shape.base_values
    assert round(share, 2) == 0.44
    on_qv = _shape(_bart_large, preset, rank, LLAMA_QV).trained_values
    assert round(100 * on_qv / shape.base_values, 2) == 0.29  # so here keys are adapted, unlike RoBERTa's


def test_llama_shares_are_of_queries_and_values_and_the_last_is_misprinted() -> None:
    base = read_model(_on_meta(_llama_2_7b)).base_values
    lora = _shape(_llama_2_7b, "lora", 32, LLAMA_QV).trained_values
    assert lora == 16_777_216
    assert 100 * lora / base == pytest.approx(0.249, abs=5e-4)  # printed 0.24: cut off
    half = _shape(_llama_2_7b, "b_only", 32, LLAMA_QV).trained_values
    assert half == _shape(_llama_2_7b, "a_only", 32, LLAMA_QV).trained_values == lora // 2
    assert 100 * half / base == pytest.approx(0.1245, abs=5e-5)  # printed 0.12
    double = _shape(_llama_2_7b, "b_only", 64, LLAMA_QV).trained_values
    assert double == lora
    assert round(100 * double / base, 2) == 0.25  # printed 0.12


def test_vit_has_half_the_values_with_one_factor() -> None:
    qv, length = ("q_proj", "v_proj"), 12 * 2
    if not any(name.endswith("q_proj") for name, _ in _on_meta(_vit_b_16).named_modules()):
        qv = QV  # transformers before ViT's layers were renamed
    assert _shape(_vit_b_16, "lora", 8, qv).trained_values == length * 8 * (768 + 768) == 294_912
    assert _shape(_vit_b_16, "b_only", 8, qv).trained_values == 147_456
    assert _shape(_vit_b_16, "b_only", 16, qv).trained_values == 294_912


def test_the_papers_vit_is_the_one_with_a_pooler_and_no_head() -> None:
    # 86.4 million is printed: the checkpoint pretrained on ImageNet-21k, not the one with a head for 1000 classes.
    assert read_model(_on_meta(_vit_trunk)).base_values == 86_389_248
    assert read_model(_on_meta(_vit_b_16)).base_values == 86_389_248 - (768 * 768 + 768) + 2 * 769


def test_all_linear_layers_of_llama_are_those_of_the_literature() -> None:
    # papers/beyond.md, section 4: 39.98 and 21.76 million at rank 16, 640 and 348 MB in training.
    lora, b_only = (
        read_model(_on_meta(_llama_2_7b), getattr(al.AdapterSpec, name)(rank=16)).trained_values
        for name in ("lora", "b_only")
    )
    assert (lora, b_only) == (39_976_960, 21_757_952)
    assert b_only / lora == pytest.approx(0.544, abs=5e-4)
    sizes = [training_bytes([count], optimizer="adamw").total - 4 for count in (lora, b_only)]
    assert [round(size / 1e6) for size in sizes] == [640, 348]
