"""What users type of a sweep: learning rates, arms and further axes, as text to plain values. No torch in here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asymlora.errors import SpecError, UnknownNameError, nearest
from asymlora.factor_spec import PRESETS, factors_named
from asymlora.schema import answers_wrong_names, refuse_values, to_mapping
from asymlora.spec import AdapterSpec
from asymlora.sweep.rates import grid_of, rate_text
from asymlora.sweep.recipe_fields import (
    check_fields,
    check_name,
    in_context,
    parse_value,
    plain_value,
    split_commas,
    with_values,
)
from asymlora.train.recipe import METHODS, Recipe

PER_DECADE = 3
"""Rates in a factor of ten where none is said: neighbours differ by 2.15, about an octave."""
OWN = "recipe"
"""The word for an arm that is the recipe as it stands."""
_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"
_LORA = ("rank", "alpha", "scaling", "dropout", "rank_pattern", "alpha_pattern")
_IN_ALL = ("modules_to_save", "seed")
ADAPTER_FIELDS_READ: dict[str, tuple[str, ...]] = {
    "full": _IN_ALL,
    "head": _IN_ALL,
    "peft:lora": (*_LORA, "targets", *_IN_ALL),
    "peft:lora_fa": (*_LORA, "targets", *_IN_ALL),
    "peft:adalora": ("rank", "alpha", "dropout", "targets", *_IN_ALL),
    "peft:ia3": ("targets", *_IN_ALL),
}
"""Fields of the adapter that a method other than ours reads, as `asymlora.train.methods` has them (which needs torch);
a test holds the two equal."""


# Learning rates ------------------------------------------------------------------------------------------------------


def parse_rates(text: str) -> tuple[float, ...]:
    """Return the learning rates that a text stands for.

    Args:
        text: ``1e-4..1e-2``: both ends and what lies between, three rates a decade; ``1e-4..1e-2:2``: two a decade;
            ``1e-4,3e-4,1e-3``: these; ``1e-3``: one, and nothing is tuned.

    Returns:
        The rates, rising (`asymlora.sweep.rates.grid_of`).

    Raises:
        SpecError: The text is neither, the range is empty, or a rate is no number above 0.

    Example:
        >>> parse_rates("1e-4..1e-3:2")
        (0.0001, 0.000316228, 0.001)
    """
    low, dots, rest = text.partition("..")
    if not dots:
        rates = [_rate(part, text) for part in text.split(",")]
        twice = sorted({rate_text(lr) for lr in rates if rates.count(lr) > 1})
        if twice:
            raise SpecError(f"--lr {text}: {', '.join(twice)} is given twice. Give every rate once.")
        return tuple(sorted(rates))
    high, colon, count = rest.partition(":")
    if colon and not (count.strip().isdecimal() and 1 <= int(count) <= 100):
        raise SpecError(f"--lr {text}: {count!r} is no number of rates a decade. Give a whole number from 1 to 100.")
    ends = _rate(low, text), _rate(high, text)
    if ends[0] > ends[1]:
        raise SpecError(f"--lr {text} is an empty range. Give the smaller rate first: {high}..{low}{colon}{count}.")
    return grid_of(*ends, per_decade=int(count) if colon else PER_DECADE)


def rates_text(rates: Sequence[float]) -> str:
    """Return a short text that `parse_rates` reads back as the same rates.

    Example:
        >>> rates_text(parse_rates("1e-4..1e-2:2")), rates_text((0.001,)), rates_text((1e-4, 3e-4, 1e-3))
        ('1e-4..1e-2:2', '1e-3', '1e-4,3e-4,1e-3')
    """
    ends = [_exact_text(lr) for lr in (min(rates), max(rates))]
    if len(rates) > 2:
        per_decade = round((len(rates) - 1) / math.log10(max(rates) / min(rates)))
        count = "" if per_decade == PER_DECADE else f":{per_decade}"
        if 1 <= per_decade <= 100 and parse_rates(f"{ends[0]}..{ends[1]}{count}") == tuple(sorted(rates)):
            return f"{ends[0]}..{ends[1]}{count}"
    return ",".join(_exact_text(lr) for lr in sorted(rates))


def _exact_text(lr: float) -> str:
    return rate_text(lr) if float(rate_text(lr)) == lr else repr(lr)


def _rate(text: str, whole: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not (math.isfinite(rate) and rate > 0):
        raise SpecError(
            f"--lr {whole}: {text.strip()!r} is no learning rate. Give numbers above 0, as a range (1e-4..1e-2) or a"
            " list (1e-4,3e-4,1e-3)."
        )
    return rate


# Arms ----------------------------------------------------------------------------------------------------------------


@answers_wrong_names
@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the things that a sweep compares: a way of training, laid over the sweep's recipe.

    Attributes:
        name: What it is called in tables; by default what the user typed.
        word: A preset (``b_only``), a shorthand (``hB_zero_A_rand``), a method (``full``, ``peft:lora``), or
            ``recipe``: the recipe as it stands.
        options: Further values by the recipe's dotted field name.
    """

    name: str
    word: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)

    def __post_init__(self) -> None:
        """Check the word and each option by itself.

        Raises:
            SpecError: One of them is not allowed.
        """
        if self.word != OWN and self.word not in METHODS:
            _factors(self.word)
        if not self.name.strip():
            raise SpecError(f"An arm has no name: name={self.name!r}. Give it one.")
        plain = {name: plain_value(name, value) for name, value in self.options.items()}
        object.__setattr__(self, "options", plain)
        check_fields(self.options)
        method = self.word if self.word in ADAPTER_FIELDS_READ else None
        unread = [name for name in self.options if method and not is_read(method, name)]
        refuse_values([f"{name} is nothing that {method} reads. Leave it out" for name in unread])

    def method(self, recipe: Recipe) -> str:
        """Return what is trained, a row of `asymlora.train.recipe.METHODS`.

        Args:
            recipe: The sweep's.
        """
        return recipe.method if self.word == OWN else self.word if self.word in METHODS else "adapter"

    def laid_over(self, recipe: Recipe) -> Recipe:
        """Return the recipe of this arm.

        Fields of the adapter that the arm's method does not read get their defaults.

        Args:
            recipe: The sweep's.

        Returns:
            The recipe; its rate and seeds are still those of the sweep's.
        """
        values = recipe.to_dict()
        if self.word in METHODS:
            values["method"] = self.word
            if self.word in ADAPTER_FIELDS_READ:
                kept = {name: values["adapter"][name] for name in ADAPTER_FIELDS_READ[self.word]}
                values["adapter"] = {**to_mapping(AdapterSpec()), **kept}
        elif self.word != OWN:
            values["method"] = "adapter"
            values["adapter"] |= {letter: to_mapping(factor) for letter, factor in _factors(self.word).items()}
        return with_values(values, self.options)


