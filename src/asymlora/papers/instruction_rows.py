"""Instructions with answers, and multiple-choice questions, made of labelled text sets. No torch in here.

Each set is asked in several ways, as Flan asks many sets in many ways; the words of the templates are ours. The rows
are written where an artefact runs and never kept in the project. Which rows, which way and which order follow from
hashes alone, so they are the same on every machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from asymlora.atomic import write_file
from asymlora.errors import DataError, DataNotFoundError

TRAIN, TEST, CHOICES = "train.jsonl", "test.jsonl", "choices.jsonl"
TRAINED_EACH, TESTED_EACH, QUESTIONS_EACH = 250, 36, 8
"""Rows of each set: to train on (the task holds out validation from these), to test on, and questions."""
SYSTEM = "Answer briefly."
"""The first turn: without one, a chat template may put a longer one of its own before each of these short prompts."""
_BY_LETTER = "Answer with a letter."


@dataclass(frozen=True, kw_only=True)
class TextSet:
    """A labelled text set and how it is asked.

    Attributes:
        place: Its folder below the data root.
        scored: File of the rows that are never trained on: test, or validation where test labels are not public.
        most_words: Longest text, both together in pairs, in words; longer rows are passed over.
        subject: What its questions are about.
        answers: What each label is called, by its number.
        ways: Prompts with ``{text}``, ``{pair}`` and ``{answers}``.
        question: What is asked in multiple choice, and in the one way of asking that wants a letter.
    """

    place: str
    scored: str
    most_words: int
    subject: str
    answers: tuple[str, ...]
    ways: tuple[str, ...]
    question: str


SETS = (
    TextSet(
        place="text/trec6",
        scored="test.jsonl",
        most_words=16,
        subject="questions and their answers",
        answers=("a description", "a thing", "an abbreviation", "a person", "a place", "a number"),
        ways=(
            "{text}\nWhat is wanted here: {answers}?",
            "Say what this question wants to be told: {answers}.\n{text}",
            "What kind of answer would fit?\n{text}",
        ),
        question="{text}\nWhat does this question want to be told?",
    ),
    TextSet(
        place="text/sst2",
        scored="validation.jsonl",
        most_words=16,
        subject="opinions of films",
        answers=("negative", "positive"),
        ways=(
            "{text}\nIs this remark on a film {answers}?",
            "Somebody wrote of a film: {text}\nWas it meant as {answers}?",
            "In one word, what does the writer think of the film?\n{text}",
        ),
        question="{text}\nWhat is the writer's opinion of the film?",
    ),
    TextSet(
        place="text/rte",
        scored="validation.jsonl",
        most_words=28,
        subject="what follows from a text",
        answers=("yes", "no"),
        ways=(
            "{text}\nDoes it follow that this is true? {pair}",
            "Suppose this is so: {text}\nThen {answers}: {pair}",
            "Is the second statement true if the first one is?\n{text}\n{pair}",
        ),
        question="{text}\nDoes it follow that this is true? {pair}",
    ),
    TextSet(
        place="text/mrpc",
        scored="test.jsonl",
        most_words=28,
        subject="sentences that mean the same",
        answers=("no", "yes"),
        ways=(
            "{text}\n{pair}\nDo both sentences mean the same?",
            "Is this the same news twice, {answers}?\n{text}\n{pair}",
            "Can the first sentence stand for the second?\n{text}\n{pair}",
        ),
        question="{text}\n{pair}\nDo both sentences mean the same?",
    ),
)
"""The sets, with the words of their labels."""


def write_rows(data_root: Path, folder: Path) -> None:
    """Write rows to train on, to test on, and questions, from the sets below a data root.

    Args:
        data_root: Where the sets are.
        folder: Where ``train.jsonl`` and ``test.jsonl`` (a column of messages) and ``choices.jsonl`` (question,
            choices, answer, subject) go. What stands there already is not written again.

    Raises:
        DataNotFoundError: A file of a set is not there.
        DataError: A set has too few rows that are short enough.
    """
    made: dict[str, list[list[dict[str, Any]]]] = {TRAIN: [], TEST: [], CHOICES: []}
    for one in SETS:
        scored = _short(one, data_root / one.place / one.scored)
        seen = {_texts(row) for _, row in scored}
        training = [(key, row) for key, row in _short(one, data_root / one.place / TRAIN) if _texts(row) not in seen]
        trained = _first(training, TRAINED_EACH, one, TRAIN)
        kept = _first(scored, TESTED_EACH + QUESTIONS_EACH, one, one.scored)
        made[TRAIN].append([instruction(one, row, key) for key, row in trained])
        made[TEST].append([instruction(one, row, key) for key, row in kept[:TESTED_EACH]])
        made[CHOICES].append([multiple_choice(one, row, key) for key, row in kept[TESTED_EACH:]])
    folder.mkdir(parents=True, exist_ok=True)
    for name, sets in made.items():
        # A row of each set in turn: of every set some, wherever a reader stops.
        _write_once(folder / name, (row for turn in zip(*sets, strict=True) for row in turn))


def instruction(one: TextSet, row: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a prompt and its answer as a conversation.

    Args:
        one: The set.
        row: ``text``, ``text_pair`` of pairs, and ``label``.
        key: Chooses the way of asking.

    Returns:
        ``messages``: turns of system, user and assistant. In the last way the answers have letters, and a letter is the
        assistant's answer.

    Example:
        >>> instruction(SETS[1], {"text": "a fine cast", "label": 1}, "0000")["messages"][-1]
        {'role': 'assistant', 'content': 'positive'}
    """
    way = _number(key) % (len(one.ways) + 1)
    if way < len(one.ways):
        told = {**_filled(row), "answers": _listed(one.answers)}
        return _conversation(one.ways[way].format(**told), one.answers[row["label"]])
    asked = multiple_choice(one, row, key)
    choices = [f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, asked["choices"], strict=False)]
    text = "\n".join([asked["question"], *choices, _BY_LETTER])
    return _conversation(text, ascii_uppercase[asked["answer"]])


