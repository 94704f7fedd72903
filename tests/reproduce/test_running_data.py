"""What a run reads: prepared and checked before the first run, the same in every session, asked for where needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import small_artefact as small
from asymlora.errors import SpecError
from asymlora.reproduce.artefact import DataSet, MeasuredPart
from asymlora.reproduce.artefact_folder import claim_artefact, read_evidence
from asymlora.reproduce.running import to_be_run
from reproduce.test_running import SECOND_RUNS, _cut, _records


def test_data_are_prepared_in_the_folder_of_the_run(tmp_path: Path) -> None:
    seen: list[Path] = []

    def prepare(data_root: Path, folder: Path) -> Path:
        assert (data_root, folder) == (Path("data"), tmp_path / "run")
        (folder / "data").mkdir(exist_ok=True)
        return folder / "data"

    def parts(root: Path) -> Any:
        seen.append(root)
        return (MeasuredPart(name="toy", points=({"width": 8},), measure=small.Meter()),)

    what = small.artefact(claims=[], prepare=prepare)
    what = replace(what, small=replace(what.small, parts=parts))
    assert small.run(tmp_path / "run", what, small.bowl()).finished
    assert seen[-1] == tmp_path / "run" / "data"
    assert list(read_evidence(tmp_path / "run").measured) == ["toy"]


def _prepared(source: Path, meter: small.Meter) -> Any:
    """Return an artefact whose data are prepared by a link to a file."""

    def prepare(data_root: Path, folder: Path) -> Path:
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / "rows.jsonl").unlink(missing_ok=True)
        (folder / "data" / "rows.jsonl").symlink_to(source)
        return folder / "data"

    def parts(root: Path) -> Any:
        return tuple(
            MeasuredPart(name=name, points=({"width": 8, "root": root.name},), measure=meter) for name in ("a", "b")
        )

    what = small.artefact(claims=[], prepare=prepare)
    return replace(what, small=replace(what.small, parts=parts))


def test_a_run_is_not_gone_on_with_on_other_data(tmp_path: Path) -> None:
    source, meter = tmp_path / "rows.jsonl", small.Meter()
    source.write_text("one")
    small.run(tmp_path / "run", _prepared(source, meter), small.bowl(), only=["a"])
    source.write_text("two")
    with pytest.raises(SpecError, match=r"begun with other data: what was prepared had another content then"):
        small.run(tmp_path / "run", _prepared(source, meter), small.bowl())
    assert len(meter.measured) == 1
    (tmp_path / "moved").write_text("one")
    assert small.run(tmp_path / "run", _prepared(tmp_path / "moved", meter), small.bowl()).finished
    # What is finished reads no data, so there need be none.
    assert small.run(tmp_path / "run", _prepared(tmp_path / "gone", meter), small.bowl()).new == 0


def test_nor_on_another_content_of_a_data_set_of_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "set").write_text("one")
    what = small.artefact(claims=[], data=[DataSet(name="Set", source="made up", place="set")])
    small.run(tmp_path / "run", what, small.bowl(), only=["aside"])
    (tmp_path / "data" / "set").write_text("two")
    with pytest.raises(SpecError, match="begun with other data: Set had another content"):
        small.run(tmp_path / "run", what, small.bowl())


def test_an_older_run_is_not_removed_before_the_new_one_can_begin(tmp_path: Path) -> None:
    path = tmp_path / "run"
    small.run(path, small.artefact(), small.bowl())
    before = _records(path)

    def refuse(*_: Any) -> Any:
        raise SpecError("no such model")

    with pytest.raises(SpecError, match="no such model"):
        small.run(path, small.artefact(), small.bowl(), overwrite=True, ready=refuse)
    with pytest.raises(SpecError, match="no such model"):
        small.run(path, small.artefact(prepare=refuse), small.bowl(), overwrite=True)
    assert _records(path) == before
    again = small.run(path, small.artefact(), small.bowl(), overwrite=True)
    assert again.new == SECOND_RUNS + 4


def test_what_only_a_done_part_reads_need_not_be_there(tmp_path: Path) -> None:
    path, what = tmp_path / "run", small.artefact()
    folder = claim_artefact(path, name="made_up", scale="small", overwrite=False)
    assert to_be_run(what, folder, data_root=Path("data"), only=["toy"]) == ("toy",)
    small.run(path, what, small.bowl(), only=["aside"])
    folder = claim_artefact(path, name="made_up", scale="small", overwrite=False)
    assert to_be_run(what, folder, data_root=Path("data")) == ("swept", "toy")
    small.run(path, what, small.bowl())
    assert to_be_run(what, folder, data_root=Path("data")) == ()
    _cut(path / "aside" / "measured.jsonl", 1)
    assert to_be_run(what, folder, data_root=Path("data")) == ("aside",)
    anew = claim_artefact(path, name="made_up", scale="small", overwrite=True)
    assert to_be_run(what, anew, data_root=Path("data")) == ("swept", "toy", "aside")
