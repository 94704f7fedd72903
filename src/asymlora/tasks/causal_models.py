"""Causal language models: loaded with their tokenizer, given batches of token rows, asked for greedy continuations."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from asymlora.errors import DataNotFoundError, SpecError
from asymlora.packed_base import keep_trainable
from asymlora.tasks.base_storage import loading_options
from asymlora.tasks.classifiers import token_limit
from asymlora.tasks.inputs import ModelRecipe
from asymlora.tasks.sources import find_model
from asymlora.tasks.token_loss import IGNORED, TARGETS, install_token_loss, next_tokens

GENERATION_BATCH = 8
_UNBOUNDED = 2**31
_ENCODERS = ("bert", "roberta", "electra", "camembert", "xlm-roberta", "xlm-roberta-xl", "rembert", "megatron-bert")
"""Have a class for continuing texts, but are pretrained to see both sides."""


def load_causal(model: ModelRecipe) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model as ``model.base`` stores it, ready for `token_loss`, and its tokenizer.

    Args:
        model: Which model.

    Returns:
        The model in evaluation mode, and its tokenizer, which has a padding token.

    Raises:
        DataNotFoundError: There is no such model, it is of another kind, or its folder lacks a file or weights.
    """
    where, folder = find_model(model.name, revision=model.revision)
    options: dict[str, Any] = {"local_files_only": True} if folder else {"revision": model.revision or "main"}
    storage = loading_options(model)
    try:
        config = AutoConfig.from_pretrained(where, **options)
        _require_causal(config)
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        _require_words(tokenizer)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where, config=config, output_loading_info=True, **storage, **options
        )
        network, report = loaded
        keep_trainable(network)
        _require_weights(report)
    except (OSError, ValueError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataNotFoundError(
            f"The language model {model.name!r} could not be loaded ({first}). Give a folder that transformers saved,"
            " with its tokenizer, or an id on the hub that this machine can reach."
        ) from error
    _require_padding(tokenizer, model.name)
    if network.config.pad_token_id is None:
        network.config.pad_token_id = tokenizer.pad_token_id
    network.config.name_or_path = model.name
    install_token_loss(network.eval())
    return network, tokenizer


def _require_causal(config: Any) -> None:
    kind = config.model_type
    if config.is_encoder_decoder:
        raise ValueError(f"{kind} is an encoder-decoder; its task is seq2seq")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (kind in _ENCODERS and not config.is_decoder):
        raise ValueError(f"{kind} does not continue texts; its task is text_classification")


def _require_words(tokenizer: PreTrainedTokenizerBase) -> None:
    # transformers builds a tokenizer of special tokens alone where a folder holds none.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError("its tokenizer files are missing")


def _require_weights(report: dict[str, Any]) -> None:
    lacking = sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])})
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise ValueError(f"its files lack weights that would start at random: {', '.join(lacking[:3])}{more}")


def _require_padding(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    if tokenizer.pad_token is not None:
        return
    if tokenizer.eos_token is None:
        raise DataNotFoundError(
            f"The tokenizer of {name!r} has neither a padding nor an end token, so texts cannot be batched. Save one"
            " with a pad_token beside the model."
        )
    tokenizer.pad_token = tokenizer.eos_token


def save_causal(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a language model without an adapter as a folder that loads without asymlora.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        folder: An existing, empty folder.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class TokenRows(Dataset[dict[str, Any]]):
    """Rows of tokens, some of which are to be predicted.

    Args:
        rows: Token ids of each row, and for each token whether it is predicted. The first of a row never is: nothing
            stands before it.
    """

    def __init__(self, rows: Sequence[tuple[Sequence[int] | np.ndarray, Sequence[bool] | np.ndarray]]) -> None:
        self.ids = [np.asarray(ids, dtype=np.int32) for ids, _ in rows]
        self.predicted = [np.array(predicted, dtype=bool) for _, predicted in rows]
        for predicted in self.predicted:
            predicted[:1] = False

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids, predicted = self.ids[index], self.predicted[index]
        return {"input_ids": ids.tolist(), "labels": np.where(predicted, ids, IGNORED).tolist()}

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(ids) for ids in self.ids]

    @property
    def targets(self) -> int:
        """Tokens that are predicted, of all rows."""
        return int(sum(predicted.sum() for predicted in self.predicted))

    def fingerprint(self) -> Iterator[bytes]:
        """Yield token ids and what is predicted of each row."""
        for ids, predicted in zip(self.ids, self.predicted, strict=True):
            yield ids.astype("<i4").tobytes() + predicted.tobytes()


class TokenCollator:
    """Pads rows of tokens on the right, and tells each position what comes next.

    Args:
        pad_token_id: What rows are filled up with; it is masked, and never predicted.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask``, ``labels`` and ``shift_labels``, each ``(rows, tokens)``."""
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), longest), self.pad_token_id)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        for i, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[i, :length] = torch.as_tensor(row["input_ids"])
            mask[i, :length] = 1
            labels[i, :length] = torch.as_tensor(row["labels"])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, TARGETS: next_tokens(labels)}


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """Return the language model inside a wrapper (DDP, PEFT), or itself."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold a model in evaluation mode, without gradients, and give it back as it was.

    Args:
        model: The model, possibly wrapped.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def padding_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the padding token of a tokenizer that `load_causal` loaded."""
    assert isinstance(tokenizer.pad_token_id, int)
    return tokenizer.pad_token_id


