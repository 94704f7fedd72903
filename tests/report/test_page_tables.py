from __future__ import annotations

from dataclasses import replace
from statistics import mean
from typing import Any

import small_sweep
from asymlora.report.page_tables import (
    PageTable,
    best_cell,
    cost_table,
    environment_table,
    pairs_table,
    results_table,
    runs_table,
)


def _summary(**arguments: Any) -> tuple[Any, Any]:
    records = small_sweep.records(small_sweep.rows(**arguments))
    assert records.summary is not None
    return records.summary, list(records.rows)


def _is_whole(table: PageTable) -> bool:
    return bool(table.rows) and all(len(row) == len(table.heads) for row in table.rows)


def test_results_are_the_means_of_closing_runs_and_the_best_stands_out() -> None:
    summary, rows = _summary()
    table = results_table(summary)
    assert _is_whole(table)
    means = {arm: mean(row.test["accuracy"] for row in rows if row.arm == arm and row.test) for arm in small_sweep.ARMS}
    assert {row[0]: row[1] for row in table.rows} == {arm: f"{100 * value:.1f}%" for arm, value in means.items()}
    best = max(means, key=lambda arm: means[arm])
    assert [table.rows[number][0] for number in table.strong] == [best]
    found = best_cell(summary)
    assert found is not None
    assert found["label"] == best


def test_less_is_better_where_the_metric_says_so() -> None:
    summary, _ = _summary()
    turned = best_cell({**summary, "greater_is_better": False})
    assert turned is not None
    assert turned["mean"] == min(cell["mean"] for cell in summary["cells"])


def test_every_pair_has_its_line() -> None:
    summary, _ = _summary()
    table = pairs_table(summary)
    assert _is_whole(table)
    assert {tuple(row[:2]) for row in table.rows} == {("init_a", "init_b"), ("init_a", "b_only"), ("init_b", "b_only")}


def test_cost_adds_up_over_the_arms() -> None:
    summary, rows = _summary()
    *arms, whole = cost_table(summary, rows).rows
    numbers = [int(row[4].replace(",", "")) for row in arms]
    assert sum(numbers) == int(whole[4].replace(",", "")) == sum(row.steps for row in rows)
    saved = sum(row.planned_steps - row.steps for row in rows if row.status == "pruned")
    assert whole[5].startswith(f"{saved} ")
    assert arms[0][8] == "900 MB"


def test_every_run_has_its_line_and_what_went_wrong_with_it() -> None:
    summary, rows = _summary(arms=("init_a",))
    table = runs_table(summary, rows)
    assert _is_whole(table)
    assert [row[:2] for row in table.rows] == [[str(n), run.id] for n, run in enumerate(rows, 1)]
    lost = next(n for n, run in enumerate(rows) if run.status == "diverged")
    assert "was not finite at step 20" in table.rows[lost][11]
    assert "B grows without bound" in table.rows[lost][11]


def test_before_any_run_has_ended_the_tables_are_empty_but_there() -> None:
    records = small_sweep.records([])
    assert records.summary is not None
    assert best_cell(records.summary) is None
    assert not results_table(records.summary).rows
    assert not pairs_table(records.summary).rows
    assert not runs_table(records.summary, []).rows
    cost_table(records.summary, [])


def test_missing_memory_is_a_dash() -> None:
    summary, rows = _summary(arms=("init_a",))
    table = cost_table(summary, [replace(row, peak_memory_bytes=None) for row in rows])
    assert table.rows[0][8] == "-"


def test_versions_and_hardware_are_named_and_may_be_missing() -> None:
    table = environment_table(small_sweep.environment())
    assert ["torch", "2.6.0"] in table.rows
    assert ["accelerator", "none"] in table.rows
    assert not environment_table({}).rows


def test_memory_is_that_of_the_cell_alone() -> None:
    rows = [
        replace(row, peak_memory_bytes=row.rank * 10**8) for row in small_sweep.rows(arms=("init_a",), ranks=(4, 8))
    ]
    summary = small_sweep.records(rows, arms=("init_a",), axes={"adapter.rank": [4, 8]}).summary
    assert summary is not None
    assert [row[8] for row in cost_table(summary, rows).rows] == ["400 MB", "800 MB", ""]


def test_runs_of_a_search_are_counted_once_whether_or_not_it_has_ended() -> None:
    arms = ("init_a", "b_only")
    points = [small_sweep.row(arm, lr=lr, seed=100, phase="search") for arm in arms for lr in (1e-3, 2e-3)]
    rows = [*points, small_sweep.row("b_only", lr=2e-3, seed=0, phase="closing")]
    summary = small_sweep.records(rows, arms=arms).summary
    assert summary is not None
    *parts, whole = [row[3] for row in cost_table(summary, rows).rows]
    assert whole == "5"
    assert sum(map(int, parts)) == 5


def test_a_small_p_is_never_zero() -> None:
    summary, _ = _summary()
    pairs = [{**pair, "p": 2 / 2**20, "p_adjusted": 0.25} for pair in summary["comparisons"]]
    row = pairs_table({**summary, "comparisons": pairs}).rows[0]
    assert row[5:7] == ["< 0.0001", "0.2500"]
