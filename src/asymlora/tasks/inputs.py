"""What a task is given: which model, which data. Part of the recipe; no torch in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from asymlora.schema import answers_wrong_names, refuse_values


@answers_wrong_names
@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """The pretrained model.

    Attributes:
        name: ``embedded:minilm-l6``, a local folder, or an id on the Hugging Face hub.
        revision: Branch, tag or commit on the hub; None is the hub's default.
        pooling: How token features become one vector: ``mean`` over the tokens, ``native``: the class that
            transformers has for the model; ``auto``: ``mean`` where the folder says so, else ``native``.
    """

    name: str = "embedded:minilm-l6"
    revision: str | None = None
    pooling: Literal["auto", "mean", "native"] = "auto"


@answers_wrong_names
@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """The labelled texts and how they are divided.

    Attributes:
        name: ``embedded:reviews``; a CSV, JSON Lines or Parquet file; a folder with files called train, validation and
            test; or an id on the Hugging Face hub.
        subset: Configuration of a hub data set, if it has several.
        text: Column of the text.
        label: Column of the label.
        group: Column whose rows must stay in one part (the film of a review); None splits by row.
        max_tokens: Longer texts are cut, at least 2 tokens.
        validation_fraction: Share of the training rows (or groups) held out for choices, where no such file is given.
        test_fraction: Share held out for the closing figures, where no such file is given.
        seed: Seed of the division.
    """

    name: str = "embedded:reviews"
    subset: str | None = None
    text: str = "text"
    label: str = "label"
    group: str | None = None
    max_tokens: int = 64
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            SpecError: A number is out of range.
        """
        problems: list[str] = []
        for name in ("validation_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 1:
                problems.append(f"data.{name}={getattr(self, name)} must lie between 0 and 1")
        if self.max_tokens < 2:
            problems.append(f"data.max_tokens={self.max_tokens} must be at least 2")
        if not 0 <= self.seed < 2**31:  # two draws each, in NumPy's range
            problems.append(f"data.seed={self.seed} must lie between 0 and 2**31 - 1")
        refuse_values(problems)
