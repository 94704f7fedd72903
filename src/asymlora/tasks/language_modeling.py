"""Causal language modelling: texts in packed blocks of tokens, perplexity, greedy continuations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate

import numpy as np
from transformers import PreTrainedTokenizerBase

from asymlora.errors import DataError, EmptyDataError
from asymlora.tasks import sources
from asymlora.tasks.causal_models import (
    TokenCollator,
    TokenRows,
    continuations,
    load_causal,
    padding_of,
    save_causal,
    token_ids,
)
from asymlora.tasks.classifiers import token_limit
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.tasks.task import Answer, Loaded, Prepared
from asymlora.tasks.token_loss import TokenScoring, mean_token_loss

_PARTS = ("train", "validation", "test")


def prepare(model: ModelRecipe, data: DataRecipe, *, task: str, head_seed: int) -> Prepared:
    """Load texts and model. The texts come first: they are quicker to be wrong.

    Every token of a block but its first is predicted once, from those before it in the block. Parts that the source
    does not bring are held out as contiguous stretches from the end of the training texts.

    Args:
        model: Which model.
        data: Which texts; ``max_tokens`` is the length of a block; ``max_rows`` and ``max_scored_rows`` count
            blocks, drawn by ``seed``.
        task: ``language_modeling``.
        head_seed: Not used: there is no fresh head.

    Returns:
        Model, tokenizer and blocks.

    Raises:
        EmptyDataError: A part has fewer than two tokens.
    """
    scoring = TokenScoring(data.metric or "perplexity")
    texts = divide_texts(
        sources.load_text(data), validation_fraction=data.validation_fraction, test_fraction=data.test_fraction
    )
    network, tokenizer = load_causal(model)
    size = token_limit(network, tokenizer, wanted=data.max_tokens)
    blocks = {part: token_blocks(tokenizer, texts[part], size=size) for part in _PARTS}
    for part, made in blocks.items():
        if not made:
            raise EmptyDataError(
                f"The {part} part of {data.name} has fewer than two tokens, so nothing can be predicted. Give more"
                f" text, or a larger data.{part}_fraction."
            )
    asked = {"train": data.max_rows, "validation": data.max_scored_rows, "test": data.max_scored_rows}
    drawn = {part: _drawn(made, asked[part], data.seed) for part, made in blocks.items()}
    sets = {part: TokenRows([(ids, np.ones(len(ids), bool)) for ids in made]) for part, made in drawn.items()}
    return Prepared(
        model=network,
        processor=tokenizer,
        collator=TokenCollator(padding_of(tokenizer)),
        train=sets["train"],
        validation=sets["validation"],
        test=sets["test"],
        scoring=scoring,
        task_type="CAUSAL_LM",
        loss=mean_token_loss,
        notes=tuple(_note(part, texts[part], blocks[part], sets[part], size=size) for part in _PARTS),
    )


def load(model: ModelRecipe, data: DataRecipe, *, task: str, label_names: tuple[str, ...]) -> Loaded:
    """Load a model that goes on with texts, greedily.

    Args:
        model: Which model.
        data: ``max_target_tokens`` is the longest continuation.
        task: ``language_modeling``.
        label_names: Not used: there are no labels.

    Returns:
        The model; its answer is the continuation alone.
    """
    network, tokenizer = load_causal(model)
    room = data.max_target_tokens
    limit = token_limit(network, tokenizer, wanted=data.max_tokens + room)

    def answer(texts: list[str]) -> list[Answer]:
        prompts = [token_ids(tokenizer, text, start=True) for text in texts]
        written = continuations(network, tokenizer, prompts, max_new_tokens=room, limit=limit)
        return [Answer(given=text, answer=more) for text, more in zip(texts, written, strict=True)]

    return Loaded(model=network, processor=tokenizer, answer=answer, save=partial(save_causal, network, tokenizer))


def divide_texts(
    parts: dict[str, list[str]], *, validation_fraction: float, test_fraction: float
) -> dict[str, list[str]]:
    """Hold out what the source does not bring: first the test part, then validation from what is left.

    Args:
        parts: Texts by part, in the order of the source; ``train`` at least.
        validation_fraction: Share of the characters left for training that is held out for choices.
        test_fraction: Share of all characters that is held out for the closing figures.

    Returns:
        Texts of all three parts; no character stands in two.
    """
    made = dict(parts)
    for part, fraction in (("test", test_fraction), ("validation", validation_fraction)):
        if part not in made:
            made["train"], made[part] = hold_out_end(made["train"], fraction=fraction)
    return made


def hold_out_end(texts: Sequence[str], *, fraction: float) -> tuple[list[str], list[str]]:
    """Divide texts in a beginning and an end.

    Between two texts, where that gives the wanted share but for half of it; else within a text, at a blank.

    Args:
        texts: In the order of the source.
        fraction: Share of the characters that the end shall have, in (0, 1).

    Returns:
        Texts before and behind the cut.

    Raises:
        DataError: There is too little text to divide.

    Example:
        >>> hold_out_end(["one two ", "three four ", "five six"], fraction=0.3)
        (['one two ', 'three four '], ['five six'])
        >>> hold_out_end(["one two three four five"], fraction=0.5)
        (['one two '], ['three four five'])
    """
    ends = [0, *accumulate(map(len, texts))]
    total = ends[-1]
    wanted = round((1 - fraction) * total)
    at = min(range(len(ends)), key=lambda i: abs(ends[i] - wanted))
    rest, held = list(texts[:at]), list(texts[at:])
    if texts and abs(ends[at] - wanted) > fraction * total / 2:
        at = next(i for i in range(len(texts)) if ends[i + 1] >= wanted)
        cut = texts[at].rfind(" ", 0, wanted - ends[at]) + 1 or wanted - ends[at]
        rest, held = [*texts[:at], texts[at][:cut]], [texts[at][cut:], *texts[at + 1 :]]
    if not "".join(rest).strip() or not "".join(held).strip():
        raise DataError(
            f"{total} characters are too few to hold out a share of {fraction}. Give more text, another"
            " data.validation_fraction or data.test_fraction, or files of your own for these parts."
        )
    return rest, held


def token_blocks(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, size: int) -> list[np.ndarray]:
    """Return texts as contiguous blocks of tokens.

    Documents are joined with the end token. Pieces of one file, which all but the last end in a line break, are joined
    as they are.

    Args:
        tokenizer: The model's.
        texts: In the order of the source.
        size: Tokens of a block; the last one may be shorter, and is left out if it holds one token alone.

    Returns:
        Token ids of each block.
    """
    if all(text.endswith("\n") for text in texts[:-1]):
        texts = ["".join(texts)]
    end = tokenizer.eos_token_id
    stream: list[int] = []
    for text in texts:
        stream += [*token_ids(tokenizer, text, start=True), *([end] if isinstance(end, int) else [])]
    packed = np.array(stream, dtype=np.int32)
    blocks = [packed[start : start + size] for start in range(0, len(packed), size)]
    return [block for block in blocks if len(block) > 1]


def _drawn(blocks: list[np.ndarray], count: int | None, seed: int) -> list[np.ndarray]:
    if count is None or count >= len(blocks):
        return blocks
    kept = np.random.RandomState(2 * seed).permutation(len(blocks))[:count]
    return [blocks[i] for i in sorted(kept.tolist())]


def _note(part: str, texts: list[str], blocks: list[np.ndarray], used: TokenRows, *, size: int) -> str:
    total, tokens = len(blocks), sum(map(len, blocks))
    drawn = f", of which {len(used):,} are used" if len(used) < total else ""
    return (
        f"{part}: {len(texts):,} texts, {tokens:,} tokens, {total:,} blocks of up to {size} tokens{drawn};"
        f" {used.targets:,} tokens are predicted, all but the first of a block."
    )
