"""Sequence to sequence: a source text, a target text. Its data, its models, beam search and ROUGE."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from asymlora.errors import DataNotFoundError
from asymlora.packed_base import keep_trainable
from asymlora.tasks.base_storage import loading_options
from asymlora.tasks.beam_search import generation_for, written_ids
from asymlora.tasks.causal_models import evaluating, unwrapped
from asymlora.tasks.classifiers import token_limit
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.tasks.sources import find_model, load_table
from asymlora.tasks.splits import Part, divide
from asymlora.tasks.task import Answer, Batch, Items, Loaded, Prepared
from asymlora.tasks.text_scoring import known_metric

IGNORED = -100
"""The label of padding."""
ANSWER_BATCH = 8
COPIED_ROWS = 500
"""At most so many test rows are scored for the baseline that copies the source."""
_PARTS = ("train", "validation", "test")
_ROUGE = ("rouge1", "rouge2", "rougeL")


def prepare(model: ModelRecipe, data: DataRecipe, *, task: str, head_seed: int) -> Prepared:
    """Load rows and model. The rows come first: they are quicker to be wrong.

    Args:
        model: Which model.
        data: Which rows: a source (``text``) and a ``target`` each.
        task: ``seq2seq``.
        head_seed: Not used: there is no fresh head.

    Returns:
        Model, tokenizer, rows and scoring.
    """
    metric = known_metric(data.metric or "rougeL", RougeScoring.METRICS)
    parts = divide(
        load_table(data, roles=("text", "target")),
        validation_fraction=data.validation_fraction,
        test_fraction=data.test_fraction,
        seed=data.seed,
        labels="none",
        max_rows=data.max_rows,
        max_scored_rows=data.max_scored_rows,
    )
    network, tokenizer = load_seq2seq(model)
    limit, target_limit = _limits(network, tokenizer, data)
    generation = generation_for(network, beams=data.beams, max_target_tokens=target_limit)
    made = {
        part: TextPairs(tokenizer, getattr(parts, part), max_tokens=limit, max_target_tokens=target_limit)
        for part in _PARTS
    }
    return Prepared(
        model=network,
        processor=tokenizer,
        collator=PairCollator(network, tokenizer),
        train=made["train"],
        validation=made["validation"],
        test=made["test"],
        scoring=RougeScoring(tokenizer, generation, metric=metric),
        task_type="SEQ_2_SEQ_LM",
        loss=mean_target_loss,
        notes=(*parts.notes(), *_notes(made, limit, target_limit, data)),
        dropped=parts.dropped,
    )


def load(model: ModelRecipe, data: DataRecipe, *, task: str, label_names: tuple[str, ...]) -> Loaded:
    """Load a model that writes a target for each source, by beam search.

    Args:
        model: Which model.
        data: ``max_tokens`` of a source, ``max_target_tokens`` of what is written, ``beams``.
        task: ``seq2seq``.
        label_names: Not used: there are no labels.

    Returns:
        The model; saved, it keeps the settings of the search.
    """
    network, tokenizer = load_seq2seq(model)
    limit, target_limit = _limits(network, tokenizer, data)
    generation = generation_for(network, beams=data.beams, max_target_tokens=target_limit)

    def answer(texts: list[str]) -> list[Answer]:
        written: list[str] = []
        with evaluating(network):
            for start in range(0, len(texts), ANSWER_BATCH):
                batch: Any = tokenizer(
                    texts[start : start + ANSWER_BATCH],
                    truncation=True,
                    max_length=limit,
                    padding=True,
                    return_tensors="pt",
                )
                ids = written_ids(network, dict(batch.to(network.device)), generation)
                written += tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [Answer(given=text, answer=more.strip()) for text, more in zip(texts, written, strict=True)]

    def save(folder: Any) -> None:
        network.generation_config = copy.deepcopy(generation)
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return Loaded(model=network, processor=tokenizer, answer=answer, save=save)


# --- the model -----------------------------------------------------------------------------------------------------


def load_seq2seq(model: ModelRecipe) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load an encoder-decoder as ``model.base`` stores it, and its tokenizer.

    Args:
        model: Which model.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        DataNotFoundError: There is no such model, it is of another kind, or its folder lacks a file or weights.
    """
    where, folder = find_model(model.name, revision=model.revision)
    options: dict[str, Any] = {"local_files_only": True} if folder else {"revision": model.revision or "main"}
    storage = loading_options(model)
    try:
        network, tokenizer = _read(where, options, storage)
        keep_trainable(network)
    except (OSError, ValueError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataNotFoundError(
            f"The sequence-to-sequence model {model.name!r} could not be loaded ({first}). Give a folder that"
            " transformers saved of a BART, a T5 or their like, with its tokenizer, or an id on the hub that this"
            " machine can reach."
        ) from error
    network.config.name_or_path = model.name
    return network.eval(), tokenizer


def _read(where: str, options: dict[str, Any], storage: dict[str, Any]) -> tuple[Any, Any]:
    config = AutoConfig.from_pretrained(where, **options)
    if not config.is_encoder_decoder:
        raise ValueError(f"{config.model_type} is no encoder-decoder")
    tokenizer = AutoTokenizer.from_pretrained(where, **options)
    loaded: Any = AutoModelForSeq2SeqLM.from_pretrained(
        where, config=config, output_loading_info=True, **storage, **options
    )
    network, report = loaded
    _require_whole(network, tokenizer, report)
    if getattr(network.config, "decoder_start_token_id", None) is None:
        # By the configuration's the labels are shifted, by the other is written.
        network.config.decoder_start_token_id = network.generation_config.decoder_start_token_id
    return network, tokenizer


def _require_whole(network: Any, tokenizer: Any, report: dict[str, Any]) -> None:
    lacking = sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])})
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise ValueError(f"its files lack weights that would start at random: {', '.join(lacking[:3])}{more}")
    # transformers builds a tokenizer of special tokens alone where a folder holds none.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError("its tokenizer files are missing")
    if tokenizer.pad_token_id is None or network.config.pad_token_id is None:
        raise ValueError("its tokenizer or its config has no padding token, so texts cannot be batched")
    rows = network.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(f"its tokenizer knows {len(tokenizer)} tokens and its embedding {rows}")


