from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asymlora.errors import (
    DiskSpaceError,
    NothingToResumeError,
    RunExistsError,
    RunFolderError,
    SpecError,
    UnwritableFolderError,
)
from asymlora.spec import AdapterSpec
from asymlora.train import run_folder
from asymlora.train.recipe import Recipe, TrainRecipe
from asymlora.train.run_folder import (
    RunFolder,
    claim,
    environment,
    peak_bytes,
    require_same_recipe,
    stored_recipe,
)

RECIPE = Recipe(train=TrainRecipe(steps=3))
MARGIN = run_folder._MARGIN_BYTES


def _unfinished(path: Path, recipe: Recipe = RECIPE) -> Path:
    with RunFolder(path=path).begun(recipe):
        pass
    return path


def _finished(path: Path) -> Path:
    RunFolder(path=_unfinished(path)).finish({"accuracy": 0.5})
    return path


def _foreign(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "thesis.txt").write_text("years of work")
    return path


def _content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


# --- claiming ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("resume", "overwrite"), [(False, False), (True, False), (False, True)])
def test_free_place_is_claimed_and_nothing_is_written(resume: bool, overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty", "deep/down"):
        folder = claim(tmp_path / name, resume=resume, overwrite=overwrite)
        # A run that was killed before its first file left nothing: resuming it is beginning it.
        assert folder == RunFolder(path=tmp_path / name, resumes=False, replaces=False)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_place_may_be_given_as_text(tmp_path: Path) -> None:
    assert claim(str(tmp_path / "run"), resume=False, overwrite=False).path == tmp_path / "run"


def test_unfinished_run_is_gone_on_with_replaced_or_refused_as_asked(tmp_path: Path) -> None:
    path = _unfinished(tmp_path / "run")
    before = _content(path)
    assert claim(path, resume=True, overwrite=False) == RunFolder(path=path, resumes=True)
    assert claim(path, resume=False, overwrite=True) == RunFolder(path=path, replaces=True)
    with pytest.raises(RunExistsError, match=r"holds an unfinished run \(go on with it: --resume\).*--overwrite"):
        claim(path, resume=False, overwrite=False)
    assert _content(path) == before


def test_finished_run_is_replaced_or_refused_but_never_resumed(tmp_path: Path) -> None:
    path = _finished(tmp_path / "run")
    before = _content(path)
    assert claim(path, resume=False, overwrite=True) == RunFolder(path=path, replaces=True)
    with pytest.raises(RunExistsError, match=r"holds a finished run\. Choose another --output, or .* --overwrite"):
        claim(path, resume=False, overwrite=False)
    with pytest.raises(RunExistsError, match=r"has ended; its figures are in .*result\.json\. Nothing to resume"):
        claim(path, resume=True, overwrite=False)
    assert _content(path) == before


@pytest.mark.parametrize(("resume", "overwrite"), [(False, False), (True, False), (False, True)])
def test_folder_that_holds_no_run_is_left_alone_whatever_is_asked(
    resume: bool, overwrite: bool, tmp_path: Path
) -> None:
    path = _foreign(tmp_path / "documents")
    with pytest.raises(RunFolderError, match=r"holds no run of asymlora\. It is left alone; choose another") as caught:
        claim(path, resume=resume, overwrite=overwrite)
    assert type(caught.value) is RunFolderError
    assert _content(path) == {"thesis.txt": b"years of work"}


def test_result_without_a_recipe_is_no_run(tmp_path: Path) -> None:
    path = _foreign(tmp_path / "results")
    (path / "result.json").write_text("{}")
    with pytest.raises(RunFolderError, match="holds no run"):
        claim(path, resume=False, overwrite=True)


def test_file_in_the_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunFolderError, match="It is left alone"):
        claim(tmp_path / "file", resume=False, overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_resume_and_overwrite_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="resume goes on with a run and overwrite removes it"):
        claim(_unfinished(tmp_path / "run"), resume=True, overwrite=True)


def test_place_without_a_name_is_a_new_one_below_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = claim(None, resume=False, overwrite=False)
    assert folder.path.parent == Path("runs")
    assert not folder.path.exists()
    assert list(tmp_path.iterdir()) == []


def test_newest_unfinished_run_is_resumed_when_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for age, make in enumerate((_finished, _unfinished, _unfinished, _finished)):
        path = make(Path("runs") / f"run-{age}")
        # The newest of all has ended; of the other two, run-2 is the newer by its recipe, not by its name.
        os.utime(path / "recipe.yaml", (1000 + 10 * age, 1000 + 10 * age))
    assert claim(None, resume=True, overwrite=False) == RunFolder(path=Path("runs/run-2"), resumes=True)
    os.utime("runs/run-1/recipe.yaml", (9000, 9000))
    assert claim(None, resume=True, overwrite=False).path == Path("runs/run-1")


