"""Small random models, rows and a tokenizer for the examples: made here, nothing is downloaded."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SENTENCES = [
    {"prompt": f"say a {colour} {thing} :", "completion": f" the {thing} is {colour}"}
    for colour in ("red", "green", "blue")
    for thing in ("door", "boat", "hat")
]
_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def classifier() -> BertForSequenceClassification:
    """Return a BERT with three labels, the same at each call."""
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**_SIZES, num_labels=3, **_NO_DROPOUT))


def language_model() -> LlamaForCausalLM:
    """Return a Llama, the same at each call."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**_SIZES, num_key_value_heads=2, pad_token_id=0, eos_token_id=1))


def batch() -> dict[str, Tensor]:
    """Return eight rows of seven tokens with labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(8) % 3
    return {"input_ids": torch.randint(2, 64, (8, 7), generator=generator), "labels": labels}


def rows() -> list[dict[str, Tensor]]:
    """Return the batch row by row, as a `Trainer` reads it."""
    columns = batch()
    return [{name: values[i] for name, values in columns.items()} for i in range(8)]


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of the words in `SENTENCES`."""
    words = sorted({word for row in SENTENCES for text in row.values() for word in text.split()})
    vocabulary = {word: i for i, word in enumerate(("[PAD]", "[EOS]", "[UNK]", *words))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", eos_token="[EOS]", unk_token="[UNK]", padding_side="right"
    )
