"""Rows in three parts, checked: no group and no input on two sides, every label seen in training."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from asymlora.errors import DataError, EmptyDataError, SingleClassError, UnseenLabelError
from asymlora.tasks.sources import Rows, Table, numeric_labels

INPUTS = ("text", "text_pair", "image")
"""Roles that make two rows the same input."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the data.

    Attributes:
        texts: The texts; empty where there are none.
        labels: Their labels: indices into the label names, or numbers; empty where there are none.
        columns: Further columns by role: ``text_pair``, ``target``, ``image``, ``environment``.
    """

    texts: list[str] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return max(map(len, (self.texts, self.labels, *self.columns.values())))


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Rows in three parts.

    Attributes:
        train: What the adapter is trained on.
        validation: What choices are made on.
        test: What closing figures are quoted on.
        label_names: Names of the labels, by index; empty where labels are numbers, or none.
        dropped: Rows left out because their input also stands in another part.
        unused: Training rows left out because fewer were asked for.
    """

    train: Part
    validation: Part
    test: Part
    label_names: tuple[str, ...]
    dropped: int
    unused: int = 0

    def counts(self) -> dict[str, int]:
        """Return the rows by part, and those dropped."""
        return {
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
            "dropped": self.dropped,
        }

    def notes(self) -> tuple[str, ...]:
        """Return what the user should know of the division, in sentences."""
        notes: list[str] = []
        if self.dropped:
            notes.append(f"{self.dropped:,} rows whose input also stands in another part are left out.")
        if self.unused:
            notes.append(f"{self.unused:,} further training rows are not used (data.max_rows).")
        return tuple(notes)


def divide(
    table: Table,
    *,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    labels: Literal["names", "numbers", "none"] = "names",
    max_rows: int | None = None,
    max_scored_rows: int | None = None,
) -> Parts:
    """Divide rows into training, validation and test; parts that the source brings stay as they are.

    Args:
        table: The rows.
        validation_fraction: Share of the training rows or groups held out, if there is no validation part.
        test_fraction: Share of all rows or groups held out, if there is no test part.
        seed: Seed of the division.
        labels: What the label column holds.
        max_rows: Training rows that are kept, drawn by the seed; None: all.
        max_scored_rows: Rows of each of the other parts that are kept, likewise.

    Returns:
        The parts.

    Raises:
        EmptyDataError: Every input of a part also stands in another.
        DataError: There are too few rows or groups to divide.
    """
    columns = table.columns
    parts = dict(table.parts)
    for part, fraction, salt in (("test", test_fraction, 0), ("validation", validation_fraction, 1)):
        if part not in parts:
            rest, held = _hold_out(parts["train"], table, fraction=fraction, seed=2 * seed + salt, part=part)
            parts = {**parts, "train": rest, part: held}
    rows_before = sum(map(_count, parts.values()))
    parts = _without_repeats(table, parts)
    dropped = rows_before - sum(map(_count, parts.values()))
    for part, rows in parts.items():
        if not _count(rows):
            raise EmptyDataError(
                f"No {part} row is left: each one's input also stands in another part. Give other rows."
            )
    parts["train"], unused = _at_most(parts["train"], max_rows, seed)
    for part in ("validation", "test"):
        parts[part], _ = _at_most(parts[part], max_scored_rows, seed)
    names, values = _labels(table, parts, labels)
    made = {
        part: Part(
            texts=[str(text) for text in rows[columns["text"]]] if "text" in columns else [],
            labels=values[part],
            columns={role: rows[column] for role, column in columns.items() if role not in ("text", "label")},
        )
        for part, rows in parts.items()
    }
    return Parts(**made, label_names=names, dropped=dropped, unused=unused)


def _labels(table: Table, parts: dict[str, Rows], kind: str) -> tuple[tuple[str, ...], dict[str, list[Any]]]:
    column = table.columns.get("label")
    if kind == "none" or column is None:
        return (), {part: [] for part in parts}
    if kind == "numbers":
        return (), {part: numeric_labels(rows, column, f"the {part} part") for part, rows in parts.items()}
    names = _label_names(table, parts)
    index = {name: i for i, name in enumerate(names)}
    values = {part: [index[value] for value in rows[column]] for part, rows in parts.items()}
    if len(set(values["train"])) < 2:
        raise SingleClassError(
            f"Every training row has the label {names[values['train'][0]]!r};"
            " at least two labels are needed. Check data.label, or add rows of another label."
        )
    return names, values