def test_nothing_to_resume_says_how_to_name_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NothingToResumeError, match=r"No unfinished run below runs/\. Name .* with --output"):
        claim(None, resume=True, overwrite=False)
    _finished(Path("runs/done"))
    with pytest.raises(NothingToResumeError):
        claim(None, resume=True, overwrite=False)


# --- beginning and finishing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [True, False])
def test_begun_run_holds_recipe_environment_and_a_place_for_checkpoints(empty: bool, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    if empty:
        path.mkdir(parents=True)
    with claim(path, resume=False, overwrite=False).begun(RECIPE):
        pass
    assert {item.name for item in path.iterdir()} == {"recipe.yaml", "environment.json", "checkpoints"}
    assert (path / "recipe.yaml").read_text() == RECIPE.to_yaml()
    assert stored_recipe(path) == RECIPE
    assert json.loads((path / "environment.json").read_text()) == environment()
    assert [item.name for item in path.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("make", [_unfinished, _finished])
def test_replaced_run_is_gone_only_when_the_new_one_begins(make: Any, tmp_path: Path) -> None:
    path = make(tmp_path / "run")
    (path / "adapter").mkdir()
    (path / "adapter" / "old.safetensors").write_bytes(b"old")
    folder = claim(path, resume=False, overwrite=True)
    assert (path / "adapter" / "old.safetensors").exists()
    with folder.begun(Recipe(train=TrainRecipe(steps=9))):
        pass
    assert {item.name for item in path.iterdir()} == {"recipe.yaml", "environment.json", "checkpoints"}
    assert stored_recipe(path).train.steps == 9
    assert [item.name for item in tmp_path.iterdir()] == ["run"]


def test_resumed_run_keeps_its_files_and_loses_the_leftovers_of_the_interruption(tmp_path: Path) -> None:
    path = _unfinished(tmp_path / "run")
    good = path / "checkpoints" / "checkpoint-4"
    good.mkdir()
    (good / "weights").write_bytes(b"good")
    (path / ".incomplete-result.json-12345678").write_text("half")
    (path / "checkpoints" / ".incomplete-checkpoint-8").mkdir()
    (path / "checkpoints" / ".incomplete-checkpoint-8" / "weights").write_bytes(b"half")
    kept = {name: data for name, data in _content(path).items() if "incomplete" not in name}
    with claim(path, resume=True, overwrite=False).begun(Recipe(train=TrainRecipe(steps=99))):
        pass
    assert _content(path) == kept
    assert not (path / "checkpoints" / ".incomplete-checkpoint-8").exists()


def test_resumed_run_without_a_checkpoint_folder_gets_one(tmp_path: Path) -> None:
    path = _unfinished(tmp_path / "run")
    (path / "checkpoints").rmdir()
    with claim(path, resume=True, overwrite=False).begun(RECIPE):
        pass
    assert (path / "checkpoints").is_dir()


def test_finishing_writes_the_result_and_removes_the_checkpoints(tmp_path: Path) -> None:
    path = _unfinished(tmp_path / "run")
    (path / "checkpoints" / "checkpoint-4").mkdir()
    RunFolder(path=path).finish({"accuracy": 0.75, "labels": ["a"]})
    assert json.loads((path / "result.json").read_text()) == {"accuracy": 0.75, "labels": ["a"]}
    assert not (path / "checkpoints").exists()
    with pytest.raises(RunExistsError, match="has ended"):
        claim(path, resume=True, overwrite=False)


def test_result_that_is_no_number_leaves_the_run_unfinished(tmp_path: Path) -> None:
    path = _unfinished(tmp_path / "run")
    with pytest.raises(ValueError, match="JSON"):
        RunFolder(path=path).finish({"accuracy": float("nan")})
    assert claim(path, resume=True, overwrite=False).resumes


def test_places_of_a_run_are_below_its_folder(tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path)
    assert (folder.adapter, folder.checkpoints) == (tmp_path / "adapter", tmp_path / "checkpoints")


# --- records -------------------------------------------------------------------------------------------------------


def _row(split: str, step: int, **values: float) -> dict[str, Any]:
    return {"split": split, "step": step, **values}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(path=tmp_path)


def test_records_come_back_in_order_and_a_folder_without_any_has_none(folder: RunFolder) -> None:
    assert folder.records() == []
    rows = [_row("train", 10, loss=0.5), _row("validation", 20, accuracy=0.75, wall_s=1.5)]
    for row in rows:
        folder.record(row)
    assert folder.records() == rows
    assert len((folder.path / "records.jsonl").read_text().splitlines()) == 2


def test_torn_last_line_is_left_out(folder: RunFolder) -> None:
    rows = [_row("train", step, loss=1 / (1 + step)) for step in range(3)]
    for row in rows:
        folder.record(row)
    file = folder.path / "records.jsonl"
    whole = file.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for kept in range(1, len(last) - 1):
        file.write_bytes(whole[: len(whole) - len(last) + kept])
        assert folder.records() == rows[:2]


def test_record_after_a_torn_line_that_was_forgotten_is_whole(folder: RunFolder) -> None:
    folder.record(_row("train", 10))
    with (folder.path / "records.jsonl").open("a") as file:
        file.write('{"split": "tr')
    folder.forget_after(10)
    folder.record(_row("train", 20))
    assert [row["step"] for row in folder.records()] == [10, 20]


def test_row_that_is_no_number_is_refused_and_not_written(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="JSON"):
        folder.record(_row("train", 10, loss=float("nan")))
    assert folder.records() == []


def test_rows_of_later_steps_are_forgotten(folder: RunFolder) -> None:
    rows = [_row("test", 0), _row("train", 10), _row("validation", 10), _row("train", 20), _row("validation", 20)]
    for row in rows:
        folder.record(row)
    folder.forget_after(20)
    assert folder.records() == rows
    folder.forget_after(10)
    assert folder.records() == rows[:3]
    folder.forget_after(-1)
    assert folder.records() == []


def test_closing_row_is_forgotten_with_every_resumption(folder: RunFolder) -> None:
    # It quotes the best step, which may lie before the checkpoint, and is taken again at the end.
    folder.record(_row("validation", 10))
    folder.record(_row("test", 10))
    folder.forget_after(20)
    assert folder.records() == [_row("validation", 10)]


# --- space ---------------------------------------------------------------------------------------------------------

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The disk's free bytes, to be set."""
    left = [0]
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(0, 0, left[0]))
    return left


def test_room_for_exactly_what_is_needed_and_the_margin_is_enough(free: list[int], folder: RunFolder) -> None:
    free[0] = 5 * 2**20 + MARGIN
    folder.check_space(5 * 2**20)
    free[0] -= 1
    with pytest.raises(DiskSpaceError):
        folder.check_space(5 * 2**20)


def test_lack_of_room_is_said_in_both_numbers_with_the_way_out(free: list[int], folder: RunFolder) -> None:
    free[0] = 3 * 2**20
    with pytest.raises(DiskSpaceError) as caught:
        folder.check_space(1000 * 2**20)
    message = str(caught.value)
    assert "has 3 MiB left; this run writes up to 1,032 MiB (checkpoints and adapter)" in message
    assert "choose another folder with --output" in message


def test_trial_leaves_no_file_and_makes_no_folder(free: list[int], tmp_path: Path) -> None:
    free[0] = 2**40
    RunFolder(path=tmp_path / "deep" / "run").check_space(0)
    assert list(tmp_path.iterdir()) == []
    free[0] = 0
    with pytest.raises(DiskSpaceError):
        RunFolder(path=tmp_path / "deep" / "run").check_space(0)
    assert list(tmp_path.iterdir()) == []


def test_real_disk_is_asked_below_the_nearest_folder_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(Path(path)) or Usage(0, 0, 2**40))
    RunFolder(path=tmp_path / "a" / "b" / "c").check_space(0)
    monkeypatch.chdir(tmp_path)
    RunFolder(path=Path("runs/new")).check_space(0)
    assert [path.resolve() for path in asked] == [tmp_path.resolve()] * 2


