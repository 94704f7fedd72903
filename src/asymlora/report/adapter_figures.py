"""Heat maps of adapters: how alike they are site by site, and the spectra of one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from asymlora.diagnostics.site_factors import natural_order
from asymlora.errors import DataError
from asymlora.report.adapter_tables import plain, without_shared_start
from asymlora.report.plots import Figure, heat_map

Record = Mapping[str, Any]
_ROW, _COLUMN, _LEAST = 20, 92, (760, 440)
"""Pixels of a row and of a column of cells, and of the smallest figure."""
_MEASURES = {"cca": "CCA", "cka": "CKA"}


def similarity_map(records: Sequence[Record], *, factor: str | None = None, measure: str = "cca") -> Figure:
    """Draw how alike adapters are: a row for each site, a column for each pair.

    Args:
        records: Rows of `asymlora.diagnostics.adapter_pairs.compare_adapters`.
        factor: ``A`` or ``B``; None draws both, those of A first.
        measure: ``cca`` or ``cka``.

    Returns:
        The figure; colours run from 0 to 1, and a cell with a factor of zero is empty.

    Raises:
        DataError: Nothing can be compared: in every pair a factor is zero.
    """
    letters = ("A", "B") if factor is None else (factor,)
    own = [row for letter in letters for row in records if row["factor"] == letter]
    known = {(row["site"], _column(row, both=factor is None)): row[measure] for row in own}
    if all(value is None for value in known.values()):
        raise DataError(f"Nothing can be drawn: {' and '.join(letters)} of every pair cannot be compared, one is zero.")
    short = without_shared_start(sorted({site for site, _ in known}, key=natural_order))
    columns = list(dict.fromkeys(column for _, column in known))
    # Every cell, so that rows and columns stand in this order whatever sites a pair has.
    cells = [
        {"site": _label(name), "pair": column, "value": _finite(known.get((site, column)))}
        for site, name in short.items()
        for column in columns
    ]
    drawn = heat_map(
        cells,
        x="pair",
        y="site",
        value="value",
        title=_similarity_title(own, letters, measure),
        labels={"pair": "", "site": "", "value": _MEASURES[measure]},
        limits=(0.0, 1.0),
    )
    return _sized(drawn, len(short), len(columns))


def _similarity_title(records: Sequence[Record], letters: Sequence[str], measure: str) -> str:
    what = {"A": "row spaces of A", "B": "column spaces of B"}
    chance: list[str] = []
    for letter in letters:
        known = [v for row in records if row["factor"] == letter and (v := row[f"{measure}_chance"]) is not None]
        chance += [f"{letter} {statistics.median(known):.2g}"] if known else []
    return (
        f"How alike the {' and the '.join(what[letter] for letter in letters)} are<br><sup>{_MEASURES[measure]}; by"
        f" chance: {', '.join(chance)} (median). Empty: a factor is zero, or not in both</sup>"
    )


def spectrum_map(records: Sequence[Record]) -> Figure:
    """Draw the singular values of each site's update over its largest: a row for each site.

    Args:
        records: Rows of `asymlora.diagnostics.adapter_records`.

    Returns:
        The figure; sites whose update is zero are left out.

    Raises:
        DataError: Every update is zero.
    """
    short = without_shared_start(row["site"] for row in records)
    cells = [
        {"site": _label(short[row["site"]]), "direction": number, "value": value / row["spectral_norm"]}
        for row in records
        if row["spectral_norm"]
        for number, value in enumerate(row["singular_values"], start=1)
    ]
    if not cells:
        raise DataError("There is no spectrum to draw: every update of this adapter is zero.")
    drawn = heat_map(
        cells,
        x="direction",
        y="site",
        value="value",
        title="Singular values of s*B*A, over the largest of the site",
        labels={"direction": "direction, by size", "site": "", "value": "over the largest"},
        limits=(0.0, 1.0),
    )
    return _sized(drawn, len({c["site"] for c in cells}), len({c["direction"] for c in cells}))


def _label(name: str) -> str:
    # Plotly reads tags in labels.
    return plain(name).replace("&", "&amp;").replace("<", "&lt;")


def _column(row: Record, *, both: bool) -> str:
    # Plotly breaks lines where it is told to.
    pair = f"{_label(row['first'])}<br>{_label(row['second'])}"
    return f"{row['factor']}<br>{pair}" if both else pair


def _finite(value: float | None) -> float:
    return math.nan if value is None else value


def _sized(figure: Figure, rows: int, columns: int) -> Figure:
    """Give every row its label and every column its room."""
    width, height = max(_LEAST[0], 320 + _COLUMN * columns), max(_LEAST[1], 170 + _ROW * rows)
    figure.plotly.update_layout(width=width, height=height)
    figure.plotly.update_yaxes(tickmode="linear", dtick=1, tickfont={"size": 11})
    return figure
