"""Instruction tuning: conversations in the model's own chat format, with the loss on the assistant's answers only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from asymlora.errors import DataError
from asymlora.tasks.causal_models import (
    TokenCollator,
    TokenRows,
    continuations,
    load_causal,
    padding_of,
    require_room,
    save_causal,
    window_of,
)
from asymlora.tasks.chat_format import ChatFormat, Encoded
from asymlora.tasks.classifiers import token_limit
from asymlora.tasks.conversations import read_conversations, turns_of
from asymlora.tasks.exact_match import read_problems, solve
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.tasks.likelihood_choice import choose, letter_tokens, read_questions
from asymlora.tasks.splits import Part, divide
from asymlora.tasks.task import Answer, Loaded, Prepared
from asymlora.tasks.token_loss import TokenScoring, mean_token_loss

_PARTS = ("train", "validation", "test")
Closing = dict[str, Callable[[nn.Module], dict[str, float]]]


def prepare(model: ModelRecipe, data: DataRecipe, *, task: str, head_seed: int) -> Prepared:
    """Load rows and model. The rows come first: they are quicker to be wrong.

    Args:
        model: Which model.
        data: Which rows: a prompt (``text``) and an answer (``target``) each, or ``messages``.
        task: ``instruction_tuning``.
        head_seed: Not used: there is no fresh head.

    Returns:
        Model, tokenizer, rows, and what is measured at the end.
    """
    scoring = TokenScoring(data.metric or "loss")
    questions = read_questions(Path(data.choices), shots=data.shots) if data.choices else None
    problems = read_problems(Path(data.problems), shots=data.shots) if data.problems else None
    parts = divide(
        read_conversations(data),
        validation_fraction=data.validation_fraction,
        test_fraction=data.test_fraction,
        seed=data.seed,
        labels="none",
        max_rows=data.max_rows,
        max_scored_rows=data.max_scored_rows,
    )
    network, tokenizer = load_causal(model)
    form = ChatFormat(tokenizer)
    limit, window = token_limit(network, tokenizer, wanted=data.max_tokens), window_of(network, tokenizer)
    made = {part: encode_rows(form, getattr(parts, part), limit=limit, where=part) for part in _PARTS}
    closing: Closing = {}
    # What a closing measurement would refuse is refused before an older run is touched.
    if questions:
        letter_tokens(tokenizer, questions)
        closing["choices"] = partial(choose, tokenizer=tokenizer, questions=questions, limit=window)
    if problems:
        room = data.max_target_tokens
        require_room(window, room)
        closing["problems"] = partial(solve, form=form, problems=problems, max_new_tokens=room, limit=window)
    return Prepared(
        model=network,
        processor=tokenizer,
        collator=TokenCollator(padding_of(tokenizer)),
        train=made["train"].rows,
        validation=made["validation"].rows,
        test=made["test"].rows,
        scoring=scoring,
        task_type="CAUSAL_LM",
        loss=mean_token_loss,
        closing=closing,
        notes=(*parts.notes(), *_notes(made, limit, form)),
    )


def load(model: ModelRecipe, data: DataRecipe, *, task: str, label_names: tuple[str, ...]) -> Loaded:
    """Load a model that answers prompts as the assistant, greedily.

    Args:
        model: Which model.
        data: ``max_target_tokens`` is the longest answer, ``max_tokens`` the longest prompt.
        task: ``instruction_tuning``.
        label_names: Not used: there are no labels.

    Returns:
        The model; its answer is the assistant's reply to one turn of the user.
    """
    network, tokenizer = load_causal(model)
    form, room = ChatFormat(tokenizer), data.max_target_tokens
    limit = token_limit(network, tokenizer, wanted=data.max_tokens + room)

    def answer(texts: list[str]) -> list[Answer]:
        prompts = [form.prompt([{"role": "user", "content": text}]) for text in texts]
        written = continuations(network, tokenizer, prompts, max_new_tokens=room, limit=limit, ends=form.ends())
        return [Answer(given=text, answer=form.cut_reply(more)) for text, more in zip(texts, written, strict=True)]

    return Loaded(model=network, processor=tokenizer, answer=answer, save=partial(save_causal, network, tokenizer))


@dataclass(frozen=True, kw_only=True)
class EncodedRows:
    """Conversations as token rows.

    Attributes:
        rows: The rows, longest first, so that batches in order carry little padding.
        prompts_cut: Rows that lost the beginning of what is asked.
        answers_cut: Rows whose last answer alone was too long and lost its end.
    """

    rows: TokenRows
    prompts_cut: int
    answers_cut: int


def encode_rows(form: ChatFormat, part: Part, *, limit: int, where: str) -> EncodedRows:
    """Turn conversations into token rows of at most ``limit`` tokens.

    Args:
        form: The model's chat format.
        part: Conversations as `read_conversations` gives them.
        limit: Tokens of a row. Of a longer one the beginning is cut; if its last answer alone is longer, one token
            stays before it and its end is cut.
        where: What the part is called.

    Returns:
        The rows and what was cut.

    Raises:
        DataError: A conversation cannot be written in the model's format; its row is named.
    """
    rows: list[tuple[list[int], list[bool]]] = []
    prompts_cut = answers_cut = 0
    for i, written in enumerate(part.columns["target"]):
        try:
            encoded = form.encode(turns_of(written))
        except DataError as error:
            raise DataError(f"Row {i + 1} of the {where} part: {error}") from error
        answer = len(encoded.ids) - encoded.last_answer
        prompts_cut += len(encoded.ids) > limit >= answer + 1
        answers_cut += answer + 1 > limit
        rows.append(cut(encoded, limit))
    rows.sort(key=lambda row: -len(row[0]))
    return EncodedRows(rows=TokenRows(rows), prompts_cut=prompts_cut, answers_cut=answers_cut)


def cut(encoded: Encoded, limit: int) -> tuple[list[int], list[bool]]:
    """Return at most ``limit`` tokens of a conversation, its last answer before all else, and which are learned.

    Args:
        encoded: The conversation.
        limit: At least 2.

    Returns:
        Token ids, and for each whether it is learned.

    Example:
        >>> talk = Encoded(ids=[1, 2, 3, 4, 5], learned=[False, False, False, True, True], last_answer=3)
        >>> cut(talk, 4)
        ([2, 3, 4, 5], [False, False, True, True])
        >>> cut(talk, 2)
        ([3, 4], [False, True])
    """
    start = max(0, min(len(encoded.ids) - limit, encoded.last_answer - 1))
    return encoded.ids[start : start + limit], encoded.learned[start : start + limit]


def _notes(made: Mapping[str, EncodedRows], limit: int, form: ChatFormat) -> Iterator[str]:
    if form.is_plain:
        yield "The tokenizer has no chat template; turns are written as 'User:' and 'Assistant:' on lines of their own."
    for part, encoded in made.items():
        yield f"{part}: {len(encoded.rows):,} rows, {encoded.rows.targets:,} answer tokens learned or scored."
    total = sum(len(encoded.rows) for encoded in made.values())
    if prompts := sum(encoded.prompts_cut for encoded in made.values()):
        yield f"{prompts:,} of {total:,} rows are longer than {limit} tokens; what is asked loses its beginning."
    if answers := sum(encoded.answers_cut for encoded in made.values()):
        yield f"{answers:,} of {total:,} answers alone are longer than {limit} tokens and lose their end."
