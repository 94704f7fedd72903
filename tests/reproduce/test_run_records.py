from __future__ import annotations

import json
from pathlib import Path

import pytest

from asymlora.errors import RunFolderError
from asymlora.reproduce.measured_store import MeasuredRow, MeasuredStore
from asymlora.reproduce.run_records import PartRecords, read_evidence, read_first_look, read_stated
from small_sweep import write_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    write_folder(path / "swept")
    (path / "toy").mkdir()
    store = MeasuredStore(path / "toy" / "measured.jsonl")
    for number in (1, 2):
        store.append(
            MeasuredRow(id=str(number), point={"n": number}, records=[{"n": number}], seconds=1.0, ended="2026-01-01")
        )
    (path / "data").mkdir()
    return path


def test_evidence_is_read_from_the_folders_of_the_parts(run: Path) -> None:
    found = read_evidence(run)
    assert list(found.sweeps) == ["swept"]
    assert {row.arm for row in found.sweep("swept").rows} == {"init_a", "init_b", "b_only"}
    assert found.sweep("swept").plan["closing_seeds"] == [0, 1, 2, 3, 4, 5]
    assert found.records("toy") == [{"n": 1}, {"n": 2}]
    assert list(found.measured) == ["toy"]


def test_evidence_of_the_first_look_has_its_rows_and_its_plan(run: Path) -> None:
    rows = read_evidence(run).sweep("swept").rows
    first = {"toy": PartRecords(rows=("2",)), "swept": PartRecords(rows=(rows[3].id,), plan={"closing_seeds": [0]})}
    found = read_evidence(run, first=first)
    assert found.records("toy") == [{"n": 2}]
    assert [row.id for row in found.sweep("swept").rows] == [rows[3].id]
    assert found.sweep("swept").plan == {"closing_seeds": [0]}
    assert len(read_evidence(run, first={"toy": first["toy"]}).sweep("swept").rows) == len(rows)


def test_a_folder_that_is_not_there_has_no_evidence(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is no folder"):
        read_evidence(tmp_path / "gone")


def test_what_was_never_written_is_nothing_and_what_is_damaged_an_error(tmp_path: Path) -> None:
    assert (read_first_look(tmp_path), read_stated(tmp_path)) == (None, None)
    (tmp_path / "artefact.json").write_text(json.dumps({"done": {}}))
    assert read_stated(tmp_path) is None
    (tmp_path / "first_look.json").write_text(json.dumps({"findings": {}, "second": [], "protocols": {}}))
    with pytest.raises(RunFolderError, match=r"first_look\.json is damaged. Remove it"):
        read_first_look(tmp_path)
