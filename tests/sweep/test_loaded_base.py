from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from asymlora.sweep import loaded_base
from asymlora.sweep.loaded_base import LoadedBase, base_key, fits_on_adapter
from asymlora.train.recipe import Recipe, merged


def _recipe(small_recipe: dict[str, Any], **changes: Any) -> Recipe:
    return Recipe.from_dict(merged(small_recipe, changes))


def test_a_base_is_shared_by_task_model_and_data_alone(small_recipe: dict[str, Any]) -> None:
    key = base_key(_recipe(small_recipe))
    assert base_key(_recipe(small_recipe, train={"seed": 9, "lr": 1.0}, adapter={"rank": 1})) == key
    for other in ({"data": {"seed": 1}}, {"model": {"pooling": "native"}}, {"data": {"max_tokens": 8}}):
        assert base_key(_recipe(small_recipe, **other)) != key


def test_memory_is_predicted_once_for_rates_and_seeds(
    small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, asked = LoadedBase(_recipe(small_recipe)), []
    monkeypatch.setattr(loaded_base, "memory_sentence", lambda recipe, prepared: asked.append(recipe))
    base.refuse_too_large(_recipe(small_recipe))
    base.refuse_too_large(_recipe(small_recipe, train={"lr": 0.5, "seed": 3}, adapter={"seed": 3}))
    assert len(asked) == 1
    base.refuse_too_large(_recipe(small_recipe, train={"batch_size": 64}))
    assert len(asked) == 2
    base.refuse_too_large(_recipe(small_recipe, train={"batch_size": 65, "memory_check": False}))
    assert len(asked) == 2


def test_a_drawn_head_is_that_of_its_seed_and_a_fitted_one_is_the_same_for_all(small_recipe: dict[str, Any]) -> None:
    base = LoadedBase(_recipe(small_recipe, train={"seed": 1}))
    head = base.prepared.model.classifier
    first = head.weight.clone()
    base.draw_heads(_recipe(small_recipe, train={"seed": 2}))
    assert not torch.equal(head.weight, first)
    base.draw_heads(_recipe(small_recipe, train={"seed": 1}))
    assert torch.equal(head.weight, first)
    drawn = _recipe(small_recipe, train={"head_start": "random"})
    assert base.fitted_head(drawn) is None
    fits = [base.fitted_head(_recipe(small_recipe, train={"seed": seed})) for seed in (1, 2)]
    assert fits[0] is fits[1] is not None


def test_only_an_adapter_that_starts_non_zero_moves_the_features() -> None:
    plain = Recipe()
    moved = replace(plain, adapter=replace(plain.adapter, nonzero_start="correct_base"))
    assert not fits_on_adapter(plain)
    assert fits_on_adapter(moved)
    assert not fits_on_adapter(replace(moved, method="full"))
