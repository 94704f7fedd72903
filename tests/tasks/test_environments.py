from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from asymlora.errors import DataError, UnknownNameError, UnseenLabelError
from asymlora.tasks.environments import names_of, own_rows, scored_rows
from asymlora.tasks.splits import Parts, divide
from asymlora.tasks.tables import Rows, Table

COLUMNS = {"image": "picture", "label": "kind", "environment": "domain"}


def _rows(counts: dict[str, int], *, labels: tuple[str, ...] = ("cat", "dog"), part: str = "train") -> Rows:
    rows: Rows = {"picture": [], "kind": [], "domain": []}
    for domain, count in counts.items():
        for row in range(count):
            rows["picture"].append(f"{part}/{domain}/{row}".encode())
            rows["kind"].append(labels[row % len(labels)])
            rows["domain"].append(domain)
    return rows


def _table(**parts: Rows) -> Table:
    return Table(parts=parts, label="kind", columns=COLUMNS)


def _divided(table: Table, train_environment: str | None) -> Parts:
    own = own_rows(table, train_environment=train_environment)
    return divide(own, validation_fraction=0.2, test_fraction=0.2, seed=0)


def _scored(table: Table, train_environment: str | None) -> Any:
    parts = _divided(table, train_environment)
    return scored_rows(table, parts, train_environment=train_environment)


def test_only_rows_of_the_environment_are_trained_chosen_and_tested_on() -> None:
    parts = _divided(_table(train=_rows({"photo": 20, "sketch": 12})), "photo")
    for part in (parts.train, parts.validation, parts.test):
        assert set(part.columns["environment"]) == {"photo"}
    assert len(parts.train) + len(parts.validation) + len(parts.test) == 20


def test_others_without_parts_are_scored_on_all_their_rows() -> None:
    found, notes = _scored(_table(train=_rows({"photo": 20, "sketch": 12, "art": 5})), "photo")
    assert {name: len(part) for name, part in found.items()} == {"art": 5, "sketch": 12}
    assert found["art"].columns["image"][1] == b"train/art/1"
    assert found["art"].labels == [0, 1, 0, 1, 0]
    assert notes == (
        "Trained on photo: 12 rows, 4 for choices, 4 for the closing figures.",
        "Also scored on art: 5 rows, all it has.",
        "Also scored on sketch: 12 rows, all it has.",
    )


def test_others_with_a_test_part_are_scored_on_it() -> None:
    table = _table(
        train=_rows({"photo": 20, "sketch": 12, "art": 4}), test=_rows({"photo": 6, "sketch": 3}, part="test")
    )
    found, notes = _scored(table, "photo")
    # Art has no row in the test part: all of its rows, none of which was trained on.
    assert {name: len(part) for name, part in found.items()} == {"art": 4, "sketch": 3}
    assert "Also scored on sketch: 3 rows, its test part." in notes
    assert "Also scored on art: 4 rows, all it has." in notes


def test_a_part_without_the_environment_is_held_out_of_its_training_rows() -> None:
    table = _table(train=_rows({"photo": 20, "sketch": 12}), test=_rows({"sketch": 3}, part="test"))
    assert "test" not in own_rows(table, train_environment="photo").parts
    assert set(_divided(table, "photo").test.columns["environment"]) == {"photo"}


def test_rows_that_training_has_are_not_scored_elsewhere() -> None:
    rows = _rows({"photo": 20, "sketch": 3})
    parts = _divided(_table(train=rows), "photo")
    trained = parts.train.columns["image"][0]
    rows["picture"][20] = trained
    found, notes = _scored(_table(train=rows), "photo")
    assert trained not in found["sketch"].columns["image"]
    assert notes[1] == "Also scored on sketch: 2 rows, all it has; 1 that training has are left out."
    rows["picture"][21:23] = [trained, trained]
    with pytest.raises(DataError, match="Every row of the environment 'sketch' also stands in the training part"):
        _scored(_table(train=rows), "photo")


def test_arrays_are_compared_by_their_values() -> None:
    rows = _rows({"photo": 20, "sketch": 3})
    rows["picture"] = [np.full((2, 2), value, np.uint8) for value in range(23)]
    parts = _divided(_table(train=rows), "photo")
    rows["picture"][22] = parts.train.columns["image"][0].copy()
    found, _ = _scored(_table(train=rows), "photo")
    assert len(found["sketch"]) == 2


