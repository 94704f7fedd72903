from __future__ import annotations

from pathlib import Path

import pytest

from asymlora.errors import UnknownNameError
from asymlora.papers.paper_recipes import paper_recipe, recipe_file, recipe_names
from asymlora.train.recipe import Recipe


def test_the_names_are_those_of_the_files() -> None:
    assert {"llama_7b_flan", "llama_7b_gsm8k", "roberta_large_mnli", "tinyllama_wikitext2"} < set(recipe_names())
    assert all(recipe_file(name).is_file() for name in recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_holds_no_path_of_this_machine_and_names_a_configuration_that_is_shipped(name: str) -> None:
    recipe = paper_recipe(name)
    assert str(Path(__file__).parents[2]) not in recipe.to_yaml()
    assert recipe.model.config is not None
    scheme, _, place = recipe.model.config.partition(":")
    assert scheme == "asymlora"
    assert (recipe_file(name).parents[2] / place).is_file()


def test_reading_it_from_elsewhere_gives_the_same_recipe(tmp_path: Path) -> None:
    copied = tmp_path / "mine.yaml"
    copied.write_text(recipe_file("llama_7b_flan").read_text(encoding="utf-8"), encoding="utf-8")
    assert Recipe.load(copied) == paper_recipe("llama_7b_flan")


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'llama_7b_flan'\? Known: bart_large_xsum, "):
        paper_recipe("llama7b_flan")
