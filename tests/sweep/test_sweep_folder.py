from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from asymlora.atomic import STAGING_PREFIX, held_folder
from asymlora.errors import (
    DiskSpaceError,
    NothingToResumeError,
    RunExistsError,
    RunFolderError,
    SpecError,
    UnwritableFolderError,
)
from asymlora.sweep.sweep_folder import (
    SweepFolder,
    changed_environment,
    claim,
    read_sweep,
    require_same_base,
    stored_plan,
)
from stub_work import row

PLAN = "version: 1\nmatch: steps\nrecipe:\n  train:\n    steps: 10\narms: [init_a]\n"


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """Folder of a sweep with one row."""
    with claim(tmp_path / "sweep", resume=False, overwrite=False).begun(PLAN) as store:
        store.append(row(1))
    return tmp_path / "sweep"


def test_a_new_sweep_has_its_plan_and_environment_before_its_first_run(tmp_path: Path) -> None:
    folder = claim(tmp_path / "deep" / "sweep", resume=False, overwrite=False)
    assert not folder.path.exists()
    with folder.begun(PLAN) as store:
        assert {f.name for f in folder.path.iterdir()} == {"sweep.yaml", "environment.json", "sessions.jsonl"}
        store.append(row(1))
    assert stored_plan(folder.path)["arms"] == ["init_a"]
    assert [f.name for f in folder.path.parent.iterdir()] == ["sweep"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    with claim(tmp_path, resume=False, overwrite=False).begun(PLAN):
        assert (tmp_path / "sweep.yaml").read_text() == PLAN


def test_a_folder_that_holds_a_sweep_is_refused_unless_told(begun: Path) -> None:
    with pytest.raises(RunExistsError, match=r"holds a sweep\. Go on with it with --resume, .*--out.*--overwrite"):
        claim(begun, resume=False, overwrite=False)
    with pytest.raises(SpecError, match="give one of them"):
        claim(begun, resume=True, overwrite=True)
    assert claim(begun, resume=True, overwrite=False) == SweepFolder(path=begun, resumes=True)
    assert len(read_sweep(begun).rows) == 1


def test_overwriting_removes_the_sweep_only_when_the_new_one_begins(begun: Path) -> None:
    folder = claim(begun, resume=False, overwrite=True)
    assert len(read_sweep(begun).rows) == 1
    with folder.begun(PLAN) as store:
        assert store.rows() == []
    assert [f.name for f in begun.parent.iterdir()] == ["sweep"]


@pytest.mark.parametrize("how", [{"resume": True}, {"overwrite": True}, {}])
def test_what_is_no_sweep_is_left_alone(tmp_path: Path, how: dict[str, bool]) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(RunFolderError, match=r"holds no sweep of asymlora\. It is left alone"):
        claim(tmp_path, **{"resume": False, "overwrite": False, **how})
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_resuming_goes_on_with_the_rows_and_takes_the_larger_plan(begun: Path) -> None:
    larger = PLAN.replace("[init_a]", "[init_a, init_b]")
    with claim(begun, resume=True, overwrite=False).begun(larger) as store:
        assert [each.seed for each in store.rows()] == [1]
    assert stored_plan(begun)["arms"] == ["init_a", "init_b"]


def test_every_session_leaves_what_was_typed_and_on_what(tmp_path: Path) -> None:
    for command in ("asymlora sweep --out x", "asymlora sweep --out x --resume"):
        with claim(tmp_path, resume=True, overwrite=False).begun(PLAN, command=command):
            pass
    with (tmp_path / "sessions.jsonl").open("a") as file:
        file.write('{"command": "torn')
    sessions = read_sweep(tmp_path).sessions
    assert [session["command"] for session in sessions] == ["asymlora sweep --out x", "asymlora sweep --out x --resume"]
    assert sessions[0]["environment"]["cpus"] == os.cpu_count()


def test_resuming_where_nothing_is_begins_a_sweep(tmp_path: Path) -> None:
    # Killed before its first file, or between its first and its second: the same command goes on.
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "environment.json").write_text("{}")
    for name in ("none", "half"):
        folder = claim(tmp_path / name, resume=True, overwrite=False)
        assert not folder.resumes
        with folder.begun(PLAN):
            assert stored_plan(folder.path)["match"] == "steps"


