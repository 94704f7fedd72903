"""A small random language model that reads bytes, with or without chat template, end and padding token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>")
LETTERS = "ABCD"


def small_tokenizer(*, chat: bool = True, end: str | None = "<|end|>", padding: str | None = None) -> Any:
    """A tokenizer whose tokens are bytes, special tokens, and a blank with one of four letters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"Ġ{letter}" for letter in LETTERS)]
    model = models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[("Ġ", letter) for letter in LETTERS])
    inner = Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(SPECIAL))
    names = {key: value for key, value in (("eos_token", end), ("pad_token", padding)) if value}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, extra_special_tokens=list(SPECIAL), **names)
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    return tokenizer


def small_llama(*, tied: bool = True, positions: int = 512, seed: int = 0) -> Any:
    """A random Llama of two layers for the tokens of `small_tokenizer`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=256 + len(LETTERS) + len(SPECIAL),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


def write_small_causal(folder: Path, *, positions: int = 512, **tokenizer: Any) -> Path:
    """Write model and tokenizer as transformers saves them."""
    small_llama(positions=positions).save_pretrained(folder)
    small_tokenizer(**tokenizer).save_pretrained(folder)
    return folder


def blind_llama(weights: dict[int, float]) -> Any:
    """A model that gives every token the same logit whatever it reads: 0, or what ``weights`` say."""
    model = small_llama(tied=False)
    head = nn.Linear(16, model.config.vocab_size)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    for token, value in weights.items():
        head.bias.data[token] = value
    model.set_output_embeddings(head)
    return model
