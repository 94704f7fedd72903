"""Labelled texts in three parts, checked: no group and no text on two sides, every label seen in training."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from asymlora.errors import DataError, EmptyDataError, SingleClassError, UnseenLabelError
from asymlora.tasks.sources import Rows, Table


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the data.

    Attributes:
        texts: The texts.
        labels: Their labels, as indices into the label names.
    """

    texts: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Labelled texts in three parts.

    Attributes:
        train: What the adapter is trained on.
        validation: What choices are made on.
        test: What closing figures are quoted on.
        label_names: Names of the labels, by index.
        dropped: Rows left out because their text also stands in another part.
    """

    train: Part
    validation: Part
    test: Part
    label_names: tuple[str, ...]
    dropped: int


def divide(table: Table, *, validation_fraction: float, test_fraction: float, seed: int) -> Parts:
    """Divide rows into training, validation and test; parts that the source brings stay as they are.

    Args:
        table: The rows.
        validation_fraction: Share of the training rows or groups held out, if there is no validation part.
        test_fraction: Share of all rows or groups held out, if there is no test part.
        seed: Seed of the division.

    Returns:
        The parts.

    Raises:
        EmptyDataError: Every text of a part also stands in another.
        SingleClassError: All training rows have one label.
        UnseenLabelError: A label of validation or test is not in training.
        DataError: There are too few rows or groups to divide.
    """
    parts = dict(table.parts)
    for part, fraction, salt in (("test", test_fraction, 0), ("validation", validation_fraction, 1)):
        if part not in parts:
            rest, held = _hold_out(parts["train"], table, fraction=fraction, seed=2 * seed + salt, part=part)
            parts = {**parts, "train": rest, part: held}
    rows_before = sum(len(rows[table.text]) for rows in parts.values())
    parts = _without_repeats(table, parts)
    dropped = rows_before - sum(len(rows[table.text]) for rows in parts.values())
    for part, rows in parts.items():
        if not rows[table.text]:
            raise EmptyDataError(
                f"No {part} row is left: each one's text also stands in another part. Give other rows."
            )
    names = _label_names(table, parts)
    index = {name: i for i, name in enumerate(names)}
    made = {
        part: Part(texts=[str(t) for t in rows[table.text]], labels=[index[v] for v in rows[table.label]])
        for part, rows in parts.items()
    }
    if len(set(made["train"].labels)) < 2:
        raise SingleClassError(
            f"Every training row has the label {names[made['train'].labels[0]]!r};"
            " at least two labels are needed. Check data.label, or add rows of another label."
        )
    return Parts(**made, label_names=names, dropped=dropped)


def _without_repeats(table: Table, parts: dict[str, Rows]) -> dict[str, Rows]:
    # Training gives way to both others, of these the one made here to the given one, and validation to test.
    cleaned = dict(parts)
    for part, others in (("train", ("validation", "test")), ("validation", ("test",)), ("test", ("validation",))):
        if part == "train" or part not in table.parts:
            elsewhere = {str(text).strip() for other in others for text in cleaned[other][table.text]}
            texts = cleaned[part][table.text]
            cleaned[part] = _rows(
                cleaned[part], [i for i, text in enumerate(texts) if str(text).strip() not in elsewhere]
            )
    return cleaned


def _label_names(table: Table, parts: dict[str, Rows]) -> tuple[str, ...]:
    seen = set(parts["train"][table.label])
    unseen = {
        part: sorted(missing) for part in ("validation", "test") if (missing := set(parts[part][table.label]) - seen)
    }
    if unseen:
        listed = "; ".join(f"{part}: {', '.join(map(repr, labels[:5]))}" for part, labels in unseen.items())
        raise UnseenLabelError(
            f"Labels that training never sees ({listed}). Training has: {', '.join(map(repr, sorted(seen)[:10]))}. Add"
            " training rows with these labels, or remove them from the other parts."
        )
    if table.label_order:
        return table.label_order
    numeric = all(re.fullmatch("-?[0-9]+", name) for name in seen)
    return tuple(sorted(sorted(seen), key=int) if numeric else sorted(seen))


def _hold_out(rows: Rows, table: Table, *, fraction: float, seed: int, part: str) -> tuple[Rows, Rows]:
    from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit

    count = len(rows[table.text])
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
