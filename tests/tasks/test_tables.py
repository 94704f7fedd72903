from __future__ import annotations

from typing import Any

import pytest

from asymlora.errors import DataError, EmptyDataError, MissingColumnError
from asymlora.tasks.tables import Rows, Table, check_rows, numeric_labels, parts_by_split, take_rows

BOTH = {"text": "text", "label": "label"}


def _check(rows: Rows, columns: dict[str, str] = BOTH, group: str | None = None) -> None:
    check_rows(rows, columns, group=group, where="the train part of films")


def test_table_of_texts_and_labels_has_these_two_roles() -> None:
    table = Table(parts={"train": {"sentence": ["a"], "verdict": ["x"]}}, text="sentence", label="verdict")
    assert table.column("train", "text") == ["a"]
    assert table.column("train", "label") == ["x"]
    with pytest.raises(MissingColumnError, match=r"no image; they have: text, label"):
        table.column("train", "image")


def test_table_with_other_roles_has_only_these() -> None:
    table = Table(parts={"train": {"image": [b"i"], "label": ["x"]}}, columns={"image": "image"})
    assert table.column("train", "image") == [b"i"]
    with pytest.raises(MissingColumnError, match="no label"):
        table.column("train", "label")


@pytest.mark.parametrize(
    ("labels", "number", "word"),
    [
        ([1, 0, "good"], "row 1 holds 1", "row 3 holds 'good'"),
        (["good", 0.5], "row 2 holds 0.5", "row 1 holds 'good'"),
        (["label", "0", "1"], "row 2 holds '0'", "row 1 holds 'label'"),
        ([True, 1], "row 2 holds 1", "row 1 holds True"),
        (["-1.5e3", "unknown"], "row 1 holds '-1.5e3'", "row 2 holds 'unknown'"),
    ],
)
def test_labels_that_mix_numbers_and_words_are_refused_with_a_row_of_each(
    labels: list[Any], number: str, word: str
) -> None:
    with pytest.raises(DataError) as caught:
        _check({"text": ["t"] * len(labels), "label": labels})
    message = str(caught.value)
    assert f"mix numbers and words: {number}, {word}" in message
    assert message.endswith("Write all labels as words, or all as numbers.")


@pytest.mark.parametrize("labels", [["1", "2", "5+"], [1, 1.0], ["01", 1], ["yes", "no"], [True, False], ["3D", "2D"]])
def test_labels_of_one_kind_pass(labels: list[Any]) -> None:
    _check({"text": ["t"] * len(labels), "label": labels})


def test_numbers_and_words_may_mix_where_no_label_is_read() -> None:
    _check({"text": ["one", 2]}, {"text": "text"})


@pytest.mark.parametrize("values", [["", "  "], [None, None], [float("nan"), ""]])
@pytest.mark.parametrize("role", ["text", "text_pair"])
def test_empty_column_is_said_to_be_empty_in_every_row(values: list[Any], role: str) -> None:
    rows = {"text": ["a", "b"], "label": ["x", "y"], "text_pair": ["c", "d"], role: values}
    with pytest.raises(DataError) as caught:
        _check(rows, {**BOTH, "text_pair": "text_pair"})
    message = str(caught.value)
    assert f"Column '{role}' of the train part of films is empty in every one of its 2 rows" in message
    assert f"Name the column that holds the {role.replace('_', ' ')} with data.{role}" in message


@pytest.mark.parametrize("rows", [{}, {"text": [], "label": []}])
def test_no_row_is_refused(rows: Rows) -> None:
    with pytest.raises(EmptyDataError, match=r"^The train part of films has no row"):
        _check(rows)


def test_missing_column_names_the_field_of_each_role() -> None:
    with pytest.raises(
        MissingColumnError, match=r"Did you mean 'imag'\?.* Name yours with data\.image and data\.label"
    ):
        _check({"imag": [b"i"], "label": ["x"]}, {"image": "image", "label": "label"})


def test_numbers_are_read_from_numbers_and_text() -> None:
    assert numeric_labels({"y": [1, 2.5, "3.5", " -4e-1 "]}, "y", "the train part") == [1.0, 2.5, 3.5, -0.4]


@pytest.mark.parametrize(
    "value", ["high", "3,5", "", None, float("nan"), float("inf"), "nan", "inf", True, "0x10", "1e999"]
)
def test_first_row_that_holds_no_finite_number_is_named(value: object) -> None:
    with pytest.raises(DataError) as caught:
        numeric_labels({"y": [1.0, "2", value, "worse"]}, "y", "the test part of films")
    message = str(caught.value)
    assert message.startswith(f"Row 3 of the test part of films holds {value!r} in column 'y', which is not a finite")
    assert "data.label" in message


def test_rows_are_taken_in_the_order_asked_for() -> None:
    assert take_rows({"a": [1, 2, 3], "b": list("xyz")}, [2, 0]) == {"a": [3, 1], "b": ["z", "x"]}


def test_split_column_divides_the_rows() -> None:
    rows = {"text": list("abcd"), "split": ["test", "Train", "dev ", "train"]}
    parts = parts_by_split(rows, "films.csv")
    assert {part: own["text"] for part, own in parts.items()} == {
        "train": ["b", "d"],
        "validation": ["c"],
        "test": ["a"],
    }
    assert list(parts) == ["train", "validation", "test"]


@pytest.mark.parametrize("rows", [{"text": ["a"]}, {"text": ["a"], "split": ["wood"]}, {"text": [], "split": []}])
def test_rows_without_a_split_that_names_parts_are_all_for_training(rows: Rows) -> None:
    assert parts_by_split(rows, "films.csv") == {"train": rows}


def test_split_of_another_name_among_known_ones_is_refused() -> None:
    with pytest.raises(DataError, match=r"Row 2 of films\.csv holds 'tset' in column 'split'.*Allowed: train, "):
        parts_by_split({"text": ["a", "b"], "split": ["train", "tset"]}, "films.csv")


def test_split_without_training_is_refused() -> None:
    with pytest.raises(DataError, match=r"No row of films\.csv is for training"):
        parts_by_split({"text": ["a"], "split": ["test"]}, "films.csv")
