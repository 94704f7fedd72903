"""Rows in columns and the parts they stand in, checked: every column there, no hole, labels of one kind."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asymlora.errors import DataError, EmptyDataError, MissingColumnError, nearest

Rows = dict[str, list[Any]]
"""Columns by name, all of the same length."""

PART_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev", "validation_matched"),
    "test": ("test",),
}
"""What files, folders and splits of each part may be called; the last of validation is MNLI's, by which GLUE scores."""
PART_OF = {name: part for part, names in PART_NAMES.items() for name in names}

OPTIONAL_ROLES = ("text_pair", "environment")
"""Roles that a task can do without."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows as they come from a source, in one part or already divided.

    Attributes:
        parts: Rows by part: ``train`` always, ``validation`` and ``test`` if the source has them.
        text: Column of the text, if there is one.
        label: Column of the label, if there is one.
        group: Column whose rows belong together, or None.
        label_order: Labels in their order, or None for sorted.
        columns: Column of each role (``text``, ``text_pair``, ``label``, ``target``, ``image``, ``environment``) that
            the rows have; empty stands for a text and a label.
    """

    parts: dict[str, Rows]
    text: str = "text"
    label: str = "label"
    group: str | None = None
    label_order: tuple[str, ...] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Give a table of texts and labels its two roles."""
        if not self.columns:
            object.__setattr__(self, "columns", {"text": self.text, "label": self.label})

    def by_role(self, rows: Rows) -> Rows:
        """Return rows of this source with their columns called by role."""
        return {role: rows[column] for role, column in self.columns.items()}

    def column(self, part: str, role: str) -> list[Any]:
        """Return one part's values of a role.

        Args:
            part: ``train``, ``validation`` or ``test``.
            role: One of `columns`.

        Returns:
            The values, one a row.

        Raises:
            MissingColumnError: The rows have no such role.
        """
        if role not in self.columns:
            raise MissingColumnError(f"These rows have no {role}; they have: {', '.join(self.columns)}.")
        return self.parts[part][self.columns[role]]


def check_rows(rows: Rows, columns: Mapping[str, str], *, group: str | None, where: str) -> None:
    """Refuse rows that lack a column or a value, or whose values are of a kind that no role has.

    Args:
        rows: The rows.
        columns: Column of each role.
        group: A further column that must be there, or None.
        where: What the rows are called in messages.

    Raises:
        EmptyDataError: There is no row.
        MissingColumnError: A column is not there; those that are, are listed.
        DataError: A value is missing, or is a list or a mapping; or labels mix numbers and words.
    """
    if not rows or not next(iter(rows.values())):
        raise EmptyDataError(f"{_capital(where)} has no row. Give it at least one row of each label.")
    wanted = {**columns, **({"group": group} if group else {})}
    missing = [column for column in wanted.values() if column not in rows]
    if missing:
        hints = " ".join(f"No column is called {column!r}.{nearest(column, rows)}" for column in missing)
        fields = " and ".join(f"data.{role}" for role in columns)
        raise MissingColumnError(f"{hints} {_capital(where)} has: {', '.join(rows)}. Name yours with {fields}.")
    for role, column in wanted.items():
        _check_column(rows[column], role, column, where)
    if "label" in columns:
        _check_labels(rows[columns["label"]], columns["label"], where)


def _check_column(values: Sequence[Any], role: str, column: str, where: str) -> None:
    odd = next((value for value in values if isinstance(value, list | dict | tuple)), None)
    if odd is not None:
        raise DataError(
            f"Column {column!r} of {where} holds a {type(odd).__name__}; one text or label is needed in each row."
        )
    holes = [row for row, value in enumerate(values) if is_hole(value)]
    if len(holes) == len(values):
        raise DataError(
            f"Column {column!r} of {where} is empty in every one of its {len(values)} rows. Name the column that holds"
            f" the {role.replace('_', ' ')} with data.{role}, or fill this one."
        )
    if holes:
        raise DataError(
            f"{len(holes)} of {len(values)} rows of {where} have no {column!r}; the first is row {holes[0] + 1}. Fill"
            " or remove these rows."
        )


def is_hole(value: object) -> bool:
    """Whether a value is missing: None, not a number, or nothing but blanks."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def _check_labels(values: Sequence[Any], column: str, where: str) -> None:
    # A word with a digit in it (5+, 3D) may stand beside numbers; one without is a slip: a repeated header, a remark.
    numbers = [row for row, value in enumerate(values) if _is_number(value)]
    words = [row for row, value in enumerate(values) if not re.search(r"\d", str(value))]
    if numbers and words:
        number, word = numbers[0], words[0]
        raise DataError(
            f"The labels in column {column!r} of {where} mix numbers and words: row {number + 1} holds"
            f" {values[number]!r}, row {word + 1} holds {values[word]!r} ({len(numbers)} numbers, {len(words)} words)."
            " Write all labels as words, or all as numbers."
        )


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return bool(_NUMBER.fullmatch(value.strip()))
    return not isinstance(value, bool) and isinstance(value, int | float)


