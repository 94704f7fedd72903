"""Multiple choice by likelihood: the letter after a few-shot prompt (MMLU's protocol), and the answer's own text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from asymlora.errors import DataError, DataNotFoundError, MissingColumnError
from asymlora.tasks.causal_models import (
    TokenCollator,
    TokenRows,
    common_prefix,
    evaluating,
    next_token_logits,
    padding_of,
    token_ids,
    unwrapped,
)
from asymlora.tasks.data_files import read_file
from asymlora.tasks.task import longest_first
from asymlora.tasks.token_loss import TokenScoring

BATCH = 8
_INTRODUCTION = "The following are multiple choice questions (with answers){about}.\n\n"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A multiple-choice question.

    Attributes:
        question: Its text.
        choices: Two to 26 answers.
        answer: Index of the right one.
        subject: What it is about, named in the introduction; None: not said.
    """

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str | None = None


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Questions to be scored.

    Attributes:
        examples: Shown with their answers before each question.
        scored: Those that are asked.
    """

    examples: tuple[Question, ...]
    scored: tuple[Question, ...]


def read_questions(path: Path, *, shots: int) -> Questions:
    """Read a file of multiple-choice questions.

    Args:
        path: CSV, JSON Lines or Parquet with the columns question, choices (a list; in CSV a JSON list) and answer (a
            letter, or an index from 0), and subject if it has one.
        shots: Questions from the head of the file that serve as examples and are not scored.

    Returns:
        The questions.

    Raises:
        DataError: A row is no question with an answer; it is named.
    """
    rows = read_columns(path, ("question", "choices", "answer"), "data.choices")
    subjects = rows.get("subject", [None] * len(rows["question"]))
    made: list[Question] = []
    for i, (text, choices, answer, subject) in enumerate(
        zip(rows["question"], rows["choices"], rows["answer"], subjects, strict=True)
    ):
        where = f"Row {i + 1} of {path}"
        listed = _choices(choices)
        index = _index(answer)
        if not isinstance(text, str) or not text.strip() or not 2 <= len(listed) <= len(ascii_uppercase):
            raise DataError(
                f"{where} is no question: question={text!r}, choices={str(choices)[:60]}. It needs a text and a list of"
                " 2 to 26 answers."
            )
        if index is None or not 0 <= index < len(listed):
            raise DataError(
                f"{where} has answer={answer!r}, but {len(listed)} choices. Give a letter from A to"
                f" {ascii_uppercase[len(listed) - 1]}, or an index from 0 to {len(listed) - 1}."
            )
        about = subject if isinstance(subject, str) and subject.strip() else None
        made.append(Question(question=text.strip(), choices=listed, answer=index, subject=about))
    return Questions(examples=tuple(made[:shots]), scored=tuple(after_shots(made, shots, path)))


def read_columns(path: Path, columns: Sequence[str], field: str) -> dict[str, list[Any]]:
    """Read a file of rows that has certain columns.

    Args:
        path: The file.
        columns: Their names.
        field: The recipe's field that named the file.

    Returns:
        All its columns.

    Raises:
        DataNotFoundError: There is no such file.
        MissingColumnError: A column is not there.
    """
    file = path.expanduser()
    if not file.is_file():
        raise DataNotFoundError(f"There is no file at {field}={str(path)!r}. Give a CSV, JSON Lines or Parquet file.")
    rows = read_file(file)
    missing = [column for column in columns if column not in rows]
    if missing:
        raise MissingColumnError(
            f"{path} has no column {' and no '.join(map(repr, missing))}; it has: {', '.join(rows)}. {field} needs:"
            f" {', '.join(columns)}."
        )
    return rows


def after_shots(rows: Sequence[Any], shots: int, path: Path) -> Sequence[Any]:
    """Return the rows behind those that serve as examples.

    Args:
        rows: All rows.
        shots: How many serve as examples.
        path: Where they come from.

    Returns:
        At least one row.

    Raises:
        DataError: None is left.
    """
    if len(rows) <= shots:
        raise DataError(
            f"{path} has {len(rows)} rows, of which data.shots={shots} serve as examples: none is left to score. Give"
            " more rows, or fewer shots."
        )
    return rows[shots:]


def _choices(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return ()
    if isinstance(value, dict | str) or not hasattr(value, "__iter__"):
        return ()
    return tuple(str(choice).strip() for choice in value)


def _index(answer: Any) -> int | None:
    written = str(answer).strip()
    if len(written) == 1 and written.upper() in ascii_uppercase:
        return ascii_uppercase.index(written.upper())
    try:
        number = float(written)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def letter_prompt(question: Question, examples: Sequence[Question]) -> str:
    r"""Return the prompt behind which the model writes a letter.

    Args:
        question: What is asked.
        examples: Shown with the letters of their answers before it.

    Returns:
        The text; it ends in ``Answer:``.

    Example:
        >>> asked = Question(question="1+1?", choices=("1", "2"), answer=1)
        >>> letter_prompt(asked, []).splitlines()[2:]
        ['1+1?', 'A. 1', 'B. 2', 'Answer:']
    """
    shown = [f"{_lettered(example)} {ascii_uppercase[example.answer]}\n\n" for example in examples]
    return _introduction(question) + "".join(shown) + _lettered(question)


def text_prompt(question: Question, examples: Sequence[Question]) -> str:
    """Return the prompt behind which the model writes an answer's text; the choices are not shown.

    Args:
        question: What is asked.
        examples: Shown with the texts of their answers before it.

    Returns:
        The text; it ends in ``Answer:``.
    """
    shown = [f"{e.question}\nAnswer: {e.choices[e.answer]}\n\n" for e in examples]
    return "".join(shown) + f"{question.question}\nAnswer:"


def _introduction(question: Question) -> str:
    about = f" about {question.subject.replace('_', ' ')}" if question.subject else ""
    return _INTRODUCTION.format(about=about)


def _lettered(question: Question) -> str:
    listed = "".join(f"{ascii_uppercase[i]}. {choice}\n" for i, choice in enumerate(question.choices))
    return f"{question.question}\n{listed}Answer:"


def choose(
    model: nn.Module, *, tokenizer: PreTrainedTokenizerBase, questions: Questions, limit: int
) -> dict[str, float]:
    """Measure how often the right choice is the most probable.

    Args:
        model: A causal language model that `install_token_loss` was called with, possibly wrapped.
        tokenizer: Its tokenizer.
        questions: What is asked.
        limit: Tokens that the model can see. A longer prompt gets fewer examples, at last its beginning is cut.

    Returns:
        ``accuracy`` by the letter, ``accuracy_by_text`` by the log-likelihood of the answer's text over its number of
        characters, and the number of ``questions``.

    Source:
        Hendrycks et al., 2021, "Measuring Massive Multitask Language Understanding": the letter after the prompt. The
        length-normalised likelihood of the text is the usual second measure; both written here, not compared with
        other implementations.
    """
    with evaluating(model):
        by_letter = letters_chosen(model, tokenizer, questions, limit=limit)
        by_text = texts_chosen(model, tokenizer, questions, limit=limit)
    wanted = [question.answer for question in questions.scored]
    return {
        "accuracy": _share_equal(by_letter, wanted),
        "accuracy_by_text": _share_equal(by_text, wanted),
        "questions": float(len(wanted)),
    }


def _share_equal(given: Sequence[int], wanted: Sequence[int]) -> float:
    return sum(g == w for g, w in zip(given, wanted, strict=True)) / len(wanted)


def letters_chosen(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, questions: Questions, *, limit: int
) -> list[int]:
    """Return for each question the index of the letter that is the most probable next token.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer.
        questions: What is asked.
        limit: Tokens that the model can see.

    Returns:
        Indices of choices.

    Raises:
        DataError: The tokenizer does not write a letter behind ``Answer:`` as one token.
    """
    letters = letter_tokens(tokenizer, questions)
    prompts = [_fitting(tokenizer, letter_prompt, q, questions.examples, limit) for q in questions.scored]
    ids = [token_ids(tokenizer, prompt, start=True)[-limit:] for prompt in prompts]
    logits = next_token_logits(model, ids, pad_token_id=padding_of(tokenizer))[:, letters]
    return [int(row[: len(q.choices)].argmax()) for row, q in zip(logits, questions.scored, strict=True)]


def letter_tokens(tokenizer: PreTrainedTokenizerBase, questions: Questions) -> list[int]:
    """Return the tokens that letters are behind ``Answer:``, as many as the questions have choices.

    Args:
        tokenizer: The model's.
        questions: What is asked.

    Returns:
        Token ids, from A on.

    Raises:
        DataError: A letter there is not one token.
    """
    most = max(len(question.choices) for question in questions.scored)
    stem = token_ids(tokenizer, "Answer:")
    letters: list[int] = []
    for letter in ascii_uppercase[:most]:
        whole = token_ids(tokenizer, f"Answer: {letter}")
        if common_prefix(stem, whole) != len(whole) - 1:
            raise DataError(
                f"The tokenizer does not write ' {letter}' as one token, so letters cannot be compared. Leave out"
                " data.choices with this model."
            )
        letters.append(whole[-1])
    return letters


def texts_chosen(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, questions: Questions, *, limit: int
) -> list[int]:
    """Return for each question the index of the choice whose text is the most probable for its length.

    Args:
        model: A causal language model in evaluation mode, that `install_token_loss` was called with.
        tokenizer: Its tokenizer.
        questions: What is asked.
        limit: Tokens that the model can see.

    Returns:
        Indices of choices.
    """
    rows: list[tuple[list[int], list[bool]]] = []
    for question in questions.scored:
        longest = max(len(token_ids(tokenizer, f" {choice}")) for choice in question.choices)
        prompt = _fitting(tokenizer, text_prompt, question, questions.examples, limit - longest)
        asked = token_ids(tokenizer, prompt, start=True)
        for choice in question.choices:
            # Together, as a tokenizer may join a blank and the word behind it.
            whole = token_ids(tokenizer, f"{prompt} {choice}", start=True)
            begin = common_prefix(asked, whole)
            rows.append((whole[-limit:], [i >= begin for i in range(len(whole))][-limit:]))
    losses = iter(_summed_losses(model, TokenRows(rows), TokenCollator(padding_of(tokenizer))))
    chosen: list[int] = []
    for question in questions.scored:
        scores = [-next(losses) / max(len(choice), 1) for choice in question.choices]
        chosen.append(scores.index(max(scores)))
    return chosen


def _fitting(
    tokenizer: PreTrainedTokenizerBase,
    write: Callable[[Question, Sequence[Question]], str],
    question: Question,
    examples: Sequence[Question],
    limit: int,
) -> str:
    # With as many examples as there is room for.
    for count in range(len(examples), 0, -1):
        text = write(question, examples[:count])
        if len(token_ids(tokenizer, text, start=True)) <= limit:
            return text
    return write(question, [])


def _summed_losses(model: nn.Module, rows: TokenRows, collator: TokenCollator) -> list[float]:
    device, scoring = unwrapped(model).device, TokenScoring("loss")
    order = longest_first(rows)
    sums = [0.0] * len(rows)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        batch = {key: value.to(device) for key, value in collator([rows[i] for i in chosen]).items()}
        for i, total in zip(chosen, scoring.keep(model, batch)[:, 0].tolist(), strict=True):
            sums[i] = total
    return sums