def test_texts_have_environments_too() -> None:
    rows = _rows({"photo": 20, "sketch": 3})
    rows["picture"] = [picture.decode() for picture in rows["picture"]]
    table = Table(
        parts={"train": rows},
        text="picture",
        label="kind",
        columns={"text": "picture", "label": "kind", "environment": "domain"},
    )
    rows["picture"][21] = f" {_divided(table, 'photo').train.texts[0]} "
    parts = _divided(table, "photo")
    found, _ = scored_rows(table, parts, train_environment="photo")
    assert found["sketch"].texts == ["train/sketch/0", "train/sketch/2"]
    assert found["sketch"].labels == [0, 0]


def test_of_pairs_only_whole_repeats_are_left_out() -> None:
    rows: Rows = {"a": ["same"] * 14, "b": [str(i % 10) for i in range(14)], "y": list("01") * 7}
    rows["domain"] = ["photo"] * 10 + ["sketch"] * 4
    rows["b"][13] = "new"
    columns = {"text": "a", "text_pair": "b", "label": "y", "environment": "domain"}
    table = Table(parts={"train": rows}, columns=columns)
    parts = _divided(table, "photo")
    found, _ = scored_rows(table, parts, train_environment="photo")
    expected = [second for second in ("0", "1", "2", "new") if second not in parts.train.columns["text_pair"]]
    assert found["sketch"].columns["text_pair"] == expected


def test_numbers_are_scored_elsewhere_too() -> None:
    rows: Rows = {"a": [f"text {i}" for i in range(12)], "y": [i / 2 for i in range(12)]}
    rows["domain"] = ["photo"] * 10 + ["sketch"] * 2
    table = Table(parts={"train": rows}, columns={"text": "a", "label": "y", "environment": "domain"})
    own = own_rows(table, train_environment="photo")
    parts = divide(own, validation_fraction=0.2, test_fraction=0.2, seed=0, labels="numbers")
    found, _ = scored_rows(table, parts, train_environment="photo")
    assert found["sketch"].labels == [5.0, 5.5]


def test_without_a_training_environment_each_ones_test_rows_are_scored() -> None:
    table = _table(train=_rows({"photo": 20, "sketch": 12}), test=_rows({"photo": 6, "sketch": 3}, part="test"))
    parts = _divided(table, None)
    found, notes = scored_rows(table, parts, train_environment=None)
    assert {name: len(part) for name, part in found.items()} == {"photo": 6, "sketch": 3}
    assert found["sketch"].columns["image"] == [f"test/sketch/{row}".encode() for row in range(3)]
    assert found["sketch"].labels == [0, 1, 0]
    assert notes == (
        "All environments are trained on together (data.train_environment chooses one); test rows of each: photo 6,"
        " sketch 3.",
    )


def test_without_environments_there_is_nothing_further() -> None:
    rows = _rows({"photo": 20})
    plain = Table(parts={"train": rows}, label="kind", columns={"image": "picture", "label": "kind"})
    assert names_of(plain) == []
    assert _scored(plain, None) == ({}, ())
    with pytest.raises(DataError, match=r"train_environment='photo' is given, but the rows have no environment"):
        own_rows(plain, train_environment="photo")


def test_numbers_name_environments_too() -> None:
    rows = _rows({"1": 20, "2": 4})
    rows["domain"] = [int(value) for value in rows["domain"]]
    found, _ = _scored(_table(train=rows), "1")
    assert len(found["2"]) == 4


def test_an_unknown_environment_lists_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match=r"called 'fotos'. Did you mean 'photo'\? There are: photo, sketch"):
        own_rows(_table(train=_rows({"photo": 4, "sketch": 4})), train_environment="fotos")


def test_an_environment_of_the_test_part_alone_cannot_be_trained_on() -> None:
    table = _table(train=_rows({"photo": 4}), test=_rows({"sketch": 4}, part="test"))
    with pytest.raises(DataError, match=r"No row of the train part .* 'sketch'\. Train on one of: photo\."):
        own_rows(table, train_environment="sketch")


def test_labels_must_agree_across_environments() -> None:
    rows = _rows({"photo": 20})
    for column, values in _rows({"sketch": 4}, labels=("cat", "cow")).items():
        rows[column] += values
    with pytest.raises(UnseenLabelError, match=r"'sketch' has labels that training never sees \('cow'\). Training has"):
        _scored(_table(train=rows), "photo")