def named_labels(values: Sequence[Any]) -> list[str]:
    """Return the names of labels.

    A column of whole numbers with a hole somewhere comes as floats, so 1.0 and 1 are one label. Blanks around a name
    are no part of it.

    Args:
        values: Words or numbers.

    Returns:
        A name for each.

    Example:
        >>> named_labels([1, 1.0, " fresh", 0.5])
        ['1', '1', 'fresh', '0.5']
    """
    return [str(int(v)) if isinstance(v, float) and v.is_integer() else str(v).strip() for v in values]


def numeric_labels(rows: Rows, column: str, where: str) -> list[float]:
    """Return a column of numbers, written as such or as text.

    Args:
        rows: The rows.
        column: Which column.
        where: What the rows are called in messages.

    Returns:
        The numbers, all finite.

    Raises:
        DataError: A value is no finite number; the first such row is named.

    Example:
        >>> numeric_labels({"score": ["3.5", 4]}, "score", "the train part")
        [3.5, 4.0]
    """
    numbers: list[float] = []
    for row, value in enumerate(rows[column]):
        number = float(value) if _is_number(value) else math.nan
        if not math.isfinite(number):
            raise DataError(
                f"Row {row + 1} of {where} holds {value!r} in column {column!r}, which is not a finite number. A"
                " regression needs one in each row, such as 3.5: correct or remove this row, or name another column"
                " with data.label."
            )
        numbers.append(number)
    return numbers


def take_rows(rows: Rows, keep: Sequence[int]) -> Rows:
    """Return the rows at the given indices, in their order."""
    return {column: [values[i] for i in keep] for column, values in rows.items()}


def parts_by_split(rows: Rows, where: str) -> dict[str, Rows]:
    """Divide rows by their column ``split``, where they have one that names parts.

    Args:
        rows: The rows.
        where: What the rows are called in messages.

    Returns:
        Rows by part; all under ``train`` where no split is told.

    Raises:
        DataError: Some values of the column name parts and others do not, or no row is for training.
    """
    values = [str(value).strip().lower() for value in rows.get("split", ())]
    odd = [row for row, value in enumerate(values) if value not in PART_OF]
    if len(odd) == len(values):
        return {"train": rows}
    if odd:
        raise DataError(
            f"Row {odd[0] + 1} of {where} holds {values[odd[0]]!r} in column 'split', where other rows name a part."
            f" Allowed: {', '.join(PART_OF)}."
        )
    at: dict[str, list[int]] = {part: [] for part in PART_NAMES}
    for row, value in enumerate(values):
        at[PART_OF[value]].append(row)
    if not at["train"]:
        raise DataError(f"No row of {where} is for training: its column 'split' never says train. Give such rows.")
    return {part: take_rows(rows, found) for part, found in at.items() if found}


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
