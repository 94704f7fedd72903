"""Texts, one or two a row, with a label or a number: data, features, head alone. Models are in `classifiers`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from asymlora.errors import SpecError
from asymlora.tasks.classifiers import (
    MeanPooledClassifier,
    load_with_heads,
    mean_over_tokens,
    save_plain,
    token_limit,
)
from asymlora.tasks.environments import divided
from asymlora.tasks.head_draws import HeadDraws
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.tasks.linear_probe import fit_number_probe, fit_probe
from asymlora.tasks.sources import load_table
from asymlora.tasks.splits import Part, Parts
from asymlora.tasks.task import Answer, Done, HeadAlone, Loaded, Prepared
from asymlora.tasks.text_scoring import ClassificationScoring, RegressionScoring, glue_metric

FEATURE_BATCH = 64
Collator = Callable[[list[dict[str, Any]]], dict[str, Tensor]]
PARTS = ("train", "validation", "test")
NUMBER = "number"
"""Name of the one output of a regression."""


class TokenizedTexts(Dataset[dict[str, Any]]):
    """Token ids and labels, longest first, so that batches in order carry little padding.

    Args:
        tokenizer: The model's.
        part: Texts, or pairs of them, and labels.
        max_tokens: Longer texts are cut; of a pair the longer one first.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, part: Part, *, max_tokens: int) -> None:
        pairs = part.columns.get("text_pair")
        texts: Any = (part.texts,) if pairs is None else (part.texts, [str(text) for text in pairs])
        whole = tokenizer(*texts, verbose=False)["input_ids"]
        self.cut = sum(len(ids) > max_tokens for ids in whole)  # pyright: ignore[reportArgumentType]
        encoded = tokenizer(*texts, truncation=True, max_length=max_tokens)
        ids: list[list[int]] = encoded["input_ids"]  # pyright: ignore[reportAssignmentType]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        self.items: list[dict[str, Any]] = [
            {**{key: encoded[key][i] for key in encoded}, "labels": part.labels[i]} for i in order
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]

    def fingerprint(self) -> Iterator[bytes]:
        """Yield token ids and label of each row."""
        for item in self.items:
            yield json.dumps([item["input_ids"], item["labels"]]).encode()

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text."""
        return [len(item["input_ids"]) for item in self.items]

    @property
    def labels(self) -> np.ndarray:
        """Label of each text: an index, or a number."""
        return np.array([item["labels"] for item in self.items])


def prepare(model: ModelRecipe, data: DataRecipe, *, task: str, head_seed: int) -> Prepared:
    """Load data and model. The data come first: they are quicker to be wrong.

    Args:
        model: Which model.
        data: Which texts, and how they are divided.
        task: ``text_classification`` or ``text_regression``.
        head_seed: Seed of the fresh head.

    Returns:
        Model, tokenizer and data.
    """
    numbers = task == "text_regression"
    table = load_table(data, roles=("text", "text_pair", "label", "environment"))
    parts, elsewhere, shifts = divided(table, data, labels="numbers" if numbers else "names")
    names = (NUMBER,) if numbers else parts.label_names
    metric = data.metric or glue_metric(data.name, data.subset) or ("pearson" if numbers else "accuracy")
    scoring = RegressionScoring(metric) if numbers else ClassificationScoring(len(names), metric)
    torch.manual_seed(head_seed)
    network, tokenizer, heads = load_with_heads(model, label_names=names)
    limit = token_limit(network, tokenizer, wanted=data.max_tokens)
    _require_room(tokenizer, limit, pairs="text_pair" in table.columns)
    rows = {**{p: getattr(parts, p) for p in PARTS}, **elsewhere}
    sets = {name: TokenizedTexts(tokenizer, part, max_tokens=limit) for name, part in rows.items()}
    prepared = Prepared(
        model=network,
        processor=tokenizer,
        collator=DataCollatorWithPadding(tokenizer),
        train=sets["train"],
        validation=sets["validation"],
        test=sets["test"],
        environments={name: sets[name] for name in elsewhere},
        scoring=scoring,
        heads=heads,
        draw_head=HeadDraws(network, heads, seed=head_seed, reload=partial(_built_again, network, model, names)),
        label_names=parts.label_names,
        # PEFT's class for the task exists only for the classes that transformers has.
        task_type=None if isinstance(network, MeanPooledClassifier) else "SEQ_CLS",
        notes=(*shifts, *parts.notes(), *_cut_note(sets, limit), *_label_note(parts)),
        dropped=parts.dropped,
    )
    return _with_head_alone(prepared)


def _built_again(network: PreTrainedModel, model: ModelRecipe, names: tuple[str, ...]) -> PreTrainedModel:
    if isinstance(network, MeanPooledClassifier):
        return MeanPooledClassifier(network.config)  # its head is drawn here, before a file is read
    return load_with_heads(model, label_names=names)[0]


def _require_room(tokenizer: PreTrainedTokenizerBase, limit: int, *, pairs: bool) -> None:
    added = tokenizer.num_special_tokens_to_add(pair=pairs)
    least = added + (2 if pairs else 1)
    if limit < least:
        raise SpecError(
            f"Of inputs cut at {limit} tokens nothing would be read: the tokenizer itself adds {added}. Give"
            f" data.max_tokens of at least {least}."
        )


def _cut_note(sets: dict[str, TokenizedTexts], limit: int) -> Iterator[str]:
    cut, total = sum(items.cut for items in sets.values()), sum(map(len, sets.values()))
    if cut:
        yield f"{cut:,} of {total:,} inputs are longer than {limit} tokens and are cut (data.max_tokens)."


def _label_note(parts: Parts) -> Iterator[str]:
    if parts.label_names:
        more = ", ..." if len(parts.label_names) > 8 else ""
        yield f"Labels: {', '.join(parts.label_names[:8])}{more}"


def _with_head_alone(prepared: Prepared) -> Prepared:
    return replace(prepared, fit_head=partial(fit_head, prepared))


def fit_head(prepared: Prepared, done: Done) -> HeadAlone:
    """Fit a linear head to convergence on the mean token features of the frozen model.

    Args:
        prepared: The task; its model carries no adapter, or one that still adds nothing.
        done: Called after each batch with its number of texts.

    Returns:
        The head; its weights can be copied where the model's own head is one linear layer on the same features.
    """
    model, scoring = prepared.model, prepared.scoring
    sets: dict[str, Any] = dict(prepared.parts)
    features = {name: pooled_features(model, items, prepared.collator, done=done) for name, items in sets.items()}
    train, validation = ((features[part], sets[part].labels) for part in ("train", "validation"))

    def metric(logits: np.ndarray) -> float:
        value = scoring.score(scoring.evidence(logits, sets["validation"]))[scoring.metric]
        return value if scoring.greater_is_better else -value

    if isinstance(scoring, RegressionScoring):
        probe = fit_number_probe(train, validation, metric=metric)
    else:
        probe = fit_probe(train, validation, labels=len(prepared.label_names), metric=metric)
    copies = isinstance(model, MeanPooledClassifier)
    return HeadAlone(
        evidence=scoring.evidence(probe.logits(features["test"]), sets["test"]),
        validation=probe.validation_score if scoring.greater_is_better else -probe.validation_score,
        copy_to_model=partial(probe.copy_to, model.get_submodule(prepared.heads[0])) if copies else None,
    )


def load(model: ModelRecipe, data: DataRecipe, *, task: str, label_names: tuple[str, ...]) -> Loaded:
    """Load a model to be asked.

    Args:
        model: Which model.
        data: How texts are read.
        task: ``text_classification`` or ``text_regression``.
        label_names: Names of the labels, by index.

    Returns:
        The model; its head is fresh.
    """
    names = (NUMBER,) if task == "text_regression" else label_names
    network, tokenizer, heads = load_with_heads(model, label_names=names)
    limit = token_limit(network, tokenizer, wanted=data.max_tokens)
    return replace(loaded(network, tokenizer, names, limit), heads=heads)


def loaded(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, label_names: tuple[str, ...], max_tokens: int
) -> Loaded:
    """Make a classifier or regression ready to be asked.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        label_names: Names of the labels by index; one name: a regression.
        max_tokens: Longer texts are cut.

    Returns:
        What answers texts.
    """

    def answer(texts: list[str]) -> list[Answer]:
        return [_answer(model, tokenizer, text, label_names, max_tokens) for text in texts]

    return Loaded(
        model=model,
        processor=tokenizer,
        answer=answer,
        save=lambda folder: save_plain(model, tokenizer, folder, max_tokens=max_tokens),
    )


def _answer(model: Any, tokenizer: Any, text: str, label_names: tuple[str, ...], max_tokens: int) -> Answer:
    # A pair is given as one text with a tab in it.
    first, tab, second = text.partition("\t")
    part = Part(texts=[first if tab else text], labels=[0], columns={"text_pair": [second]} if tab else {})
    items = TokenizedTexts(tokenizer, part, max_tokens=max_tokens)
    logits = predict_logits(model, items, DataCollatorWithPadding(tokenizer))[0].astype(np.float64)
    if len(label_names) == 1:
        return Answer(given=text, answer=f"{logits[0]:.4g}")
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = int(probabilities.argmax())
    return Answer(given=text, answer=label_names[best], probability=float(probabilities[best]))


def pooled_features(
    model: PreTrainedModel, items: TokenizedTexts, collator: Collator, *, done: Done | None = None
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


def predict_logits(model: PreTrainedModel, items: TokenizedTexts, collator: Collator) -> np.ndarray:
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
    collator: Collator,
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
