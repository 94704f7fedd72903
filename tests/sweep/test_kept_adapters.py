"""Adapters of closing runs: which of them are compared, and that the rows say what the comparison says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import asymlora as al
from asymlora.diagnostics.adapter_pairs import compare_adapters
from asymlora.sweep.kept_adapters import MOST_ADAPTERS, chosen_runs, compare_kept
from asymlora.sweep.run_record import Phase, RunRow, run_id
from asymlora.train.recipe import Recipe
from cases import MODELS, move_trained


def _row(arm: str, seed: int, *, phase: Phase = "closing", **values: Any) -> RunRow:
    recipe = Recipe.from_dict({"adapter": {"preset": arm, "seed": seed}})
    given: dict[str, Any] = {"recipe": recipe.to_dict(), "adapter": f"adapters/{arm}-{seed}", **values}
    return RunRow(
        id=run_id(recipe), phase=phase, arm=arm, axes={}, seed=seed, repeat=0, lr=1e-3, rank=8, status="finished",
        **given,
    )  # fmt: skip


def _saved(row: RunRow, folder: Path) -> RunRow:
    bert = MODELS[0]
    spec = al.AdapterSpec.b_only(rank=2, targets=bert.targets, modules_to_save=(bert.head,), seed=row.seed)
    al.save_adapter(move_trained(al.attach(bert.build(), spec)), folder / str(row.adapter))
    return row


def test_as_many_seeds_of_every_cell_as_there_is_room_for() -> None:
    rows = [_row(arm, seed) for arm in ("b_only", "init_a", "init_b") for seed in range(6)]
    chosen = chosen_runs(rows)
    assert len(chosen) == MOST_ADAPTERS
    assert {(row.arm, row.seed) for row in chosen} == {(a, s) for a in ("b_only", "init_a", "init_b") for s in range(3)}


def test_runs_without_factors_or_an_adapter_are_left_out() -> None:
    head = _row("b_only", 0)
    head = replace(head, recipe={**head.recipe, "method": "head"})
    rows = [head, _row("b_only", 1, adapter=None), _row("b_only", 2, phase="tuning"), _row("b_only", 3)]
    assert [row.seed for row in chosen_runs(rows)] == [3]
    assert compare_kept(rows, Path("nowhere")) == ([], None)


def test_the_rows_are_those_of_the_comparison(tmp_path: Path) -> None:
    rows = [_saved(_row("b_only", seed), tmp_path) for seed in range(2)]
    found, trouble = compare_kept(rows, tmp_path)
    assert trouble is None
    wanted = compare_adapters({row.id: tmp_path / str(row.adapter) for row in rows}).records
    assert len(found) == len(wanted) == 2 * len(MODELS[0].build().bert.encoder.layer) * len(MODELS[0].targets)
    for row, record in zip(found, wanted, strict=True):
        assert (row["first"], row["second"]) == (rows[0].id, rows[1].id)
        assert (row["site"], row["factor"]) == (record["site"], record["factor"])
        assert abs(row["cca"] - record["cca"]) <= 1e-5


def test_a_lost_adapter_is_told_and_stops_nothing(tmp_path: Path) -> None:
    rows = [_saved(_row("b_only", 0), tmp_path), _row("b_only", 1)]
    found, trouble = compare_kept(rows, tmp_path)
    assert found == []
    assert trouble is not None
    assert "adapters/b_only-1" in trouble
