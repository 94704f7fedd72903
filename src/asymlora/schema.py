"""Frozen dataclasses to plain mappings and back, with errors that name the key and the nearest known one.

Specs and recipes are dataclasses; files and command lines hold mappings. What stands between them is here, once.
"""

from __future__ import annotations

import contextlib
import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast

from asymlora.errors import SpecError, UnknownKeyError, UnknownNameError, nearest

T = TypeVar("T")
_type_hints = functools.cache(typing.get_type_hints)  # most of the time of making a recipe, of which a sweep makes many


def to_mapping(obj: object) -> dict[str, Any]:
    """Return a dataclass as nested plain values: mappings, lists, strings, numbers, booleans, None.

    Example:
        >>> from asymlora.factor_spec import FactorSpec
        >>> to_mapping(FactorSpec(init="zeros"))
        {'init': 'zeros', 'trainable': True, 'lr_ratio': 1.0, 'gain': 1.0, 'variance': None, 'component_norm': None}
    """
    return {f.name: _plain(getattr(obj, f.name)) for f in fields(cast(Any, obj))}


def from_mapping(cls: type[T], mapping: Mapping[str, Any], *, where: str = "") -> T:
    """Build the dataclass ``cls`` from a mapping, the inverse of `to_mapping`.

    Args:
        cls: A dataclass whose fields are numbers, strings, booleans, `Literal`, tuples, unions or dataclasses.
        mapping: Values by field name. Fields that are left out take their defaults.
        where: Dotted path of ``mapping`` in the file, for the messages.

    Returns:
        An instance of ``cls``.

    Raises:
        UnknownKeyError: A key is no field; every such key is named, each with the nearest field.
        UnknownNameError: A word is none of the allowed ones.
        SpecError: A value has the wrong type; every such value is named.
    """
    refuse_unknown_fields(cls, mapping, where=where)
    return cls(**_converted(cls, mapping, where=where))


def refuse_unknown_fields(cls: type, names: Iterable[Any], *, where: str = "") -> None:
    """Raise for names that are no field of ``cls``, each answered with the field that was probably meant.

    A class may hold ``OTHER_NAMES``, a mapping from another library's names to its own.

    Args:
        cls: A dataclass.
        names: Names that a user wrote.
        where: Dotted path of the names in a file, for the message.

    Raises:
        UnknownKeyError: At least one name is no field; all such names are in the message.
    """
    known = [f.name for f in fields(cast(Any, cls))]
    other: Mapping[str, str] = getattr(cls, "OTHER_NAMES", {})
    answers: list[str] = []
    for name in [str(name) for name in names if name not in known]:
        meant = f"PEFT's name for {other[name]}" if name in other else "unknown"
        answers.append(f"{_dotted(where, name)!r} is {meant}.{'' if name in other else nearest(name, known)}")
    if answers:
        raise UnknownKeyError(f"{cls.__name__}: {' '.join(answers)} Known here: {', '.join(known)}.")


def answers_wrong_names(cls: type[T]) -> type[T]:
    """Make the constructor of a dataclass answer unknown fields and wrong types as `from_mapping` does."""
    original = cast(Callable[..., None], cls.__init__)

    @functools.wraps(original)
    def checked(self: object, **values: Any) -> None:
        refuse_unknown_fields(cls, values)
        original(self, **_converted(cls, values))

    cls.__init__ = checked
    return cls


def refuse_values(problems: Sequence[str]) -> None:
    """Raise all problems of one object's values at once, or nothing.

    Args:
        problems: One sentence part each.

    Raises:
        SpecError: There is at least one problem.
    """
    if problems:
        raise SpecError("; ".join(problems) + ".")


class _WrongTypeError(Exception):
    """Carries one problem up to the mapping that collects them."""


class _WrongNameError(_WrongTypeError):
    """The problem is a word that is none of the allowed ones."""


def _converted(cls: type, mapping: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
    # All problems of one object in one message; a lone wrong word keeps its own class.
    hints = _type_hints(cls)
    values: dict[str, Any] = {}
    problems: list[_WrongTypeError] = []
    for key, value in mapping.items():
        try:
            values[key] = _convert(hints[key], value, where=_dotted(where, key))
        except _WrongTypeError as problem:
            problems.append(problem)
    required = [f.name for f in fields(cast(Any, cls)) if f.name not in mapping and _has_no_default(f)]
    problems += [_WrongTypeError(f"'{_dotted(where, key)}' is missing and has no default") for key in required]
    if problems and all(isinstance(problem, _WrongNameError) for problem in problems):
        raise UnknownNameError("; ".join(map(str, problems)) + ".")
    refuse_values([str(problem) for problem in problems])
    return values


def _has_no_default(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_mapping(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in cast(Sequence[Any], value)]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    return "custom" if callable(value) else value


def _convert(hint: Any, value: Any, *, where: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(options, value, where=where)
    if origin is Literal:
        if value in options:
            return value
        raise _WrongNameError(f"'{where}' is {value!r}; allowed are {', '.join(map(repr, options))}")
    if origin is tuple:
        if isinstance(value, str) and options[0] is str:
            return (value,)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise _WrongTypeError(f"'{where}' is {value!r}; a list is needed")
        return tuple([_convert(options[0], item, where=where) for item in cast("Sequence[Any]", value)])
    if origin in (Mapping, Callable):
        return _convert_generic(origin, options, value, where=where)
    if is_dataclass(hint):
        return _convert_dataclass(cast("type[Any]", hint), value, where=where)
    return _convert_scalar(hint, value, where=where)


def _convert_generic(origin: Any, options: Sequence[Any], value: Any, *, where: str) -> Any:
    if origin is Callable:
        if callable(value):
            return value
        raise _WrongTypeError(f"'{where}' is {value!r}; a function is needed")
    if not isinstance(value, Mapping):
        raise _WrongTypeError(f"'{where}' is {value!r}; a mapping is needed")
    pairs = cast("Mapping[Any, Any]", value).items()
    return {_convert(str, k, where=where): _convert(options[1], v, where=_dotted(where, str(k))) for k, v in pairs}


def _convert_dataclass(cls: type[T], value: Any, *, where: str) -> T:
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise _WrongTypeError(f"'{where}' is {value!r}; a mapping of its fields is needed")
    return from_mapping(cls, cast("Mapping[str, Any]", value), where=where)


def _convert_union(options: Sequence[Any], value: Any, *, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    problem: _WrongTypeError | None = None
    for option in options:
        if option is not type(None):
            try:
                return _convert(option, value, where=where)
            except _WrongTypeError as error:
                problem = problem or error
    raise problem or _WrongTypeError(f"'{where}' is {value!r}")


def _convert_scalar(hint: Any, value: Any, *, where: str) -> Any:
    if hint is float:
        # YAML 1.1 reads 1e-4 (no dot) as text, so text that is a number counts as one.
        with contextlib.suppress(TypeError, ValueError):
            if not isinstance(value, bool):
                return float(value)
    elif type(value) is hint:
        return value
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint, str(hint))
    raise _WrongTypeError(f"'{where}' is {value!r}; {wanted} is needed")
