from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaModel,
)

from asymlora.errors import DataError, MissingColumnError, SpecError
from asymlora.tasks import text_classification
from asymlora.tasks.classifiers import (
    MeanPooledClassifier,
)
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.tasks.splits import Part
from asymlora.tasks.text_classification import TokenizedTexts, pooled_features, predict_logits, prepare
from cases import TEXTS, WORDS_PLAIN

# --- tokenised texts -----------------------------------------------------------------------------------------------


def test_items_are_sorted_longest_first_and_keep_their_labels(load: Callable[..., Any]) -> None:
    _, tokenizer = load("mean")
    items = TokenizedTexts(tokenizer, Part(texts=TEXTS, labels=[0, 1, 2, 3, 4]), max_tokens=32)
    # Words of each text and two special tokens.
    assert items.lengths == [10, 9, 5, 4, 3]
    assert [tokenizer.decode(item["input_ids"], skip_special_tokens=True) for item in items.items] == [
        TEXTS[i] for i in (3, 1, 0, 4, 2)
    ]
    assert items.labels.tolist() == [3, 1, 0, 4, 2]
    assert len(items) == 5
    assert items[4]["labels"] == 2


def test_texts_of_one_length_keep_their_order(load: Callable[..., Any]) -> None:
    _, tokenizer = load("mean")
    items = TokenizedTexts(tokenizer, Part(texts=list(WORDS_PLAIN), labels=list(range(12))), max_tokens=32)
    assert items.labels.tolist() == list(range(12))


def test_longer_texts_are_cut_at_max_tokens(load: Callable[..., Any]) -> None:
    _, tokenizer = load("mean")
    items = TokenizedTexts(tokenizer, Part(texts=TEXTS, labels=[0] * 5), max_tokens=4)
    assert items.lengths == [4, 4, 4, 4, 3]
    assert all(item["input_ids"][-1] == tokenizer.sep_token_id for item in items.items)


# --- features and logits in batches --------------------------------------------------------------------------------


def _items(tokenizer: PreTrainedTokenizerBase, count: int) -> TokenizedTexts:
    texts = [" ".join(WORDS_PLAIN[: 1 + i % 11]) for i in range(count)]
    return TokenizedTexts(tokenizer, Part(texts=texts, labels=[i % 3 for i in range(count)]), max_tokens=32)


@pytest.mark.parametrize("pooling", ["mean", "native"])
def test_features_are_the_mean_of_the_base_in_the_order_of_the_items(
    pooling: str, load: Callable[..., Any], small_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_classification, "FEATURE_BATCH", 4)
    model, tokenizer = load(pooling)
    items, counts = _items(tokenizer, 10), []
    model.train()
    features = pooled_features(model, items, DataCollatorWithPadding(tokenizer), done=counts.append)
    encoder = AutoModel.from_pretrained(small_encoder).eval()
    with torch.no_grad():
        each = [torch.tensor([item["input_ids"]]) for item in items.items]
        by_hand = torch.cat([encoder(input_ids=ids).last_hidden_state.mean(1) for ids in each]).numpy()
    np.testing.assert_allclose(features, by_hand, rtol=1e-4, atol=1e-5)
    assert features.dtype == np.float32
    assert counts == [4, 4, 2]


@pytest.mark.parametrize("pooling", ["mean", "native"])
def test_logits_come_in_the_order_of_the_items(
    pooling: str, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_classification, "FEATURE_BATCH", 4)
    model, tokenizer = load(pooling)
    items = _items(tokenizer, 10)
    logits = predict_logits(model.train(), items, DataCollatorWithPadding(tokenizer))
    model.eval()
    with torch.no_grad():
        by_hand = torch.cat([model(**_padded(item)).logits for item in items.items]).numpy()
    np.testing.assert_allclose(logits, by_hand, rtol=1e-4, atol=1e-5)


def _padded(item: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([value]) for key, value in item.items() if key != "labels"}


# --- everything prepared -------------------------------------------------------------------------------------------


def _recipes(encoder: Path, data: Path, **fields: Any) -> tuple[ModelRecipe, DataRecipe]:
    model = ModelRecipe(name=str(encoder), pooling=fields.pop("pooling", "mean"))
    return model, DataRecipe(**{"name": str(data), "group": "film", "max_tokens": 16, **fields})