def test_the_newest_sweep_is_resumed_where_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NothingToResumeError, match="No sweep below sweeps/"):
        claim(None, resume=True, overwrite=False)
    for number, name in enumerate(("later", "earlier")):
        with claim(Path("sweeps") / name, resume=False, overwrite=False).begun(PLAN):
            pass
        for file in (Path("sweeps") / name).iterdir():
            os.utime(file, (1000 - number, 1000 - number))
    assert claim(None, resume=True, overwrite=False).path == Path("sweeps/later")
    assert claim(None, resume=False, overwrite=False).path.parent == Path("sweeps")


def test_leftovers_of_a_killed_sweep_are_removed(begun: Path) -> None:
    adapters = begun / "adapters"
    for name in (row(1).id, row(2).id, f"{STAGING_PREFIX}x"):
        (adapters / name).mkdir(parents=True)
        (adapters / name / "weights").write_bytes(b"x")
    (begun / f"{STAGING_PREFIX}summary.json-1").write_text("{")
    with claim(begun, resume=True, overwrite=False).begun(PLAN):
        # The adapter of a run without a row is that of a run which will be done again.
        assert [f.name for f in adapters.iterdir()] == [row(1).id]
    assert not [f for f in begun.iterdir() if f.name.startswith(STAGING_PREFIX)]


def test_a_second_engine_is_refused(begun: Path) -> None:
    with held_folder(begun, doing="is running the sweep in"):
        for how in ({"resume": True, "overwrite": False}, {"resume": False, "overwrite": True}):
            folder = claim(begun, **how)
            with pytest.raises(RunExistsError, match="Another process is running the sweep"), folder.begun(PLAN):
                raise AssertionError("held twice")
    assert len(read_sweep(begun).rows) == 1


def test_of_two_that_claimed_one_new_folder_the_second_is_refused(tmp_path: Path) -> None:
    for there in (False, True):
        path = tmp_path / f"sweep-{there}"
        if there:
            path.mkdir()
        one, other = (claim(path, resume=False, overwrite=False) for _ in range(2))
        with one.begun(PLAN):
            pass
        with pytest.raises(RunExistsError, match="has begun a sweep"), other.begun(PLAN.replace("10", "20")):
            raise AssertionError("begun twice")
        assert (path / "sweep.yaml").read_text() == PLAN


def test_another_base_is_refused_by_key_and_more_of_the_rest_is_not(begun: Path) -> None:
    stored = stored_plan(begun)
    require_same_base(begun, {**stored, "arms": ["init_b"], "rates": [1e-3], "closing_seeds": [7]})
    other: dict[str, Any] = {**stored, "match": "compute", "recipe": {"train": {"steps": 20}}}
    with pytest.raises(SpecError, match=r"match: 'steps' / 'compute'; recipe\.train\.steps: 10 / 20\. Arms, rates"):
        require_same_base(begun, other)
    with pytest.raises(SpecError, match=r"margin: None / 0\.01"):
        require_same_base(begun, {**stored, "margin": 0.01})
    with pytest.raises(SpecError, match=r"prune: None / True"):
        require_same_base(begun, {**stored, "prune": True})


def test_an_arm_of_one_name_is_not_redefined(tmp_path: Path) -> None:
    small, large, more = (
        {"name": name, "word": "b_only", "options": {"adapter.rank": rank}}
        for name, rank in (("small", 4), ("small", 8), ("more", 8))
    )
    plan = {"version": 1, "match": "parameters", "arms": [small], "axes": [{"field": "train.steps", "values": [5]}]}
    with claim(tmp_path / "sweep", resume=False, overwrite=False).begun(json.dumps(plan)):
        pass
    longer = [{"field": "train.steps", "values": [5, 10]}]
    require_same_base(tmp_path / "sweep", {**plan, "arms": [small, more], "axes": longer})
    for changed, said in (
        ({"arms": [large]}, r"arms\.small\.options\.adapter\.rank: 4 / 8"),
        ({"arms": [more, small]}, "first arm: 'small' / 'more'"),
        ({"axes": []}, "axes: "),
    ):
        with pytest.raises(SpecError, match=said):
            require_same_base(tmp_path / "sweep", {**plan, **changed})


