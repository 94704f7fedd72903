"""How an encoder-decoder writes a text: the settings of its beam search, refused where they conflict."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationConfig, PreTrainedModel

from asymlora.schema import refuse_values
from asymlora.tasks.task import Batch


def generation_for(network: PreTrainedModel, *, beams: int, max_target_tokens: int) -> GenerationConfig:
    """Return the model's own settings for writing, with the recipe's beams and length.

    Args:
        network: The model, with the settings that were saved beside it.
        beams: Of the search, at least 1.
        max_target_tokens: The longest text that is written, in tokens.

    Returns:
        Settings of a search without chance: the same text each time.

    Raises:
        SpecError: Saved settings conflict with each other, with the search or with the vocabulary; all are named.
    """
    saved = network.generation_config
    assert saved is not None
    refuse_values(list(_conflicts(saved, network, beams=beams, max_target_tokens=max_target_tokens)))
    generation = copy.deepcopy(saved)
    generation.update(
        num_beams=beams,
        max_new_tokens=max_target_tokens,
        max_length=None,
        do_sample=False,
        use_cache=True,
        return_dict_in_generate=False,
        pad_token_id=network.config.pad_token_id if saved.pad_token_id is None else saved.pad_token_id,
        decoder_start_token_id=_start(saved, network),
    )
    return generation


def _start(saved: GenerationConfig, network: PreTrainedModel) -> int | None:
    start = saved.decoder_start_token_id
    return getattr(network.config, "decoder_start_token_id", None) if start is None else start


def _conflicts(
    saved: GenerationConfig, network: PreTrainedModel, *, beams: int, max_target_tokens: int
) -> Iterator[str]:
    if saved.do_sample:
        yield f"generation_config.do_sample=True draws words, but data.beams={beams} asks for a search: remove it"
    for name in ("min_length", "min_new_tokens"):
        if (least := getattr(saved, name) or 0) > max_target_tokens:
            yield f"generation_config.{name}={least} is above data.max_target_tokens={max_target_tokens}: raise this"
    if beams == 1:
        for name, neutral in (("early_stopping", (None, False)), ("length_penalty", (None, 1.0))):
            if (value := getattr(saved, name)) not in neutral:
                yield f"generation_config.{name}={value} needs beams, but data.beams=1: remove it or raise data.beams"
    for name in ("num_return_sequences", "num_beam_groups"):
        if (value := getattr(saved, name, None) or 1) != 1:
            yield f"generation_config.{name}={value} must be 1, as one text is written for each source: remove it"
    yield from _outside(saved, network)


def _outside(saved: GenerationConfig, network: PreTrainedModel) -> Iterator[str]:
    # Ids that the model cannot write.
    table: Any = network.get_input_embeddings()
    rows: int = table.num_embeddings
    given, start = _start(saved, network), getattr(network.config, "decoder_start_token_id", None)
    if None not in (given, start) and given != start:
        yield f"generation_config.decoder_start_token_id={given} is not {start}, config's, which training uses: fix it"
    if given is None:
        yield "decoder_start_token_id is in neither generation_config nor config: set it, for T5 to the padding token"
    for name in ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "eos_token_id"):
        for token in _ids(getattr(saved, name)):
            if not 0 <= token < rows:
                yield f"generation_config.{name}={token} is outside the vocabulary of {rows} tokens: correct it"
    forced = {*_ids(saved.forced_bos_token_id), *_ids(saved.forced_eos_token_id)}
    if both := sorted(forced & {*_ids(saved.suppress_tokens)}):
        yield f"generation_config.suppress_tokens holds {both}, which is forced as well: remove one of the two"


def _ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def written_ids(network: Any, inputs: Batch, generation: GenerationConfig) -> Tensor:
    """Return what the model writes, by its own ``generate``.

    Args:
        network: An encoder-decoder, with or without an adapter; not wrapped.
        inputs: ``input_ids`` and ``attention_mask``.
        generation: As `generation_for` gives it.

    Returns:
        Token ids behind the start token, shape ``(rows, max_new_tokens)``, filled up with the padding token.
    """
    given = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    ids: Tensor = network.generate(**given, generation_config=generation)[:, 1:]
    assert isinstance(generation.max_new_tokens, int)
    return pad(ids, (0, generation.max_new_tokens - ids.shape[1]), value=generation.pad_token_id)
