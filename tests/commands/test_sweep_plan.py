"""What is typed for ``asymlora sweep`` becomes the plan that it says, or is refused with what was typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asymlora.commands.sweep_plan import ARMS, gone_on_with, plan_of
from asymlora.errors import AsymloraError, SpecError
from asymlora.sweep.grid import SweepPlan
from asymlora.sweep.searching import Search, Searched

WORDS = (
    *("arm", "axis", "lr", "lr_bounds", "no_grow", "seeds", "tuning_seeds", "match", "prune", "prune_eta", "repeats"),
    *("margin", "threads", "search", "trials", "sampler", "search_batch"),
)


def _plan(recipe: dict[str, Any] | None = None, /, file: str | None = None, **words: Any) -> SweepPlan:
    assert set(words) <= set(WORDS)
    return plan_of(file, recipe or {}, {**dict.fromkeys(WORDS), **words})


def test_without_a_word_the_three_starts_are_compared_on_the_embedded_model() -> None:
    plan = _plan()
    assert [arm.name for arm in plan.arms] == list(ARMS)
    assert (plan.rates[0], plan.rates[-1], len(plan.rates)) == (1e-4, 1e-2, 7)
    assert (plan.tuning_seeds, plan.closing_seeds) == ((100, 101), (0, 1, 2, 3, 4, 5))
    assert plan.recipe.model.name == "embedded:minilm-l6"


def test_every_word_has_its_place() -> None:
    words: dict[str, Any] = {"arm": ["b_only", "b16=b_only:rank=16"], "axis": ["train.batch_size=8,16"]}
    words |= {"lr": "1e-3..1e-2:2", "lr_bounds": "1e-5..1", "seeds": "3", "tuning_seeds": "1"}
    words |= {"match": "compute", "prune": True, "prune_eta": 3, "repeats": 2, "margin": 0.01, "threads": 1}
    plan = _plan({"train": {"steps": 40}}, **words)
    assert plan.recipe.train.steps == 40
    assert [arm.name for arm in plan.arms] == ["b_only", "b16"]
    assert plan.axes[0].values == (8, 16)
    assert plan.rates == (1e-3, 3.16228e-3, 1e-2)
    assert (plan.bounds, plan.grow) == ((1e-5, 1.0), True)
    assert (plan.closing_seeds, plan.tuning_seeds) == ((0, 1, 2), (100,))
    assert (plan.match, plan.prune, plan.prune_eta, plan.repeats) == ("compute", True, 3, 2)
    assert (plan.margin, plan.threads) == (0.01, 1)


def test_options_win_over_the_recipe_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("train: {steps: 10, batch_size: 4}\n")
    plan = _plan({"train": {"steps": 20}}, file=str(file))
    assert (plan.recipe.train.steps, plan.recipe.train.batch_size) == (20, 4)


@pytest.mark.parametrize(
    ("seeds", "tuning", "closing", "chosen"),
    [
        ("3,5,8", None, (3, 5, 8), (100, 101)),
        ("2", "7,9", (0, 1), (7, 9)),
        ("200,", "2", (200,), (201, 202)),
        ("101", None, tuple(range(101)), (101, 102)),
    ],
)
def test_seeds_are_numbers_or_lists_and_never_the_same(
    seeds: str, tuning: str | None, closing: tuple[int, ...], chosen: tuple[int, ...]
) -> None:
    plan = _plan(seeds=seeds, tuning_seeds=tuning)
    assert (plan.closing_seeds, plan.tuning_seeds) == (closing, chosen)


def test_a_grid_is_kept_from_growing() -> None:
    assert not _plan(no_grow=True).grow


def test_a_search_takes_the_place_of_the_grid() -> None:
    plan = _plan(search=["train.lr=1e-4..1e-2", "adapter.rank=4,8"], trials=10, sampler="random", search_batch=2)
    space = (
        Searched(name="train.lr", low=1e-4, high=1e-2, log=True),
        Searched(name="adapter.rank", choices=(4, 8)),
    )
    assert plan.search == Search(space=space, trials=10, sampler="random", batch=2)


def test_a_plan_with_a_search_is_read_back_as_it_was() -> None:
    plan = _plan(search=["train.lr=1e-4..1e-2", "adapter.rank=4,8", "train.batch_size=4..64"])
    assert SweepPlan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"arm": ["b_onli"]}, r"--arm b_onli: .*Did you mean 'b_only'"),
        ({"axis": ["train.steep=1"]}, r"--axis train.steep=1: .*names no field"),
        ({"lr": "1e-2..1e-4"}, "empty range"),
        ({"lr": ""}, None),
        ({"arm": ["a=b_only", "b=b_only"]}, "'a' and 'b' are the same recipe under two names"),
        ({"seeds": "none"}, "--seeds none is no number of seeds"),
        ({"seeds": "0"}, "--seeds 0 is no number of seeds"),
        ({"seeds": "1,x"}, "'x' is no seed"),
        ({"seeds": "1,1"}, "closing_seeds holds 1 twice"),
        ({"seeds": "100,200", "tuning_seeds": "100,300"}, "100 stands in tuning_seeds and in closing_seeds"),
        ({"lr_bounds": "1e-5"}, "no range"),
        ({"lr_bounds": "1e-3..1"}, "around all rates"),
        ({"match": "money"}, "match"),
        ({"lr": "1e-3", "search": ["train.lr=1e-4..1e-2"]}, "--search takes the place of the grid"),
        ({"trials": 4}, "are of a search"),
        ({"search": ["train.lr=1e-4..1e-2"], "sampler": "grid"}, "sampler"),
        ({"prune_eta": 3}, "give --prune"),
        ({"lr_bounds": "1e-5..1", "no_grow": True}, "leave --no-grow out"),
        ({"search": ["train.lr=1e-4..1e-2"], "no_grow": True}, "a search has none"),
        ({"margin": -1.0}, "margin=-1.0 must be a number above 0"),
    ],
)
def test_what_makes_no_plan_is_refused(words: dict[str, Any], said: str | None) -> None:
    if said is None:
        assert _plan(**words) == _plan()
        return
    with pytest.raises(AsymloraError, match=said):
        _plan(**words)


def test_the_error_is_one_of_values() -> None:
    with pytest.raises(SpecError):
        _plan(lr="1e-3..nothing")


def _gone_on(stored: SweepPlan, folder: Path, recipe: dict[str, Any] | None = None, /, **words: Any) -> SweepPlan:
    (folder / "sweep.yaml").write_text(stored.to_yaml())
    return gone_on_with(folder, None, recipe or {}, {**dict.fromkeys(WORDS), **words})


def test_a_plan_that_is_gone_on_with_keeps_what_is_not_typed(tmp_path: Path) -> None:
    stored = _plan({"train": {"steps": 40}}, arm=["b_only"], lr="1e-3..1e-2:2", no_grow=True, seeds="3", margin=0.01)
    assert _gone_on(stored, tmp_path) == stored
    more = _gone_on(stored, tmp_path, arm=["init_a", "b_only"], seeds="8", repeats=1)
    assert [arm.name for arm in more.arms] == ["b_only", "init_a"]
    assert more.closing_seeds == tuple(range(8))
    assert (more.recipe, more.rates, more.grow, more.margin, more.tuning_seeds, more.repeats) == (
        *(stored.recipe, stored.rates, False, 0.01, stored.tuning_seeds, 1),
    )


def test_a_recipe_that_is_typed_again_takes_the_place_of_the_stored_one(tmp_path: Path) -> None:
    stored = _plan({"train": {"steps": 40}})
    assert _gone_on(stored, tmp_path, {"train": {"steps": 30}}).recipe.train.steps == 30
