from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import small_sweep
from asymlora.errors import RunFolderError
from asymlora.sweep.analysis import analyse
from asymlora.sweep.run_folders import is_run, read_results, read_run
from asymlora.sweep.run_record import RunRow, run_id
from asymlora.train.recipe import Recipe
from small_run import write_run


def test_a_finished_run_is_a_sweep_of_one_closing_run(tmp_path: Path) -> None:
    records = read_run(write_run(tmp_path / "mine", recipe={"train": {"seed": 7}}))
    (row,) = records.rows
    assert (row.phase, row.arm, row.seed, row.lr, row.rank, row.status) == ("closing", "mine", 7, 1e-2, 8, "finished")
    assert (row.metric, row.validation, row.best_step, row.steps, row.planned_steps) == ("accuracy", 0.88, 20, 40, 40)
    assert row.test == {"accuracy": 0.9, "f1": 0.8}
    assert row.before == {"accuracy": 0.5, "f1": 0.4}
    assert (row.trained_parameters, row.head_parameters, row.threads) == (12_000, 500, 3)
    # 15 s in all, of which 2 before and 10 in training.
    assert (row.setup_seconds, row.train_seconds, row.evaluate_seconds) == (2.0, 10.0, 3.0)
    assert (row.health, row.adapter) == (("B has not moved",), "adapter")
    assert row.id == run_id(Recipe.from_dict(row.recipe))
    assert (records.name, records.path, records.warnings) == ("mine", tmp_path / "mine", ())
    assert RunRow.from_dict(json.loads(json.dumps(row.to_dict()))).id == row.id


def test_curves_leave_out_what_is_not_finite(tmp_path: Path) -> None:
    (row,) = read_run(write_run(tmp_path / "mine")).rows
    assert row.losses == {"step": [10, 30, 40], "loss": [1 / 10, 1 / 30, 1 / 40]}
    assert row.scores == {"step": [20, 40], "value": [0.4, 0.8]}


def test_dynamics_are_medians_over_sites(tmp_path: Path) -> None:
    (row,) = read_run(write_run(tmp_path / "mine")).rows
    # Sites hold 1, 10 and 100 times the step.
    assert row.dynamics["step"] == [1, 20]
    assert row.dynamics["Z_A"] == [10.0, 200.0]
    assert row.dynamics["grad_A"] == [None, None]


def test_a_run_that_has_not_ended_shows_its_curves_and_says_so(tmp_path: Path) -> None:
    records = read_run(write_run(tmp_path / "mine", score=None))
    (row,) = records.rows
    assert (row.status, row.error, row.steps, row.test) == ("failed", "The run has not ended.", 40, None)
    assert row.scores["value"] == [0.4, 0.8]
    assert re.search("has not ended", records.warnings[0])
    assert analyse(records.plan, records.rows).finished is False


def test_a_finished_run_is_analysed_as_one_cell(tmp_path: Path) -> None:
    records = read_run(write_run(tmp_path / "mine"))
    summary = analyse(records.plan, records.rows)
    assert summary.finished
    (cell,) = summary.cells
    assert (cell.label, cell.mean, cell.closing_rate) == ("mine", 0.9, 1e-2)


def test_a_run_of_before_health_and_dynamics_still_reads(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "old")
    result = json.loads((folder / "result.json").read_text())
    del result["health"]
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "dynamics.jsonl").unlink()
    (row,) = read_run(folder).rows
    assert (row.health, row.dynamics) == ((), {})


def test_folders_of_both_kinds_get_names_that_tell_them_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "one" / "run")
    write_run(tmp_path / "two" / "run")
    small_sweep.write_folder(tmp_path / "sweep")
    found = read_results([tmp_path / "one/run", tmp_path / "two/run", tmp_path / "sweep", tmp_path / "one/../one/run"])
    assert [records.name for records in found] == ["one/run", "two/run", "sweep"]
    assert [is_run(records.path) for records in found] == [True, True, False]
    assert found[0].rows[0].arm == "one/run"
    assert len(found[2].rows) == len(small_sweep.rows())


def _damaged(tmp_path: Path, name: str, content: str) -> Path:
    folder = write_run(tmp_path / f"damaged-{name}")
    (folder / name).write_text(content)
    return folder


MISTAKES: dict[str, tuple[Any, str]] = {
    "absent": (lambda p: p / "absent", r"absent is not there\. Give the folder of a sweep or of a run"),
    "file": (lambda p: write_run(p / "r") / "recipe.yaml", r"recipe\.yaml is a file\. Give the folder"),
    "nothing": (
        lambda p: (write_run(p / "in" / "r"), p / "in")[1],
        r"holds no results: .* These folders in it do: r\.",
    ),
    "no JSON": (lambda p: _damaged(p, "result.json", "{"), r"result\.json is damaged: a JSON object is needed"),
    "no object": (lambda p: _damaged(p, "result.json", "[]"), r"result\.json is damaged: a JSON object is needed"),
    "keys lost": (lambda p: _damaged(p, "result.json", "{}"), r"damaged \(KeyError\('\w+'\) was looked for\)"),
    "rows lost": (lambda p: _damaged(p, "records.jsonl", "[1]\n"), r"The records of the run in .* are damaged"),
    "recipe lost": (lambda p: _damaged(p, "recipe.yaml", "train: {stepz: 3}"), r"'train\.stepz' is unknown"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_folders_that_cannot_be_read_are_refused(mistake: str, tmp_path: Path) -> None:
    make, words = MISTAKES[mistake]
    with pytest.raises(RunFolderError, match=words):
        read_results([make(tmp_path)])


def test_all_that_cannot_be_read_is_said_at_once(tmp_path: Path) -> None:
    write_run(tmp_path / "good")
    with pytest.raises(RunFolderError, match=r"(?s)absent is not there.*empty holds no results"):
        (tmp_path / "empty").mkdir()
        read_results([tmp_path / "absent", tmp_path / "good", tmp_path / "empty"])


def test_a_real_run_reads_as_its_result_says(tmp_path: Path, small_recipe: dict[str, Any]) -> None:
    from asymlora.train.run import finetune

    result = finetune(Recipe.from_dict(small_recipe), output=tmp_path / "run")
    (records,) = read_results([tmp_path / "run"])
    (row,) = records.rows
    assert row.test == result.metrics["after"]
    assert (row.validation, row.steps, row.best_step) == (result.validation, result.steps, result.best_step)
    assert row.scores["step"] == [4, 8, 12]
    assert row.dynamics["step"][:3] == [1, 2, 3]
    assert all(value == 0 for value in row.dynamics["update_A"])  # A is frozen
    assert row.dynamics["Z_B"][-1] > 0  # pyright: ignore[reportOptionalOperand]
