"""Sweeps over texts that the artefacts of Zhu et al. share."""

from __future__ import annotations

from pathlib import Path

import pytest

from asymlora.papers.arm_comparisons import at_rank
from asymlora.papers.asymmetry_sweeps import (
    GLUE,
    PAPER_RATES,
    PAPER_TEXT_SETTINGS,
    RATES,
    paper_glue_data,
    paper_text_part,
    small_text_settings,
    text_part,
)
from asymlora.papers.text_sweeps import SMALL_SETS, TREC6_SET
from asymlora.papers.zhu_settings import B_ONLY, BOTH
from asymlora.reproduce.artefact import Setting
from asymlora.sweep.grid import cells
from asymlora.tasks.inputs import refuse_unread

ARMS = (BOTH, at_rank(B_ONLY, 16))


def test_a_part_has_the_name_of_its_set_and_two_looks_that_differ_in_closing_seeds_alone() -> None:
    part = text_part(TREC6_SET, Path("a"), arms=ARMS, margin=0.5)
    assert part.second is not None
    first, second = part.plan.to_dict(), part.second.to_dict()
    assert (first.pop("closing_seeds"), second.pop("closing_seeds")) == (list(range(6)), list(range(10)))
    assert first == second
    assert (part.name, first["tuning_seeds"], first["margin"]) == ("trec6", [200, 201], 0.5)
    assert part.plan.recipe.data.name == str(Path("a") / "text" / "trec6")


def test_without_a_third_number_of_seeds_there_is_one_look() -> None:
    part = text_part(SMALL_SETS[1], Path(), arms=ARMS, rates=(1e-3, 1e-2), seeds=(1, 3))
    assert part.second is None
    assert (part.plan.tuning_seeds, part.plan.closing_seeds, part.plan.rates) == ((200,), (0, 1, 2), (1e-3, 1e-2))


def test_the_grid_is_four_rates_and_grows_by_one_beyond_either_end() -> None:
    assert pytest.approx((1e-3, 3.16e-3, 1e-2, 3.16e-2), rel=1e-2) == RATES
    assert text_part(TREC6_SET, Path(), arms=ARMS).plan.bounds == pytest.approx((3.16e-4, 1e-1), rel=1e-2)


@pytest.mark.parametrize("subset", GLUE)
def test_a_part_of_the_papers_scale_is_its_recipe_on_that_set(subset: str) -> None:
    plan = paper_text_part(subset, arms=ARMS).plan
    recipe = plan.recipe
    refuse_unread(recipe.task, recipe.data)
    assert (recipe.task == "text_regression") == (subset == "stsb")
    assert (recipe.data.subset, recipe.data.text_pair is None) == (subset, subset in ("sst2", "cola"))
    assert recipe.adapter.targets == ("query", "value")
    assert recipe.train.steps * recipe.train.batch_size / (0.8 * GLUE[subset].rows) == pytest.approx(20, rel=5e-3)
    assert recipe.train.steps // recipe.train.evaluate_every == 20
    assert 4e-4 in plan.rates == PAPER_RATES


def test_the_scaling_is_two_at_every_rank_of_both_scales() -> None:
    for part in (text_part(TREC6_SET, Path(), arms=ARMS), paper_text_part("rte", arms=ARMS)):
        specs = [cell.recipe.adapter for cell in cells(part.plan)]
        assert [(spec.rank, spec.scaling_factor) for spec in specs] == [(8, 2.0), (16, 2.0)]


def test_the_papers_sets_come_from_the_hub() -> None:
    assert [each.name for each in paper_glue_data(*GLUE)] == ["MNLI", "SST-2", "MRPC", "CoLA", "QNLI", "RTE", "STS-B"]
    assert paper_glue_data("rte")[0].source == "hub nyu-mll/glue, configuration rte"


@pytest.mark.parametrize("settings", [small_text_settings("TREC-6", "SST-2"), PAPER_TEXT_SETTINGS])
def test_each_setting_is_told_once_and_in_full(settings: tuple[Setting, ...]) -> None:
    names = [setting.what for setting in settings]
    assert len(names) == len(set(names))
    assert all(all(vars(setting).values()) for setting in settings)
    # The other paper's figures are no part of this one's.
    assert not [setting for setting in settings if "90.69" in setting.paper or "LoRA+" in setting.paper]
