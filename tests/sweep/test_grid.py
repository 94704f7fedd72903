"""Plans, their cells and runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asymlora.errors import BothFrozenError, DataNotFoundError, NonZeroStartError, SpecError, UnknownKeyError
from asymlora.spec import AdapterSpec
from asymlora.sweep.axes import Arm, Axis, parse_arm, parse_axis
from asymlora.sweep.grid import (
    Cell,
    SweepPlan,
    cells,
    choice,
    closing_jobs,
    job,
    rows_of,
    seeds_of,
    tuning_jobs,
)
from asymlora.sweep.run_record import RunJob, RunRow
from asymlora.train.recipe import Recipe, TrainRecipe

RATES = (1e-4, 1e-3, 1e-2)


def plan_of(*arms: str, axes: tuple[str, ...] = (), **values: Any) -> SweepPlan:
    """Return a plan of arms and axes as they are typed."""
    values = {"rates": RATES, "axes": tuple(map(parse_axis, axes)), **values}
    return SweepPlan(arms=tuple(map(parse_arm, arms or ("init_a", "b_only"))), **values)


def row_of(run: RunJob, value: float | None = 0.5, status: str = "finished") -> RunRow:
    """Return the row that a run leaves, after the JSON of a store."""
    return RunRow.from_dict(
        {
            "id": run.id, "phase": run.phase, "arm": run.arm, "axes": dict(run.axes), "seed": run.seed,
            "repeat": run.repeat, "lr": run.recipe.train.lr, "rank": run.recipe.adapter.rank, "recipe": {},
            "status": status, "validation": value,
        }
    )  # fmt: skip


PLANS = [
    plan_of(),
    SweepPlan(rates=(1e-3,)),
    plan_of(
        "x=b_only:rank=4", "full", 'peft:lora:rank_pattern={"value": 2},alpha=3',
        axes=("train.batch_size=16,32", "train.patience=null,3"), bounds=(1e-5, 1.0), grow=False, tuning_seeds=(7,),
        closing_seeds=(1, 2), match="compute", prune=True, prune_eta=3, repeats=0, margin=0.01, threads=1,
        recipe=Recipe.from_dict({"adapter": {"preset": "lora", "dropout": 0.1}, "train": {"lr_head": 1e-4}}),
    ),
    plan_of(axes=("adapter.targets=[query],[query,value]",)),
    SweepPlan(rates=RATES, axes=(Axis(field="adapter.targets", values=(("query",), ("query", "value"))),)),
]  # fmt: skip


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_survives_its_yaml(plan: SweepPlan, tmp_path: Path) -> None:
    assert SweepPlan.from_dict(plan.to_dict()) == plan
    path = tmp_path / "sweep.yaml"
    path.write_text(plan.to_yaml(), encoding="utf-8")
    again = SweepPlan.load(path)
    assert again == plan
    assert again.to_yaml() == plan.to_yaml()
    assert [cell.recipe for cell in cells(again)] == [cell.recipe for cell in cells(plan)]


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"version": 2}, SpecError, "version 2; this asymlora reads versions up to 1. Update"),
        ({"version": None}, SpecError, "no plan of a sweep"),
        ({"kind": "store"}, SpecError, "kind='store'"),
        ({"rate": 3}, UnknownKeyError, "Did you mean 'rates'"),
        ({"match": "money"}, SpecError, "'match' is 'money'; allowed are 'steps'"),
        ({"arms": [{"name": "x", "word": "y"}]}, SpecError, "'y' names no arm"),
    ],
)
def test_a_plan_that_cannot_be_read_is_refused(change: dict[str, Any], kind: type, words: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(str({**plan_of().to_dict(), **change}).replace("None", "null"), encoding="utf-8")
    with pytest.raises(kind, match=words) as raised:
        SweepPlan.load(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_plan_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="nowhere"):
        SweepPlan.load(tmp_path / "nowhere.yaml")


def test_rates_are_kept_rising() -> None:
    assert plan_of(rates=(1e-2, 1e-4, 1e-3)).rates == RATES


def test_seeds_of_tuning_and_closing_have_none_in_common() -> None:
    assert seeds_of(closing=6, tuning=2) == ((0, 1, 2, 3, 4, 5), (100, 101))
    closing, tuning = seeds_of(closing=150, tuning=3)
    assert (len(closing), tuning) == (150, (150, 151, 152))


def test_bounds_are_two_decades_beyond_the_first_grid_unless_given() -> None:
    assert plan_of().limits == (pytest.approx(1e-6), pytest.approx(1.0))
    assert plan_of(bounds=(1e-4, 1e-1)).limits == (1e-4, 1e-1)


# Cells


def test_cells_are_arms_times_points_in_their_order() -> None:
    found = cells(plan_of("init_a", "x=b_only:rank=2", axes=("train.batch_size=16,32", "train.patience=null,3")))
    assert [cell.label for cell in found[:4]] == [
        f"init_a, train.batch_size {size}, train.patience {patience}" for size in (16, 32) for patience in (None, 3)
    ]
    assert [cell.arm for cell in found] == ["init_a"] * 4 + ["x"] * 4
    last = found[-1]
    assert (last.axes, last.recipe.train.batch_size) == ({"train.batch_size": 32, "train.patience": 3}, 32)
    assert (last.recipe.train.patience, last.recipe.adapter) == (3, AdapterSpec.b_only(rank=2))


def test_an_axis_wins_over_the_recipe_and_a_list_is_short_in_labels() -> None:
    (one, two) = cells(plan_of("b_only", axes=("adapter.targets=[query],[query,value]",)))
    assert (one.label, two.label) == ("b_only, adapter.targets query", "b_only, adapter.targets query+value")
    assert two.recipe.adapter.targets == ("query", "value")


def test_two_recipes_that_differ_only_by_name_are_refused_with_both_names() -> None:
    for twin in ("x=init_a", "x=init_a:rank=8", "x=init_a:alpha=16", "x=hA_gauss_hB_0"):  # alpha None is twice the rank
        with pytest.raises(SpecError, match="'init_a' and 'x' are the same recipe under two names"):
            plan_of("init_a", twin)
    plan_of("init_a", "x=init_a:alpha=8")
    plan_of("init_a", 'x=init_a:alpha=16,rank_pattern={"value": 2}')
    with pytest.raises(SpecError, match="'recipe' and 'b_only'"):
        plan_of("recipe", "b_only")


@pytest.mark.parametrize(
    ("arm", "recipe", "kind", "words"),
    [
        ("b_only:adapter.B.trainable=false", {}, BothFrozenError, "A and B are both frozen"),
        ("init_a:adapter.B.init=gaussian", {}, NonZeroStartError, "both start non-zero"),
        ("b_only", {"adapter": "lora", "train": {"lr_A": 1e-3}}, SpecError, "lr_A is given, but A is frozen"),
        ("init_a", {"adapter": {"shared_A": [["query", "key"]]}}, SpecError, "shared_A shares a frozen A"),
    ],
)
def test_what_a_recipe_refuses_is_told_with_the_arms_name(
    arm: str, recipe: dict[str, Any], kind: type, words: str
) -> None:
    with pytest.raises(kind, match=words) as raised:
        SweepPlan(recipe=Recipe.from_dict(recipe), rates=RATES, arms=(parse_arm(f"mine={arm}"),))
    assert str(raised.value).startswith("Arm mine: ")


def test_all_arms_that_cannot_be_are_told_at_once() -> None:
    with pytest.raises(SpecError, match=r"Arm x: .*Arm y: .*'init_a' and 'z'") as raised:
        plan_of("x=b_only:adapter.B.trainable=false", "y=init_a:adapter.B.init=gaussian", "init_a", "z=init_a")
    assert type(raised.value) is SpecError


# Runs


def test_runs_of_one_seed_are_paired_and_those_of_another_are_not() -> None:
    plan = plan_of("init_a", "b_only", recipe=Recipe(train=TrainRecipe(seed=9), adapter=AdapterSpec(seed=8)))
    one, other = (job(plan, cell, lr=1e-3, seed=4, phase="closing") for cell in cells(plan))
    for run in (one, other):
        assert (run.recipe.train.seed, run.recipe.adapter.seed, run.seed) == (4, 4, 4)
    assert one.recipe.train == other.recipe.train
    assert one.recipe.data == other.recipe.data == plan.recipe.data
    assert one.id != other.id


def test_absolute_rates_keep_their_ratio_to_the_rate() -> None:
    recipe = Recipe.from_dict({"adapter": "lora", "train": {"lr": 1e-3, "lr_head": 5e-4, "lr_B": 4e-3}})
    plan = plan_of("init_a", recipe=recipe)
    train = job(plan, cells(plan)[0], lr=1e-2, seed=0, phase="tuning").recipe.train
    assert (train.lr, train.lr_head, train.lr_B, train.lr_A) == (1e-2, 5e-3, 4e-2, None)


@pytest.mark.parametrize(
    ("phase", "test", "kept"),
    [("tuning", False, False), ("search", False, False), ("closing", True, True), ("repeat", True, False)],
)
def test_only_closing_runs_see_the_test_part(phase: Any, test: bool, kept: bool) -> None:
    plan = plan_of(prune_eta=3)
    run = job(plan, cells(plan)[0], lr=1e-3, seed=4, phase=phase)
    assert (run.scores_test, run.keeps_adapter, run.phase, run.prune_eta, run.rivals) == (test, kept, phase, 3, None)


def test_tuning_runs_are_rates_times_tuning_seeds() -> None:
    plan = plan_of("b_only")
    runs = tuning_jobs(plan, cells(plan)[0], [1e-3, 1e-4])
    assert [(run.recipe.train.lr, run.seed) for run in runs] == [(1e-3, 100), (1e-3, 101), (1e-4, 100), (1e-4, 101)]


def test_closing_runs_are_fresh_seeds_and_repetitions_of_the_first() -> None:
    plan = plan_of("b_only", closing_seeds=(3, 1), repeats=2)
    runs = closing_jobs(plan, cells(plan)[0], 1e-3)
    assert [(run.phase, run.seed, run.repeat) for run in runs] == [
        ("closing", 3, 0), ("closing", 1, 0), ("repeat", 3, 1), ("repeat", 3, 2),
    ]  # fmt: skip
    assert runs[0].recipe == runs[2].recipe == runs[3].recipe
    assert len({run.id for run in runs}) == 4


def test_a_plan_in_another_process_gives_the_same_ids() -> None:
    plan = plan_of(axes=("train.batch_size=16,32",))
    again = SweepPlan.from_dict(plan.to_dict())
    ids = [[run.id for cell in cells(p) for run in tuning_jobs(p, cell, p.rates)] for p in (plan, again)]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 2 * 2 * 3 * 2


def test_rows_find_their_cell_after_the_store() -> None:
    plan = plan_of(axes=("adapter.targets=[query],[query,value]",))
    found = cells(plan)
    rows = [row_of(run) for cell in found for run in tuning_jobs(plan, cell, [1e-3])]
    for place, cell in enumerate(found):
        assert rows_of(cell, rows) == rows[2 * place : 2 * place + 2]


def test_the_choice_asks_for_the_grid_then_for_what_lies_beyond_then_for_nothing() -> None:
    plan = plan_of("b_only")
    (cell,) = cells(plan)

    def rows(best: float, rates: tuple[float, ...]) -> list[RunRow]:
        runs = tuning_jobs(plan, cell, rates)
        return [row_of(run, 1.0 if run.recipe.train.lr == best else 0.5) for run in runs]

    assert choice(plan, [], greater_is_better=True).next_rates == RATES
    assert choice(plan, rows(1e-2, RATES), greater_is_better=True).next_rates == (0.1,)
    settled = choice(plan, rows(1e-2, (*RATES, 0.1)), greater_is_better=True)
    assert (settled.best and settled.best.lr, settled.interior, settled.next_rates) == (1e-2, True, ())
    still = replace(plan, grow=False)
    assert choice(still, rows(1e-2, RATES), greater_is_better=True).next_rates == ()


def test_one_rate_alone_neither_tunes_nor_grows() -> None:
    plan = plan_of(rates=(1e-3,), tuning_seeds=())
    assert (plan.tunes, plan.ladder) == (False, None)
    assert plan_of().tunes


def test_a_cell_holds_what_its_label_says() -> None:
    (cell,) = cells(SweepPlan(rates=RATES))
    assert cell == Cell(label="recipe", arm="recipe", axes={}, recipe=Recipe())
    assert SweepPlan(rates=RATES).arms == (Arm(name="recipe", word="recipe"),)