def test_place_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UnwritableFolderError, match=r"file/run cannot be written \(Not a directory\)\. Choose another"):
        RunFolder(path=tmp_path / "file" / "run").check_space(0)
    assert (tmp_path / "file").read_text() == "mine"


def test_disk_that_takes_no_file_is_said_with_its_reason(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnwritableFolderError, match=r"cannot be written \(No space left on device\)"):
        folder.check_space(0)
    assert list(folder.path.iterdir()) == []


# --- the same recipe -----------------------------------------------------------------------------------------------


def test_same_recipe_may_be_resumed(tmp_path: Path) -> None:
    path = _unfinished(tmp_path / "run")
    require_same_recipe(path, RECIPE)
    require_same_recipe(path, Recipe.from_dict(RECIPE.to_dict()))


def test_other_recipe_is_refused_with_every_differing_key_and_both_values(tmp_path: Path) -> None:
    path = _unfinished(tmp_path / "run")
    other = Recipe(adapter=AdapterSpec.lora(), train=TrainRecipe(steps=4, lr=0.5))
    with pytest.raises(SpecError) as caught:
        require_same_recipe(path, other)
    message = str(caught.value)
    assert "(stored / given): " in message
    for words in (
        "adapter.A.trainable: False / True",
        "adapter.A.init: 'orthonormal' / 'kaiming_uniform'",
        "train.lr: 0.002 / 0.5",
        "train.steps: 3 / 4",
    ):
        assert words in message
    assert "train.seed" not in message
    assert "Resume it without recipe options, or begin a new run" in message


