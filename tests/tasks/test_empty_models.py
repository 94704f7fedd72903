from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, LlamaConfig

from asymlora.errors import DataNotFoundError
from asymlora.tasks.empty_models import empty_model

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}


def test_a_folder_gives_the_class_that_it_names_with_every_shape_and_no_value(tmp_path: Path) -> None:
    saved = BertForMaskedLM(BertConfig(**SMALL))
    saved.save_pretrained(tmp_path)
    empty = empty_model(str(tmp_path))
    assert type(empty) is BertForMaskedLM
    assert all(p.device.type == "meta" for p in empty.parameters())
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in saved.named_parameters()}


def test_a_configuration_alone_is_enough_at_any_size(tmp_path: Path) -> None:
    config = LlamaConfig(hidden_size=8192, num_hidden_layers=2, num_attention_heads=64, intermediate_size=28672)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**config.to_dict(), "architectures": ["LlamaForCausalLM"]}), encoding="utf-8")
    empty = empty_model(str(file), attention="eager")
    assert type(empty).__name__ == "LlamaForCausalLM"
    assert empty.config._attn_implementation == "eager"
    assert empty.lm_head.weight.shape == (32000, 8192)


def test_a_configuration_that_names_no_class_gives_the_plain_network(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(BertConfig(**SMALL).to_dict() | {"architectures": None}), encoding="utf-8")
    assert type(empty_model(str(file))).__name__ == "BertModel"


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[1]",
        "{",
        '{"model_type": "no such thing"}',
        '{"model_type": "llama", "hidden_size": -4}',
        '{"model_type": "llama", "num_attention_heads": 0}',
    ],
)
def test_what_is_no_configuration_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataNotFoundError, match=r"config\.json.* could not be read"):
        empty_model(str(file))


def test_a_path_to_nothing_is_named() -> None:
    with pytest.raises(DataNotFoundError, match=r"no model folder at \./nothing"):
        empty_model("./nothing")
    assert torch.get_default_device().type == "cpu"


@pytest.mark.parametrize("name", ["LlamaConfig", "pipeline", "NoSuchModel"])
def test_a_class_that_is_no_model_gives_the_plain_network(tmp_path: Path, name: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(BertConfig(**SMALL).to_dict() | {"architectures": [name]}), encoding="utf-8")
    assert type(empty_model(str(file))).__name__ == "BertModel"


def test_a_configuration_that_is_shipped_is_found_from_anywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    empty = empty_model("asymlora:papers/recipes/configs/tinyllama-1.1b.json")
    assert (type(empty).__name__, empty.config.hidden_size) == ("LlamaForCausalLM", 2048)


def test_a_configuration_that_is_not_shipped_is_told_the_nearest() -> None:
    with pytest.raises(DataNotFoundError, match=r"ships no .* Did you mean 'asymlora:papers/recipes/configs/llama-7b"):
        empty_model("asymlora:papers/recipes/configs/llama-7.json")