def multiple_choice(one: TextSet, row: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a question with its choices, whose order begins anywhere, so that no letter is right more often.

    Args:
        one: The set.
        row: As for `instruction`.
        key: Chooses where the order begins.

    Returns:
        ``question``, ``choices``, ``answer`` (an index into them) and ``subject``.

    Example:
        >>> multiple_choice(SETS[1], {"text": "a fine cast", "label": 1}, "0004")["choices"]
        ['positive', 'negative']
    """
    first = _number(key) // (len(one.ways) + 1) % len(one.answers)
    choices = [*one.answers[first:], *one.answers[:first]]
    return {
        "question": one.question.format(**_filled(row)),
        "choices": choices,
        "answer": choices.index(one.answers[row["label"]]),
        "subject": one.subject,
    }


def _conversation(prompt: str, answer: str) -> dict[str, Any]:
    turns = (("system", SYSTEM), ("user", prompt), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _short(one: TextSet, file: Path) -> list[tuple[str, dict[str, Any]]]:
    # Rows with their keys, in the order of these.
    if not file.is_file():
        raise DataNotFoundError(
            f"There is no {file}. Put the set there, as JSON Lines with text, label and, for pairs, text_pair, or give"
            " another --data-root."
        )
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    keyed = [(_key(f"{one.place}/{file.name}/{number}"), row) for number, row in enumerate(rows)]
    return sorted((pair for pair in keyed if _words(pair[1]) <= one.most_words), key=lambda pair: pair[0])


def _first(
    rows: Sequence[tuple[str, dict[str, Any]]], count: int, one: TextSet, name: str
) -> Sequence[tuple[str, dict[str, Any]]]:
    if len(rows) < count:
        raise DataError(
            f"{one.place}/{name} has {len(rows)} rows of at most {one.most_words} words that stand in no other part;"
            f" {count} are needed. Give the whole set."
        )
    return rows[:count]


def _texts(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["text"], row.get("text_pair", "")


def _words(row: Mapping[str, Any]) -> int:
    return sum(len(text.split()) for text in _texts(row))


def _filled(row: Mapping[str, Any]) -> dict[str, str]:
    text, pair = _texts(row)
    return {"text": text, "pair": pair}


def _listed(answers: Sequence[str]) -> str:
    return f"{', '.join(answers[:-1])} or {answers[-1]}"


def _key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def _number(key: str) -> int:
    return int(key, 16)


def _write_once(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(_lines(rows))
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        write_file(file, text)


def _lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield json.dumps(row, ensure_ascii=False) + "\n"
