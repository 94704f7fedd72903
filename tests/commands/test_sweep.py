"""The whole command on a small model: what it writes and says, how it is resumed, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from asymlora.cli import EXIT_ERROR, main
from asymlora.sweep.sweep_folder import read_sweep
from asymlora.train.recipe import Recipe

GRID = ("--arm", "b_only", "--arm", "init_a", "--lr", "3e-3,1e-2", "--no-grow", "--seeds", "2", "--tuning-seeds", "1")
ONE = ("--arm", "b_only", "--lr", "1e-3", "--seeds", "1")


@pytest.fixture
def recipe(small_recipe: dict[str, Any], tmp_path: Path) -> str:
    """A recipe file whose runs take half a second."""
    small_recipe["train"] |= {"steps": 6, "evaluate_every": 3}
    file = tmp_path / "recipe.yaml"
    file.write_text(Recipe.from_dict(small_recipe).to_yaml())
    return str(file)


def _sweep(*words: str) -> int:
    return main(["sweep", *words])


def test_a_sweep_is_run_shown_and_gone_on_with(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "sweep")
    assert _sweep(recipe, *GRID, "--out", out) == 0
    said = capsys.readouterr().out
    first = read_sweep(out)
    assert len(first.rows) == 2 * (2 + 2)
    assert {row.status for row in first.rows} == {"finished"}
    assert first.summary is not None
    assert str(first.summary["answer"]).split(".")[0] in " ".join(said.split())
    assert "fewer than 6 pairs cannot reach p < 0.05" in " ".join(said.split())
    assert (tmp_path / "sweep" / "report.html").stat().st_size > 10**6
    assert {row["factor"] for row in first.similarity} == {"A", "B"}
    for row in first.rows:
        kept = tmp_path / "sweep" / "adapters" / row.id
        assert kept.is_dir() == (row.phase == "closing")

    # By itself --resume repeats nothing; with more seeds it does what is new.
    assert _sweep("--out", out, "--resume", "--no-page") == 0
    assert [row.to_dict() for row in read_sweep(out).rows] == [row.to_dict() for row in first.rows]
    more = tuple("3" if before == "--seeds" else word for before, word in zip(("", *GRID), GRID, strict=False))
    assert _sweep(recipe, *more, "--out", out, "--resume", "--no-page") == 0
    again = read_sweep(out).rows
    assert [row.to_dict() for row in again[:8]] == [row.to_dict() for row in first.rows]
    assert [(row.phase, row.seed) for row in again[8:]] == [("closing", 2), ("closing", 2)]

    # Typed again in part, it is another sweep, or one whose arms are others: that is said.
    said = " ".join(capsys.readouterr().out.split())
    assert "The plan is another than before (then / now): closing_seeds: [0, 1] / [0, 1, 2]." in said

    # Moved, it still reads.
    shutil.move(out, tmp_path / "elsewhere")
    assert main(["report", str(tmp_path / "elsewhere"), "--format", "csv"]) == 0
    assert len((tmp_path / "elsewhere" / "report.csv").read_text().splitlines()) == 1 + 10


def test_a_forecast_writes_nothing(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert _sweep(recipe, *GRID, "--dry-run") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Time of the whole sweep: about" in said
    assert "Memory of a process: about" in said
    assert "fewer than 6 pairs" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sweep_that_is_there_is_not_harmed(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep"
    assert _sweep(recipe, *ONE, "--out", str(out), "--no-page") == 0
    rows = (out / "runs.jsonl").read_bytes()
    assert _sweep(recipe, *GRID, "--out", str(out)) == EXIT_ERROR
    assert "--resume" in capsys.readouterr().err
    assert _sweep(recipe, *ONE, "--train.steps", "5", "--out", str(out), "--resume") == EXIT_ERROR
    assert "recipe.train.steps: 6 / 5" in capsys.readouterr().err
    assert (out / "runs.jsonl").read_bytes() == rows


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_where_no_sweep_is_none_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dry: tuple[str, ...]
) -> None:
    out = tmp_path / "mistyped"
    assert _sweep("--out", str(out), "--resume", *dry) == EXIT_ERROR
    assert "There is no sweep in" in capsys.readouterr().err
    assert not out.exists()


def test_a_store_of_a_newer_version_is_left_alone(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    assert _sweep(recipe, *ONE, "--out", str(out), "--no-page") == 0
    lines = (out / "runs.jsonl").read_text().splitlines()
    newer = "\n".join([json.dumps({"kind": "store", "version": 2}), *lines[1:]])
    (out / "runs.jsonl").write_text(newer)
    assert _sweep("--out", str(out), "--resume") == EXIT_ERROR
    assert "version 2" in capsys.readouterr().err
    assert (out / "runs.jsonl").read_text() == newer


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--arm", "b_only:targets=[q_prj]"), "Arm b_only:targets=[q_prj]: no layer matches"),
        (("--axis", "train.steep=1,2"), "names no field of a recipe"),
        (("--lr", "1e-2..1e-3"), "empty range"),
        (("--arm", "x=b_only", "--arm", "y=b_only"), "are the same recipe under two names"),
        (("--prune", "--train.evaluate_every", "6"), "--prune stops runs by their scores on the way"),
        (("--executor", "cloud"), "No executor is called 'cloud'"),
        (("--executor", "inline", "--workers", "2"), "does not read --workers"),
    ],
)
def test_bad_input_is_told_and_nothing_is_written(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    out = tmp_path / "sweep"
    assert _sweep(recipe, *words, "--out", str(out)) == EXIT_ERROR
    assert said in capsys.readouterr().err
    assert not out.exists()
