from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import small_sweep
from asymlora.report.comparison_tables import comparison_tables, costs_sheet, results_sheet
from asymlora.sweep.comparing import Compared, compare_results
from asymlora.sweep.run_folders import read_results
from small_run import write_run


def compared(*paths: Path, **options: Any) -> Compared:
    return compare_results(read_results(paths), **options)


def printed(found: Compared, width: int = 80) -> str:
    console = Console(file=io.StringIO(), record=True, width=width, force_terminal=False)
    console.print(comparison_tables(found))
    return console.export_text()


def test_runs_show_metric_gain_and_cost(tmp_path: Path) -> None:
    found = compared(write_run(tmp_path / "one"), write_run(tmp_path / "two", score=0.75, trained_parameters=6000))
    sheet = results_sheet(found)
    assert sheet.title.startswith("Accuracy on test")
    assert sheet.heads == ("cell", "seeds", "mean", "95 % interval", "gain", "rate")
    # Both began at 50 %; one seed has no interval.
    assert sheet.rows == (
        ("one", "1", "90.0%", "-", "+40.0", "1e-2"),
        ("two", "1", "75.0%", "-", "+25.0", "1e-2"),
    )
    assert costs_sheet(found).rows == (
        ("one", "12,000", "15 s", "1.23 kB"),
        ("two", "6,000", "15 s", "1.23 kB"),
    )


def test_metrics_of_several_kinds_have_a_column_and_units_of_their_own(tmp_path: Path) -> None:
    lower = {"metrics": {"before": {"perplexity": 20.0}, "after": {"perplexity": 11.0}}}
    two = write_run(tmp_path / "two", metric="perplexity", greater_is_better=False, **lower)
    sheet = results_sheet(compared(write_run(tmp_path / "one"), two))
    assert sheet.heads[1] == "metric"
    assert sheet.rows[0][1:4] == ("accuracy", "1", "90.0%")
    assert sheet.rows[1][1:6] == ("perplexity", "1", "11.00", "-", "+9.000")


def test_cells_of_a_sweep_have_intervals_and_verdicts(tmp_path: Path) -> None:
    found = compared(small_sweep.write_folder(tmp_path / "sweep"))
    assert all(re.fullmatch(r"[\d.]+% to [\d.]+%", row[3]) for row in results_sheet(found).rows)
    words = " ".join(printed(found).split())
    assert all(sentence in words for sentence in found.verdicts)
    assert "Not compared" not in words


def test_what_is_not_tested_stands_under_its_heading(tmp_path: Path) -> None:
    other = write_run(tmp_path / "two", recipe={"train": {"steps": 80}})
    text = printed(compared(write_run(tmp_path / "one"), other))
    assert "Verdicts" not in text
    words = " ".join(text.split())
    assert "Not compared - one and two answer other questions or had other budgets, so nothing is tested" in words
    assert "What differs besides learning rate and seeds - one / two differ in train.steps: 40 / 80." in words


@pytest.mark.parametrize("width", [80, 120])
def test_long_names_fold_and_are_no_markup(width: int, tmp_path: Path) -> None:
    names = ["[red]a", "b" * 100]
    text = printed(compared(*(write_run(tmp_path / name) for name in names)), width)
    assert max(map(len, text.splitlines())) <= width
    assert "[red]a" in text
    assert "…" not in text
