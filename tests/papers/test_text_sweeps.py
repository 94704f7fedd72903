"""Plans over texts, at both scales, and the settings that are told beside their results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asymlora.papers.hayou_settings import INIT_ARMS
from asymlora.papers.text_sweeps import (
    GLUE_SETS,
    PAPER_SETTINGS,
    RANK,
    SMALL_SETS,
    SMALL_SETTINGS,
    TextSet,
    glue_data,
    paper_plan,
    small_plan,
)
from asymlora.tasks.inputs import refuse_unread

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared research data are not beside this checkout")


@pytest.fixture(params=SMALL_SETS, ids=lambda each: each.name)
def text_set(request: pytest.FixtureRequest) -> TextSet:
    """Each set."""
    return request.param


def test_a_small_plan_reads_its_set_below_the_data_root(text_set: TextSet) -> None:
    recipe = small_plan(text_set, Path("a") / "b", arms=INIT_ARMS, rates=(1e-3, 1e-2), seeds=(2, 6)).recipe
    assert recipe.data.name == str(Path("a") / "b" / "text" / text_set.name)
    refuse_unread(recipe.task, recipe.data)
    assert (recipe.data.text_pair is not None) == text_set.pairs
    assert (recipe.adapter.rank, recipe.adapter.targets) == (RANK, "all-linear")
    assert recipe.train.evaluate_every == recipe.train.steps == 64


def test_a_grid_grows_by_one_rate_beyond_either_end() -> None:
    plan = small_plan(SMALL_SETS[0], Path(), arms=INIT_ARMS, rates=(1e-3, 1e-2, 1e-1), seeds=(2, 6))
    assert plan.bounds == (1e-4, 1.0)
    assert plan.grow


def test_only_the_set_that_rates_are_read_of_has_all_of_its_test_part_scored() -> None:
    assert [each.max_scored_rows for each in SMALL_SETS] == [500, 300, 300, 300, 300]
    assert {(each.batch_size, each.max_tokens) for each in SMALL_SETS if each.pairs} == {(8, 48)}


def test_a_margin_is_stated_in_the_plan_too() -> None:
    plan = small_plan(SMALL_SETS[0], Path(), arms=INIT_ARMS, rates=(1e-3, 1e-2), seeds=(2, 6), margin=0.015)
    assert plan.margin == 0.015


@needs_shared
def test_a_run_sees_no_row_twice_and_pairs_are_pairs(text_set: TextSet) -> None:
    told = json.loads((SHARED / text_set.data.place / "dataset.json").read_text(encoding="utf-8"))
    recipe = small_plan(text_set, SHARED, arms=INIT_ARMS, rates=(1e-3, 1e-2), seeds=(2, 6)).recipe
    # Up to a fifth is held out.
    assert 0.7 * told["splits"]["train"]["rows"] > recipe.train.steps * recipe.train.batch_size
    assert ("text_pair" in told["fields"]) == text_set.pairs
    assert text_set.metric in told["metric"]


@pytest.mark.parametrize("subset", GLUE_SETS)
def test_a_paper_plan_is_the_recipe_on_that_set_of_glue(subset: str) -> None:
    plan = paper_plan(subset, arms=INIT_ARMS)
    recipe = plan.recipe
    refuse_unread(recipe.task, recipe.data)
    assert (recipe.data.name, recipe.data.subset, recipe.data.metric) == ("nyu-mll/glue", subset, "accuracy")
    assert (recipe.adapter.rank, recipe.adapter.targets) == (RANK, ("query", "value"))
    # A fifth of the training file is held out.
    epochs = recipe.train.steps * recipe.train.batch_size / (0.8 * GLUE_SETS[subset].rows)
    assert epochs == pytest.approx(10, abs=1e-3)
    # Twenty scores, the last one at the end or less than one in twenty before.
    assert recipe.train.steps // recipe.train.evaluate_every == 20
    assert (len(plan.tuning_seeds), len(plan.closing_seeds)) == (3, 3)
    assert glue_data(subset)[0].source == f"hub nyu-mll/glue, configuration {subset}"


@pytest.mark.parametrize("settings", [SMALL_SETTINGS, PAPER_SETTINGS])
def test_each_setting_is_told_once_and_in_full(settings: tuple[object, ...]) -> None:
    names = [setting.what for setting in settings]  # pyright: ignore[reportAttributeAccessIssue]
    assert len(names) == len(set(names))
    assert all(all(vars(setting).values()) for setting in settings)


def test_what_limits_results_on_minilm_is_told_beside_them() -> None:
    told = " ".join(setting.why for setting in SMALL_SETTINGS)
    for words in ("natural-language inference", "Rotten Tomatoes", "no test labels"):
        assert words in told
