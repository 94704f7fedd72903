"""How alike the adapters of closing runs are, as rows small enough to keep: for the heat maps of a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asymlora.errors import AdapterFileError
from asymlora.sweep.run_record import RunRow

MOST_ADAPTERS = 9
"""Adapters that are compared, three seeds of three cells, say: 36 pairs."""
COMPARABLE = ("adapter", "peft:lora", "peft:lora_fa")
"""Methods whose folders hold an A and a B for each site."""
KEPT = ("first", "second", "site", "kind", "layer", "factor", "width", "cca", "cca_chance", "cka", "cka_chance")


def chosen_runs(rows: Sequence[RunRow]) -> list[RunRow]:
    """Return the closing runs whose adapters are compared: as many seeds of every cell as `MOST_ADAPTERS` allows.

    Args:
        rows: Of a sweep.

    Returns:
        Rows with a kept adapter, by seed, then in the order of the cells; cells beyond the limit are left out.
    """
    kept = [r for r in rows if r.phase == "closing" and r.adapter and r.recipe["method"] in COMPARABLE]
    cells = {_cell(row): None for row in kept}
    seeds = sorted({row.seed for row in kept})[: max(1, MOST_ADAPTERS // max(1, len(cells)))]
    ordered = [row for seed in seeds for cell in cells for row in kept if row.seed == seed and _cell(row) == cell]
    return ordered[:MOST_ADAPTERS]


def compare_kept(rows: Sequence[RunRow], folder: Path) -> tuple[list[dict[str, Any]], str | None]:
    """Compare the adapters of closing runs, pair by pair and site by site.

    Args:
        rows: Of a sweep.
        folder: The sweep's.

    Returns:
        One row for each pair, site and factor: what `asymlora.diagnostics.adapter_pairs.compare_adapters` says of it,
        ``first`` and ``second`` being ids of runs. Beside them a sentence where nothing could be compared, or None.
    """
    chosen = chosen_runs(rows)
    if len(chosen) < 2:
        return [], None
    from asymlora.diagnostics.adapter_pairs import compare_adapters

    try:
        records = compare_adapters({row.id: folder / str(row.adapter) for row in chosen}).records
    except AdapterFileError as error:
        return [], f"The adapters could not be compared. {error}"
    return [{key: _short(record.get(key)) for key in KEPT} | {"zero": bool(record["zero"])} for record in records], None


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _cell(row: RunRow) -> tuple[str, str]:
    return row.arm, repr(sorted(row.axes.items()))
