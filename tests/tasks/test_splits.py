from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings, strategies

from asymlora.errors import DataError, EmptyDataError, SingleClassError, UnseenLabelError
from asymlora.tasks.sources import Rows, Table
from asymlora.tasks.splits import Part, Parts, divide

PARTS = ("train", "validation", "test")


def _rows(count: int, *, labels: int = 2, first: int = 0) -> Rows:
    numbers = range(first, first + count)
    return {
        "text": [f"text {i}" for i in numbers],
        "label": [str(i % labels) for i in numbers],
        "film": [f"film {i % 10}" for i in numbers],
    }


def _table(train: Rows, *, group: str | None = None, **parts: Rows) -> Table:
    return Table(parts={"train": train, **parts}, text="text", label="label", group=group)


def _divide(table: Table, *, validation: float = 0.2, test: float = 0.2, seed: int = 0) -> Parts:
    return divide(table, validation_fraction=validation, test_fraction=test, seed=seed)


def _texts(parts: Parts) -> dict[str, list[str]]:
    return {part: getattr(parts, part).texts for part in PARTS}


def _labelled(parts: Parts) -> dict[str, str]:
    """Every text with the name of its label."""
    made = [getattr(parts, part) for part in PARTS]
    return {
        text: parts.label_names[label] for part in made for text, label in zip(part.texts, part.labels, strict=True)
    }


def test_every_row_goes_to_exactly_one_part_with_its_own_label() -> None:
    rows = _rows(200, labels=3)
    parts = _divide(_table(rows))
    assert sorted(text for texts in _texts(parts).values() for text in texts) == sorted(rows["text"])
    assert _labelled(parts) == dict(zip(rows["text"], rows["label"], strict=True))
    assert parts.dropped == 0


def test_shares_are_of_all_rows_for_test_and_of_the_rest_for_validation() -> None:
    parts = _divide(_table(_rows(200)), test=0.25, validation=0.1)
    # 25 % of 200, then 10 % of the other 150.
    assert (len(parts.test), len(parts.validation), len(parts.train)) == (50, 15, 135)


def test_shares_are_of_groups_where_there_are_groups() -> None:
    parts = _divide(_table(_rows(200), group="film"), test=0.2, validation=0.25)
    # Ten films of 20 rows each: two for test, two of the other eight for validation.
    assert (len(parts.test), len(parts.validation), len(parts.train)) == (40, 40, 120)


@pytest.mark.parametrize("seed", range(5))
def test_no_group_stands_on_two_sides(seed: int) -> None:
    rows = _rows(200)
    film = dict(zip(rows["text"], rows["film"], strict=True))
    films = [{film[t] for t in texts} for texts in _texts(_divide(_table(rows, group="film"), seed=seed)).values()]
    assert sum(map(len, films)) == len(set.union(*films)) == 10


def test_without_a_group_column_rows_of_one_film_may_be_divided() -> None:
    rows = _rows(200)
    film = dict(zip(rows["text"], rows["film"], strict=True))
    films = [{film[t] for t in texts} for texts in _texts(_divide(_table(rows))).values()]
    assert sum(map(len, films)) > 10


@settings(max_examples=40, deadline=None)
@given(
    strategies.lists(strategies.integers(0, 25), min_size=40, max_size=60),
    strategies.integers(0, 2**31 - 1),
    strategies.sampled_from([(), ("validation",), ("test",)]),
    strategies.sampled_from([None, "film"]),
)
def test_no_text_stands_on_two_sides(
    numbers: list[int], seed: int, given_parts: tuple[str, ...], group: str | None
) -> None:
    rows = {
        "text": [f"text {i}" for i in numbers],
        "label": [str(i % 2) for i in range(len(numbers))],
        "film": [f"film {i % 9}" for i in range(len(numbers))],
    }
    others = {part: _rows(20) for part in given_parts}
    try:
        parts = _divide(_table(rows, group=group, **others), seed=seed)
    except (EmptyDataError, SingleClassError, UnseenLabelError):
        return  # so many repeated texts that a part or a label is gone
    sides = [set(texts) for texts in _texts(parts).values()]
    assert sum(map(len, sides)) == len(set.union(*sides))
    kept = sum(map(len, _texts(parts).values()))
    assert parts.dropped == len(numbers) + 20 * len(given_parts) - kept


def test_training_rows_that_stand_in_a_given_part_are_dropped_and_counted() -> None:
    train = _rows(12)
    held = {"validation": _rows(2, first=0), "test": _rows(3, first=4)}
    parts = _divide(_table(train, **held))
    assert parts.dropped == 5
    assert parts.train.texts == [f"text {i}" for i in (2, 3, 7, 8, 9, 10, 11)]
    assert _texts(parts)["validation"] == held["validation"]["text"]
    assert _texts(parts)["test"] == held["test"]["text"]


