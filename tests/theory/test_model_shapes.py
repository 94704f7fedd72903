from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig
from transformers import LlamaForCausalLM as Llama

import asymlora as al
from asymlora.errors import NoTargetError, RankError, SpecError
from asymlora.theory.model_shapes import HEADS, read_model

SHAPE: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56}


def _bert(kind: Any = BertForSequenceClassification) -> Any:
    return kind(BertConfig(**SHAPE, vocab_size=50))


def test_a_model_on_meta_has_the_sizes_of_a_real_one() -> None:
    spec = al.AdapterSpec.b_only(rank=2, shared_A=(("query", "key", "value"),))
    real = read_model(_bert(), spec)
    with torch.device("meta"):
        assert read_model(_bert(), spec) == real
    assert len(real.blocks) == 2


def test_a_block_has_the_sizes_of_its_config() -> None:
    shape = read_model(Llama(LlamaConfig(**SHAPE, num_key_value_heads=2, vocab_size=50)))
    block = shape.blocks[1]
    assert (block.kind, block.heads, block.kv_heads, block.head_dim) == ("gated", 4, 2, 6)
    assert (block.activation, block.hidden, block.attention_width) == ("silu", 24, 24)
    assert {role: (layer.fan_in, layer.fan_out) for role, layer in block.layers.items()} == {
        **{"q": (24, 24), "k": (24, 12), "v": (24, 12), "o": (24, 24)},
        **{"gate": (24, 56), "up": (24, 56), "down": (56, 24)},
    }


def test_sites_are_those_that_attach_takes() -> None:
    for targets in ("all-linear", ("query", "attention.output.dense")):
        spec = al.AdapterSpec.lora(rank=2, targets=targets, rank_pattern={"query": 4})
        model = _bert()
        shape = read_model(model, spec)
        attached = {site.name: site for site in al.sites(al.attach(model, spec))}
        assert list(shape.adapted) == list(attached)
        for name, layer in shape.adapted.items():
            assert attached[name].A.shape == (layer.rank, layer.fan_in)
            assert attached[name].B.shape == (layer.fan_out, layer.rank)
        in_blocks = [layer for block in shape.blocks for layer in block.layers.values() if layer.rank]
        assert len(in_blocks) == sum("encoder" in name for name in attached)


def test_tied_weights_count_once_and_conv1d_the_right_way_round() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=24, n_layer=2, n_head=4, vocab_size=50))
    shape = read_model(model)
    assert shape.base_values == sum(p.numel() for p in model.parameters())
    assert (shape.blocks[0].layers["qkv"].fan_in, shape.blocks[0].layers["qkv"].fan_out) == (24, 72)
    assert sum(values for values, _ in shape.matrix_values) == 2 * 24 * (72 + 24 + 96 + 96)


def test_heads_are_known_by_class_and_trained_where_asked() -> None:
    shape = read_model(_bert(), al.AdapterSpec.lora(rank=2, targets=("query",), modules_to_save=("classifier",)))
    assert shape.head is not None
    assert [layer.trains_weight for layer in shape.head.layers] == [False, True]
    assert shape.saved_values == (2 * 24, 2)
    assert "BertModel" not in HEADS
    assert read_model(_bert(BertModel)).head is None


def test_full_training_counts_everything() -> None:
    model = _bert()
    shape = read_model(model, full=True)
    assert shape.trained_values == shape.base_values == sum(p.numel() for p in model.parameters())
    assert all(layer.trains_weight for block in shape.blocks for layer in block.layers.values())


def test_a_model_without_known_blocks_is_counted_without_activations() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    shape = read_model(model, al.AdapterSpec.lora(rank=2, targets=("0",)))
    assert shape.blocks == ()
    assert shape.trained_values == 2 * (6 + 4)


def test_wrong_questions_are_refused() -> None:
    with pytest.raises(SpecError, match="Give one of them"):
        read_model(_bert(), al.AdapterSpec.lora(rank=2), full=True)
    with pytest.raises(NoTargetError, match="q_proj"):
        read_model(_bert(), al.AdapterSpec.lora(rank=2, targets=("q_proj",)))
    with pytest.raises(RankError, match="at most 24"):
        read_model(_bert(), al.AdapterSpec.lora(rank=25, targets=("query",)))
    with pytest.raises(SpecError, match="word_embeddings is an embedding"):
        read_model(_bert(), al.AdapterSpec.lora(rank=2, targets=("word_embeddings",)))