def test_prepared_run_has_model_data_and_their_counts(small_encoder: Path, small_data: Path) -> None:
    prepared = prepare(*_recipes(small_encoder, small_data), task="text_classification", head_seed=0)
    assert prepared.label_names == ("fresh", "rotten")
    assert prepared.heads == ("classifier",)
    assert prepared.task_type is None
    assert isinstance(prepared.model, MeanPooledClassifier)
    assert prepared.model.classifier.out_features == 2
    assert sum(map(len, prepared.parts.values())) + prepared.dropped == 240
    batch = prepared.collator([dict(prepared.train[i]) for i in range(3)])
    assert batch["labels"].tolist() == prepared.train.labels[:3].tolist()


def test_native_pooling_is_prepared_too(small_encoder: Path, small_data: Path) -> None:
    prepared = prepare(*_recipes(small_encoder, small_data, pooling="native"), task="text_classification", head_seed=0)
    assert prepared.task_type == "SEQ_CLS"
    assert type(prepared.model) is BertForSequenceClassification


def test_head_seed_decides_the_head_and_nothing_else(small_encoder: Path, small_data: Path) -> None:
    one, same, other = (
        prepare(*_recipes(small_encoder, small_data), task="text_classification", head_seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(one.model.classifier.weight, same.model.classifier.weight)
    assert not torch.equal(one.model.classifier.weight, other.model.classifier.weight)
    assert one.train.items == other.train.items


def test_wrong_data_are_found_before_the_model_is_looked_for(small_data: Path) -> None:
    with pytest.raises(MissingColumnError, match="No column is called 'sentence'"):
        prepare(*_recipes(Path("/nowhere/model"), small_data, text="sentence"), task="text_classification", head_seed=0)
    with pytest.raises(DataError, match="There is no model folder"):
        prepare(*_recipes(Path("/nowhere/model"), small_data), task="text_classification", head_seed=0)


@pytest.mark.parametrize(("pair", "tokens", "least"), [(None, 2, 3), ("film", 4, 5)])
def test_inputs_of_which_nothing_would_be_read_are_refused(
    pair: str | None, tokens: int, least: int, small_encoder: Path, small_data: Path
) -> None:
    recipes = _recipes(small_encoder, small_data, max_tokens=tokens, text_pair=pair)
    with pytest.raises(SpecError, match=rf"cut at {tokens} tokens nothing would be read.*of at least {least}\."):
        prepare(*recipes, task="text_classification", head_seed=0)


def test_texts_are_cut_where_the_model_has_no_more_positions(
    small_encoder: Path, write_rows: Callable[..., Path]
) -> None:
    rows = [{"text": " ".join(["film"] * (40 + i)), "label": "xy"[i % 2], "film": i} for i in range(20)]
    prepared = prepare(
        *_recipes(small_encoder, write_rows(rows), group=None, max_tokens=500), task="text_classification", head_seed=0
    )
    assert set(prepared.train.lengths) == {32}  # max_position_embeddings of the small encoder
    assert predict_logits(prepared.model, prepared.test, prepared.collator).shape[1] == 2


def test_texts_are_cut_where_the_tokenizer_says_that_positions_end(
    small_encoder: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    # RoBERTa counts positions from behind its padding index: of 32, only 30 are there for tokens.
    config = RobertaConfig(
        vocab_size=27,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        type_vocab_size=2,
        pad_token_id=1,
    )
    RobertaModel(config).save_pretrained(tmp_path / "roberta")
    tokenizer = AutoTokenizer.from_pretrained(small_encoder)
    tokenizer.model_max_length = 30
    tokenizer.save_pretrained(tmp_path / "roberta")
    rows = [{"text": " ".join(["film"] * (40 + i)), "label": "xy"[i % 2], "film": i} for i in range(20)]
    recipes = _recipes(tmp_path / "roberta", write_rows(rows), group=None, max_tokens=500)
    prepared = prepare(*recipes, task="text_classification", head_seed=0)
    assert set(prepared.train.lengths) == {30}
    assert predict_logits(prepared.model, prepared.test, prepared.collator).shape[1] == 2
