"""Text classification: one text, one label. Its data, its features and its metric; its models are in `classifiers`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from asymlora.tasks.classifiers import MeanPooledClassifier, load_with_heads, mean_over_tokens, token_limit
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.tasks.sources import load_table
from asymlora.tasks.splits import Part, divide

FEATURE_BATCH = 64
Done = Callable[[int], None]
PARTS = ("train", "validation", "test")


class TokenizedTexts(Dataset[dict[str, Any]]):
    """Token ids and labels, longest first, so that batches in order carry little padding.

    Args:
        tokenizer: The model's.
        part: Texts and labels.
        max_tokens: Longer texts are cut.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, part: Part, *, max_tokens: int) -> None:
        encoded = tokenizer(part.texts, truncation=True, max_length=max_tokens)
        ids: list[list[int]] = encoded["input_ids"]  # pyright: ignore[reportAssignmentType]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        self.items: list[dict[str, Any]] = [
            {**{key: encoded[key][i] for key in encoded}, "labels": part.labels[i]} for i in order
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text."""
        return [len(item["input_ids"]) for item in self.items]

    @property
    def labels(self) -> np.ndarray:
        """Label of each text, as an index."""
        return np.array([item["labels"] for item in self.items])


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that a run needs of its task.

    Attributes:
        model: The pretrained model with a fresh head, no adapter.
        tokenizer: Its tokenizer.
        collator: Turns items into a padded batch.
        train: Training items.
        validation: Items on which choices are made.
        test: Items on which closing figures are quoted.
        label_names: Names of the labels, by index.
        heads: Paths of what is trained in full beside the adapter.
        pooled_by_mean: Whether the head reads the mean of the token features.
        rows: Rows by part, and the rows dropped because their text stands in another part.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    collator: DataCollatorWithPadding
    train: TokenizedTexts
    validation: TokenizedTexts
    test: TokenizedTexts
    label_names: tuple[str, ...]
    heads: tuple[str, ...]
    pooled_by_mean: bool
    rows: dict[str, int]

    def digest(self) -> str:
        """Return the SHA-256 of all rows as the model sees them, hexadecimal."""
        parts = [items.items for items in (self.train, self.validation, self.test)]
        rows = [[[item["input_ids"], item["labels"]] for item in part] for part in parts]
        return hashlib.sha256(json.dumps([rows, self.label_names]).encode()).hexdigest()


def prepare(model: ModelRecipe, data: DataRecipe, *, head_seed: int) -> Prepared:
    """Load data and model. The data come first: they are quicker to be wrong.

    Args:
        model: Which model.
        data: Which texts, and how they are divided.
        head_seed: Seed of the fresh head.

    Returns:
        Model, tokenizer and data.
    """
    table = load_table(data)
    fractions = {"validation_fraction": data.validation_fraction, "test_fraction": data.test_fraction}
    parts = divide(table, seed=data.seed, **fractions)
    torch.manual_seed(head_seed)
    network, tokenizer, heads = load_with_heads(model, label_names=parts.label_names)
    limit = token_limit(network, tokenizer, wanted=data.max_tokens)
    sets = {p: TokenizedTexts(tokenizer, getattr(parts, p), max_tokens=limit) for p in PARTS}
    return Prepared(
        model=network,
        tokenizer=tokenizer,
        collator=DataCollatorWithPadding(tokenizer),
        **sets,
        label_names=parts.label_names,
        heads=heads,
        pooled_by_mean=isinstance(network, MeanPooledClassifier),
        rows={**{part: len(items) for part, items in sets.items()}, "dropped": parts.dropped},
    )


# These count positions from behind the padding index.
def pooled_features(
    model: PreTrainedModel, items: TokenizedTexts, collator: DataCollatorWithPadding, *, done: Done | None = None
) -> np.ndarray:
    """Return the mean token features of the base model, in the order of the items.

    Args:
        model: A classifier.
        items: Texts.
        collator: Pads a batch.
        done: Called after each batch with its number of texts.

    Returns:
        Shape ``(texts, width)``, float32.
    """

    def mean_features(batch: dict[str, Tensor]) -> Tensor:
        return mean_over_tokens(model.base_model(**batch).last_hidden_state, batch["attention_mask"])

    return _over_batches(model, items, collator, mean_features, done)


def predict_logits(model: PreTrainedModel, items: TokenizedTexts, collator: DataCollatorWithPadding) -> np.ndarray:
    """Return the model's logits, in the order of the items.

    Args:
        model: A classifier.
        items: Texts.
        collator: Pads a batch.

    Returns:
        Shape ``(texts, labels)``, float32.
    """
    return _over_batches(model, items, collator, lambda batch: model(**batch).logits, None)


def _over_batches(
    model: PreTrainedModel,
    items: TokenizedTexts,
    collator: DataCollatorWithPadding,
    output: Callable[[dict[str, Tensor]], Tensor],
    done: Done | None,
) -> np.ndarray:
    model.eval()
    rows: list[Tensor] = []
    for start in range(0, len(items), FEATURE_BATCH):
        chunk = [dict(items[i]) for i in range(start, min(start + FEATURE_BATCH, len(items)))]
        batch = {key: value.to(model.device) for key, value in collator(chunk).items() if key != "labels"}
        with torch.inference_mode():
            rows.append(output(batch).float().cpu())
        if done is not None:
            done(len(chunk))
    return torch.cat(rows).numpy()


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of texts whose largest logit is at their label."""
    return float((logits.argmax(-1) == labels).mean())
