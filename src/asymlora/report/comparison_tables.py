"""Cells of one or several folders beside each other, as a terminal shows them."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from asymlora.report.cost_tables import size
from asymlora.report.sweep_tables import (
    Sheet,
    drawn,
    duration,
    gain,
    interval_text,
    listed,
    metric_text,
    rate_or_dash,
)
from asymlora.sweep.comparing import Compared, ComparedCell
from asymlora.sweep.verdicts import Shown


def comparison_tables(compared: Compared) -> Group:
    """Return the results, what they cost, and what may be said of each pair.

    Args:
        compared: The comparison.

    Returns:
        Something that rich prints. Names of folders and cells are the user's, and no markup.
    """
    said = {
        "Verdicts": compared.verdicts,
        "Not compared": list(compared.descriptions),
        "What differs besides learning rate and seeds": list(compared.differences),
        "Notes": list(compared.notes),
    }
    parts: list[RenderableType] = [drawn(results_sheet(compared)), Text(), drawn(costs_sheet(compared))]
    return Group(*parts, *listed(said))


def results_sheet(compared: Compared) -> Sheet:
    """Return what each cell reached on the test part.

    Args:
        compared: The comparison.
    """
    metrics = list(dict.fromkeys(cell.metric for cell in compared.cells))
    mixed = len(metrics) > 1
    rows: list[tuple[str, ...]] = []
    for cell in compared.cells:
        found, shown = cell.found, summary_of(cell)
        texts = [str(len(found["closing"]) or "-"), metric_text(shown, found["mean"])]
        texts += [interval_text(shown, found["interval"]), metric_text(shown, gain(shown, found), sign=True)]
        texts.append(rate_or_dash(found["closing_rate"]))
        rows.append((cell.label, *([cell.metric] if mixed else []), *texts))
    what = "Metrics" if mixed else f"{metrics[0][:1].upper()}{metrics[0][1:]}"
    heads = ("cell", *(["metric"] if mixed else []), "seeds", "mean", "95 % interval", "gain", "rate")
    return Sheet(f"{what} on test, at each cell's rate. Gain: over the start", heads, tuple(rows))


def costs_sheet(compared: Compared) -> Sheet:
    """Return what each cell trained, how long a run took, and how large its adapter is.

    Args:
        compared: The comparison.
    """
    rows = [
        (
            cell.label,
            f"{cell.found['trained_parameters']:,}" if cell.found["trained_parameters"] else "-",
            "-" if cell.seconds is None else duration(cell.seconds),
            size(cell.adapter_bytes),
        )
        for cell in compared.cells
    ]
    return Sheet("Cost of a closing run", ("cell", "values trained", "time", "weight files"), tuple(rows))


def summary_of(cell: ComparedCell) -> dict[str, Any]:
    """Return what the tables of a sweep know of the metric of a cell.

    Args:
        cell: The cell.
    """
    values = [
        *cell.values.values(),
        *(value for value in (cell.found["before"].get(cell.metric),) if value is not None),
    ]
    shown = Shown.of(cell.metric, values, greater_is_better=cell.greater_is_better)
    return {"metric": cell.metric, "greater_is_better": cell.greater_is_better, "scale": shown.scale}
