"""Rows in the short form in which results are kept in the repository: one line each, no recipe, no place. No torch.

What choices are made by and what is quoted (rates, the metric on validation and test) keeps every digit, so that kept
rows choose and tie as the run's own; other numbers keep six digits, curves and what the factors did four.
"""

from __future__ import annotations

import getpass
import math
import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from typing import Any, cast

from asymlora.errors import DataError
from asymlora.reproduce.evidence import Record
from asymlora.reproduce.measured_store import MeasuredRow
from asymlora.sweep.run_record import TIMINGS, RunRow

DIGITS, CURVE_DIGITS = 6, 4
ERROR_LENGTH = 160
"""Characters of an error that are kept."""
_WHOLE = ("lr", "validation", "scores")
_CURVES = ("losses", "dynamics")
_LEFT_OUT = (*TIMINGS, "recipe", "adapter", "weights_digest")
_REQUIRED: Mapping[str, Any] = {"axes": {}, "repeat": 0, "recipe": {}}
"""Fields without a default that a kept row leaves out where they have these values."""
_DEFAULTS = {f.name: f.default for f in fields(RunRow)} | _REQUIRED
_PLACE = re.compile(
    r"(?:^|(?<=[\s\"'`=:,;(\[]))(?:~[\w.-]*[/\\]|[A-Za-z]:[/\\]|/(?=[\w.]))(?:[\w.@+-]+[/\\])*([\w.@+-]*)"
)
"""A path from the root of a disk or of a home: never the stroke of a fraction."""
_ADDRESS = re.compile(r"\b(\w+://)(?!\.\.\.)[^\s,'\"]+")
_ADDRESS_GIVEN = re.compile(r"(--address[ =])(?!\.\.\.)\S+")
_UP_AND_DOWN = re.compile(r"(?:\.\.[/\\])+(?:home|Users|root|mnt|media)[/\\](?:[\w.@+-]+[/\\])*([\w.@+-]*)")
"""A path that leads up to the root of the disk and down into somebody's home."""
_NUMBERS = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?(?![\w.]*\d)")
_PORT = re.compile(r"(?<![\w/.:-])[A-Za-z][\w.-]*:\d{4,5}(?!\.?\w)")
"""Where a machine is to be had: an IP address, or a host and a port."""
_ANY_NAME = ("root", "user", "runner", "localhost", "ubuntu")
"""Names of users and machines that name nobody, and stand in many a word."""


def compact_run(row: RunRow) -> dict[str, Any]:
    """Return what is kept of a run, plain values; what has its default is left out.

    Args:
        row: The run.
    """
    kept = {key: value for key, value in row.to_dict().items() if key not in _LEFT_OUT}
    kept |= {key: _curve(kept[key]) for key in _CURVES}
    kept["error"] = None if row.error is None else _shortened(row.error)
    kept["seconds"] = row.setup_seconds + row.train_seconds + row.evaluate_seconds
    kept = {key: value if key in _WHOLE else rounded(value) for key, value in kept.items()}
    if row.test is not None and row.metric in row.test:
        kept["test"] = {**kept["test"], row.metric: row.test[row.metric]}
    return {key: value for key, value in kept.items() if not _is_default(key, value)}


def run_of(kept: Mapping[str, Any]) -> RunRow:
    """Return the run of a kept row: its recipe is empty, and all of its seconds stand in ``train_seconds``.

    Args:
        kept: As `compact_run` gives it.

    Returns:
        The row.

    Raises:
        DataError: Fields are unknown or missing.
    """
    values: dict[str, Any] = {**_REQUIRED, **kept}
    values.pop("second", None)  # whether the first look had it
    values["train_seconds"] = values.pop("seconds", 0.0)
    for key in _CURVES:
        if key in values:
            values[key] = _curve_of(values[key])
    try:
        return RunRow(**values)
    except TypeError as error:
        raise DataError(f"A kept row does not fit: {error}. Keep the results again from the run's folder.") from None


def compact_measured(row: MeasuredRow) -> dict[str, Any]:
    """Return what is kept of a measured point: its settings, and its records column by column.

    Neighbouring records with the same keys are one table: ``same`` holds what is equal in all, ``columns`` the rest.

    Args:
        row: The point.

    Example:
        >>> records = [{"width": 8, "rate": 0.5}, {"width": 8, "rate": 0.25}]
        >>> row = MeasuredRow(id="a", point={"width": 8}, records=records, seconds=1.0, ended="")
        >>> compact_measured(row)["tables"]
        [{'count': 2, 'same': {'width': 8}, 'columns': {'rate': [0.5, 0.25]}}]
    """
    settings = tuple(value for value in row.point.values() if isinstance(value, float))
    tables = [_table(list(group), settings) for _, group in groupby(row.records, key=lambda record: tuple(record))]
    return {"point": dict(row.point), "tables": tables, "seconds": rounded(row.seconds, 3)}


def records_of(kept: Mapping[str, Any]) -> list[Record]:
    """Return the records of a kept point.

    Args:
        kept: As `compact_measured` gives it.

    Returns:
        The records, in their order.

    Raises:
        DataError: It is no kept point.
    """
    try:
        return [record for table in kept["tables"] for record in _rows_of(table)]
    except (KeyError, TypeError, IndexError):
        raise DataError(
            "A kept point does not fit: it needs tables with count, same and columns. Keep the results again from the"
            " run's folder."
        ) from None