def test_validation_rows_that_stand_in_test_give_way() -> None:
    rows = {**_rows(100), "text": [f"text {i % 50}" for i in range(100)]}
    parts = _divide(_table(rows), test=0.3, validation=0.5)
    assert len(parts.test) == 30
    # Half of the other 70 rows, less those whose twin stands in test.
    assert 0 < len(parts.validation) < 35
    assert not set(parts.validation.texts) & set(parts.test.texts)


@pytest.mark.parametrize("given_part", ["validation", "test"])
def test_part_made_here_gives_way_to_the_given_one(given_part: str) -> None:
    train, held = _rows(60), _rows(20)
    parts = _divide(_table(train, **{given_part: held}), test=0.5, validation=0.5)
    made = "test" if given_part == "validation" else "validation"
    assert _texts(parts)[given_part] == held["text"]
    assert not set(_texts(parts)[made]) & set(held["text"])
    assert _texts(parts)[made]


def test_given_parts_are_kept_row_by_row() -> None:
    train, validation, test = _rows(10), _rows(4, first=20), _rows(6, first=40)
    parts = _divide(_table(train, validation=validation, test=test))
    assert _texts(parts) == {"train": train["text"], "validation": validation["text"], "test": test["text"]}
    assert parts.train.labels == [int(label) for label in train["label"]]


def test_same_seed_gives_the_same_parts_and_another_seed_others() -> None:
    table = _table(_rows(100), group="film")
    assert _divide(table, seed=3) == _divide(table, seed=3)
    assert _texts(_divide(table, seed=3))["test"] != _texts(_divide(table, seed=4))["test"]


def test_test_part_does_not_depend_on_the_size_of_the_validation_part() -> None:
    table = _table(_rows(100))
    assert _divide(table, validation=0.1).test == _divide(table, validation=0.5).test


def test_rows_keep_their_order_within_a_part() -> None:
    for texts in _texts(_divide(_table(_rows(100)))).values():
        numbers = [int(text.split()[1]) for text in texts]
        assert numbers == sorted(numbers)


def test_length_of_a_part_is_its_number_of_texts() -> None:
    assert len(Part(texts=["a", "b", "c"], labels=[0, 1, 0])) == 3


# --- labels --------------------------------------------------------------------------------------------------------


def _with_labels(*names: str) -> Table:
    train = {"text": [f"text {i}" for i in range(len(names))], "label": list(names)}
    held = {"text": ["held"], "label": [names[0]]}
    return _table(train, validation=held, test={"text": ["held back"], "label": [names[-1]]})


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (("10", "9", "2", "1"), ("1", "2", "9", "10")),
        (("0", "1", "-1"), ("-1", "0", "1")),
        (("b", "c", "a"), ("a", "b", "c")),
        (("10", "9", "x"), ("10", "9", "x")),
        (("2", "²"), ("2", "²")),  # a digit to str.isdigit, not to int
        (("-", "1"), ("-", "1")),
        (("--1", "1"), ("--1", "1")),
        (("1.5", "0.5"), ("0.5", "1.5")),
    ],
)
def test_labels_stand_in_the_order_of_their_numbers_or_of_the_alphabet(
    names: tuple[str, ...], order: tuple[str, ...]
) -> None:
    parts = _divide(_with_labels(*names))
    assert parts.label_names == order
    assert [order[i] for i in parts.train.labels] == list(names)


def test_order_of_a_source_wins() -> None:
    table = _with_labels("fresh", "rotten")
    ordered = Table(parts=table.parts, text="text", label="label", group=None, label_order=("rotten", "fresh"))
    parts = _divide(ordered)
    assert parts.label_names == ("rotten", "fresh")
    assert parts.train.labels == [1, 0]


@pytest.mark.parametrize(
    ("known", "order"),
    [(("rotten", "so-so", "fresh"), ("rotten", "fresh")), (("rotten",), ("fresh", "rotten"))],
)
def test_order_of_a_source_is_that_of_the_labels_there_are(known: tuple[str, ...], order: tuple[str, ...]) -> None:
    # Two labels of which one is never seen would be scored as three.
    table = Table(parts=_with_labels("fresh", "rotten").parts, label_order=known)
    assert _divide(table).label_names == order


