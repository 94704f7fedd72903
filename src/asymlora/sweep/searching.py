"""Searches beyond a grid: Optuna proposes points, the sweep runs them, and Optuna hears what came (ask and tell)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from asymlora.errors import SpecError
from asymlora.schema import answers_wrong_names, refuse_values
from asymlora.sweep.pruning import quiet_optuna
from asymlora.sweep.recipe_fields import check_fields, check_name, field_types, in_context, parse_value, split_commas

SamplerName = Literal["tpe", "random"]
LEARNING_RATE = "train.lr"
Point = dict[str, Any]


@answers_wrong_names
@dataclass(frozen=True, kw_only=True)
class Searched:
    """A field of the recipe that is searched.

    Attributes:
        name: Its dotted name.
        low: Lower end of a range; None where there are choices.
        high: Upper end, included.
        whole: Whether the range holds whole numbers only.
        log: Whether ratios matter, not differences.
        choices: The values to choose from, instead of a range.
    """

    name: str
    low: float | None = None
    high: float | None = None
    whole: bool = False
    log: bool = False
    choices: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        """Check the field and the range.

        Raises:
            SpecError: The range is empty, not finite, or not positive where ratios matter.
        """
        if self.name != LEARNING_RATE:
            for value in self.choices or self._ends():
                check_fields({self.name: value})
        if self.choices:
            rates = self.choices if self.name == LEARNING_RATE else ()
            wrong = [rate for rate in rates if not (math.isfinite(rate) and rate > 0)]
            refuse_values([f"{self.name}={rate} is no number above 0" for rate in wrong])
            return
        if self.low is None or self.high is None:
            raise SpecError(f"{self.name} is searched over nothing. Give a range (1e-4..1e-2) or choices (4,8,16).")
        bad = not (math.isfinite(self.low) and math.isfinite(self.high)) or self.low >= self.high
        problems = (
            [f"{self.name}={self.low:g}..{self.high:g} is an empty range: the first end is the lower"] if bad else []
        )
        if self.log and not bad and self.low <= 0:
            problems.append(f"{self.name}={self.low:g}..{self.high:g} must lie above 0: it is searched by ratios")
        refuse_values(problems)

    def _ends(self) -> tuple[float, ...]:
        ends = [end for end in (self.low, self.high) if end is not None and math.isfinite(end)]
        return tuple(int(end) if self.whole else end for end in ends)


def parse_searched(text: str) -> Searched:
    """Return the searched field that a text stands for.

    Args:
        text: ``train.lr=1e-4..1e-2``: a range, searched by ratios if it is a learning rate or spans more than a decade;
            ``adapter.rank=4,8,16``: choices.

    Returns:
        The field.

    Raises:
        SpecError: There is no such field, it cannot hold such a value, or the range is empty; the message begins with
            the text.

    Example:
        >>> parse_searched("adapter.rank=4..16")
        Searched(name='adapter.rank', low=4.0, high=16.0, whole=True, log=False, choices=())
    """
    name, equals, values = (part.strip() for part in text.partition("="))
    with in_context(f"--search {text}"):
        if not equals or not values:
            raise SpecError("Write FIELD=LOW..HIGH or FIELD=VALUE,VALUE: train.lr=1e-4..1e-2, adapter.rank=4,8,16.")
        if name != LEARNING_RATE:
            check_name(name)
        if ".." not in values:
            choices = tuple(_parsed(name, part) for part in split_commas(values))
            return Searched(name=name, choices=choices)
        low, high = (_number(name, part) for part in values.split("..", 1))
        whole = int in _kinds(name)
        log = name == LEARNING_RATE or name.rpartition(".")[2].startswith("lr") or (low > 0 and high / low > 10)
        return Searched(name=name, low=low, high=high, whole=whole, log=log)


def _parsed(name: str, text: str) -> Any:
    return _number(name, text) if name == LEARNING_RATE else parse_value(name, text)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SpecError(
            f"{text!r} is no number, so {name} cannot be searched there. Give numbers (1e-4..1e-2), or choices with"
            " commas where the field is no number."
        ) from None


def _kinds(name: str) -> set[Any]:
    hint = float if name == LEARNING_RATE else field_types()[name][1]
    return {hint, *getattr(hint, "__args__", ())}


@answers_wrong_names
@dataclass(frozen=True, kw_only=True)
class Search:
    """A search instead of a grid: each cell is searched by itself.

    Attributes:
        space: The searched fields, at least one.
        trials: Points of each cell, at least 1.
        sampler: ``tpe`` or ``random``.
        seed: Of the sampler.
        batch: Points that are asked for together, at least 1: what may run at a time. Larger ones listen less.
    """

    space: tuple[Searched, ...]
    trials: int = 24
    sampler: SamplerName = "tpe"
    seed: int = 0
    batch: int = 4

    def __post_init__(self) -> None:
        """Check the numbers and names.

        Raises:
            SpecError: There is nothing to search, a number is below 1, or a field is there twice.
        """
        names = [field.name for field in self.space]
        problems = [] if names else ["a search needs at least one field (--search train.lr=1e-4..1e-2)"]
        problems += [f"{name} is searched twice" for name in dict.fromkeys(names) if names.count(name) > 1]
        problems += [f"{n}={getattr(self, n)} must be at least 1" for n in ("trials", "batch") if getattr(self, n) < 1]
        refuse_values(problems)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a point came to.

    Attributes:
        value: How bad it is: the mean metric over its seeds, negated where more is better; None where a run diverged
            or failed.
        pruned_at: Step at which it was stopped early, or None.
    """

    value: float | None
    pruned_at: int | None = None


