"""Rows of named environments: those of one are trained on, those of each other are scored by themselves."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from asymlora.errors import DataError, UnknownNameError, UnseenLabelError, nearest
from asymlora.tasks.inputs import DataRecipe
from asymlora.tasks.splits import Part, Parts, divide, inputs_of
from asymlora.tasks.tables import Rows, Table, numeric_labels

ROLE = "environment"


def divided(
    table: Table, data: DataRecipe, *, labels: Literal["names", "numbers"] = "names"
) -> tuple[Parts, dict[str, Part], tuple[str, ...]]:
    """Divide what a run is trained, chosen and tested on, and take what it is scored on beside that.

    Args:
        table: Rows of all environments.
        data: How they are divided, and which environment is trained on.
        labels: What the label column holds.

    Returns:
        The parts, the rows of further environments by name, and sentences that tell their numbers.
    """
    parts = divide(
        own_rows(table, train_environment=data.train_environment),
        validation_fraction=data.validation_fraction,
        test_fraction=data.test_fraction,
        seed=data.seed,
        labels=labels,
        max_rows=data.max_rows,
        max_scored_rows=data.max_scored_rows,
    )
    elsewhere, notes = scored_rows(
        table,
        parts,
        train_environment=data.train_environment,
        max_rows=data.max_scored_rows,
        seed=data.seed,
    )
    return parts, elsewhere, notes


def own_rows(table: Table, *, train_environment: str | None) -> Table:
    """Return the rows that a run trains, chooses and is tested on, before they are divided.

    Args:
        table: Rows of all environments.
        train_environment: The environment that is trained on; None: all of them together.

    Returns:
        The rows of that environment, in the parts that the source gives it.

    Raises:
        UnknownNameError: There is no such environment; those there are, are listed.
        DataError: The source has no environments, or no training row of this one.
    """
    if train_environment is None:
        return table
    if ROLE not in table.columns:
        raise DataError(
            f"data.train_environment={train_environment!r} is given, but the rows have no environment. Name its column"
            " with data.environment, or give a folder with one file a domain."
        )
    known = names_of(table)
    if train_environment not in known:
        raise UnknownNameError(
            f"No environment is called {train_environment!r}.{nearest(train_environment, known)} There are:"
            f" {', '.join(known)}."
        )
    parts = {part: _where(rows, table.columns[ROLE], train_environment) for part, rows in table.parts.items()}
    if not parts["train"][table.columns[ROLE]]:
        raise DataError(
            f"No row of the train part is of the environment {train_environment!r}. Train on one of:"
            f" {', '.join(sorted(set(map(str, table.column('train', ROLE)))))}."
        )
    return replace(table, parts={part: rows for part, rows in parts.items() if rows[table.columns[ROLE]]})


def names_of(table: Table) -> list[str]:
    """Return the names of all environments, sorted; none where the rows have none."""
    if ROLE not in table.columns:
        return []
    return sorted({str(value) for part in table.parts for value in table.column(part, ROLE)})


def scored_rows(
    table: Table,
    parts: Parts,
    *,
    train_environment: str | None,
    max_rows: int | None = None,
    seed: int = 0,
) -> tuple[dict[str, Part], tuple[str, ...]]:
    """Return the rows that each environment is scored on by itself.

    With a training environment these are the others: the rows of the source's test part where it has some of that
    environment, else all of its rows, without those whose input also stands in the training part. Without one these
    are all environments, each with its rows of the test part.

    Args:
        table: Rows of all environments, not divided.
        parts: The divided rows of the run.
        train_environment: The environment that is trained on; None: all of them together.
        max_rows: Rows that are kept of each, drawn by the seed; None: all.
        seed: Seed of that draw.

    Returns:
        Rows by environment, and sentences that tell their numbers.

    Raises:
        UnseenLabelError: An environment has labels that training never sees.
        DataError: Every row of an environment also stands in the training part.
    """
    names = names_of(table)
    if train_environment is None:
        return _of_test(parts, names) if len(names) > 1 else ({}, ())
    trained = set(inputs_of({**parts.train.columns, **({"text": parts.train.texts} if parts.train.texts else {})}))
    found: dict[str, Part] = {}
    notes = [
        f"Trained on {train_environment}: {len(parts.train):,} rows, {len(parts.validation):,} for choices,"
        f" {len(parts.test):,} for the closing figures."
    ]
    for name in names:
        if name == train_environment:
            continue
        rows, kind = _elsewhere(table, name)
        inputs = inputs_of(table.by_role(rows))
        fresh = [i for i, given in enumerate(inputs) if given not in trained]
        left_out = len(inputs) - len(fresh)
        if not fresh:
            raise DataError(
                f"Every row of the environment {name!r} also stands in the training part. Give it rows of its own."
            )
        if max_rows is not None and len(fresh) > max_rows:
            fresh = sorted(random.Random(seed).sample(fresh, max_rows))
        found[name] = _part(table, _rows(rows, fresh), parts.label_names, environment=name)
        repeated = f"; {left_out:,} that training has are left out" if left_out else ""
        notes.append(f"Also scored on {name}: {len(fresh):,} rows, {kind}{repeated}.")
    return found, tuple(notes)


def _of_test(parts: Parts, names: Sequence[str]) -> tuple[dict[str, Part], tuple[str, ...]]:
    given = [str(value) for value in parts.test.columns[ROLE]]
    found: dict[str, Part] = {}
    for name in names:
        rows = [i for i, value in enumerate(given) if value == name]
        if rows:
            columns = {role: [values[i] for i in rows] for role, values in parts.test.columns.items()}
            found[name] = Part(
                texts=[parts.test.texts[i] for i in rows] if parts.test.texts else [],
                labels=[parts.test.labels[i] for i in rows],
                columns=columns,
            )
    counts = ", ".join(f"{name} {len(part):,}" for name, part in found.items())
    return found, (
        f"All environments are trained on together (data.train_environment chooses one); test rows of each: {counts}.",
    )


def _elsewhere(table: Table, name: str) -> tuple[Rows, str]:
    column = table.columns[ROLE]
    if "test" in table.parts:
        rows = _where(table.parts["test"], column, name)
        if rows[column]:
            return rows, "its test part"
    pieces = [_where(rows, column, name) for rows in table.parts.values()]
    return {key: [value for piece in pieces for value in piece.get(key, [])] for key in pieces[0]}, "all it has"


def _part(table: Table, rows: Rows, label_names: Sequence[str], *, environment: str) -> Part:
    columns = {role: rows[column] for role, column in table.columns.items() if role not in ("text", "label")}
    texts = [str(text) for text in rows[table.columns["text"]]] if "text" in table.columns else []
    labels = rows[table.columns["label"]]
    if not label_names:  # a regression
        numbers = numeric_labels(rows, table.columns["label"], f"the environment {environment!r}")
        return Part(texts=texts, labels=numbers, columns=columns)
    index = {name: i for i, name in enumerate(label_names)}
    if unseen := sorted(set(labels) - set(index)):
        raise UnseenLabelError(
            f"The environment {environment!r} has labels that training never sees"
            f" ({', '.join(map(repr, unseen[:5]))}). Training has: {', '.join(map(repr, label_names[:10]))}. Use the"
            " same labels in every environment."
        )
    return Part(texts=texts, labels=[index[label] for label in labels], columns=columns)


def _where(rows: Rows, column: str, name: str) -> Rows:
    return _rows(rows, [i for i, value in enumerate(rows[column]) if str(value) == name])


def _rows(rows: Rows, keep: Sequence[int]) -> Rows:
    return {column: [values[i] for i in keep] for column, values in rows.items()}
