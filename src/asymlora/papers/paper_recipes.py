"""Recipes at the papers' own scale, as YAML files beside this one. No torch in here.

What a comment in a file calls not known is not in the papers; the artefacts list it as a setting. The models are
described by their configurations, so that cost and trained values can be told without weights.
"""

from __future__ import annotations

from pathlib import Path

from asymlora.errors import UnknownNameError, nearest
from asymlora.train.recipe import Recipe

FOLDER = Path(__file__).parent / "recipes"


def recipe_names() -> tuple[str, ...]:
    """Return the names of all recipes, in the order of the alphabet."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.yaml")))


def recipe_file(name: str) -> Path:
    """Return the file of a recipe, as ``asymlora finetune FILE --dry-run`` takes it.

    Args:
        name: One of `recipe_names`.

    Raises:
        UnknownNameError: There is no such recipe; the names are listed.
    """
    known = recipe_names()
    if name not in known:
        raise UnknownNameError(
            f"No recipe at a paper's scale is called {name!r}.{nearest(name, known)} Known: {', '.join(known)}."
        )
    return FOLDER / f"{name}.yaml"


def paper_recipe(name: str) -> Recipe:
    """Return a recipe at a paper's scale.

    Args:
        name: One of `recipe_names`.

    Returns:
        The recipe; it holds no path of this machine, so it is the same on every one.

    Example:
        >>> paper_recipe("llama_7b_flan").adapter.rank
        64
    """
    return Recipe.load(recipe_file(name))
