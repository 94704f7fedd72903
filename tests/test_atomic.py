from __future__ import annotations

import os
from pathlib import Path

import pytest

from asymlora.atomic import STAGING_PREFIX, held_folder, remove_folder, remove_leftovers, staged_folder, write_file
from asymlora.errors import RunExistsError


class _PowerCutError(Exception):
    pass


def _leftovers(folder: Path) -> list[str]:
    return [f.name for f in folder.rglob("*") if f.name.startswith(STAGING_PREFIX)]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_file(tmp_path / "f", "one")
    write_file(tmp_path / "f", b"two")
    assert (tmp_path / "f").read_text() == "two"
    assert not _leftovers(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "f", "one")

    def fail(_: int) -> None:
        raise _PowerCutError

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(_PowerCutError):
        write_file(tmp_path / "f", "two")
    assert (tmp_path / "f").read_text() == "one"
    assert not _leftovers(tmp_path)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with pytest.raises(_PowerCutError), staged_folder(target) as staging:
        (staging / "half").write_text("x")
        raise _PowerCutError
    assert not target.exists()
    assert not _leftovers(tmp_path)
    with staged_folder(target) as staging:
        (staging / "whole").write_text("x")
        assert not target.exists()
    assert [f.name for f in target.iterdir()] == ["whole"]


def test_a_failure_in_an_existing_folder_leaves_its_files(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("old")
    with pytest.raises(_PowerCutError), staged_folder(tmp_path, last="config") as staging:
        (staging / "config").write_text("new")
        raise _PowerCutError
    assert (tmp_path / "config").read_text() == "old"
    assert not _leftovers(tmp_path)


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_an_existing_folder_never_shows_old_and_new_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    for name in ("config", "weights", "card"):
        (tmp_path / name).write_text("old")
    replace, count = Path.replace, 0

    def cut(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count > moved:
            raise _PowerCutError
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(_PowerCutError), staged_folder(tmp_path, last="config") as staging:
        for name in ("config", "weights", "card"):
            (staging / name).write_text("new")
    assert not (tmp_path / "config").exists()


def test_removing_takes_the_final_name_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    (folder / "f").write_text("x")

    def fail(_: Path) -> None:
        raise _PowerCutError

    monkeypatch.setattr("asymlora.atomic.shutil.rmtree", fail)
    with pytest.raises(_PowerCutError):
        remove_folder(folder)
    assert not folder.exists()
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_held_folder_is_held_against_others_and_free_afterwards(tmp_path: Path) -> None:
    with held_folder(tmp_path, doing="is writing in"):  # noqa: SIM117
        with pytest.raises(RunExistsError, match=r"Another process is writing in .*Wait for it"):
            with held_folder(tmp_path, doing="is writing in"):
                raise AssertionError("held twice")
    with held_folder(tmp_path, doing="is writing in"):
        assert not list(tmp_path.iterdir())
