from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from asymlora.errors import DataError, DataNotFoundError
from asymlora.tasks.causal_models import token_ids
from asymlora.tasks.chat_format import ChatFormat
from asymlora.tasks.exact_match import Problem, Problems, last_number, read_problems, solve
from small_causal import blind_llama, small_llama, small_tokenizer

EGGS = {"question": "How many eggs?", "answer": "She sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\n#### 18"}


def _file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "problems.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 1,234", "1234"),
        ("She makes $18 every day.", "18"),
        ("It costs $1,234.50.", "1234.5"),
        ("The change is -3", "-3"),
        ("It is -$3.", "-3"),
        ("16-3", "3"),
        ("(2)-3", "3"),
        ("x=-3", "-3"),
        ("half: .5", "0.5"),
        ("18.0", "18"),
        ("first 5, then 7, done", "7"),
        ("50%", "50"),
        ("no digits at all", None),
        ("", None),
    ],
)
def test_last_number_of_a_text(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


def test_final_number_stands_behind_the_mark_or_at_the_end(tmp_path: Path) -> None:
    rows = [EGGS, {"question": "2 + 2?", "answer": 4}, {"question": "And?", "answer": "first 5, so $7."}]
    problems = read_problems(_file(tmp_path, rows), shots=1)
    assert [p.answer for p in problems.examples] == [18]
    assert [p.answer for p in problems.scored] == [4, 7]


@pytest.mark.parametrize("row", [{"answer": "none"}, {"answer": "5 #### none"}, {"question": ""}, {"question": None}])
def test_row_that_is_no_problem_is_named(row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Row 2 of .* is no problem"):
        read_problems(_file(tmp_path, [EGGS, {**EGGS, **row}]), shots=0)


def test_missing_file_and_too_many_shots_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"There is no file at data.problems="):
        read_problems(tmp_path / "nothing.jsonl", shots=0)
    with pytest.raises(DataError, match="none is left to score"):
        read_problems(_file(tmp_path, [EGGS]), shots=1)


def _problems(*answers: int) -> Problems:
    made = tuple(
        Problem(question=f"How many, {i}?", solution=f"#### {a}", answer=Decimal(a)) for i, a in enumerate(answers)
    )
    return Problems(examples=(), scored=made)


def test_model_that_always_says_77_is_right_where_that_is_the_answer() -> None:
    tokenizer = small_tokenizer(padding="<|pad|>")
    model = blind_llama({token_ids(tokenizer, "7")[0]: 5.0})
    figures = solve(model, form=ChatFormat(tokenizer), problems=_problems(77, 7, 5, 77), max_new_tokens=2, limit=200)
    assert figures == {"exact_match": 0.5, "problems": 4.0}


def test_model_that_says_nothing_is_wrong() -> None:
    tokenizer = small_tokenizer(padding="<|pad|>")
    model = blind_llama({tokenizer.eos_token_id: 5.0})
    figures = solve(model, form=ChatFormat(tokenizer), problems=_problems(7), max_new_tokens=4, limit=200)
    assert figures["exact_match"] == 0.0


def test_examples_are_earlier_turns_of_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = small_tokenizer(padding="<|pad|>")
    seen: list[str] = []

    def spy(model: Any, tokenizer: Any, prompts: list[list[int]], **options: Any) -> list[str]:
        seen.extend(tokenizer.decode(prompt) for prompt in prompts)
        return ["so it is 7" for _ in prompts]

    monkeypatch.setattr("asymlora.tasks.exact_match.continuations", spy)
    problems = Problems(examples=_problems(3).scored, scored=_problems(7, 7).scored)
    figures = solve(small_llama(), form=ChatFormat(tokenizer), problems=problems, max_new_tokens=2, limit=200)
    assert figures["exact_match"] == 1.0
    assert seen[1] == (
        "<|user|>How many, 0?<|end|>\n<|assistant|>#### 3<|end|>\n<|user|>How many, 1?<|end|>\n<|assistant|>"
    )