# --- environment ---------------------------------------------------------------------------------------------------


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield key
            yield from _leaves(below)
    else:
        yield value


def test_environment_names_the_versions_that_a_result_depends_on() -> None:
    import torch
    import transformers

    told = environment()
    assert told["python"] == platform.python_version()
    assert told["packages"]["torch"] == torch.__version__
    assert told["packages"]["transformers"] == transformers.__version__
    assert set(told["packages"]) >= {"asymlora", "safetensors", "numpy", "accelerate", "scikit-learn"}
    assert told["threads"] == torch.get_num_threads()


def test_environment_has_no_host_name_user_or_path(monkeypatch: pytest.MonkeyPatch) -> None:
    # Names that cannot stand in it by chance; platform caches what it once asked the system.
    monkeypatch.setattr(socket, "gethostname", lambda: "secret-host")
    monkeypatch.setattr(platform, "node", lambda: "secret-host")
    monkeypatch.setattr(platform, "uname", lambda: platform.uname_result("Linux", "secret-host", "6", "1", "x86_64"))
    monkeypatch.setenv("USER", "secret-user")
    monkeypatch.setenv("HOME", "/home/secret-user")
    leaves = [str(leaf) for leaf in _leaves(environment())]
    assert "secret" not in " ".join(leaves)
    assert not any("/" in leaf or "\\" in leaf for leaf in leaves)
    assert json.loads(json.dumps(environment())) == environment()


def test_peak_memory_grows_with_what_a_process_holds() -> None:
    # In a process of its own: the peak of this one may lie far above, and must not be the child's.
    code = (
        "from asymlora.train.run_folder import peak_bytes; before = peak_bytes();"
        "held = bytearray(b'x' * 2**27); print(peak_bytes() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # 128 MiB, and as much again while the bytes are copied; in kilobytes it would be a thousandth.
    assert 2**27 * 0.9 < int(done.stdout) < 2**29
    assert (peak_bytes() or 0) > 2**24


# --- rows of the factors, verdicts ---------------------------------------------------------------------------------


def test_rows_of_the_factors_are_json_whatever_their_numbers_are(tmp_path: Path) -> None:
    folder = RunFolder(path=_unfinished(tmp_path / "run"))
    assert folder.dynamics() == []
    folder.record_dynamics([{"step": 1, "Z_A": float("nan"), "grad_A": None, "values": [1.0, float("-inf")]}])
    folder.record_dynamics([{"step": 2, "Z_A": 0.5}, {"step": 2, "Z_A": 1.5}])
    assert folder.dynamics() == [
        {"step": 1, "Z_A": None, "grad_A": None, "values": [1.0, None]},
        {"step": 2, "Z_A": 0.5},
        {"step": 2, "Z_A": 1.5},
    ]
    with (folder.path / "dynamics.jsonl").open("a") as file:
        file.write('{"step": 3, "Z_')  # torn by a full disk
    assert [row["step"] for row in folder.dynamics()] == [1, 2, 2]


def test_rows_of_the_factors_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    folder = RunFolder(path=_unfinished(tmp_path / "run"))
    folder.forget_after(4)
    assert not (folder.path / "dynamics.jsonl").exists()
    folder.record_dynamics([{"step": step} for step in (1, 4, 5, 8)])
    folder.forget_after(4)
    assert [row["step"] for row in folder.dynamics()] == [1, 4]
    folder.forget_after(-1)
    assert folder.dynamics() == []


def test_verdicts_are_written_whole_and_by_the_first_process_alone(tmp_path: Path) -> None:
    path = _unfinished(tmp_path / "run")
    others = RunFolder(path=path, writes=False)
    others.write_health({"verdicts": []})
    others.record_dynamics([{"step": 1}])
    assert not (path / "health.json").exists()
    assert not (path / "dynamics.jsonl").exists()
    RunFolder(path=path).write_health({"verdicts": [{"name": "B_zero"}]})
    assert json.loads((path / "health.json").read_text()) == {"verdicts": [{"name": "B_zero"}]}
    assert not [file for file in path.iterdir() if file.name.startswith(".incomplete")]


def test_a_run_from_before_the_rows_of_the_factors_is_gone_on_with(tmp_path: Path) -> None:
    path = _unfinished(tmp_path / "run")
    stored = (path / "recipe.yaml").read_text()
    (path / "recipe.yaml").write_text("".join(x for x in stored.splitlines(True) if "dynamics_every" not in x))
    require_same_recipe(path, RECIPE)
    with pytest.raises(SpecError, match=r"train\.dynamics_every: 20 / 5"):
        require_same_recipe(path, Recipe(train=TrainRecipe(steps=3, dynamics_every=5)))
