"""What can be asked of advice, and what it leaves to the user. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass, field

from asymlora.schema import refuse_values
from asymlora.spec import AdapterSpec
from asymlora.train.range_rules import RangeSettings
from asymlora.train.recipe import Recipe

KEPT = ("rank", "alpha", "scaling", "dropout", "targets", "modules_to_save", "seed")
"""Fields of the adapter that advice leaves to the user; the others it chooses."""


@dataclass(frozen=True, kw_only=True)
class AdvisingSettings:
    """How much is looked at. Defaults: ours, about a minute for a small encoder on two cores.

    Attributes:
        batches: Batches whose gradients and moments are gathered, at least 2 (one shows no scatter).
        rows: Training rows that are read and that the head is fitted on, at least 8; the recipe keeps its own number.
        values: Trained values that the ranks may cost together; None: what the recipe's rank costs everywhere.
        ranks_by_layer: Whether ranks may differ from layer to layer, where that reaches more of the first update.
        everywhere: Whether to measure layers besides the adapter's targets, for a look only.
        range_test: How the range test is run.
    """

    batches: int = 8
    rows: int = 1000
    values: int | None = None
    ranks_by_layer: bool = False
    everywhere: bool = True
    range_test: RangeSettings = field(default_factory=RangeSettings)

    def __post_init__(self) -> None:
        """Check the numbers."""
        least = {"batches": 2, "rows": 8, "values": 1}
        problems = [
            f"{name}={value} must be at least {bound}"
            for name, bound in least.items()
            if (value := getattr(self, name)) is not None and value < bound
        ]
        refuse_values(problems)


def refuse_chosen(recipe: Recipe) -> None:
    """Refuse a recipe that chooses what advice is to choose, before anything is read.

    Args:
        recipe: The recipe.

    Raises:
        SpecError: It does.
    """
    usual = AdapterSpec()
    chosen = [
        f"adapter.{name}"
        for name in vars(usual)
        if name not in KEPT and getattr(recipe.adapter, name) != getattr(usual, name)
    ]
    problems: list[str] = []
    if chosen:
        kept = ", ".join(f"adapter.{name}" for name in KEPT)
        problems.append(f"{', '.join(chosen)} is what advice chooses. Leave it out; it reads {kept}")
    if recipe.method != "adapter":
        problems.append(f"method={recipe.method!r} has no factors to advise on. Leave it out for method=adapter")
    if recipe.train.gradient_correction:
        problems.append("train.gradient_correction changes what a rate means. Leave it out")
    if recipe.train.sharding != "none":
        problems.append("advice is given in one process, unsharded. Leave train.sharding out")
    refuse_values(problems)
