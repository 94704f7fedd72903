from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import small_artefact as small
from asymlora.reproduce.artefact import MeasuredPart, Part, SweepPart
from asymlora.reproduce.forecasting import ROW_BYTES, bytes_to_write, part_runs, runs_of_cell, status
from asymlora.sweep.grid import cells
from asymlora.sweep.searching import Search, parse_searched

PARTS: tuple[Part, ...] = small.artefact().small.parts(Path())


def test_runs_of_both_looks_are_told_before_any_grid_has_grown() -> None:
    swept, toy, aside = map(part_runs, PARTS)
    assert (swept.kind, swept.arms, swept.first, swept.both) == ("sweep", ("init_a", "init_b"), 2 * 5, 2 * 9)
    assert (toy.kind, toy.arms, toy.first, toy.both) == ("measured", (), 2, 3)
    assert (aside.first, aside.both) == (1, None)


def test_a_cell_tunes_only_where_there_is_a_choice() -> None:
    one = replace(small.PLAN, rates=(1e-3,), repeats=2)
    assert (runs_of_cell(small.PLAN), runs_of_cell(one)) == (3 * 1 + 2, 2 + 2)
    search = Search(space=(parse_searched("train.lr=1e-4..1e-1"),), trials=7)
    searched = replace(small.PLAN, grow=True, search=search)
    assert runs_of_cell(searched) == 7 * 1 + 2


def test_the_status_tells_how_far_a_run_is(tmp_path: Path) -> None:
    path, bowl = tmp_path / "run", small.bowl()
    assert status(PARTS, path) == "not begun"
    small.run(path, small.artefact(), bowl, only=["swept"])
    assert status(PARTS, path) == "10 of 13 runs"
    small.run(path, small.artefact(), bowl, only=["toy"])
    small.run(path, small.artefact(), bowl, only=["aside", "toy"])
    assert status(PARTS, path) == "14 of 22 runs"
    small.run(path, small.artefact(), bowl)
    assert status(PARTS, path) == "done"


def test_bytes_are_those_of_closing_adapters_and_rows(small_encoder: Path) -> None:
    recipe = replace(small.RECIPE, model=replace(small.RECIPE.model, name=str(small_encoder)))
    plan = replace(small.PLAN, recipe=recipe)
    rows = 10 * ROW_BYTES
    wider = replace(plan, recipe=replace(recipe, adapter=replace(recipe.adapter, rank=2 * recipe.adapter.rank)))
    least, most = (bytes_to_write(each, cells(each)) - rows for each in (plan, wider))
    assert 0 < 2 * least == most
    more = replace(plan, closing_seeds=(0, 1, 2, 3))
    assert bytes_to_write(more, cells(more)) - 14 * ROW_BYTES == 2 * least


def test_a_part_of_one_look_is_a_part_all_the_same() -> None:
    parts: list[Part] = [
        SweepPart(name="swept", plan=small.PLAN),
        MeasuredPart(name="toy", points=(), measure=small.Meter()),
    ]
    assert [(part_runs(part).first, part_runs(part).both) for part in parts] == [(10, None), (0, None)]
