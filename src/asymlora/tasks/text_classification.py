"""Text classification: one text, one label. Its data, its model and its metric."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.hub import cached_file

from asymlora.errors import DataNotFoundError
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.tasks.sources import find_model, load_table
from asymlora.tasks.splits import Part, divide

FEATURE_BATCH = 64
Done = Callable[[int], None]
PARTS = ("train", "validation", "test")


class MeanPooledClassifier(PreTrainedModel):
    """An encoder, the mean of its token features, and a linear head.

    For encoders that were trained to be read through their mean (sentence embeddings); the classes that transformers
    has for them read one token.

    Args:
        config: The encoder's configuration, with ``num_labels``.
    """

    base_model_prefix = "encoder"
    _tied_weights_keys: Any = None

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.encoder = _encoder(config)
        self.dropout = nn.Dropout(getattr(config, "hidden_dropout_prob", 0.0) or 0.0)
        self.classifier = nn.Linear(config.hidden_size, len(config.id2label or {}))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Return logits of shape ``(batch, labels)`` and, given labels, the mean cross-entropy."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        logits = self.classifier(self.dropout(mean_over_tokens(hidden, attention_mask)))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)  # pyright: ignore[reportArgumentType]


def _encoder(config: PreTrainedConfig, where: str | None = None, **options: Any) -> PreTrainedModel:
    # Without the layer that reads one token, where the class knows the option: nothing here would use it.
    for without in ({"add_pooling_layer": False}, {}):
        try:
            if where is None:
                return AutoModel.from_config(config, **without)
            return AutoModel.from_pretrained(where, config=config, dtype=torch.float32, **without, **options)
        except TypeError:
            if not without:
                raise
    raise AssertionError


def mean_over_tokens(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the mean of the token features that the mask keeps.

    Args:
        hidden: Shape ``(batch, tokens, width)``.
        attention_mask: Shape ``(batch, tokens)``, 1 for a token, 0 for padding.

    Returns:
        Shape ``(batch, width)``.
    """
    weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


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
        head: Path of the head, trained beside the adapter.
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
    head: str
    pooled_by_mean: bool
    rows: dict[str, int]


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
    network, tokenizer = load_classifier(model, label_names=parts.label_names)
    limit = token_limit(network, tokenizer, wanted=data.max_tokens)
    sets = {p: TokenizedTexts(tokenizer, getattr(parts, p), max_tokens=limit) for p in PARTS}
    return Prepared(
        model=network,
        tokenizer=tokenizer,
        collator=DataCollatorWithPadding(tokenizer),
        **sets,
        label_names=parts.label_names,
        head=head_of(network),
        pooled_by_mean=isinstance(network, MeanPooledClassifier),
        rows={**{part: len(items) for part, items in sets.items()}, "dropped": parts.dropped},
    )


def token_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, wanted: int) -> int:
    """Return the tokens at which texts are cut: the wanted number, or fewer where model or tokenizer can take fewer."""
    # Models of RoBERTa's kind count positions from behind the padding index; their tokenizers know the real limit.
    return min(wanted, getattr(model.config, "max_position_embeddings", wanted), tokenizer.model_max_length)


