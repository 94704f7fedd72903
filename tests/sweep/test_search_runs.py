"""Points of a search as runs: what a point changes, what its rows come to. The whole search is in test_engine.py."""

from __future__ import annotations

import pytest

from asymlora.sweep.axes import parse_arm
from asymlora.sweep.grid import Cell, SweepPlan, cells
from asymlora.sweep.run_record import RunRow, Status
from asymlora.sweep.search_runs import at_point, outcome_of
from asymlora.sweep.searching import Outcome
from asymlora.train.recipe import Recipe


def _cell() -> Cell:
    recipe = Recipe.from_dict({"train": {"lr": 1e-3, "lr_head": 2e-3}})
    (cell,) = cells(SweepPlan(recipe=recipe, arms=(parse_arm("b_only"),), rates=(1e-3,)))
    return cell


def test_a_point_sets_fields_and_keeps_the_ratio_of_absolute_rates() -> None:
    found = at_point(_cell(), {"train.lr": 0.0123456789, "adapter.rank": 4, "train.weight_decay": 0.123456789})
    assert found.recipe.train.lr == 0.0123457
    assert found.recipe.train.lr_head == pytest.approx(2 * 0.0123457, rel=1e-9)
    assert found.recipe.adapter.rank == 4
    assert found.axes == {"adapter.rank": 4, "train.weight_decay": 0.123457}


def test_a_point_without_a_rate_keeps_the_recipes() -> None:
    assert at_point(_cell(), {"adapter.rank": 4}).recipe.train == _cell().recipe.train


def _row(status: Status, validation: float | None, *, steps: int = 10, greater: bool = True) -> RunRow:
    return RunRow(
        id="x", phase="search", arm="b_only", axes={}, seed=0, repeat=0, lr=1e-3, rank=8, recipe={}, status=status,
        metric="accuracy", greater_is_better=greater, validation=validation, steps=steps,
    )  # fmt: skip


def test_outcomes() -> None:
    assert outcome_of([_row("finished", 0.5), _row("finished", 1.0)]) == Outcome(value=-0.75)
    assert outcome_of([_row("finished", 0.5, greater=False), _row("finished", 1.0, greater=False)]).value == 0.75
    assert outcome_of([_row("finished", 0.5), _row("diverged", None)]) == Outcome(value=None)
    assert outcome_of([_row("finished", 0.5), _row("failed", None)]) == Outcome(value=None)
    pruned = [_row("finished", 0.5), _row("pruned", 0.25, steps=4)]
    assert outcome_of(pruned) == Outcome(value=-0.375, pruned_at=4)