def _at_most(rows: Rows, count: int | None, seed: int) -> tuple[Rows, int]:
    from sklearn.utils import check_random_state

    total = _count(rows)
    if count is None or count >= total:
        return rows, 0
    kept = check_random_state(2 * seed).permutation(total)[:count]
    return _rows(rows, sorted(kept.tolist())), total - count


def _count(rows: Rows) -> int:
    return len(next(iter(rows.values())))


def inputs_of(roles: Mapping[str, Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Return what makes each row the input that it is: all of its texts and its image.

    Args:
        roles: Values by role; others than `INPUTS` are passed over.

    Returns:
        One for each row, equal for equal inputs. Image files are told by their paths.

    Example:
        >>> inputs_of({"text": ["a", "a "], "label": [0, 1]})
        [('a',), ('a',)]
    """
    columns = [roles[role] for role in INPUTS if role in roles]
    return [tuple(map(_plain, values)) for values in zip(*columns, strict=True)]


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip()
    return value.tobytes() if hasattr(value, "tobytes") else value


def _without_repeats(table: Table, parts: dict[str, Rows]) -> dict[str, Rows]:
    # Training gives way to both others, of these the one made here to the given one, and validation to test.
    cleaned = dict(parts)
    for part, others in (("train", ("validation", "test")), ("validation", ("test",)), ("test", ("validation",))):
        if part == "train" or part not in table.parts:
            elsewhere = {given for other in others for given in inputs_of(table.by_role(cleaned[other]))}
            inputs = inputs_of(table.by_role(cleaned[part]))
            cleaned[part] = _rows(cleaned[part], [i for i, given in enumerate(inputs) if given not in elsewhere])
    return cleaned


def _label_names(table: Table, parts: dict[str, Rows]) -> tuple[str, ...]:
    column = table.columns["label"]
    seen = set(parts["train"][column])
    unseen = {part: sorted(missing) for part in ("validation", "test") if (missing := set(parts[part][column]) - seen)}
    if unseen:
        listed = "; ".join(f"{part}: {', '.join(map(repr, labels[:5]))}" for part, labels in unseen.items())
        raise UnseenLabelError(
            f"Labels that training never sees ({listed}). Training has: {', '.join(map(repr, sorted(seen)[:10]))}. Add"
            " training rows with these labels (a larger data.max_rows or another data.seed may do), or remove them from"
            " the other parts."
        )
    if table.label_order and seen <= set(table.label_order):
        return tuple(name for name in table.label_order if name in seen)
    numeric = all(re.fullmatch("-?[0-9]+", name) for name in seen)
    return tuple(sorted(sorted(seen), key=int) if numeric else sorted(seen))


def _hold_out(rows: Rows, table: Table, *, fraction: float, seed: int, part: str) -> tuple[Rows, Rows]:
    from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit

    count = _count(rows)
    groups = rows[table.group] if table.group else range(count)
    few = len(set(groups))
    if few < 3 or round(fraction * few) < 1 or math.ceil(fraction * few) >= few:
        kind = "groups" if table.group else "rows"
        raise DataError(
            f"{few} {kind} are too few to hold out a share of {fraction} for {part}. Give more, another"
            f" data.{part}_fraction, or a {part} file of your own."
        )
    splitter = GroupShuffleSplit if table.group else ShuffleSplit
    splits = splitter(1, test_size=fraction, random_state=seed)
    rest, held = next(splits.split(range(count), groups=groups if table.group else None))
    return _rows(rows, sorted(rest.tolist())), _rows(rows, sorted(held.tolist()))


def _rows(rows: Rows, keep: Sequence[int]) -> Rows:
    return {column: [values[i] for i in keep] for column, values in rows.items()}