def test_a_moved_folder_reads_the_same(begun: Path, tmp_path: Path) -> None:
    folder = SweepFolder(path=begun)
    folder.write_similarity([{"pair": "a/b", "cca": 0.5}])
    folder.write_summary({"cells": []})
    before = read_sweep(begun)
    assert (before.name, before.summary, before.similarity) == ("sweep", {"cells": []}, ({"pair": "a/b", "cca": 0.5},))
    assert (before.environment["cpus"], before.warnings) == (os.cpu_count(), ())
    moved = Path(shutil.move(begun, tmp_path / "elsewhere"))
    after = read_sweep(moved)
    assert (after.name, after.rows, after.plan) == ("elsewhere", before.rows, before.plan)
    for file in moved.iterdir():
        assert str(tmp_path) not in file.read_text()


def test_a_sweep_that_goes_on_reads_too_and_nothing_is_written(begun: Path) -> None:
    with (begun / "runs.jsonl").open("a") as opened:
        opened.write('{"id"')
    before = {file: file.read_bytes() for file in begun.iterdir()}
    with held_folder(begun, doing="is running the sweep in"):
        records = read_sweep(begun)
    assert ([each.seed for each in records.rows], records.summary) == ([1], None)
    assert "left unfinished" in records.warnings[0]
    assert {file: file.read_bytes() for file in begun.iterdir()} == before


def test_what_cannot_be_read_is_named(begun: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"there is no sweep\.yaml"):
        read_sweep(tmp_path / "gone")
    (begun / "summary.json").write_text("[")
    with pytest.raises(RunFolderError, match=r"summary\.json is damaged"):
        read_sweep(begun)
    (begun / "summary.json").unlink()
    (begun / "similarity.jsonl").write_text("{}\n{")
    with pytest.raises(RunFolderError, match=r"similarity\.jsonl is damaged"):
        read_sweep(begun)


def test_a_changed_environment_is_told(begun: Path) -> None:
    assert changed_environment(begun) == []
    stored = json.loads((begun / "environment.json").read_text())
    stored["packages"]["torch"] = "1.0"
    (begun / "environment.json").write_text(json.dumps(stored))
    (told,) = changed_environment(begun)
    assert told.startswith("packages.torch: '1.0' / ")


def test_room_and_rights_are_found_out_before_the_first_run(tmp_path: Path) -> None:
    folder = SweepFolder(path=tmp_path / "sweep")
    folder.check_space(1)
    with pytest.raises(DiskSpaceError, match=r"has [\d,]+ MiB left; this sweep writes up to [\d,]+ MiB"):
        folder.check_space(10**18)
    with pytest.raises(UnwritableFolderError, match="Choose another folder with --out"):
        SweepFolder(path=Path("/proc/sweep")).check_space(1)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_at_the_end_is_said_and_what_was_there_stays(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SweepFolder(path=begun)
    folder.write_summary({"cells": [1]})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda: folder.write_summary({"cells": []}), lambda: folder.write_similarity([{}])):
        with pytest.raises(DiskSpaceError, match=r"the disk is full .* go on with --resume"):
            write()
    with pytest.raises(DiskSpaceError), claim(begun, resume=True, overwrite=False).begun(PLAN + "rates: [1.0]\n"):
        raise AssertionError("begun on a full disk")
    monkeypatch.undo()
    assert read_sweep(begun).summary == {"cells": [1]}
    assert stored_plan(begun)["arms"] == ["init_a"]
    assert not list(begun.glob(f"{STAGING_PREFIX}*"))
