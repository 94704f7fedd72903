from __future__ import annotations

import pytest
from torch import nn

from asymlora.errors import SpecError
from asymlora.factor_spec import PRESETS
from asymlora.train.method import Method, refuse_unread
from asymlora.train.recipe import Recipe

LORA = (PRESETS["lora"]["A"], PRESETS["lora"]["B"])


class _Nothing(Method):
    name = "nothing"


def test_a_method_needs_to_say_only_what_it_does_otherwise() -> None:
    method = _Nothing()  # pyright: ignore[reportAbstractUsage]
    net = nn.Linear(3, 2)
    assert method.optimizer(net, Recipe().train) is None
    assert method.penalty(net) is None
    assert method.notes(Recipe()) == ()
    method.after_step(net, 1)
    method.merge(net)


def test_every_changed_field_that_is_not_read_is_named_in_one_error() -> None:
    recipe = Recipe.from_dict({"adapter": {"rank": 4, "dropout": 0.1}, "train": {"lr_head": 0.1}})
    with pytest.raises(
        SpecError, match=r"does not read adapter\.dropout, train\.lr_head; of the adapter it reads adapter\.rank"
    ):
        refuse_unread(recipe, adapter=("rank",), train=())
    refuse_unread(recipe, adapter=("rank", "dropout"), train=("lr_head",))


def test_factors_that_mean_the_same_may_stand() -> None:
    recipe = Recipe.from_dict({"adapter": {"preset": "lora"}})
    with pytest.raises(SpecError, match=r"adapter\.A"):
        refuse_unread(recipe, adapter=())
    refuse_unread(recipe, adapter=(), factors=(LORA,))
    changed = Recipe.from_dict({"adapter": {"preset": "lora", "B": {"init": "zeros", "lr_ratio": 16.0}}})
    with pytest.raises(SpecError, match=r"adapter\.B"):
        refuse_unread(changed, adapter=(), factors=(LORA,))