def rounded(value: Any, digits: int = DIGITS, *, whole: Sequence[float] = ()) -> Any:
    """Return plain values with fewer digits; whole numbers and powers of two, which are settings, stay as they are.

    Args:
        value: Plain nested values.
        digits: Significant digits.
        whole: Further numbers that keep all of theirs.

    Example:
        >>> rounded({"loss": [0.123456789, 3], "rate": 2.0**-20})
        {'loss': [0.123457, 3], 'rate': 9.5367431640625e-07}
    """
    if isinstance(value, float):
        if value in whole or not math.isfinite(value) or abs(math.frexp(value)[0]) == 0.5:
            return value
        return float(f"{value:.{digits}g}")
    if isinstance(value, Mapping):
        plain = cast("Mapping[str, Any]", value)
        return {key: rounded(each, digits, whole=whole) for key, each in plain.items()}
    if isinstance(value, list | tuple):
        return [rounded(each, digits, whole=whole) for each in cast("Sequence[Any]", value)]
    return value


def without_places(value: Any) -> Any:
    """Return plain values in whose texts no place of a machine stands: of a path from the root, the last name remains.

    Args:
        value: Plain nested values; relative paths stay as they were typed.

    Example:
        >>> without_places("asymlora reproduce hayou_toy --data-root /home/me/data --out runs/toy")
        'asymlora reproduce hayou_toy --data-root .../data --out runs/toy'
    """
    if isinstance(value, str):
        said = _ADDRESS_GIVEN.sub(r"\1...", _ADDRESS.sub(r"\1...", value))
        for pattern in (_UP_AND_DOWN, _PLACE):
            said = pattern.sub(lambda found: f".../{found[1]}", said)
        for pattern in (_NUMBERS, _PORT, *_names()):
            said = pattern.sub("...", said)
        return said
    if isinstance(value, Mapping):
        return {key: without_places(each) for key, each in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [without_places(each) for each in cast("Sequence[Any]", value)]
    return value


def places_in(texts: Iterable[str]) -> list[str]:
    """Return what in some texts names a place of a machine: paths, addresses, ports, and this machine and its user.

    Args:
        texts: The texts.
    """
    patterns = (_PLACE, _UP_AND_DOWN, _ADDRESS, _ADDRESS_GIVEN, _NUMBERS, _PORT, *_names())
    return [found[0] for text in texts for pattern in patterns for found in pattern.finditer(text)]


def texts_of(value: Any) -> Iterator[str]:
    """Yield every text in plain nested values, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in cast("Mapping[str, Any]", value).items():
            yield key
            yield from texts_of(each)
    elif isinstance(value, list | tuple):
        for each in cast("Sequence[Any]", value):
            yield from texts_of(each)


def _is_default(key: str, value: Any) -> bool:
    return key != "seconds" and (value == _DEFAULTS[key] or value in ({}, (), []))


def _shortened(error: str) -> str:
    said = without_places(" ".join(error.split()))
    return said if len(said) <= ERROR_LENGTH else f"{said[: ERROR_LENGTH - 1]}…"


def _names() -> list[re.Pattern[str]]:
    # Short names may be words, or parts of numbers.
    names = {platform.node(), platform.node().partition(".")[0], _user()}
    return [
        re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")
        for name in sorted(names, key=len, reverse=True)
        if _tells(name)
    ]


def _tells(name: str) -> bool:
    return len(name) > 3 and name.lower() not in _ANY_NAME


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a process may run under a number that has no name
        return ""


def _curve(curve: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return a curve with few digits; of a quantity that never changes, its one value."""
    kept: dict[str, Any] = {}
    for name, values in curve.items():
        if name == "step":
            kept[name] = list(values)
        else:
            short = rounded(list(values), CURVE_DIGITS)
            kept[name] = short[0] if len(short) > 1 and all(each == short[0] for each in short) else short
    return kept


def _curve_of(kept: Mapping[str, Any]) -> dict[str, list[Any]]:
    steps = kept.get("step", [])
    return {name: value if isinstance(value, list) else [value] * len(steps) for name, value in kept.items()}


def _table(records: Sequence[Record], settings: Sequence[float]) -> dict[str, Any]:
    columns = {key: rounded([record[key] for record in records], whole=settings) for key in records[0]}
    same = {key: column[0] for key, column in columns.items() if len(column) > 1 and _constant(column)}
    if len(records) == 1:
        same, columns = {key: column[0] for key, column in columns.items()}, {}
    rest = {key: column for key, column in columns.items() if key not in same}
    return {"count": len(records), "same": without_places(same), "columns": without_places(rest)}


def _constant(column: Sequence[Any]) -> bool:
    # True equals 1 and 1 equals 1.0, and a claim may ask which it is.
    return all(each == column[0] and type(each) is type(column[0]) for each in column)


def _rows_of(table: Mapping[str, Any]) -> Iterator[Record]:
    for number in range(table["count"]):
        yield {**table["same"], **{key: column[number] for key, column in table["columns"].items()}}