def _limits(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: DataRecipe) -> tuple[int, int]:
    # The decoder also sees its start token.
    source = token_limit(network, tokenizer, wanted=data.max_tokens)
    return source, token_limit(network, tokenizer, wanted=data.max_target_tokens + 1) - 1


# --- rows ----------------------------------------------------------------------------------------------------------


class TextPairs(Dataset[dict[str, Any]]):
    """Sources and targets as token ids, longest source first, so that batches in order carry little padding.

    Args:
        tokenizer: The model's.
        part: Sources in ``texts``, and a column ``target``.
        max_tokens: Longer sources are cut.
        max_target_tokens: Longer targets are cut, for the loss; ROUGE compares with the whole target.

    Attributes:
        sources: The source texts, in the order of the rows.
        targets: The target texts.
        cut: Sources and targets that were cut.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, part: Part, *, max_tokens: int, max_target_tokens: int
    ) -> None:
        targets = [str(text) for text in part.columns["target"]]
        ids, cut_sources = _encoded(partial(tokenizer, part.texts), max_tokens)
        labels, cut_targets = _encoded(partial(tokenizer, text_target=targets), max_target_tokens)
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        self.sources = [part.texts[i] for i in order]
        self.targets = [targets[i] for i in order]
        self.cut = (cut_sources, cut_targets)
        self._ids = [np.array(ids[i], dtype=np.int32) for i in order]
        self._labels = [np.array(labels[i], dtype=np.int32) for i in order]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids, labels = self._ids[index].tolist(), self._labels[index].tolist()
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, source and target together."""
        return [len(ids) + len(labels) for ids, labels in zip(self._ids, self._labels, strict=True)]

    def fingerprint(self) -> Iterator[bytes]:
        """Yield token ids of sources and targets, and the target texts that ROUGE compares with."""
        for ids, labels, target in zip(self._ids, self._labels, self.targets, strict=True):
            yield ids.astype("<i4").tobytes()
            yield labels.astype("<i4").tobytes()
            yield target.encode()


def _encoded(encode: Callable[..., Any], limit: int) -> tuple[list[list[int]], int]:
    # Token ids, and how many rows were longer than the limit. Not verbose: that some are is known.
    ids = encode(verbose=False)["input_ids"]
    longer = sum(len(row) > limit for row in ids)
    return (encode(truncation=True, max_length=limit)["input_ids"] if longer else ids), longer


