"""Pretrained models with a classification head: read from a folder or the hub, written as plain folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.hub import cached_file

from asymlora.errors import DataNotFoundError
from asymlora.packed_base import keep_trainable
from asymlora.tasks.base_storage import loading_options
from asymlora.tasks.empty_models import fresh_heads
from asymlora.tasks.inputs import ModelRecipe
from asymlora.tasks.sources import find_model

T = TypeVar("T")


class MeanPooledClassifier(PreTrainedModel):
    """An encoder, the mean of its token features, and a linear head.

    For encoders that were trained to be read through their mean (sentence embeddings); the classes that transformers
    has for them read one token.

    Args:
        config: The encoder's configuration, with ``num_labels``.
    """

    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _tied_weights_keys: Any = None

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.encoder = _without_pooler(AutoModel.from_config, config=config)
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
        """Return logits of shape ``(batch, labels)`` and, given labels, the loss: cross-entropy, or squared error."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        logits = self.classifier(self.dropout(mean_over_tokens(hidden, attention_mask)))
        loss = None if labels is None else _loss(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)  # pyright: ignore[reportArgumentType]


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[-1] == 1:  # a regression, as transformers' own classes have it
        return nn.functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
    return nn.functional.cross_entropy(logits, labels)


def _without_pooler(build: Callable[..., T], **options: Any) -> T:
    # Without the layer that reads one token, where the class knows the option: nothing here would use it.
    try:
        return build(add_pooling_layer=False, **options)
    except TypeError:
        return build(**options)


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


_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "mpnet", "data2vec-text")


def token_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, wanted: int) -> int:
    """Return the tokens at which texts are cut: the wanted number, or fewer where model or tokenizer can take fewer."""
    positions = getattr(model.config, "max_position_embeddings", None) or -1
    if model.config.model_type in _OFFSET_POSITIONS:
        positions -= (model.config.pad_token_id or 0) + 1
    limits = [limit for limit in (wanted, positions, tokenizer.model_max_length) if limit > 0]
    return int(min(limits))


def load_classifier(
    model: ModelRecipe, *, label_names: Sequence[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pretrained encoder or decoder in float32, with a fresh head where its files hold none, and its tokenizer.

    Args:
        model: Which model.
        label_names: Names of the labels, by index.

    Returns:
        The model and its tokenizer.
    """
    network, tokenizer, _ = load_with_heads(model, label_names=label_names)
    return network, tokenizer


def load_with_heads(
    model: ModelRecipe, *, label_names: Sequence[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, tuple[str, ...]]:
    """Do what `load_classifier` does, and tell what has to be trained in full.

    Args:
        model: Which model.
        label_names: Names of the labels, by index.

    Returns:
        The model, its tokenizer, and the paths of what stands beside the base or started at random.

    Raises:
        DataNotFoundError: There is no such model, or its folder lacks a file or weights.
    """
    where, folder = find_model(model.name, revision=model.revision)
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
        _require_one_stack(config)
        loading = {
            "pretrained_model_name_or_path": where,
            "config": config,
            "output_loading_info": True,
            **loading_options(model),
            **options,
        }
        if by_mean:
            network: PreTrainedModel = MeanPooledClassifier(config)
            network.encoder, report = _without_pooler(AutoModel.from_pretrained, **loading)
        else:
            # A head for other labels is started anew.
            network, report = AutoModelForSequenceClassification.from_pretrained(
                **loading, ignore_mismatched_sizes=True
            )
        keep_trainable(network)
        _require_words(tokenizer)
        heads = _fresh_heads(network, report)
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0].rstrip(".")
        raise DataNotFoundError(
            f"The model {model.name!r} could not be loaded ({first}). Give a folder that transformers saved, with its"
            " tokenizer, or an id on the hub that this machine can reach."
        ) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise DataNotFoundError(
                f"The tokenizer of {model.name!r} has neither a padding nor an end token, so texts cannot be batched."
                " Save one with a pad_token beside the model."
            )
        tokenizer.pad_token = tokenizer.eos_token
    if network.config.pad_token_id is None:
        network.config.pad_token_id = tokenizer.pad_token_id
    network.config.name_or_path = model.name
    return network.eval(), tokenizer, heads


def _require_one_stack(config: PreTrainedConfig) -> None:
    if config.is_encoder_decoder:
        raise ValueError(f"{config.model_type} is an encoder-decoder, which is not classified with here")


def _require_words(tokenizer: PreTrainedTokenizerBase) -> None:
    # transformers builds a tokenizer of special tokens alone where a folder holds none.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError("its tokenizer files are missing")


def _fresh_heads(model: PreTrainedModel, report: Mapping[str, Any]) -> tuple[str, ...]:
    # What is not in the files is drawn anew by each process: only what is trained in full, and so saved, may be. That
    # is what stands beside the base, and the base's pooler, as encoders are often saved without one.
    heads = list(fresh_heads(model))
    mismatched = [key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]]
    missing = sorted({*report["missing_keys"], *mismatched})
    pooler = f"{model.base_model_prefix}.pooler"
    if any(key.startswith(f"{pooler}.") for key in missing):
        heads.append(pooler)
    lacking = [key for key in missing if not key.startswith(tuple(f"{head}." for head in heads))]
    if lacking:
        shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise ValueError(f"its files lack weights that would start at random: {shown}")
    return tuple(heads)


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