def load_classifier(
    model: ModelRecipe, *, label_names: Sequence[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pretrained encoder or decoder with a fresh head in float32, and its tokenizer.

    Args:
        model: Which model.
        label_names: Names of the labels, by index.

    Returns:
        The model and its tokenizer.

    Raises:
        DataNotFoundError: There is no such model, or its folder lacks a file.
    """
    where, folder = find_model(model.name)
    labels = {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {label: i for i, label in enumerate(label_names)},
    }
    by_mean = model.pooling == "mean" or (
        model.pooling == "auto" and is_pooled_by_mean(folder or _hub_folder(where, model.revision))
    )
    options: dict[str, Any] = {"local_files_only": True} if folder else {"revision": model.revision or "main"}
    try:
        config = AutoConfig.from_pretrained(where, **labels, **options)
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        if by_mean:
            network: PreTrainedModel = MeanPooledClassifier(config)
            network.encoder = _encoder(config, where, **options)
        else:
            network = AutoModelForSequenceClassification.from_pretrained(
                where, config=config, dtype=torch.float32, **options
            )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise DataNotFoundError(
            f"The model {model.name!r} could not be loaded ({first}). Give a folder that transformers saved, with its"
            " tokenizer, or an id on the hub that this machine can reach."
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if network.config.pad_token_id is None:
        network.config.pad_token_id = tokenizer.pad_token_id
    network.config.name_or_path = model.name
    return network.eval(), tokenizer


POOLING, HEAD = "1_Pooling", "2_Dense"


def save_plain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, max_tokens: int) -> None:
    """Write a classifier without an adapter as a folder that loads without asymlora.

    A mean-pooled one is written as its encoder, in the class that transformers has for it, with pooling and head beside
    it in the layout of sentence-transformers: a whole `MeanPooledClassifier` under the encoder's ``model_type`` would
    be read by ``AutoModel`` with random weights.

    Args:
        model: The classifier.
        tokenizer: Its tokenizer.
        folder: An existing, empty folder.
        max_tokens: Longer texts are cut; kept with the tokenizer.
    """
    tokenizer.model_max_length = max_tokens
    tokenizer.save_pretrained(folder)
    if not isinstance(model, MeanPooledClassifier):
        model.save_pretrained(folder)
        return
    model.encoder.config.update({key: getattr(model.config, key) for key in ("id2label", "label2id")})
    model.encoder.save_pretrained(folder)
    width, labels = model.classifier.in_features, model.classifier.out_features
    steps = [("", "Transformer"), (POOLING, "Pooling"), (HEAD, "Dense")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(steps)
    ]
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    head = {
        "in_features": width,
        "out_features": labels,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    (folder / "modules.json").write_text(json.dumps(modules, indent=2), encoding="utf-8")
    for name, settings in ((POOLING, pooling), (HEAD, head)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    weights = {f"linear.{name}": value.contiguous() for name, value in model.classifier.state_dict().items()}
    save_file(weights, folder / HEAD / "model.safetensors")


def load_plain(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, tuple[str, ...], int]:
    """Load what `save_plain` wrote.

    Args:
        folder: The folder.

    Returns:
        The classifier, its tokenizer, its labels by index, and the length at which texts are cut, in tokens.

    Raises:
        DataNotFoundError: The folder holds no model, or one without a head.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError):
        raise DataNotFoundError(f"There is no model in {folder}. Give a run, or what merge wrote.") from None
    by_mean = is_pooled_by_mean(folder)
    classes: Sequence[str] = config.architectures or ()
    if not (folder / HEAD / "model.safetensors").is_file() if by_mean else not any(map(_has_a_head, classes)):
        raise DataNotFoundError(f"The model in {folder} has no head. Give a run, or what merge wrote.")
    labels = tuple(dict(sorted((config.id2label or {}).items())).values())
    model, tokenizer = load_classifier(ModelRecipe(name=str(folder)), label_names=labels)
    if isinstance(model, MeanPooledClassifier):
        weights = load_file(folder / HEAD / "model.safetensors")
        model.classifier.load_state_dict({key.removeprefix("linear."): value for key, value in weights.items()})
    return model, tokenizer, labels, tokenizer.model_max_length


def _has_a_head(class_name: str) -> bool:
    return class_name.endswith("ForSequenceClassification")


def is_pooled_by_mean(folder: Path) -> bool:
    """Whether a folder in the layout of sentence-transformers says that its model is read through the mean."""
    try:
        settings = json.loads((folder / POOLING / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(settings.get("pooling_mode_mean_tokens"))


def _hub_folder(name: str, revision: str | None) -> Path:
    # Only the pooling file is fetched; a hub that has none, or is out of reach, gives a folder that is not there.
    found = cached_file(
        name,
        f"{POOLING}/config.json",
        revision=revision or "main",
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found).parents[1] if found else Path("no such folder")


def head_of(model: PreTrainedModel) -> str:
    """Return the path of the classification head: what the model has beside its base that holds parameters."""
    base = model.base_model
    heads = [n for n, m in model.named_children() if m is not base and any(True for _ in m.parameters())]
    assert len(heads) == 1, heads
    return heads[0]


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
