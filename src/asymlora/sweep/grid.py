"""The plan of a sweep, its cells, and the runs of a cell. No torch in here.

A cell is one arm at one point of the further axes. All that could be wrong with a plan before a model is looked at is
found when it is made, and told at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from asymlora.errors import AsymloraError, SpecError
from asymlora.schema import answers_wrong_names, from_mapping, refuse_values, to_mapping
from asymlora.sweep.axes import OWN, Arm, Axis
from asymlora.sweep.plan_checks import notes, plan_problems
from asymlora.sweep.rates import Ladder, RateChoice, choose_rate, ladder_through, rate_scores
from asymlora.sweep.recipe_fields import in_context, with_values
from asymlora.sweep.run_record import Phase, RunJob, RunRow, cell_label
from asymlora.sweep.searching import Search
from asymlora.train.recipe import Recipe, at_rate, read_yaml, yaml_text

__all__ = [
    "Cell", "Match", "SweepPlan", "cells", "choice", "closing_jobs", "job", "notes", "rows_of", "seeds_of",
    "tuning_jobs",
]  # fmt: skip
Match = Literal["steps", "parameters", "compute"]
VERSION = 1
"""Of the form of ``sweep.yaml``."""
FIRST_TUNING_SEED = 100
BOUND = 100.0
"""How far the grid may grow beyond either end where no bounds are given: two decades."""


def seeds_of(*, closing: int, tuning: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return so many closing seeds, from 0 on, and so many tuning seeds, from 100 on or above the closing ones.

    Args:
        closing: Number of closing seeds.
        tuning: Number of tuning seeds.

    Returns:
        Both, with no seed in common.

    Example:
        >>> seeds_of(closing=3, tuning=2)
        ((0, 1, 2), (100, 101))
    """
    first = max(FIRST_TUNING_SEED, closing)
    return tuple(range(closing)), tuple(range(first, first + tuning))


