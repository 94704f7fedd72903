from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from asymlora.errors import DiskSpaceError, RunExistsError, RunFolderError, SpecError
from asymlora.reproduce import artefact_folder
from asymlora.reproduce.artefact_folder import ArtefactFolder, FirstLook, PartRecords, claim_artefact, read_findings
from asymlora.reproduce.claim import Finding

FOUND = Finding(verdict="fails", ours="-0.5 points", estimate=-0.5, interval=(-0.9, -0.1), p=0.03125, pairs=6)
OPEN = Finding(verdict="undecided", ours="Not run yet: toy.")


def _claim(path: Path, **changes: Any) -> ArtefactFolder:
    return claim_artefact(path, **{"name": "made_up", "scale": "small", "overwrite": False, **changes})


def _begun(path: Path) -> ArtefactFolder:
    folder = _claim(path)
    with folder.begun(command="asymlora reproduce made_up"):
        pass
    return folder


def test_nothing_is_written_before_a_run_is_begun(tmp_path: Path) -> None:
    folder = _claim(tmp_path / "run")
    assert (folder.resumes, folder.replaces, folder.path.exists()) == (False, False, False)


def test_a_begun_run_names_its_artefact_and_who_began_it_on_what(tmp_path: Path) -> None:
    path = _begun(tmp_path / "run").path
    content = json.loads((path / "artefact.json").read_text())
    assert content == {"kind": "reproduction", "version": 1, "name": "made_up", "scale": "small", "done": {}}
    (session,) = [json.loads(line) for line in (path / "sessions.jsonl").read_text().splitlines()]
    assert session["command"] == "asymlora reproduce made_up"
    assert session["environment"] == json.loads((path / "environment.json").read_text())
    assert _claim(path).resumes


@pytest.mark.parametrize("change", [{"name": "other"}, {"scale": "paper"}])
def test_the_run_of_another_artefact_or_scale_is_left_alone(tmp_path: Path, change: dict[str, Any]) -> None:
    path = _begun(tmp_path / "run").path
    before = (path / "artefact.json").read_bytes()
    with pytest.raises(RunExistsError, match=r"holds a run of made_up at the small scale, and not of .*--out"):
        _claim(path, overwrite=True, **change)
    assert (path / "artefact.json").read_bytes() == before


def test_files_that_are_no_run_are_never_removed(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(RunFolderError, match="holds no run of an artefact"):
        _claim(tmp_path, overwrite=True)
    assert (tmp_path / "letters.txt").read_text() == "dear"


def test_a_run_that_is_replaced_begins_anew(tmp_path: Path) -> None:
    folder = _begun(tmp_path / "run")
    folder.note_done("toy", "first", protocol="abc")
    (folder.part("toy")).mkdir()
    anew = _claim(folder.path, overwrite=True)
    assert anew.replaces
    assert folder.part("toy").exists()  # until it begins
    with anew.begun(command=""):
        assert anew.done("toy") is None
        assert not anew.part("toy").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "a JSON object is needed"),
        ('{"kind": "sweep", "version": 1}', "names no artefact"),
        ('{"kind": "reproduction", "version": 2, "name": "a", "scale": "small", "done": {}}', "up to version 1"),
    ],
)
def test_a_head_that_cannot_be_read_is_an_error_of_the_folder(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "artefact.json").write_text(text)
    with pytest.raises(RunFolderError, match=said):
        _claim(tmp_path)


def test_what_is_done_is_noted_by_part(tmp_path: Path) -> None:
    folder = _begun(tmp_path / "run")
    folder.note_done("toy", "first", protocol="abc")
    folder.note_done("swept", "second", protocol="def")
    again = _claim(folder.path)
    assert (again.done("toy"), again.done("swept"), again.done("other")) == (("first", "abc"), ("second", "def"), None)
    folder.note_done("toy", "second", protocol="abc", rows=["b", "a"])
    assert [again.done_rows(part) for part in ("toy", "swept", "other")] == [{"a", "b"}, set(), set()]


def test_the_first_look_comes_back_as_it_was_written(tmp_path: Path) -> None:
    folder = _begun(tmp_path / "run")
    assert folder.first_look() is None
    records = {"toy": PartRecords(rows=("1", "2")), "swept": PartRecords(rows=("3",), plan={"rates": [0.5]})}
    look = FirstLook(findings={"a": FOUND, "b": OPEN}, second=("toy",), protocols={"toy": "abc"}, records=records)
    folder.write_first_look(look)
    assert folder.first_look() == look
    (folder.path / "first_look.json").write_text('{"findings": {"a": 3}}')
    with pytest.raises(RunFolderError, match=r"first_look\.json is damaged"):
        folder.first_look()


def test_findings_say_what_both_looks_found(tmp_path: Path) -> None:
    folder = _begun(tmp_path / "run")
    assert read_findings(folder.path) is None
    folder.write_findings({"a": OPEN}, finished=False)
    assert read_findings(folder.path) == {
        "artefact": "made_up", "scale": "small", "finished": False, "second": [], "first_look": None,
        "decided": {}, "findings": {"a": {**OPEN.to_dict()}},
    }  # fmt: skip
    folder.write_first_look(FirstLook(findings={"a": OPEN}, second=("toy",), protocols={}))
    folder.write_findings({"a": FOUND}, finished=True)
    found = read_findings(folder.path)
    assert found is not None
    assert (found["second"], found["first_look"]["a"]["verdict"]) == (["toy"], "undecided")
    assert Finding.from_dict(found["findings"]["a"]) == FOUND


def test_a_finding_with_a_number_that_is_not_finite_is_refused_by_its_key(tmp_path: Path) -> None:
    folder = _begun(tmp_path / "run")
    wide = Finding(verdict="holds", ours="", estimate=1.0, interval=(0.0, float("inf")))
    with pytest.raises(SpecError, match=r"not finite: wide\."):
        folder.write_findings({"a": FOUND, "wide": wide}, finished=True)
    assert read_findings(folder.path) is None


def test_a_first_look_with_a_number_that_is_not_finite_is_refused_by_its_key(tmp_path: Path) -> None:
    folder = _begun(tmp_path / "run")
    wide = Finding(verdict="undecided", ours="", estimate=1.0, detectable=float("nan"))
    with pytest.raises(SpecError, match=r"not finite: wide\."):
        folder.write_first_look(FirstLook(findings={"wide": wide}, second=(), protocols={}))
    assert folder.first_look() is None


def test_another_run_that_was_begun_meanwhile_is_left_alone(tmp_path: Path) -> None:
    folders = [_claim(tmp_path / "run", name=name) for name in ("one", "two")]
    with folders[0].begun(command=""):
        pass
    with pytest.raises(RunExistsError, match="holds a run of one"), folders[1].begun(command=""):
        pass
    replaced = _claim(tmp_path / "run", name="one", overwrite=True)
    with _claim(tmp_path / "run", name="one", overwrite=True).begun(command=""):
        pass
    (tmp_path / "run" / "artefact.json").write_text(
        '{"kind": "reproduction", "version": 1, "name": "two", "scale": "small", "done": {}}'
    )
    with pytest.raises(RunExistsError, match="holds a run of two"), replaced.begun(command=""):
        pass
    assert (tmp_path / "run" / "artefact.json").is_file()


def test_a_refused_write_is_told_in_words_of_this_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _begun(tmp_path / "run")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artefact_folder, "write_file", full)
    with pytest.raises(DiskSpaceError, match=r"Free some space and go on with the same command\."):
        folder.note_done("toy", "first", protocol="abc")
