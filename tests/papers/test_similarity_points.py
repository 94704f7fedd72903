"""Small sets of adapters, trained and compared: pairs by kind, and what a start alone does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from asymlora.errors import SpecError
from asymlora.papers.similarity_points import (
    BOTH_OTHER,
    FIRST,
    LAST,
    PANELS,
    RANDOM,
    REVERSED,
    SAME_TASK,
    SHARED_START,
    STANDARD,
    STARTS,
    ZERO,
    Similarities,
    points_of,
)
from asymlora.reproduce.evidence import Record
from asymlora.spec import AdapterSpec
from asymlora.train.recipe import Recipe

TASKS = ("one", "other")


def _recipes(small_recipe: dict[str, Any]) -> dict[str, Recipe]:
    base = Recipe.from_dict(small_recipe)
    short = replace(base, train=replace(base.train, steps=3, evaluate_every=3))
    # Another division of the rows stands for another task.
    return {name: replace(short, data=replace(short.data, seed=seed)) for seed, name in enumerate(TASKS)}


def _measured(small_recipe: dict[str, Any], start: str, *, rate: float) -> list[Record]:
    (point,) = points_of("made up", start, tasks=TASKS, rate=rate, head="random", units=1)
    return Similarities(_recipes(small_recipe))(point)


def _alike(records: list[Record], **wanted: str) -> Record:
    wanted = {"kind": "similarity", **wanted}
    (record,) = [record for record in records if wanted.items() <= record.items()]
    return record


def test_units_share_no_start() -> None:
    points = points_of("made up", STANDARD, tasks=TASKS, rate=1e-3, head="probe", units=6)
    seeds = [seed for point in points for seed in point["seeds"]]
    assert seeds == list(range(12))
    assert [point["unit"] for point in points] == list(range(6))


@pytest.mark.parametrize("start", STARTS)
def test_one_factor_starts_at_random_and_the_other_at_zero_and_both_are_trained(start: str) -> None:
    spec = AdapterSpec.parse(STARTS[start])
    assert spec.trains == {"A": True, "B": True}
    assert getattr(spec, ZERO[start]).starts_at_zero
    assert getattr(spec, RANDOM[start]).init == "kaiming_uniform"


def test_of_factors_that_hardly_move_the_random_one_tells_the_start_alone(small_recipe: dict[str, Any]) -> None:
    records = _measured(small_recipe, REVERSED, rate=1e-7)
    random, zero = RANDOM[REVERSED], ZERO[REVERSED]
    assert _alike(records, factor=random, panel=SHARED_START, moment=LAST)["cca"] == pytest.approx(1, abs=1e-6)
    for panel in (SAME_TASK, BOTH_OTHER):
        other = _alike(records, factor=random, panel=panel, moment=LAST)
        # Two starts of rank 2 in 8 or 16 dimensions, over many layers: near r/d.
        assert 0.5 < other["over_chance"] < 2
        assert other["cca"] < 0.5
    (moved,) = [record for record in records if record["kind"] == "moved"]
    assert moved["factor"] == random
    assert 0 < moved["moved"] < 1e-4
    assert moved["like_its_start"] == pytest.approx(1, abs=1e-6)
    # Every kind of pair has two of its six pairs, and after one step the factor that starts at zero is there.
    similar = [record for record in records if record["kind"] == "similarity"]
    assert {record["pairs"] for record in similar} == {2}
    assert {(r["moment"], r["panel"]) for r in similar if r["factor"] == zero} == {
        (moment, panel) for moment in (FIRST, LAST) for panel in PANELS
    }
    runs = [(record["task"], record["seed"]) for record in records if record["kind"] == "run"]
    assert runs == [("one", 0), ("one", 1), ("other", 0), ("other", 1)]


def test_a_run_that_is_lost_is_said_and_leaves_no_pairs_out(small_recipe: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"one with seed 0 at rate 1e.30 has diverged.*must finish"):
        _measured(small_recipe, STANDARD, rate=1e30)