def test_labels_of_one_number_have_the_same_order_in_every_process() -> None:
    # A set of texts is walked in another order under another hash seed, and "1" and "01" are equal as numbers.
    code = (
        "import json; from asymlora.tasks.sources import Table; from asymlora.tasks.splits import divide;"
        "names = ['1', '01', '001', '0001'];"
        "rows = {'text': list('abcd'), 'label': names};"
        "held = {'text': ['x'], 'label': ['1']};"
        "parts = {'train': rows, 'validation': held, 'test': held};"
        "table = Table(parts=parts, text='text', label='label', group=None);"
        "print(json.dumps(divide(table, validation_fraction=.1, test_fraction=.1, seed=0).label_names))"
    )
    orders = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(3)
    }
    assert [json.loads(order) for order in orders] == [["0001", "001", "01", "1"]]


def test_one_class_in_training_is_refused_by_its_name() -> None:
    with pytest.raises(SingleClassError, match="Every training row has the label '0'; at least two labels"):
        _divide(_table(_rows(50, labels=1)))


def test_class_whose_only_training_rows_are_dropped_counts_as_gone() -> None:
    train = {"text": ["a", "b", "held"], "label": ["x", "x", "y"]}
    held = {"text": ["held"], "label": ["x"]}
    with pytest.raises(SingleClassError, match="Every training row has the label 'x'"):
        _divide(_table(train, validation=held, test=held))


def test_label_left_in_no_training_row_after_dropping_is_unseen() -> None:
    train = {"text": ["a", "b", "held"], "label": ["x", "z", "y"]}
    held = {"text": ["held"], "label": ["y"]}
    with pytest.raises(UnseenLabelError, match="validation: 'y'; test: 'y'"):
        _divide(_table(train, validation=held, test=held))


def test_labels_that_training_never_sees_are_listed_by_part() -> None:
    train = _rows(10)
    validation = {"text": ["v"], "label": ["maybe"]}
    test = {"text": ["t", "u"], "label": ["never", "1"]}
    with pytest.raises(UnseenLabelError) as caught:
        _divide(_table(train, validation=validation, test=test))
    message = str(caught.value)
    assert "(validation: 'maybe'; test: 'never')" in message
    assert "Training has: '0', '1'." in message


def test_label_of_training_alone_is_no_fault() -> None:
    held = {"text": ["held"], "label": ["0"]}
    assert _divide(_table(_rows(9, labels=3), validation=held, test=held)).label_names == ("0", "1", "2")


# --- too little ----------------------------------------------------------------------------------------------------


def _films(count: int) -> Rows:
    return {**_rows(60), "film": [f"film {i % count}" for i in range(60)]}


@pytest.mark.parametrize(
    ("rows", "group", "fractions", "message"),
    [
        (_films(2), "film", {}, "2 groups are too few to hold out a share of 0.2 for test"),
        (_films(3), "film", {"test": 0.4}, "1 groups are too few to hold out a share of 0.2 for validation"),
        (_rows(2), None, {}, "2 rows are too few to hold out a share of 0.2 for test"),
        (_rows(20), None, {"test": 0.01}, "20 rows are too few to hold out a share of 0.01 for test"),
        (_rows(20), None, {"test": 0.99}, "20 rows are too few to hold out a share of 0.99 for test"),
        (_films(5), "film", {"validation": 0.9}, "4 groups are too few to hold out a share of 0.9 for validation"),
    ],
)
def test_too_few_to_divide_says_how_many_and_what_to_do(
    rows: Rows, group: str | None, fractions: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        _divide(_table(rows, group=group), **fractions)
    assert message in str(caught.value)
    part = message.rpartition(" ")[2]
    assert f"another data.{part}_fraction, or a {part} file of your own" in str(caught.value)


def test_part_of_which_every_text_stands_elsewhere_is_refused_by_its_name() -> None:
    with pytest.raises(EmptyDataError, match="No train row is left"):
        _divide(_table(_rows(4), validation=_rows(4), test=_rows(4)))


def test_texts_that_differ_in_surrounding_space_only_are_one_text() -> None:
    rows = {"text": ["good", "bad", "fine"], "label": ["a", "b", "a"]}
    test = {"text": ["good ", " new"], "label": ["a", "b"]}
    validation = {"text": ["other"], "label": ["a"]}
    parts = {"train": {"text": [*rows["text"], "poor"], "label": [*rows["label"], "b"]}}
    table = Table(parts={**parts, "validation": validation, "test": test}, text="text", label="label", group=None)
    made = divide(table, validation_fraction=0.1, test_fraction=0.1, seed=0)
    assert made.train.texts == ["bad", "fine", "poor"]
    assert made.dropped == 1
