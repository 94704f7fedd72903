from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console, RenderableType

from asymlora.report.sweep_tables import (
    cost_line,
    costs_sheet,
    duration,
    forecast_table,
    gain,
    interval_text,
    metric_text,
    octaves_text,
    rates_sheet,
    results_sheet,
    sentences,
    sweep_tables,
)
from asymlora.sweep.summary import SeedValue
from small_summary import BASIN, SPENT, cell, comparison, summary

FORECAST: dict[str, Any] = {
    "rows": [
        {"cell": "init_a", "phase": "tuning", "runs": 12, "steps": 960, "seconds": 240.0},
        {"cell": "init_a", "phase": "closing", "runs": 6, "steps": 480, "seconds": 180.0},
    ],
    "seconds": 430.0,
    "memory_bytes": 1_300_000_000,
    "notes": ["From 5 real steps of each cell."],
}


def printed(what: RenderableType, width: int = 80) -> str:
    console = Console(file=io.StringIO(), record=True, width=width, force_terminal=False)
    console.print(what)
    return console.export_text()


def of(sheet: Any, label: str) -> dict[str, str]:
    """The row of a cell by the names of the columns."""
    (row,) = [row for row in sheet.rows if row[0] == label]
    return dict(zip(sheet.heads, row, strict=True))


def test_results_show_mean_interval_and_gain_over_the_start() -> None:
    row = of(results_sheet(summary()), "init_a")
    # From 25.0 % before the first step to 91.0 %.
    assert row == {
        "cell": "init_a", "seeds": "2", "rate": "3.16e-3", "mean": "91.0%", "95 % interval": "89.5% to 92.5%",
        "gain": "+66.0",
    }  # fmt: skip


def test_wide_results_also_show_spread_and_both_ends() -> None:
    row = of(results_sheet(summary(), wide=True), "init_a")
    assert (row["s.d."], row["loss"], row["worst seed"], row["best seed"]) == ("1.4", "0.123", "90.0%", "92.0%")


def test_where_less_is_better_the_title_says_so_and_worst_is_the_largest() -> None:
    lower = cell(closing=(SeedValue(0, 12.5), SeedValue(1, 11.0)), mean=11.75, before={"perplexity": 20.0})
    found = summary(lower, metric="perplexity", greater_is_better=False, scale=1.0)
    sheet = results_sheet(found, wide=True)
    assert "less is better" in sheet.title
    row = of(sheet, "init_a")
    assert (row["mean"], row["gain"], row["worst seed"], row["best seed"]) == ("11.75", "+8.250", "12.50", "11.00")


def test_a_cell_without_closing_runs_has_dashes() -> None:
    bare = cell(closing=(), closing_rate=None, mean=None, interval=None, deviation=None, closing_loss=None, before={})
    row = of(results_sheet(summary(bare), wide=True), "init_a")
    assert set(row.values()) == {"init_a", "-"}
    assert gain(summary(bare), summary(bare)["cells"][0]) is None


def test_rates_show_place_basin_and_edge() -> None:
    row = of(rates_sheet(summary(), wide=True), "init_a")
    assert row == {
        "cell": "init_a", "best rate": "3.16e-3", "lies": "interior", "validation": "91.5%", "octaves": "2.0",
        "unstable at": "1e-2", "stable to": "3.16e-3", "tried": "3", "pruned": "0", "collapsed": "0", "diverged": "2",
    }  # fmt: skip


def test_rates_say_where_growth_met_its_bound_or_nothing_was_stable() -> None:
    at_bound = cell(best_at="upper end", at_bound=True, basin=replace(BASIN, most_octaves=None))
    none = cell("none", best_rate=None, best_at=None, best_validation=None, basin=None, divergence_edge=1e-3)
    sheet = rates_sheet(summary(at_bound, none))
    assert of(sheet, "init_a")["lies"] == "upper end, bound"
    assert of(sheet, "init_a")["octaves"] == "at least 2.0"
    row = of(sheet, "none")
    assert (row["best rate"], row["lies"], row["octaves"], row["unstable at"]) == ("-", "-", "-", "1e-3")


