"""Fields of a recipe by dotted name, and what typed texts mean for them."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest

from asymlora.errors import NoTargetError, SpecError, UnknownKeyError, UnknownNameError
from asymlora.sweep.recipe_fields import (
    ELSEWHERE,
    check_fields,
    check_name,
    field_types,
    in_context,
    parse_value,
    plain_value,
    split_commas,
    with_values,
)
from asymlora.train.recipe import Recipe, TrainRecipe


def _leaves(values: dict[str, Any], where: str = "") -> list[str]:
    names = {"optimizer_options", "rank_pattern", "alpha_pattern", "factor_pattern"}
    nested = [(k, v) for k, v in values.items() if isinstance(v, dict) and k not in names]
    plain = [f"{where}{k}" for k in values if k not in dict(nested)]
    return plain + [name for key, value in nested for name in _leaves(value, f"{where}{key}.")]


def test_every_field_that_a_recipe_file_holds_has_a_type() -> None:
    assert sorted(field_types()) == sorted(_leaves(Recipe().to_dict()))
    assert check_name("train.batch_size") == (TrainRecipe, "batch_size")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("train.batch_size", "16", 16),
        ("train.batch_size", "16.5", "16.5"),  # refused by the field's check
        ("train.weight_decay", "1e-2", 0.01),
        ("train.weight_decay", "0", 0.0),
        ("train.patience", "null", None),
        ("train.patience", "None", None),
        ("train.patience", "3", 3),
        ("train.batch_size", "null", "null"),
        ("train.gradient_correction", "true", True),
        ("train.gradient_correction", "False", False),
        ("train.schedule", "cosine", "cosine"),
        ("train.report_to", "wandb", "wandb"),
        ("train.report_to", "[wandb,mlflow]", ["wandb", "mlflow"]),
        ("data.name", "true", "true"),
        ("data.name", "16", "16"),
        ("data.name", '"a, b"', "a, b"),
        ("data.subset", "null", None),
        ("adapter.targets", "all-linear", "all-linear"),
        ("adapter.targets", "[query, value]", ["query", "value"]),
        ("adapter.targets", '["query", "value"]', ["query", "value"]),
        ("adapter.shared_A", "[[q,k],[v,o]]", [["q", "k"], ["v", "o"]]),
        ("adapter.rank_pattern", '{"value": 2}', {"value": 2}),
        ("train.optimizer_options", '{"betas": [0.9, 0.99]}', {"betas": [0.9, 0.99]}),
        ("adapter.alpha", "32", 32.0),
        ("adapter.A.init", "gaussian", "gaussian"),
        ("adapter.A.component_norm", "null", None),
    ],
)
def test_a_text_becomes_a_value_of_the_fields_type(name: str, text: str, value: Any) -> None:
    found = parse_value(name, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train.batchsize", "Did you mean 'train.batch_size'"),
        ("rank", "Did you mean 'adapter.rank'"),
        ("adapter.lr_head", "Did you mean 'train.lr_head'"),
        ("adapter.r", "PEFT's name for rank"),
        ("adapter.A", "group of fields: adapter.A.init"),
        ("zzzzz", "names no field of a recipe"),
    ],
)
def test_a_name_that_is_no_field_is_answered_with_the_one_that_was_meant(name: str, words: str) -> None:
    with pytest.raises(UnknownKeyError, match=words):
        check_name(name)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_fields_that_a_sweep_sets_itself_are_refused_with_what_to_use(name: str) -> None:
    with pytest.raises(SpecError, match=f"{name} is no setting of an arm and no axis. Use"):
        check_name(name)


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ({"train.batch_size": "many"}, SpecError, "'train.batch_size' is 'many'; a whole number"),
        ({"train.steps": 0}, SpecError, "train.steps=0 must be at least 1"),
        ({"train.schedule": "wavy"}, UnknownNameError, "'train.schedule' is 'wavy'; allowed are 'linear'"),
        ({"adapter.A.gain": -1.0}, SpecError, "gain=-1.0"),
        ({"adapter.A.init": "flat"}, UnknownNameError, "'adapter.A.init' is 'flat'"),
        ({"adapter.targets": []}, SpecError, "targets"),
    ],
)
def test_a_value_that_a_field_cannot_hold_names_the_field(values: dict[str, Any], kind: type, words: str) -> None:
    with pytest.raises(kind, match=words):
        check_fields(values)


def test_values_that_fields_can_hold_pass() -> None:
    check_fields({"train.batch_size": 4, "adapter.A.gain": 2.0, "adapter.A.init": "zeros", "data.name": "x.csv"})


def test_set_fields_are_set_and_nothing_else_is() -> None:
    before = Recipe.from_dict({"adapter": {"rank_pattern": {"value": 2}}, "train": {"lr_head": 1e-3}})
    values = before.to_dict()
    after = with_values(values, {"train.batch_size": 4, "adapter.rank_pattern": {"key": 3}})
    assert after.adapter.rank_pattern == {"key": 3}  # a mapping replaces a mapping
    expected = before.to_dict()
    expected["train"]["batch_size"] = 4
    expected["adapter"]["rank_pattern"] = {"key": 3}
    assert after.to_dict() == expected
    assert values == before.to_dict()


def test_commas_in_brackets_do_not_part() -> None:
    assert split_commas('a=1, b=[x,y],c={"k": (1, 2)}') == ["a=1", "b=[x,y]", 'c={"k": (1, 2)}']
    assert split_commas("") == [""]


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {1, 2}])
def test_what_no_file_can_hold_is_refused(value: object) -> None:
    with pytest.raises(SpecError, match=r"data\.name is .*finite numbers, text, lists"):
        plain_value("data.name", value)


def test_tuples_become_lists() -> None:
    assert plain_value("adapter.targets", ("query", "value")) == ["query", "value"]


def test_context_keeps_the_class_of_an_error() -> None:
    with pytest.raises(NoTargetError, match=r"^--arm x: nothing matches$"), in_context("--arm x"):
        raise NoTargetError("nothing matches")


def test_planning_loads_no_torch() -> None:
    modules = ("axes", "grid", "matching", "plan_checks", "rates", "recipe_fields")
    names = ", ".join(f"asymlora.sweep.{name}" for name in modules)
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