class Proposals:
    """Points of a search, in an order that is the same whenever the same outcomes are told.

    Points are asked for in batches of one size whatever runs them, and told in the order of asking; so a search that
    is resumed, or run by more processes, proposes the same ones.

    Args:
        search: The space, the sampler and its seed. `tpe` draws the first quarter of its trials, four at least, at
            random.
    """

    def __init__(self, search: Search) -> None:
        self._optuna = quiet_optuna()
        self._space = {field.name: self._distribution(field) for field in search.space}
        self._asked: dict[int, Any] = {}
        made = self._optuna.samplers
        first = max(4, search.trials // 4)
        tpe = search.sampler == "tpe"
        sampler = made.TPESampler(seed=search.seed, n_startup_trials=first) if tpe else made.RandomSampler(search.seed)
        self._study = self._optuna.create_study(direction="minimize", sampler=sampler)

    def ask(self, count: int) -> list[tuple[int, Point]]:
        """Return further points.

        Args:
            count: How many.

        Returns:
            Number and values of each, by the field's dotted name.
        """
        asked = [self._study.ask(self._space) for _ in range(count)]
        self._asked |= {trial.number: trial for trial in asked}
        return [(trial.number, dict(trial.params)) for trial in asked]

    def tell(self, outcomes: Mapping[int, Outcome]) -> None:
        """Take what points came to.

        Args:
            outcomes: By the number of the point.
        """
        for number in sorted(outcomes):
            outcome, trial = outcomes[number], self._asked.pop(number)
            if outcome.value is not None and outcome.pruned_at is None:
                self._study.tell(trial, outcome.value)
                continue
            if outcome.value is not None and outcome.pruned_at is not None:
                trial.report(outcome.value, outcome.pruned_at)
            # Without a value it counts as worse than all that have one, so that a search leaves where runs diverge.
            self._study.tell(trial, state=self._optuna.trial.TrialState.PRUNED)

    def _distribution(self, field: Searched) -> Any:
        made = self._optuna.distributions
        if field.choices:
            return made.CategoricalDistribution(field.choices)
        assert field.low is not None
        assert field.high is not None
        if field.whole:
            return made.IntDistribution(int(field.low), int(field.high), log=field.log)
        return made.FloatDistribution(field.low, field.high, log=field.log)