@answers_wrong_names
@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """All of one sweep. The defaults are ours.

    Attributes:
        recipe: What every run has in common, before its arm and axes are laid over it.
        arms: What is compared, at least one; the first sets the budget where budgets are matched.
        axes: Further fields that are varied; every arm runs at every point.
        rates: Learning rates (``train.lr``) of the first grid. One alone: nothing is tuned.
        bounds: Smallest and largest rate that a grid may grow to; None: two decades beyond either end.
        grow: Whether the grid of a cell grows while its best rate lies at an end.
        tuning_seeds: Seeds of the runs that choose the rate, on validation. Two, as one run cannot show that a rate is
            stable.
        closing_seeds: Fresh seeds of the runs that are quoted, on test. Six: the least at which an exact paired test
            can reach p < 0.05.
        match: What the arms have in common: ``steps``, as the recipe says; trained ``parameters``, by rank; or
            ``compute``, by steps.
        search: Fields that are searched by a sampler, in the place of a grid of rates; None: a grid.
        prune: Whether tuning runs that are behind are stopped early.
        prune_eta: Of the runs that reach a rung, one in so many goes on; at least 2.
        repeats: Closing runs of each cell that are done again with the same seed: how far the machine repeats itself.
        margin: Largest difference of the metric that counts as none, for equivalence; stated before the sweep.
        threads: Threads of torch in each run; None: as torch has it.
    """

    recipe: Recipe = field(default_factory=Recipe)
    arms: tuple[Arm, ...] = (Arm(name=OWN, word=OWN),)
    axes: tuple[Axis, ...] = ()
    rates: tuple[float, ...]
    bounds: tuple[float, ...] | None = None
    grow: bool = True
    tuning_seeds: tuple[int, ...] = (100, 101)
    closing_seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    match: Match = "steps"
    search: Search | None = None
    prune: bool = False
    prune_eta: int = 2
    repeats: int = 0
    margin: float | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        """Sort the rates and refuse what cannot be run, all of it at once."""
        object.__setattr__(self, "rates", tuple(sorted(self.rates)))
        refuse_values(plan_problems(self))
        cells(self)

    @property
    def limits(self) -> tuple[float, float]:
        """Smallest and largest rate that may be tried."""
        low, high = self.bounds or (self.rates[0] / BOUND, self.rates[-1] * BOUND)
        return low, high

    @property
    def ladder(self) -> Ladder | None:
        """Where the grid goes on; None where it does not grow."""
        return ladder_through(self.rates) if self.grow and len(self.rates) > 1 else None

    @property
    def tunes(self) -> bool:
        """Whether there is a rate to be chosen."""
        return len(self.rates) > 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested values, the inverse of `from_dict`."""
        return {"kind": "sweep", "version": VERSION, **to_mapping(self)}

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> SweepPlan:
        """Return the plan of plain nested values.

        Args:
            mapping: As `to_dict` gives it.

        Returns:
            The plan.

        Raises:
            SpecError: It is no plan, of a newer version, or one that cannot be run.
        """
        kind, version = mapping.get("kind"), mapping.get("version")
        if kind != "sweep" or not isinstance(version, int):
            raise SpecError(f"This is no plan of a sweep: kind={kind!r}, version={version!r}. Give a sweep's folder.")
        if version > VERSION:
            raise SpecError(
                f"The plan has version {version}; this asymlora reads versions up to {VERSION}. Update asymlora, or"
                " take the one that wrote it."
            )
        return from_mapping(cls, {key: value for key, value in mapping.items() if key not in ("kind", "version")})

    def to_yaml(self) -> str:
        """Return the plan as YAML, every field written out."""
        return yaml_text(self.to_dict())

    @classmethod
    def load(cls, path: Path) -> SweepPlan:
        """Read a plan from YAML.

        Args:
            path: The file.

        Returns:
            The plan.
        """
        with in_context(str(path)):
            return cls.from_dict(read_yaml(path))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One arm at one point of the further axes.

    Attributes:
        label: Name that is unique in the sweep: ``b_only`` or ``b_only, train.batch_size 16``.
        arm: Name of the arm.
        axes: Values of the further axes by dotted field name.
        recipe: Its recipe; learning rate and seeds are still those of the sweep's.
        notes: What matching its budget changed, as sentences.
    """

    label: str
    arm: str
    axes: Mapping[str, Any]
    recipe: Recipe
    notes: tuple[str, ...] = ()


