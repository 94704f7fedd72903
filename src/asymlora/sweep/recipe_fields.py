"""Fields of a recipe by dotted name: which there are, what a typed text means for one, how one is set. No torch."""

from __future__ import annotations

import functools
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, Literal, cast

from asymlora.errors import AsymloraError, SpecError, UnknownKeyError, nearest
from asymlora.schema import from_mapping
from asymlora.spec import PEFT_NAMES
from asymlora.train.recipe import Recipe

ELSEWHERE = {
    "train.lr": "--lr",
    "train.seed": "--seeds and --tuning-seeds",
    "adapter.seed": "--seeds and --tuning-seeds, which set it too",
    "method": "--arm full, --arm head or --arm peft:lora",
    "adapter.preset": "--arm",
    "task": "a sweep of its own: tasks have metrics of their own",
}
"""Fields that are no setting of an arm and no axis, and what is to be used instead."""


def plain_value(name: str, value: Any) -> Any:
    """Return a value as files hold it: sequences as lists, keys as text.

    Args:
        name: Dotted name of its field, for the message.
        value: Numbers, text, booleans, None, sequences and mappings.

    Returns:
        The value.

    Raises:
        SpecError: It holds something else, or a number that is not finite.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        raise SpecError(f"{name} is {value!r}; finite numbers, text, lists and mappings of them are needed.") from None


def check_fields(values: Mapping[str, Any]) -> None:
    """Refuse values that a recipe's fields cannot hold, each by itself.

    Args:
        values: By dotted field name.
    """
    for name, value in values.items():
        owner, last = check_name(name)
        where = name.rpartition(".")[0]
        given = {last: value}
        if name.startswith(("adapter.A.", "adapter.B.")) and last != "init":
            given["init"] = "gaussian"  # the one field without a default; the others can scale it
        from_mapping(owner, given, where=where)


def check_name(name: str) -> tuple[type, str]:
    """Return the dataclass that holds a field, and the field's own name.

    Args:
        name: Dotted name.

    Returns:
        The class and the last part of the name.

    Raises:
        SpecError: The field is one of `ELSEWHERE`.
        UnknownKeyError: There is no such field, or it is a group of fields.
    """
    if name in ELSEWHERE:
        raise SpecError(f"{name} is no setting of an arm and no axis. Use {ELSEWHERE[name]}.")
    known = field_types()
    if name not in known:
        inside = [one for one in known if one.startswith(f"{name}.")]
        peft = PEFT_NAMES.get(name.rpartition(".")[2])
        last = {one.rpartition(".")[2]: one for one in reversed(list(known))}
        near = last.get(name.rpartition(".")[2])
        hint = (
            f" It is a group of fields: {', '.join(inside)}." if inside
            else f" That is PEFT's name for {peft}." if peft
            else f" Did you mean {near!r}?" if near else nearest(name, known)
        )  # fmt: skip
        raise UnknownKeyError(f"{name!r} names no field of a recipe.{hint} All fields: asymlora finetune --help.")
    return known[name][0], name.rpartition(".")[2]


@functools.cache
def field_types() -> Mapping[str, tuple[type, Any]]:
    """Return every field of a recipe that holds a plain value: its dotted name, its dataclass, its type."""
    return dict(_fields_of(Recipe(), ""))


def _fields_of(obj: Any, where: str) -> Sequence[tuple[str, tuple[type, Any]]]:
    hints = typing.get_type_hints(type(obj))
    found: list[tuple[str, tuple[type, Any]]] = []
    for one in fields(obj):
        value, name = getattr(obj, one.name), f"{where}{one.name}"
        found += _fields_of(value, f"{name}.") if is_dataclass(value) else [(name, (type(obj), hints[one.name]))]
    return found


def parse_value(name: str, text: str) -> Any:
    """Return the plain value of a text for one field of a recipe.

    What is no value of the field's type stays text, which the field's own check then refuses by name.

    Args:
        name: Dotted name of the field.
        text: As typed.

    Returns:
        A number, text, boolean, list, mapping or None.

    Raises:
        UnknownKeyError: There is no such field.

    Example:
        >>> parse_value("train.batch_size", "16"), parse_value("train.patience", "null")
        (16, None)
        >>> parse_value("adapter.targets", "[query,value]"), parse_value("data.max_rows", "many")
        (['query', 'value'], 'many')
    """
    check_name(name)
    return _plain(field_types()[name][1], text.strip())


def _plain(hint: Any, text: str) -> Any:
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if type(None) in members and text.lower() in ("null", "none", "~"):
        return None
    kinds = {typing.get_origin(member) or member for member in members}
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind, convert in ((int, int), (float, float)):
        if kind in kinds:
            try:
                return convert(text)
            except ValueError:
                continue
    if (tuple in kinds and text.startswith("[")) or kinds & {cast(Any, Mapping), Any}:
        return _structure(text)
    return _unquoted(text) if kinds & {str, tuple, cast(Any, Literal)} else text


def _structure(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        if text.startswith("[") and text.endswith("]"):
            return [_structure(part) for part in split_commas(text[1:-1])]
        return _unquoted(text)


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"" else text


def split_commas(text: str) -> list[str]:
    """Return what stands between commas that are in no brackets.

    Example:
        >>> split_commas("rank=4,targets=[query,value]")
        ['rank=4', 'targets=[query,value]']
    """
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def with_values(values: Mapping[str, Any], over: Mapping[str, Any]) -> Recipe:
    """Return the recipe of nested plain values with some fields set.

    Args:
        values: As `Recipe.to_dict` gives them; not changed.
        over: Plain values by dotted field name; a mapping replaces a mapping.

    Returns:
        The recipe.
    """
    nested: dict[str, Any] = json.loads(json.dumps(values))
    for name, value in over.items():
        *groups, last = name.split(".")
        inner = nested
        for group in groups:
            inner = inner[group]
        inner[last] = value
    return from_mapping(Recipe, nested)


@contextmanager
def in_context(where: str) -> Iterator[None]:
    """Let the messages of errors begin with what the user typed; their classes stay.

    Args:
        where: What was typed.

    Yields:
        Nothing.
    """
    try:
        yield
    except AsymloraError as error:
        raise type(error)(f"{where}: {error}") from None
