"""Small random encoder-decoders with a real byte-level tokenizer, and rows of sources and targets for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedModel, T5Config, T5ForConditionalGeneration

from asymlora.tasks.denoiser_text import train_tokenizer

SENTENCES = (
    "The cat sat on the mat.",
    "A dog ran in the park, and then it slept.",
    "She reads a book about ships.",
    "He wrote two songs last year.",
    "Rain fell on the old town.",
)


def write_model(folder: Path, kind: str = "bart", **changes: Any) -> Path:
    """Write a random model (``bart`` or ``t5``) and its tokenizer; ``changes`` go into the configuration."""
    tokenizer = train_tokenizer(SENTENCES * 4, vocabulary=340)
    sizes = {"vocab_size": len(tokenizer), "d_model": 16, "pad_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    if kind == "bart":
        sides = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in _BART.items()}
        config = BartConfig(
            **{**sizes, **sides, "bos_token_id": 0, "decoder_start_token_id": 2, **_BART_REST, **changes}
        )
        model: PreTrainedModel = BartForConditionalGeneration(config)
    else:
        model = T5ForConditionalGeneration(T5Config(**{**sizes, **_T5, "decoder_start_token_id": 1, **changes}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_BART = {"layers": 2, "attention_heads": 2, "ffn_dim": 32}
_BART_REST = {"max_position_embeddings": 48, "forced_eos_token_id": None, "init_std": 0.3}
_T5 = {"num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 32}
QUERIES = {"bart": ("q_proj", "v_proj"), "t5": ("q", "v")}
"""Layers to adapt."""


def write_pairs(file: Path, rows: int = 40) -> Path:
    """Write rows with the columns source and target; the target is the source without its last words."""
    with file.open("w", encoding="utf-8") as opened:
        for i in range(rows):
            text = f"{SENTENCES[i % 5]} Line {i}."
            opened.write(json.dumps({"source": text, "target": text.rpartition(" Line")[0]}) + "\n")
    return file
