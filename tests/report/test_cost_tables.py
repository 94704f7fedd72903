from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from asymlora.report.cost_tables import estimate_tables, size

WAY: dict[str, Any] = {
    "way": "LoRA", "trained_values": 19_988_480, "trained_fraction": 0.003, "base_bytes": 13_500_000_000,
    "parameters_bytes": 80_000_000, "gradients_bytes": 80_000_000, "optimizer_bytes": 160_000_000, "master_bytes": 0,
    "saved_bytes": None, "peak_bytes": None, "file_bytes": 79_953_920, "seed_file_bytes": 1_000,
    "flops_forward": 10**10, "flops_backward": 2 * 10**10, "bound_nats": 4.4e8,
    "bound_gap": 148.9, "bound_vacuous": True,
}  # fmt: skip
FULL = WAY | {"way": "full fine-tuning", "flops_backward": 5 * 10**10, "seed_file_bytes": None, "bound_vacuous": False}
SETTINGS: dict[str, Any] = {"model": "a/model", "size": 8, "length": 512, "memory": None}


def _shown(fits: list[dict[str, int]] | None, width: int = 80, **settings: Any) -> str:
    console = Console(width=width, record=True, file=StringIO())
    console.print(estimate_tables([FULL, WAY], settings=SETTINGS | settings, fits=fits))
    return console.export_text()


def test_every_figure_is_there_in_80_columns() -> None:
    shown = _shown([])
    assert "…" not in shown
    row = next(line for line in shown.splitlines() if line.strip().startswith("LoRA"))
    assert row.split() == ["LoRA", "19.99", "M", "0.30%", "13.5", "GB", "320", "MB", "-", "-"]
    assert "50%" in shown  # 30 of 60 GFLOPs
    assert "as 1 of 2 here" in shown


def test_what_fits_is_a_table_or_a_sentence() -> None:
    shown = _shown([{"rank": 4, "size": 11, "peak_bytes": 39_500_000_000}], memory=40 * 10**9)
    assert "What fits in 40 GB" in shown
    assert next(line for line in shown.splitlines() if "39.5 GB" in line).split() == ["4", "11", "39.5", "GB"]
    assert "In 1 kB not even one sequence" in _shown([], memory=1000)
    assert "fits" not in _shown([])
    assert "are not known" in _shown(None, memory=1000)


@pytest.mark.parametrize(
    ("count", "wanted"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_999_999, "1e+03 MB"), (5 * 10**15, "5,000 TB")],
)
def test_sizes(count: int, wanted: str) -> None:
    assert size(count) == wanted
