from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from asymlora.errors import SpecError
from asymlora.reproduce.measured_store import MeasuredRow, MeasuredStore, point_id


def _row(width: int, **changes: Any) -> MeasuredRow:
    point = {"width": width}
    records = [{"width": width, "slope": 0.1 + 0.2}, {"width": width, "slope": None}]
    given = {"id": point_id("toy", point), "point": point, "records": records, "seconds": 0.5, "ended": "2026-01-01"}
    return MeasuredRow(**{**given, **changes})


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    file = tmp_path / "measured.jsonl"
    rows = [_row(8), _row(4)]
    store = MeasuredStore(file)
    assert all(store.append(row) for row in rows)
    assert MeasuredStore(file).rows() == rows
    assert MeasuredStore(file).records() == [record for row in rows for record in row.records]
    assert json.loads(file.read_text().splitlines()[0]) == {"kind": "store", "version": 1}


def test_a_point_is_stored_once(tmp_path: Path) -> None:
    store = MeasuredStore(tmp_path / "measured.jsonl")
    assert store.append(_row(8))
    assert not store.append(_row(8, seconds=9.0))
    assert store.finished() == {point_id("toy", {"width": 8})}


def test_a_file_cut_at_any_byte_keeps_its_whole_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the disk's own work, some hundred times
    file = tmp_path / "measured.jsonl"
    writer = MeasuredStore(file)
    for width in (4, 8):
        writer.append(_row(width))
    content = file.read_bytes()
    for cut in {*range(0, len(content), 7), *range(len(content) - 9, len(content))}:
        file.write_bytes(content[:cut])
        whole = max(content[:cut].count(b"\n") - 1, 0)
        store = MeasuredStore(file)
        assert [row.point["width"] for row in store.rows()] == [4, 8][:whole]
        assert [store.append(_row(width)) for width in (4, 8)] == [whole < 1, whole < 2]
        assert [row.point["width"] for row in MeasuredStore(file).rows()] == [4, 8]


def test_an_id_is_of_part_and_settings_alone() -> None:
    assert point_id("toy", {"a": 1, "b": [2.0, "c"]}) == point_id("toy", {"b": [2.0, "c"], "a": 1})
    ids = {point_id(part, point) for part in ("toy", "other") for point in ({"a": 1}, {"a": 2}, {"b": 1})}
    assert len(ids) == 6


@pytest.mark.parametrize("value", [float("nan"), {1}])
def test_settings_that_are_no_plain_values_are_refused(value: object) -> None:
    with pytest.raises(SpecError, match="of part toy cannot be stored"):
        point_id("toy", {"a": value})


def test_a_line_with_other_fields_is_no_row(tmp_path: Path) -> None:
    file = tmp_path / "measured.jsonl"
    store = MeasuredStore(file)
    store.append(_row(8))
    with file.open("a") as opened:
        opened.write('{"id": "abc", "colour": 3}\n')
    store.refresh()
    assert "colour" in store.warnings()[0]
    assert len(store.rows()) == 1
