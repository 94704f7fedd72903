from __future__ import annotations

from dataclasses import fields

import pytest

from asymlora.errors import SpecError, UnknownKeyError
from asymlora.tasks.inputs import READ_BY_ALL, TASKS, DataRecipe, ModelRecipe, refuse_unread


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"validation_fraction": 0.0}, r"data\.validation_fraction=0\.0 must lie between 0 and 1"),
        ({"test_fraction": 1.0}, r"data\.test_fraction=1\.0"),
        ({"max_tokens": 1}, "at least 2"),
        ({"validation_fraction": 2.0, "max_tokens": 0}, r"validation_fraction.*; data\.max_tokens"),
    ],
)
def test_numbers_out_of_range_are_named_together(given: dict[str, float], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        DataRecipe(**given)  # pyright: ignore[reportArgumentType]


def test_the_default_is_what_registry_packages_ship() -> None:
    assert ModelRecipe().name == "embedded:minilm-l6"
    assert DataRecipe().name == "embedded:reviews"


def test_a_misspelt_field_is_answered() -> None:
    with pytest.raises(UnknownKeyError, match="Did you mean 'pooling'"):
        ModelRecipe(poling="mean")  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("task", "given"),
    [
        ("language_modeling", {"train_environment": "news"}),
        ("language_modeling", {"group": "author"}),
        ("image_classification", {"text_pair": "second"}),
        ("seq2seq", {"problems": "gsm8k.jsonl"}),
    ],
)
def test_a_field_that_the_task_would_pass_over_is_refused(task: str, given: dict[str, str]) -> None:
    (name, value) = next(iter(given.items()))
    with pytest.raises(SpecError, match=rf"data\.{name}='{value}' is given, but the task {task} does not read it; it"):
        refuse_unread(task, DataRecipe(**given))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("task", TASKS)
def test_what_a_task_reads_are_fields_and_none_of_them_is_refused(task: str) -> None:
    known = {field.name for field in fields(DataRecipe)}
    assert {*TASKS[task].reads, *READ_BY_ALL} <= known
    assert known == {*READ_BY_ALL, *(name for row in TASKS.values() for name in row.reads)}
    refuse_unread(task, DataRecipe(max_rows=5, seed=3, metric="loss", subset="films"))