class PairCollator:
    """Pads sources and labels, and gives the decoder the labels shifted by one, as the model itself would.

    The Trainer takes the labels out before it calls the model, so the model cannot shift them then.

    Args:
        network: The model: it knows how its labels are shifted.
        tokenizer: Its tokenizer.
    """

    def __init__(self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._collate = DataCollatorForSeq2Seq(tokenizer, model=network, label_pad_token_id=IGNORED)

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Return ``input_ids``, ``attention_mask``, ``labels`` and ``decoder_input_ids``, each ``(rows, tokens)``."""
        return dict(self._collate(rows))


def _notes(made: dict[str, TextPairs], limit: int, target_limit: int, data: DataRecipe) -> Iterator[str]:
    total = sum(map(len, made.values()))
    for what, index, most in (("sources", 0, limit), ("targets", 1, target_limit)):
        if count := sum(pairs.cut[index] for pairs in made.values()):
            yield f"{count:,} of {total:,} {what} are longer than {most} tokens and lose their end."
    if target_limit < data.max_target_tokens:
        yield f"The model takes at most {target_limit} tokens of a target; {data.max_target_tokens} were asked for."
    test = made["test"]
    if unseen := sum(not re.search("[a-z0-9]", target.lower()) for target in test.targets):
        yield f"{unseen:,} of {len(test):,} test targets hold no Latin letter or digit; ROUGE sees nothing else."
    rows = range(0, len(test), -(-len(test) // COPIED_ROWS))
    copied = np.mean([rouge(test.sources[i], test.targets[i]) for i in rows], axis=0)
    figures = ", ".join(f"{name} {value:.3f}" for name, value in zip(_ROUGE, copied, strict=True))
    yield f"Copying the source as the answer gives {figures} on {len(rows):,} test rows."


# --- loss and scores -----------------------------------------------------------------------------------------------


def mean_target_loss(outputs: Any, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
    """Return the mean negative log-likelihood of the target tokens.

    Args:
        outputs: What the model gave for a batch: ``logits``, shape ``(rows, tokens, vocabulary)``.
        labels: Shape ``(rows, tokens)``; `IGNORED` where there is no target.
        num_items: Targets in all batches of the step; None: those of this batch.

    Returns:
        A scalar, natural logarithms, at least in float32.
    """
    count = (labels != IGNORED).sum().clamp(min=1) if num_items is None else num_items
    total = _losses(outputs["logits"], labels).sum()
    return total / (count.to(total.device) if isinstance(count, Tensor) else count)


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(exact.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")


_SCORER = RougeScorer(_ROUGE, use_stemmer=True)


def rouge(written: str, wanted: str) -> list[float]:
    """Return the F-measures of ROUGE-1, -2 and -L, by rouge-score.

    Words are runs of Latin letters and digits in lower case, reduced to their stems (Porter's); -L takes the text as
    one sentence.

    Args:
        written: The model's text.
        wanted: The reference.

    Returns:
        Three numbers in [0, 1].

    Example:
        >>> rouge("the cats sat", "the cat sat down")
        [0.8571428571428571, 0.8, 0.8571428571428571]
    """
    found = _SCORER.score(wanted, written)
    return [float(found[name].fmeasure) for name in _ROUGE]


class RougeScoring:
    """ROUGE of what beam search writes, and the loss of the target.

    Args:
        tokenizer: The model's.
        generation: Settings of the search.
        metric: By which choices are made: ``rougeL``, ``rouge1``, ``rouge2`` or ``loss``.
    """

    METRICS = ("rougeL", "rouge1", "rouge2", "loss")

    def __init__(self, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig, *, metric: str) -> None:
        self.tokenizer = tokenizer
        self.generation = generation
        self.metric = known_metric(metric, self.METRICS)
        self.greater_is_better = metric != "loss"

    def keep(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return summed loss, number of targets and the token ids written, shape ``(rows, 2 + max_new_tokens)``.

        All in float32, which holds every whole number up to 2**24 exactly.
        """
        labels = batch["labels"]
        losses = _losses(model(**{k: v for k, v in batch.items() if k != "labels"}).logits, labels)
        written = written_ids(unwrapped(model), batch, self.generation)
        told = torch.stack([losses.sum(1), (labels != IGNORED).sum(1).to(losses.dtype)], dim=1)
        return torch.cat([told.float(), written.float()], dim=1)

    def evidence(self, kept: np.ndarray, items: Items) -> np.ndarray:
        """Return ROUGE-1, -2 and -L, summed loss and number of targets, shape ``(rows, 5)``."""
        assert isinstance(items, TextPairs)
        texts = self.tokenizer.batch_decode(kept[:, 2:].astype(np.int64), skip_special_tokens=True)
        scores = [rouge(text, wanted) for text, wanted in zip(texts, items.targets, strict=True)]
        return np.column_stack([np.array(scores), kept[:, :2]]).astype(np.float64)

    def score(self, evidence: np.ndarray) -> dict[str, float]:
        """Return the mean of each ROUGE, and ``loss`` in natural logarithms a target token."""
        means: Sequence[float] = evidence[:, :3].mean(0).tolist()
        total, count = evidence[:, 3:].sum(0)
        return {**dict(zip(_ROUGE, means, strict=True)), "loss": float(total / max(count, 1.0))}
