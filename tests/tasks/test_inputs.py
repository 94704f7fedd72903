from __future__ import annotations

import pytest

from asymlora.errors import SpecError, UnknownKeyError
from asymlora.tasks.inputs import DataRecipe, ModelRecipe


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"validation_fraction": 0.0}, r"data\.validation_fraction=0\.0 must lie between 0 and 1"),
        ({"test_fraction": 1.0}, r"data\.test_fraction=1\.0"),
        ({"max_tokens": 1}, "at least 2"),
        ({"validation_fraction": 2.0, "max_tokens": 0}, r"validation_fraction.*; data\.max_tokens"),
    ],
)
def test_numbers_out_of_range_are_named_together(given: dict[str, float], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        DataRecipe(**given)  # pyright: ignore[reportArgumentType]


def test_the_default_is_what_registry_packages_ship() -> None:
    assert ModelRecipe().name == "embedded:minilm-l6"
    assert DataRecipe().name == "embedded:reviews"


def test_a_misspelt_field_is_answered() -> None:
    with pytest.raises(UnknownKeyError, match="Did you mean 'pooling'"):
        ModelRecipe(poling="mean")  # pyright: ignore[reportCallIssue]
