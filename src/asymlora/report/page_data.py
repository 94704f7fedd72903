"""What the page of a sweep draws from, as compact plain values: rows of runs and pairs of adapters by number.

Curves are rounded to five significant digits; nothing is left out. How it is drawn is in ``templates/``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import PurePosixPath
from statistics import median
from typing import Any

from asymlora.sweep.collapse import collapsed
from asymlora.sweep.run_record import RunRow, cell_label

Plain = dict[str, Any]
SEARCHED = "searched"
"""Points of a search beyond a grid are one group for each arm: each has other values, and hardly two of them meet."""


def page_data(
    rows: Sequence[RunRow], *, similarity: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], name: str
) -> Plain:
    """Return one sweep as the page's script reads it.

    Args:
        rows: Rows of its runs, in the order of the store.
        similarity: Rows of `asymlora.diagnostics.adapter_pairs` between closing runs, named by their ids.
        summary: As `asymlora.sweep.summary.Summary.to_dict` gives it; what is missing is left out.
        name: Name of its folder.

    Returns:
        ``name``; ``metric``, ``greater_is_better`` and ``scale``; ``cells``; ``steps``: lists of steps, which
        curves name by number; ``runs``, whose short keys `_run` explains; ``similarity``.
    """
    labels = cell_labels(rows, summary)
    curves = _Curves()
    found, fallen = _found(summary), _collapsed(rows)
    first = rows[0] if rows else None
    return {
        "name": name,
        "metric": summary.get("metric") or (first.metric if first else ""),
        "greater_is_better": summary.get("greater_is_better", first.greater_is_better if first else True),
        "scale": summary.get("scale", 1.0),
        "cells": [{"label": label, **found.get(label, {})} for label in labels],
        "runs": [_run(row, number, labels, curves) | _fallen(row, fallen) for number, row in enumerate(rows, 1)],
        "steps": curves.steps,
        "similarity": _similarity(rows, similarity),
    }


def cell_labels(rows: Iterable[RunRow], summary: Mapping[str, Any]) -> list[str]:
    """Return the names of all cells: the summary's in its order, then those of further rows."""
    known = [str(cell["label"]) for cell in summary.get("cells", ())]
    return list(dict.fromkeys([*known, *(row_label(row) for row in rows)]))


def row_label(row: RunRow) -> str:
    """Return the name of a row's cell: its arm and its place on further axes.

    Args:
        row: The row.

    Returns:
        For instance ``b_only, train.batch_size 16``.
    """
    if row.phase == "search":
        return f"{row.arm}, {SEARCHED}"
    return cell_label(row.arm, row.axes)


def spans(numbers: Iterable[int]) -> str:
    """Return whole numbers as ranges.

    Example:
        >>> spans([1, 2, 3, 7, 9, 10])
        '1-3, 7, 9-10'
    """
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in ranges)


class _Curves:
    """Keeps each list of steps once: most runs are recorded at the same ones."""

    def __init__(self) -> None:
        self.steps: list[list[float]] = []
        self._numbers: dict[tuple[float, ...], int] = {}

    def number(self, steps: Sequence[float | None]) -> int:
        key = tuple(float(step) for step in steps if step is not None)
        if key not in self._numbers:
            self._numbers[key] = len(self.steps)
            self.steps.append([int(step) if step.is_integer() else step for step in key])
        return self._numbers[key]

    def of(self, curve: Mapping[str, Sequence[float | None]]) -> Plain | None:
        """Return ``at``, the number of the steps, and each quantity's values; None where nothing was recorded."""
        if not curve.get("step"):
            return None
        values = {key: [_short(value) for value in column] for key, column in curve.items() if key != "step"}
        return {"at": self.number(curve["step"]), **values}


def _run(row: RunRow, number: int, labels: Sequence[str], curves: _Curves) -> Plain:
    """Return ``n``: number of the run in the page's table, ``c``: of its cell, and so on; absent is what is None."""
    values: Plain = {
        "n": number,
        "c": labels.index(row_label(row)),
        "p": row.phase,
        "s": row.seed,
        "k": row.rank,
        "lr": row.lr,
        "st": row.status,
        "v": _finite(row.validation),
        "t": {key: _finite(value) for key, value in row.test.items()} if row.test else None,
        "l": curves.of(row.losses),
        "e": curves.of(row.scores),
        "d": curves.of(row.dynamics),
        "x": row.diverged_at,
        "m": row.metric,
    }
    return {key: value for key, value in values.items() if value is not None}


def _collapsed(rows: Sequence[RunRow]) -> set[tuple[str, float, int]]:
    cells: dict[str, list[RunRow]] = {}
    for row in rows:
        if row.phase == "tuning":
            cells.setdefault(row_label(row), []).append(row)
    return {(label, lr, seed) for label, mine in cells.items() for lr, seed in collapsed(mine)}


def _fallen(row: RunRow, fallen: Set[tuple[str, float, int]]) -> Plain:
    """Return ``f`` for a tuning run that finished and had learnt next to nothing; otherwise nothing."""
    return {"f": 1} if row.phase == "tuning" and (row_label(row), row.lr, row.seed) in fallen else {}


def _found(summary: Mapping[str, Any]) -> dict[str, Plain]:
    """Return, by cell, what the figures mark: the interval of the closing mean, its rate and its seeds."""
    return {
        str(cell["label"]): {
            "interval": cell.get("interval"),
            "best_rate": cell.get("best_rate"),
            "closing_rate": cell.get("closing_rate"),
            "closing": [value["seed"] for value in cell.get("closing", ())],
        }
        for cell in summary.get("cells", ())
    }


def _similarity(rows: Sequence[RunRow], similarity: Sequence[Mapping[str, Any]]) -> Plain:
    numbers = {row.id: number for number, row in enumerate(rows)}
    sites = list(dict.fromkeys(str(row["site"]) for row in similarity))
    place = {site: number for number, site in enumerate(sites)}
    pairs: dict[tuple[int, int], Plain] = {}
    strangers = 0
    for row in similarity:
        ends = [numbers.get(PurePosixPath(str(row[end])).name) for end in ("first", "second")]
        if ends[0] is None or ends[1] is None:
            strangers += 1
            continue
        new: Plain = {"a": ends[0], "b": ends[1], "chance": {"A": [], "B": []}}
        pair = pairs.setdefault((ends[0], ends[1]), new | {letter: [None] * len(sites) for letter in "AB"})
        pair[row["factor"]][place[str(row["site"])]] = _short(row.get("cca"))
        pair["chance"][row["factor"]].append(_short(row.get("cca_chance")))
    for pair in pairs.values():
        pair["chance"] = {letter: _median(values) for letter, values in pair["chance"].items()}
    return {"sites": sites, "pairs": list(pairs.values()), "strangers": strangers}


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _short(median(known)) if known else None


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