def window_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the tokens that a model can see, prompt and answer together."""
    return token_limit(model, tokenizer, wanted=_UNBOUNDED)


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, start: bool = False) -> list[int]:
    """Return the tokens of a text, without an end token of the tokenizer's own.

    Args:
        tokenizer: The model's.
        text: Any length.
        start: Whether to add the start token, where the tokenizer is made to.

    Returns:
        Indices into the vocabulary.
    """
    # Not verbose: that a text is longer than the model's input is known.
    ids: Any = tokenizer(text, add_special_tokens=start, verbose=False)["input_ids"]
    appended = start and ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token))
    return list(ids[:-1] if appended else ids)


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two rows begin with in common.

    Example:
        >>> common_prefix([1, 2, 3], [1, 2, 4, 5])
        2
    """
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def next_token_logits(model: nn.Module, prompts: Sequence[Sequence[int]], *, pad_token_id: int) -> Tensor:
    """Return the logits of the token behind each prompt.

    Args:
        model: A causal language model, possibly wrapped.
        prompts: Token ids of each, at least one.
        pad_token_id: What shorter ones are filled up with, on the right.

    Returns:
        Shape ``(prompts, vocabulary)``, at least float32, on the CPU.
    """
    network = unwrapped(model)
    # Without it the logits of every token are formed, which is slower but the same.
    takes_positions = "logits_to_keep" in inspect.signature(network.forward).parameters
    collate = TokenCollator(pad_token_id)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    rows: dict[int, Tensor] = {}
    for start in range(0, len(order), GENERATION_BATCH):
        chosen = order[start : start + GENERATION_BATCH]
        batch = collate([{"input_ids": prompts[i], "labels": prompts[i]} for i in chosen])
        inputs = {key: batch[key].to(network.device) for key in ("input_ids", "attention_mask")}
        last = inputs["attention_mask"].sum(1) - 1
        kept, at = torch.unique(last, return_inverse=True)
        narrowed = {"logits_to_keep": kept} if takes_positions else {}
        logits = model(**inputs, **narrowed).logits
        picked = logits[torch.arange(len(chosen)), at if takes_positions else last]
        rows.update(zip(chosen, picked.float().cpu(), strict=True))
    return torch.stack([rows[i] for i in range(len(prompts))])


def continuations(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    limit: int,
    ends: Sequence[int] = (),
) -> list[str]:
    """Return what the model goes on with, greedily, up to an end token: the tokenizer's, or the model's own.

    Args:
        model: A causal language model, possibly wrapped.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt; of one that is too long the end is kept.
        max_new_tokens: The longest continuation, in tokens.
        limit: Tokens that the model can see, prompt and continuation together.
        ends: Further tokens that end a continuation.

    Returns:
        A text for each, without special tokens.

    Raises:
        SpecError: Continuations of this length leave no room for a prompt, or a prompt is empty.
    """
    require_room(limit, max_new_tokens)
    if any(not len(prompt) for prompt in prompts):
        raise SpecError("An empty text cannot be gone on with. Give at least one word.")
    network = unwrapped(model)
    kept = [list(prompt)[max_new_tokens - limit :] for prompt in prompts]
    order = sorted(range(len(kept)), key=lambda i: -len(kept[i]))
    settings = _greedy(network, tokenizer, max_new_tokens, ends)
    texts = [""] * len(kept)
    with evaluating(network):
        for start in range(0, len(order), GENERATION_BATCH):
            rows = order[start : start + GENERATION_BATCH]
            written = _generate(network, tokenizer, [kept[i] for i in rows], settings)
            for i, text in zip(rows, written, strict=True):
                texts[i] = text
    return texts


def require_room(limit: int, max_new_tokens: int) -> None:
    """Refuse continuations that would fill all that the model can see.

    Args:
        limit: Tokens that the model can see.
        max_new_tokens: The longest continuation, in tokens.

    Raises:
        SpecError: No room is left for a prompt.
    """
    if limit <= max_new_tokens:
        raise SpecError(
            f"data.max_target_tokens={max_new_tokens} leaves no room for a prompt: the model sees {limit} tokens in"
            " all. Give a smaller one."
        )


def _greedy(model: Any, tokenizer: Any, max_new_tokens: int, ends: Sequence[int]) -> GenerationConfig:
    # A saved end token that the tokenizer does not call special is a left-over of some default.
    saved = model.generation_config.eos_token_id
    own = [saved] if isinstance(saved, int) else list(saved or ())
    known = [token for token in (*own, tokenizer.eos_token_id) if token in tokenizer.all_special_ids]
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted({*known, *ends}) or None,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=model.generation_config.bos_token_id,
    )


def _generate(model: Any, tokenizer: Any, prompts: list[list[int]], settings: GenerationConfig) -> list[str]:
    # On the left, so that every continuation begins where its prompt ends.
    longest = max(map(len, prompts))
    padded = [[tokenizer.pad_token_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    written = model.generate(
        input_ids=torch.tensor(padded, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        generation_config=settings,
    )
    return tokenizer.batch_decode(written[:, longest:], skip_special_tokens=True)
