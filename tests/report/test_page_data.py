from __future__ import annotations

import json
from dataclasses import replace

import pytest

import small_sweep
from asymlora.report.page_data import cell_labels, page_data, row_label, spans


def test_every_run_is_there_once_with_the_number_of_its_row() -> None:
    rows = small_sweep.rows()
    data = page_data(rows, similarity=[], summary={}, name="mine")
    assert [run["n"] for run in data["runs"]] == list(range(1, len(rows) + 1))
    for run, row in zip(data["runs"], rows, strict=True):
        assert (run["lr"], run["s"], run["st"], run["p"]) == (row.lr, row.seed, row.status, row.phase)
        assert run.get("v") == row.validation
        assert data["cells"][run["c"]]["label"] == row.arm


def test_curves_come_back_as_they_were_recorded() -> None:
    rows = small_sweep.rows()
    data = page_data(rows, similarity=[], summary={}, name="mine")
    for run, row in zip(data["runs"], rows, strict=True):
        assert data["steps"][run["l"]["at"]] == row.losses["step"]
        assert run["l"]["loss"] == pytest.approx(row.losses["loss"], rel=1e-4)
        assert data["steps"][run["d"]["at"]] == row.dynamics["step"]
        assert [value is None for value in run["d"]["delta1"]] == [value is None for value in row.dynamics["delta1"]]


def test_runs_recorded_at_the_same_steps_share_them() -> None:
    rows = [small_sweep.row("init_a", lr=1e-3, seed=seed) for seed in range(20)]
    data = page_data(rows, similarity=[], summary={}, name="mine")
    assert len(data["steps"]) == 3  # of losses, scores and dynamics


def test_a_number_that_is_not_finite_is_absent_and_never_reaches_json() -> None:
    bad = replace(
        small_sweep.row("init_a", lr=1e-3, seed=0),
        validation=float("nan"),
        losses={"step": [10, 20], "loss": [1.0, float("inf")]},
    )
    data = page_data([bad], similarity=[], summary={}, name="mine")
    assert data["runs"][0]["l"]["loss"] == [1.0, None]
    assert "v" not in data["runs"][0]
    json.dumps(data, allow_nan=False)


def test_without_runs_or_summary_there_is_nothing_but_a_name() -> None:
    data = page_data([], similarity=[], summary={}, name="mine")
    assert (data["name"], data["runs"], data["cells"]) == ("mine", [], [])


def test_cells_are_named_as_the_summary_names_them_and_marked_with_its_intervals() -> None:
    records = small_sweep.records(small_sweep.rows(arms=("init_a", "b_only"), ranks=(4, 8)))
    summary = records.summary
    assert summary is not None
    assert cell_labels(records.rows, summary) == [cell["label"] for cell in summary["cells"]]
    data = page_data(records.rows, similarity=[], summary=summary, name="mine")
    assert [cell["interval"] for cell in data["cells"]] == [cell["interval"] for cell in summary["cells"]]
    assert data["cells"][0]["closing"] == list(small_sweep.CLOSING_SEEDS)


def test_cells_on_an_axis_of_lists_are_those_of_the_summary() -> None:
    rows = [replace(row, axes={"adapter.targets": ["q", "v"]}) for row in small_sweep.rows(arms=("init_a",))]
    records = small_sweep.records(rows, arms=("init_a",), axes={"adapter.targets": [["q", "v"]]})
    assert records.summary is not None
    (cell,) = page_data(rows, similarity=[], summary=records.summary, name="mine")["cells"]
    assert cell["label"] == "init_a, adapter.targets q+v"
    assert cell["best_rate"] == records.summary["cells"][0]["best_rate"] is not None


def test_points_of_a_search_are_one_cell_for_each_arm() -> None:
    points = [small_sweep.row("b_only", lr=lr, seed=0, phase="search", axes={"train.batch_size": n})
              for n, lr in enumerate((1e-3, 2e-3))]  # fmt: skip
    assert {row_label(row) for row in points} == {"b_only, searched"}
    assert row_label(replace(points[0], phase="tuning")) == "b_only, train.batch_size 0"


def test_pairs_of_adapters_point_at_their_runs_and_keep_every_site() -> None:
    rows = small_sweep.rows(arms=("init_a", "b_only"), seeds=(0, 1))
    pairs = small_sweep.similarity(rows)
    found = page_data(rows, similarity=pairs, summary={}, name="mine")["similarity"]
    assert found["sites"] == list(small_sweep.SITES)
    assert found["strangers"] == 0
    assert len(found["pairs"]) == 6  # of four closing runs
    for row in pairs:
        (pair,) = [p for p in found["pairs"] if (rows[p["a"]].id, rows[p["b"]].id) == (row["first"], row["second"])]
        assert pair[row["factor"]][small_sweep.SITES.index(row["site"])] == row["cca"]
        assert pair["chance"][row["factor"]] == pytest.approx(8 / 384, rel=1e-4)


def test_rows_of_adapters_that_no_run_left_are_counted() -> None:
    rows = small_sweep.rows(arms=("init_a",), seeds=(0, 1))
    pairs = small_sweep.similarity(rows)
    pairs[0] = {**pairs[0], "first": "somebody else's"}
    found = page_data(rows, similarity=pairs, summary={}, name="mine")["similarity"]
    assert found["strangers"] == 1
    assert found["pairs"][0]["A"][0] is None


def test_an_adapter_may_be_named_by_its_folder() -> None:
    rows = small_sweep.rows(arms=("init_a",), seeds=(0, 1))
    pairs = [{**pair, "first": f"adapters/{pair['first']}"} for pair in small_sweep.similarity(rows)]
    assert page_data(rows, similarity=pairs, summary={}, name="mine")["similarity"]["strangers"] == 0


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([5], "5"), ([2, 1, 1], "1-2"), ([1, 3, 5], "1, 3, 5")])
def test_spans(numbers: list[int], text: str) -> None:
    assert spans(numbers) == text