def parse_arm(text: str) -> Arm:
    """Return the arm that a text stands for.

    Args:
        text: ``WORD``, ``WORD:KEY=VALUE,KEY=VALUE`` or ``NAME=WORD:KEY=VALUE``. A key without a dot is a field of the
            adapter (``rank``), one with a dot any field of a recipe (``train.lr_head``). A value with commas in it
            stands in brackets, a mapping is JSON: ``targets=[query,value],rank_pattern={"value": 2}``.

    Returns:
        The arm.

    Raises:
        SpecError: A word, a key or a value is not known or not allowed; the message begins with the text.

    Example:
        >>> parse_arm("b_only:rank=16") == Arm(name="b_only:rank=16", word="b_only", options={"adapter.rank": 16})
        True
        >>> parse_arm("small=peft:lora:rank=2,train.lr_head=1e-3").options
        {'adapter.rank': 2, 'train.lr_head': 0.001}
    """
    named = re.fullmatch(rf"({_NAME})=(.*)", text, flags=re.DOTALL)
    name, rest = named.groups() if named else (text, text)
    known = "|".join(re.escape(word) for word in METHODS if ":" in word)
    parts = re.fullmatch(rf"({known}|peft:[^:]*|[^:]*)(?::(.*))?", rest, flags=re.DOTALL)
    assert parts is not None  # the third alternative takes anything
    with in_context(f"--arm {text}"):
        return Arm(name=name, word=parts[1], options=_options(parts[2]))


def _options(text: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in split_commas(text) if text is not None else ():
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise SpecError(f"{part!r} is no setting. Write KEY=VALUE, with a comma between two: rank=16,alpha=32.")
        name = key.strip()
        dotted = name if "." in name or name in ("method", "task") else f"adapter.{name}"
        if dotted in options:
            raise SpecError(f"{name} is given twice. Give it once.")
        options[dotted] = parse_value(dotted, value.strip())
    return options


def _factors(word: str) -> Mapping[str, Any]:
    try:
        return factors_named(word)
    except UnknownNameError as error:
        words = (*PRESETS, *METHODS, OWN)
        if "names no adapter" not in str(error):
            raise
        raise UnknownNameError(
            f"{word!r} names no arm.{nearest(word, words)} Presets: {', '.join(PRESETS)}. Methods:"
            f" {', '.join(METHODS)}. Or a shorthand like hB_zero_A_rand, or {OWN}: the recipe as it stands."
        ) from None


def is_read(method: str, name: str) -> bool:
    """Return whether a method reads a field of the recipe.

    Args:
        method: A row of `asymlora.train.recipe.METHODS`.
        name: Dotted name of the field.
    """
    group, _, rest = name.partition(".")
    return group != "adapter" or method == "adapter" or rest in ADAPTER_FIELDS_READ[method]


# Axes ----------------------------------------------------------------------------------------------------------------


@answers_wrong_names
@dataclass(frozen=True, kw_only=True)
class Axis:
    """A field of the recipe that a sweep varies besides the learning rate.

    Attributes:
        field: Its dotted name.
        values: Its values, at least one, each once.
    """

    field: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        """Check the field and each value by itself.

        Raises:
            SpecError: There are no values, or one is there twice.
        """
        if not self.values:
            raise SpecError(f"axis {self.field} has no values. Give at least one.")
        check_name(self.field)
        object.__setattr__(self, "values", tuple(plain_value(self.field, value) for value in self.values))
        for value in self.values:
            check_fields({self.field: value})
        twice = [value for place, value in enumerate(self.values) if value in self.values[:place]]
        refuse_values([f"axis {self.field} holds {value!r} twice. Give every value once" for value in twice])


def parse_axis(text: str) -> Axis:
    """Return the axis that a text stands for.

    Args:
        text: ``train.batch_size=16,32``: a field of the recipe by dotted name, and its values. A value with commas in
            it stands in brackets: ``adapter.targets=[query],[query,value]``.

    Returns:
        The axis.

    Raises:
        SpecError: There is no such field, or it cannot hold such a value; the message begins with the text.

    Example:
        >>> parse_axis("train.batch_size=16,32")
        Axis(field='train.batch_size', values=(16, 32))
    """
    name, equals, values = text.partition("=")
    with in_context(f"--axis {text}"):
        if not equals:
            raise SpecError("No values. Write FIELD=VALUE,VALUE, for instance train.batch_size=16,32.")
        return Axis(field=name.strip(), values=tuple(parse_value(name.strip(), part) for part in split_commas(values)))
