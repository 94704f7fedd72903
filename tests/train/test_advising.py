"""Advice on small models: measured on the given data, the recipe that comes out, what is left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from asymlora.errors import NoTargetError, SpecError
from asymlora.tasks.preparing import prepare_task
from asymlora.train.advice_options import AdvisingSettings
from asymlora.train.advising import Advised, advise_recipe, batch_loss
from asymlora.train.range_rules import RangeSettings
from asymlora.train.recipe import Recipe
from small_advice import small_range
from train.test_every_task import TASKS

QUICK = AdvisingSettings(batches=2, rows=48, range_test=RangeSettings(steps=12, probe_steps=2, most_probes=1))


class Heard:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def begun(self, folder: str) -> None: ...

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def progress(self, what: str, done: int, total: int, values: Any) -> None: ...


@pytest.fixture
def recipe(small_recipe: dict[str, Any]) -> Recipe:
    return Recipe.from_dict({**small_recipe, "adapter": {"rank": 2, "dropout": 0.25, "seed": 3}})


def _advised(recipe: Recipe, **changed: Any) -> tuple[Advised, Heard]:
    heard = Heard()
    return advise_recipe(recipe, settings=QUICK, observer=heard), heard


def test_the_recipe_is_the_given_one_with_another_adapter_and_rate(recipe: Recipe) -> None:
    advised, heard = _advised(recipe)
    plain, given = advised.recipe.to_dict(), recipe.to_dict()
    assert {key: plain[key] for key in ("task", "method", "model", "data")} == {
        key: given[key] for key in ("task", "method", "model", "data")
    }
    assert plain["train"] == {**given["train"], "lr": plain["train"]["lr"]}
    assert (plain["adapter"]["dropout"], plain["adapter"]["seed"]) == (0.25, 3)
    assert advised.advice.rate is not None
    assert plain["train"]["lr"] == pytest.approx(advised.advice.rate.start, rel=0.05)  # two digits
    assert advised.advice.rate.start == pytest.approx(advised.range_test.suggested)
    assert advised.head_fitted
    assert advised.rows == 48
    assert any(stage.startswith("Range test") and " s" in stage for stage in heard.stages)
    _refuse_mixed(advised)


def _refuse_mixed(advised: Advised) -> None:
    # The adapter's layers are advised on, the others only looked at.
    inside = {measured.name for measured in advised.measures}
    outside = {measured.name for measured in advised.measures_elsewhere}
    assert {site.name for site in advised.advice.sites} == inside
    assert all("layer." in name for name in inside)
    assert any("embeddings" in name for name in outside)
    assert not inside & outside
    assert advised.elsewhere is not None
    assert 2 in {shares.rank for measured in advised.measures for shares in measured.shares}  # the reference


@pytest.mark.optional  # two whole advices: ten seconds
def test_only_the_targets_are_measured_on_request_and_the_advice_is_the_same_each_time(recipe: Recipe) -> None:
    settings = AdvisingSettings(batches=2, rows=48, everywhere=False, range_test=QUICK.range_test)
    first, second = (advise_recipe(recipe, settings=settings) for _ in range(2))
    assert first.elsewhere is None
    assert first.measures_elsewhere == ()
    assert (first.recipe, first.measures) == (second.recipe, second.measures)


def test_a_target_that_matches_nothing_is_refused_before_anything_is_fitted(small_recipe: dict[str, Any]) -> None:
    heard = Heard()
    with pytest.raises(NoTargetError, match="q_prj"):
        advise_recipe(
            Recipe.from_dict({**small_recipe, "adapter": {"targets": ["q_prj"]}}), settings=QUICK, observer=heard
        )
    assert len(heard.stages) == 1


def test_a_recipe_that_chooses_is_refused_before_anything_is_read(small_recipe: dict[str, Any]) -> None:
    heard = Heard()
    with pytest.raises(SpecError, match="what advice chooses"):
        advise_recipe(Recipe.from_dict({**small_recipe, "adapter": "lora"}), settings=QUICK, observer=heard)
    assert not heard.stages


@pytest.mark.optional  # a range test of each kind of model
@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_advised_on(task: str, tmp_path: Path) -> None:
    made = TASKS[task](tmp_path)
    advised, _ = _advised(Recipe.from_dict({"task": task, **made, "adapter": {"rank": 2}}))
    assert any(measured.shares for measured in advised.measures)
    assert advised.recipe.task == task
    assert advised.recipe.train.lr > 0


def test_a_range_test_without_a_stable_rate_asks_for_smaller_ones(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = replace(small_range(), outcome="none stable")
    monkeypatch.setattr("asymlora.train.advising.range_test", lambda *_, **__: lost)
    rate = _advised(recipe)[0].advice.rate
    assert rate is not None
    assert rate.edge is None
    assert "smaller rates" in " ".join(rate.confidence.failed)


def test_the_loss_of_a_batch_is_that_of_the_task(small_recipe: dict[str, Any]) -> None:
    recipe = Recipe.from_dict(small_recipe)
    prepared = prepare_task(recipe.task, recipe.model, recipe.data, head_seed=0)
    batch = prepared.collator([prepared.train[i] for i in range(4)])
    with torch.no_grad():
        loss = batch_loss(prepared.model, batch, prepared)
        logits = prepared.model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    assert torch.allclose(loss, nn.functional.cross_entropy(logits, batch["labels"]))
