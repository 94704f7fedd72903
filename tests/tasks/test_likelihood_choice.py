from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from torch.nn.functional import log_softmax

from asymlora.errors import DataError, DataNotFoundError, MissingColumnError
from asymlora.tasks.causal_models import token_ids
from asymlora.tasks.likelihood_choice import (
    Question,
    Questions,
    choose,
    letter_prompt,
    letters_chosen,
    read_questions,
    text_prompt,
    texts_chosen,
)
from asymlora.tasks.token_loss import install_token_loss
from small_causal import blind_llama, small_llama, small_tokenizer

SUM = {"question": "1 + 1?", "choices": ["1", "2", "3"], "answer": "B"}
SKY = {"question": "The sky is", "choices": ["green", "blue"], "answer": 1}


def _file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def _asked(*answers: int, choices: tuple[str, ...] = ("one", "two", "three")) -> Questions:
    made = tuple(Question(question=f"Question {i}?", choices=choices, answer=a) for i, a in enumerate(answers))
    return Questions(examples=(), scored=made)


def _ready(model: Any) -> Any:
    install_token_loss(model)
    return model.requires_grad_(False)


# --- reading --------------------------------------------------------------------------------------------------------


def test_answers_are_letters_or_indices(tmp_path: Path) -> None:
    rows = [{**SUM, "answer": answer} for answer in ("B", "b", 1, "1", 1.0)]
    questions = read_questions(_file(tmp_path, rows), shots=0)
    assert [question.answer for question in questions.scored] == [1] * 5
    assert questions.scored[0] == Question(question="1 + 1?", choices=("1", "2", "3"), answer=1)


def test_examples_come_from_the_head_and_are_not_scored(tmp_path: Path) -> None:
    questions = read_questions(_file(tmp_path, [SUM, SKY, SUM]), shots=1)
    assert [q.question for q in questions.examples] == ["1 + 1?"]
    assert [q.question for q in questions.scored] == ["The sky is", "1 + 1?"]
    with pytest.raises(DataError, match=r"has 3 rows, of which data.shots=3 serve as examples"):
        read_questions(_file(tmp_path, [SUM, SKY, SUM]), shots=3)


def test_lists_are_read_from_parquet_and_csv(tmp_path: Path) -> None:
    pandas.DataFrame([SUM]).to_parquet(tmp_path / "q.parquet")
    pandas.DataFrame([{**SUM, "choices": json.dumps(SUM["choices"])}]).to_csv(tmp_path / "q.csv", index=False)
    for name in ("q.parquet", "q.csv"):
        assert read_questions(tmp_path / name, shots=0).scored[0].choices == ("1", "2", "3")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answer": "D"}, "Row 2 of .* has answer='D', but 3 choices. Give a letter from A to C"),
        ({"answer": 3}, "index from 0 to 2"),
        ({"answer": -1}, "index from 0 to 2"),
        ({"answer": "two"}, "has answer='two'"),
        ({"answer": None}, "has answer="),
        ({"choices": ["1"]}, "list of 2 to 26 answers"),
        ({"choices": "1, 2"}, "list of 2 to 26 answers"),
        ({"choices": {"text": ["1", "2"]}}, "list of 2 to 26 answers"),
        ({"question": " "}, "is no question"),
    ],
)
def test_row_that_is_no_question_is_named(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read_questions(_file(tmp_path, [SUM, {**SUM, **row}]), shots=0)


def test_missing_file_and_column_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"There is no file at data.choices="):
        read_questions(tmp_path / "nothing.jsonl", shots=0)
    with pytest.raises(MissingColumnError, match="no column 'choices' and no 'answer'; it has: question"):
        read_questions(_file(tmp_path, [{"question": "?"}]), shots=0)


# --- prompts --------------------------------------------------------------------------------------------------------


def test_prompt_is_that_of_mmlu() -> None:
    first = Question(question="1 + 1?", choices=("1", "2"), answer=1)
    asked = Question(question="The sky is", choices=("green", "blue"), answer=1, subject="natural_history")
    assert letter_prompt(asked, [first]) == (
        "The following are multiple choice questions (with answers) about natural history.\n\n"
        "1 + 1?\nA. 1\nB. 2\nAnswer: B\n\n"
        "The sky is\nA. green\nB. blue\nAnswer:"
    )
    assert text_prompt(asked, [first]) == "1 + 1?\nAnswer: 2\n\nThe sky is\nAnswer:"


# --- choices of models with known outcome ---------------------------------------------------------------------------


