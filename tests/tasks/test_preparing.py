from __future__ import annotations

from importlib import import_module
from inspect import signature

import pytest

from asymlora.errors import UnknownNameError
from asymlora.tasks.inputs import TASKS, DataRecipe, ModelRecipe
from asymlora.tasks.preparing import prepare_task
from asymlora.train.recipe import Recipe


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_two_functions(task: str) -> None:
    module = import_module(TASKS[task].module)
    assert list(signature(module.prepare).parameters) == ["model", "data", "task", "head_seed"]
    assert list(signature(module.load).parameters) == ["model", "data", "task", "label_names"]


@pytest.mark.parametrize("task", TASKS)
def test_every_tasks_defaults_are_a_recipe(task: str) -> None:
    recipe = Recipe.from_dict({"task": task})
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_dict({"task": task, "data": {"name": "mine.jsonl"}}).data.max_rows is None


def test_an_unknown_task_names_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'seq2seq'"):
        prepare_task("seq2sec", ModelRecipe(), DataRecipe(), head_seed=0)