def test_costs_add_up_the_phases() -> None:
    row = of(costs_sheet(summary(), wide=True), "b_only")
    # 12 + 2 runs, 900 + 160 steps, 240 + 60 s.
    assert (row["trained"], row["runs"], row["steps"], row["not taken"]) == ("167,426", "14", "1,060", "60")
    assert (row["time"], row["of these: tuning"], row["closing"], row["FLOPs"]) == (
        "5 min", "4 min", "60 s", "2.40e+14",
    )  # fmt: skip
    unknown = cell(cost={"tuning": replace(SPENT, flops=None)})
    row = of(costs_sheet(summary(unknown), wide=True), "init_a")
    assert (row["FLOPs"], row["closing"]) == ("-", "-")


def test_cost_line_counts_runs_and_what_stopping_early_saved() -> None:
    line = cost_line(summary())
    assert line == (
        "28 runs (26 finished, 2 diverged), 900 steps, 10 min of run time; early stopping saved 60 of 960 steps."
    )
    assert cost_line(summary(cost={})) == "No run has ended."
    nothing_saved = {"all": replace(SPENT, saved_steps=0)}
    assert "early stopping" not in cost_line(summary(cost=nothing_saved))


def test_sentences_stand_under_what_they_are() -> None:
    said = sentences(summary())
    assert said == {
        "Verdicts": ["init_a and b_only: 2 pairs."],
        "Beside the figures": ["One run of b_only is missing."],
        "Notes": ["No run was repeated."],
    }


def test_a_caveat_that_a_verdict_holds_is_not_said_twice() -> None:
    verdict = comparison(sentence="init_a and b_only: not decided. One run of b_only is missing.")
    said = sentences(summary(comparisons=(verdict,)))
    assert said["Verdicts"] == [verdict.sentence]
    assert said["Beside the figures"] == []


LABELS = ["init_a", "hB_zero_A_kaiming_uniform, train.batch_size 16, adapter.rank 32", "x" * 90, "[red]x[/red] :smile:"]


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut_at_80_and_120_columns(width: int) -> None:
    found = summary(*(cell(label, best_at="upper end", at_bound=True) for label in LABELS))
    text = printed(sweep_tables(found, width=width), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    # Labels fold, letter by letter where they must, and are no markup.
    columns = "".join(re.split(r"\s", text))
    for words in ("[red]x[/red]:smile:", "upperend,bound", "89.5%to92.5%", "332,546"):
        assert words in columns
    assert text.count("x") >= 90


def test_parts_without_a_sentence_have_no_heading() -> None:
    text = printed(sweep_tables(summary(cell(), comparisons=(), notes=())))
    assert "Verdicts" not in text
    assert "Notes" not in text
    shown = printed(sweep_tables(summary(comparisons=(comparison(),))))
    assert "Verdicts\n- init_a and b_only: 2 pairs." in shown


def test_forecast_adds_up_runs_and_says_what_is_not_known() -> None:
    text = printed(forecast_table(FORECAST))
    assert re.search(r"in all\s+18\s+1,440\s+about 7 min", text)
    assert "Time of the whole sweep: about 7 min" in text
    assert "Memory of a process: about 1.3 GB" in text
    assert "- From 5 real steps of each cell." in text
    unknown = [{**FORECAST["rows"][0], "seconds": None}, FORECAST["rows"][1]]
    text = printed(forecast_table({**FORECAST, "rows": unknown, "seconds": None, "memory_bytes": None}))
    assert re.search(r"in all\s+18\s+1,440\s+not known", text)
    assert "Memory of a process: not known" in text


def test_figures_are_short_and_keep_their_sign() -> None:
    assert metric_text({"scale": 1.0}, None) == "-"
    assert interval_text({"scale": 1.0}, None) == "-"
    assert metric_text({"scale": 100.0}, -0.013, sign=True) == "-1.3"
    assert [duration(s) for s in (0.0, 9.94, 179.4, 180, 7200)] == ["0.0 s", "9.9 s", "179 s", "3 min", "2 h 0 min"]
    assert octaves_text({"octaves": 0.0, "most_octaves": 3.3}) == "0.0 to 3.3"
