from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from asymlora.errors import DataError, DataNotFoundError
from asymlora.papers import instruction_rows
from asymlora.papers.instruction_rows import (
    CHOICES,
    QUESTIONS_EACH,
    SETS,
    TEST,
    TESTED_EACH,
    TRAIN,
    TRAINED_EACH,
    TextSet,
    instruction,
    multiple_choice,
    write_rows,
)

PAIRS = ("text/rte", "text/mrpc")


def _row(one: TextSet, number: int, part: str) -> dict[str, Any]:
    row: dict[str, Any] = {"text": f"{part} {{braces}} {number}", "label": number % len(one.answers)}
    return {**row, "text_pair": f"other {number}"} if one.place in PAIRS else row


def _write_sets(root: Path, *, training: int = TRAINED_EACH + 5, scored: int = TESTED_EACH + QUESTIONS_EACH) -> Path:
    for one in SETS:
        folder = root / one.place
        folder.mkdir(parents=True)
        for name, count in ((TRAIN, training), (one.scored, scored)):
            lines = [json.dumps(_row(one, number, name)) for number in range(count)]
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    root = _write_sets(tmp_path_factory.mktemp("sets"))
    write_rows(root, root / "made")
    return {name: _rows(root / "made" / name) for name in (TRAIN, TEST, CHOICES)}


def _prompt(row: dict[str, Any]) -> str:
    return row["messages"][1]["content"]


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_every_set_gives_as_many_rows_as_every_other_and_they_take_turns(
    made: dict[str, list[dict[str, Any]]],
) -> None:
    assert {name: len(rows) for name, rows in made.items()} == {
        TRAIN: 4 * TRAINED_EACH,
        TEST: 4 * TESTED_EACH,
        CHOICES: 4 * QUESTIONS_EACH,
    }
    subjects = [row["subject"] for row in made[CHOICES]]
    assert subjects == [one.subject for one in SETS] * QUESTIONS_EACH


def test_no_text_stands_in_two_files(made: dict[str, list[dict[str, Any]]]) -> None:
    words = {name: [row["question"] if name == CHOICES else _prompt(row) for row in made[name]] for name in made}
    assert all("test.jsonl {braces}" in text or "validation.jsonl {braces}" in text for text in words[TEST])
    assert all("train.jsonl {braces}" in text for text in words[TRAIN])
    # The number of a row tells its text.
    numbers = {name: [text.split("{braces} ")[1].split()[0] for text in texts] for name, texts in words.items()}
    for place in range(len(SETS)):
        assert not set(numbers[TEST][place::4]) & set(numbers[CHOICES][place::4])


def test_a_training_row_whose_text_is_scored_is_left_out(tmp_path: Path) -> None:
    root = _write_sets(tmp_path)
    for one in SETS:
        own = [_row(one, number, TRAIN) for number in range(TRAINED_EACH)]
        scored = _rows(root / one.place / one.scored)
        text = "\n".join(json.dumps(row) for row in [*scored, *own])
        (root / one.place / TRAIN).write_text(text, encoding="utf-8")
    write_rows(root, tmp_path / "made")
    texts = [_prompt(row) for row in _rows(tmp_path / "made" / TRAIN)]
    assert all("train.jsonl {braces}" in text for text in texts)


def test_the_same_files_come_of_the_same_sets_and_are_written_once(tmp_path: Path) -> None:
    root = _write_sets(tmp_path)
    write_rows(root, tmp_path / "one")
    first = {file.name: file.read_bytes() for file in (tmp_path / "one").iterdir()}
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "one").iterdir()}
    write_rows(root, tmp_path / "one")
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "one").iterdir()} == before
    write_rows(root, tmp_path / "two")
    assert {file.name: file.read_bytes() for file in (tmp_path / "two").iterdir()} == first
    (tmp_path / "one" / TEST).write_text("torn", encoding="utf-8")
    write_rows(root, tmp_path / "one")
    assert (tmp_path / "one" / TEST).read_bytes() == first[TEST]


@pytest.mark.parametrize("one", SETS, ids=lambda one: one.place)
def test_every_way_of_asking_holds_the_texts_and_has_the_right_answer(one: TextSet) -> None:
    row = {"text": "FIRST", "text_pair": "SECOND", "label": 1}
    made = [instruction(one, row, f"{way:04x}") for way in range(len(one.ways) + 1)]
    assert {tuple(turn["role"] for turn in example["messages"]) for example in made} == {
        ("system", "user", "assistant")
    }
    prompts, answers = list(map(_prompt, made)), [example["messages"][-1]["content"] for example in made]
    assert len(set(prompts)) == len(one.ways) + 1
    for prompt in prompts:
        assert "FIRST" in prompt
        assert ("SECOND" in prompt) == (one.place in PAIRS)
        assert "{" not in prompt
    assert set(answers[:-1]) == {one.answers[1]}
    assert f"\n{answers[-1]}. {one.answers[1]}\n" in prompts[-1]


@pytest.mark.parametrize("one", SETS, ids=lambda one: one.place)
def test_the_right_choice_stands_at_every_letter_and_is_the_labels_answer(one: TextSet) -> None:
    row = {"text": "FIRST", "text_pair": "SECOND", "label": 0}
    asked = [multiple_choice(one, row, f"{(len(one.ways) + 1) * turn:x}") for turn in range(len(one.answers))]
    assert Counter(question["answer"] for question in asked) == Counter(range(len(one.answers)))
    for question in asked:
        assert question["choices"][question["answer"]] == one.answers[0]
        assert sorted(question["choices"]) == sorted(one.answers)


def test_a_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"no .*text/trec6/test\.jsonl.*--data-root"):
        write_rows(tmp_path, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_set_with_too_few_short_rows_is_named(tmp_path: Path) -> None:
    root = _write_sets(tmp_path, training=TRAINED_EACH - 1)
    with pytest.raises(DataError, match=rf"text/trec6/train\.jsonl has {TRAINED_EACH - 1} rows .* {TRAINED_EACH} are"):
        write_rows(root, tmp_path / "made")


def test_long_rows_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instruction_rows, "SETS", SETS[1:2])
    root = _write_sets(tmp_path)
    file = root / SETS[1].place / TRAIN
    long = json.dumps({"text": " ".join(["word"] * (SETS[1].most_words + 1)), "label": 0})
    file.write_text(f"{long}\n{file.read_text(encoding='utf-8')}{long}\n", encoding="utf-8")
    write_rows(root, tmp_path / "made")
    assert not [row for row in _rows(tmp_path / "made" / TRAIN) if "word word" in _prompt(row)]
