"""The job and the row of a run: ids that stand for the recipe alone, and rows that survive the disk."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from asymlora.errors import SpecError
from asymlora.sweep.run_record import TIMINGS, RunJob, RunRow, run_id
from asymlora.train.recipe import Recipe, TrainRecipe


def _row(**values: object) -> RunRow:
    given: dict[str, object] = {
        "id": "a", "phase": "tuning", "arm": "b_only", "axes": {"adapter.rank": 4}, "seed": 3, "repeat": 0, "lr": 1e-3,
        "rank": 4, "recipe": Recipe().to_dict(), "status": "finished", **values,
    }  # fmt: skip
    return RunRow(**given)  # pyright: ignore[reportArgumentType]


def test_the_id_is_the_same_in_another_process() -> None:
    code = "import asymlora.sweep.run_record as r, asymlora.train.recipe as t; print(r.run_id(t.Recipe()))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == run_id(Recipe())


def test_the_id_changes_with_every_part_of_the_recipe_and_the_repetition() -> None:
    recipes = [Recipe(), Recipe(train=TrainRecipe(lr=1e-3)), Recipe(train=TrainRecipe(seed=1)), Recipe(method="full")]
    ids = [run_id(recipe) for recipe in recipes] + [run_id(Recipe(), repeat=1)]
    assert len(set(ids)) == len(ids)


def test_the_id_knows_nothing_of_names_and_phases() -> None:
    job = RunJob(recipe=Recipe(), phase="tuning", arm="one", seed=0)
    assert replace(job, arm="other", phase="closing", scores_test=True, rivals=({10: 0.5},)).id == job.id


def test_a_row_is_what_it_was_after_the_disk() -> None:
    row = _row(losses={"step": [1.0], "loss": [0.5]}, test={"accuracy": 0.5}, health=["still"])
    again = RunRow.from_dict(json.loads(json.dumps(row.to_dict())))
    assert again.to_dict() == row.to_dict()


def test_a_row_of_a_newer_version_is_refused_by_its_fields() -> None:
    with pytest.raises(SpecError, match="unknown fields: colour, mood"):
        RunRow.from_dict({**_row().to_dict(), "mood": 1, "colour": 2})
    with pytest.raises(SpecError, match=r"lacks fields: .*'seed'"):
        RunRow.from_dict({key: value for key, value in _row().to_dict().items() if key != "seed"})


def test_the_result_is_all_but_the_circumstances() -> None:
    one, other = _row(), _row(**dict.fromkeys(TIMINGS, 1))
    assert one.to_dict() != other.to_dict()
    assert one.result() == other.result()
    assert _row(validation=0.5).result() != one.result()


@pytest.mark.parametrize(
    ("status", "final"), [("finished", True), ("pruned", True), ("diverged", True), ("failed", False)]
)
def test_only_failed_runs_are_done_again(status: str, *, final: bool) -> None:
    assert _row(status=status).final is final