def cells(plan: SweepPlan) -> list[Cell]:
    """Return the cells of a plan, arm by arm; budgets are not matched yet (`asymlora.sweep.matching`).

    Args:
        plan: The plan.

    Returns:
        The cells.

    Raises:
        SpecError: A cell's recipe cannot be, or two cells are the same but for their names; all such are named. A lone
            problem keeps the class of its error.
    """
    found: list[Cell] = []
    errors: list[AsymloraError] = []
    for arm, point in itertools.product(plan.arms, _points(plan.axes)):
        try:
            found.append(_cell(plan.recipe, arm, point))
        except AsymloraError as error:
            errors.append(error)
    errors += [SpecError(f"{twins}.") for twins in _twins(found)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise SpecError(" ".join(dict.fromkeys(map(str, errors))))
    return found


def job(plan: SweepPlan, cell: Cell, *, lr: float, seed: int, phase: Phase, repeat: int = 0) -> RunJob:
    """Return one run of a cell.

    The seed is that of the rows' order, of the head, the dropout and the adapter's draws: runs of all cells with the
    same seed are paired. The division of the data is the recipe's, the same for every run.

    Args:
        plan: The plan.
        cell: The cell.
        lr: Learning rate; absolute rates of factors and head keep their ratio to it.
        seed: The paired seed.
        phase: What the run is for. Closing runs and their repetitions are scored on test; closing runs keep their
            adapter.
        repeat: 0, or the number of a repetition.

    Returns:
        The run, without rivals: `dataclasses.replace` gives it those that have ended when it is begun.
    """
    train = replace(at_rate(cell.recipe.train, lr), seed=seed)
    return RunJob(
        recipe=replace(cell.recipe, train=train, adapter=replace(cell.recipe.adapter, seed=seed)),
        phase=phase,
        arm=cell.arm,
        axes=cell.axes,
        seed=seed,
        repeat=repeat,
        scores_test=phase in ("closing", "repeat"),
        keeps_adapter=phase == "closing",
        prune_eta=plan.prune_eta,
    )


def tuning_jobs(plan: SweepPlan, cell: Cell, rates: Iterable[float]) -> list[RunJob]:
    """Return the tuning runs of a cell at some rates: every seed of one rate, then of the next.

    Args:
        plan: The plan.
        cell: The cell.
        rates: The rates, in the order in which they are to be tried.
    """
    pairs = itertools.product(rates, plan.tuning_seeds)
    return [job(plan, cell, lr=lr, seed=seed, phase="tuning") for lr, seed in pairs]


def closing_jobs(plan: SweepPlan, cell: Cell, lr: float) -> list[RunJob]:
    """Return the closing runs of a cell at its chosen rate, and the repetitions of the first of them.

    Args:
        plan: The plan.
        cell: The cell.
        lr: The rate.
    """
    closing = [job(plan, cell, lr=lr, seed=seed, phase="closing") for seed in plan.closing_seeds]
    first = plan.closing_seeds[0]
    numbers = range(1, plan.repeats + 1)
    return closing + [job(plan, cell, lr=lr, seed=first, phase="repeat", repeat=number) for number in numbers]


def rows_of(cell: Cell, rows: Iterable[RunRow]) -> list[RunRow]:
    """Return the rows of one cell.

    Args:
        cell: The cell.
        rows: Rows of the sweep.
    """
    return [row for row in rows if row.arm == cell.arm and row.axes == cell.axes]


def choice(plan: SweepPlan, rows: Iterable[RunRow], *, greater_is_better: bool) -> RateChoice:
    """Return what is known of a cell's learning rate, and which rates are to be tried before that is final.

    Args:
        plan: The plan.
        rows: Rows of the cell.
        greater_is_better: Whether more of the metric is better.

    Returns:
        The choice. ``next_rates`` holds the whole first grid where there are no rows; when it is empty, the choice is
        final. One rate alone is not chosen: close with ``plan.rates[0]``.
    """
    scores = rate_scores(rows, seeds=plan.tuning_seeds, rates=plan.rates)
    return choose_rate(scores, greater_is_better=greater_is_better, ladder=plan.ladder, bounds=plan.limits)


def _points(axes: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*(axis.values for axis in axes)):
        yield {axis.field: value for axis, value in zip(axes, values, strict=True)}


def _cell(recipe: Recipe, arm: Arm, point: Mapping[str, Any]) -> Cell:
    label = cell_label(arm.name, point)
    with in_context(f"Arm {label}"):
        resolved = with_values(arm.laid_over(recipe).to_dict(), point)
    return Cell(label=label, arm=arm.name, axes=point, recipe=resolved)


def _twins(found: Sequence[Cell]) -> Iterator[str]:
    for place, cell in enumerate(found):
        twin = next((other for other in found[:place] if _same(other.recipe, cell.recipe)), None)
        if twin is not None:
            yield (
                f"{twin.label!r} and {cell.label!r} are the same recipe under two names. Leave one out, or change what"
                " it trains"
            )


def _same(one: Recipe, other: Recipe) -> bool:
    return _spelled_out(one) == _spelled_out(other)


def _spelled_out(recipe: Recipe) -> Recipe:
    # An alpha of None is twice the rank, unless sites have ranks of their own.
    spec = recipe.adapter
    return recipe if spec.rank_pattern else replace(recipe, adapter=replace(spec, alpha=spec.effective_alpha))