def test_model_that_prefers_a_letter_is_right_where_that_is_the_answer() -> None:
    tokenizer = small_tokenizer(padding="<|pad|>")
    model = _ready(blind_llama({token_ids(tokenizer, " C")[0]: 3.0, token_ids(tokenizer, " B")[0]: 2.0}))
    figures = choose(model, tokenizer=tokenizer, questions=_asked(2, 0, 2, 1, 2), limit=512)
    assert figures["accuracy"] == 0.6
    assert figures["questions"] == 5.0


def test_letter_beyond_the_choices_is_never_chosen() -> None:
    tokenizer = small_tokenizer(padding="<|pad|>")
    model = _ready(blind_llama({token_ids(tokenizer, " D")[0]: 3.0, token_ids(tokenizer, " B")[0]: 2.0}))
    four, two = _asked(3, choices=tuple("wxyz")).scored, _asked(1, choices=("w", "x")).scored
    assert letters_chosen(model, tokenizer, Questions(examples=(), scored=four + two), limit=512) == [3, 1]


def test_text_is_chosen_by_its_likelihood_for_each_character() -> None:
    tokenizer = small_tokenizer(padding="<|pad|>")
    x, y = (token_ids(tokenizer, letter)[0] for letter in "xy")
    model = _ready(blind_llama({x: 4.0, y: 3.0}))
    # A blank and its letters; with 265 tokens every letter of "yyyy" costs more than the one of "x", but the blank,
    # which costs most, is shared among four.
    normaliser = math.log(math.exp(4) + math.exp(3) + 263)
    costs = {"x": 2 * normaliser - 4, "yyyy": (5 * normaliser - 12) / 4}
    assert costs["yyyy"] < costs["x"]
    assert texts_chosen(model, tokenizer, _asked(0, choices=("x", "yyyy")), limit=512) == [1]
    assert texts_chosen(model, tokenizer, _asked(0, choices=("yyyy", "xxxx", "zzzz")), limit=512) == [1]


def test_letters_and_texts_of_a_model_that_reads_are_those_of_each_alone() -> None:
    tokenizer, model = small_tokenizer(padding="<|pad|>"), _ready(small_llama())
    examples = (Question(question="An example?", choices=("no", "yes"), answer=1),)
    scored = tuple(
        Question(question="Q" * (1 + 5 * i) + "?", choices=("yes", f"n{'o' * i}", "perhaps so"), answer=0)
        for i in range(6)
    )
    questions = Questions(examples=examples, scored=scored)

    def logits(text: str) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=torch.tensor([token_ids(tokenizer, text)])).logits[0].double()

    letters = [token_ids(tokenizer, f" {letter}")[0] for letter in "ABC"]
    by_letter = [int(logits(letter_prompt(q, examples))[-1, letters].argmax()) for q in scored]
    by_text: list[int] = []
    for question in scored:
        prompt, scores = text_prompt(question, examples), []
        for choice in question.choices:
            answer = token_ids(tokenizer, f" {choice}")
            shares = log_softmax(logits(f"{prompt} {choice}"), -1)[-len(answer) - 1 : -1]
            scores.append(float(shares[torch.arange(len(answer)), answer].sum()) / len(choice))
        by_text.append(scores.index(max(scores)))
    assert letters_chosen(model, tokenizer, questions, limit=512) == by_letter
    assert texts_chosen(model, tokenizer, questions, limit=512) == by_text
    assert len(set(by_letter)) > 1 or len(set(by_text)) > 1


def test_prompt_that_does_not_fit_gets_fewer_examples() -> None:
    tokenizer, model = small_tokenizer(padding="<|pad|>"), _ready(small_llama())
    examples = tuple(Question(question=f"An example {i}?", choices=("no", "yes"), answer=1) for i in range(3))
    asked = _asked(0, 1).scored
    one = Questions(examples=examples[:1], scored=asked)
    room = max(len(token_ids(tokenizer, letter_prompt(q, examples[:1]))) for q in asked)
    full = Questions(examples=examples, scored=asked)
    assert letters_chosen(model, tokenizer, full, limit=room) == letters_chosen(model, tokenizer, one, limit=512)


def test_model_is_given_back_in_training_mode() -> None:
    tokenizer, model = small_tokenizer(padding="<|pad|>"), _ready(small_llama())
    choose(model.train(), tokenizer=tokenizer, questions=_asked(0), limit=64)
    assert model.training


def test_tokenizer_that_splits_a_letter_from_its_blank_is_refused() -> None:
    tokenizer = small_tokenizer(padding="<|pad|>")
    with pytest.raises(DataError, match="does not write ' E' as one token"):
        letters_chosen(small_llama(), tokenizer, _asked(0, choices=tuple("vwxyz")), limit=512)
