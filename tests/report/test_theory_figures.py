from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from asymlora.report.theory_figures import (
    gap_figure,
    gap_table,
    stability_figure,
    stability_table,
    toy_figure,
    toy_table,
)

FIT: dict[str, Any] = {
    "kind": "exponents", "scheme": "init_a", "rate_A": -0.5, "rate_B": None, "Z_A": 0.48, "Z_B": -0.02, "delta1": -0.01,
    "delta2": -0.02, "delta3": -0.01, "widths": [128, 256], "seeds": 2, "step": 3, "flipped": [],
}  # fmt: skip
EDGES = [
    {"kind": "largest stable rate", "scheme": scheme, "width": n, "seed": seed, "rate": 4 * n**power}
    for scheme, power in (("init_a", -0.5), ("init_b", -1.0))
    for n in (128, 512)
    for seed in (0, 1)
]
TOY = [
    {"width": n, "scheme": s, "rate": rate, "seed": seed, "train_loss": (rate * n - 4) ** 2 + 1 + seed,
     "test_loss": 2.0, "Z_A": 1.0, "Z_B": 0.5}
    for n in (128, 256, 512) for s in ("init_a", "init_b") for rate in (1 / n, 4 / n, 16 / n) for seed in (0, 1)
]  # fmt: skip
GAP = [
    {"inputs": 256, "outputs": m, "decay": decay, "rank": r, "wanted": "generic", "seed": 0, "explained_A": 0.2 + decay,
     "explained_B": 0.2, "B_only_wins": decay > 0, "ratio": 1 + 5 * decay, "predicted_ratio": 1.5, "simple_ratio": 2.5}
    for m in (256, 64) for r in (4, 16) for decay in (0.0, 1.0)
]  # fmt: skip


def _shown(table: Any) -> list[list[str]]:
    console = Console(width=80, record=True, file=StringIO())
    console.print(table)
    text = console.export_text()
    assert "…" not in text
    return [line.split() for line in text.splitlines() if line.strip()]


def test_measured_exponents_stand_beside_those_of_the_calculus() -> None:
    rows = _shown(stability_table([FIT, *EDGES]))
    assert ["Init[A]", "-0.5", "0.48", "1/2", "-0.02", "0", "-0.01", "0", "-0.02", "0", "-0.01", "0"] in rows
    assert ["Init[A]", "-0.50", "±", "0.00", "-1/2"] in rows
    assert ["Init[B]", "-1.00", "±", "0.00", "-1"] in rows


def test_two_rates_are_both_named() -> None:
    assert any(
        row[:3] == ["Init[A]", "-1,", "0"]
        for row in _shown(stability_table([FIT | {"rate_A": -1, "rate_B": 0.0}, *EDGES]))
    )


def test_the_best_rate_of_each_arm_and_an_optimum_at_the_edge() -> None:
    rows = _shown(toy_table(TOY))
    arm = next(row for row in rows if row[:2] == ["128", "Init[A]"])
    assert arm[2] == "0.0312"
    assert arm[4] == "1.50e+00"  # the mean of 1 and 2
    edge = next(row for row in _shown(toy_table([r for r in TOY if r["rate"] * r["width"] < 2])) if row[0] == "128")
    assert edge[2] == "0.00781*"
    assert edge[3] == "-"


def test_a_single_seed_has_no_standard_error() -> None:
    rows = _shown(toy_table([r for r in TOY if r["seed"] == 0]))
    assert next(row for row in rows if row[0] == "128")[5] == "-"


def test_the_winner_is_counted_case_by_case() -> None:
    rows = _shown(gap_table(GAP))
    assert ["256,", "256", "1", "generic", "4", "1.00", "1.200", "0.200", "6.00", "1.50"] in rows
    assert ["256,", "64", "0", "generic", "16", "0.00", "0.200", "0.200", "1.00", "1.50"] in rows


@pytest.mark.parametrize(
    ("figure", "lines"),
    [
        (stability_figure(EDGES), {"Init[A]", "Init[B]"}),
        (toy_figure(TOY), {"Init[A], n = 128", "Init[B], n = 128", "Init[A], n = 512", "Init[B], n = 512"}),
        (gap_figure(GAP), {"measured", "criterion at the rank", "criterion, limit of small rank"}),
    ],
)
def test_figures_draw_the_records(figure: Any, lines: set[str]) -> None:
    assert {trace.name for trace in figure.plotly.data if trace.name} == lines


def test_the_gap_figure_takes_square_layers_at_the_smallest_rank() -> None:
    measured = next(trace for trace in gap_figure(GAP).plotly.data if trace.name == "measured")
    assert (list(measured.x), list(measured.y)) == ([0.0, 1.0], [1.0, 6.0])
