from __future__ import annotations

import pytest

from asymlora.report.reproduction_panels import course_panel, rate_panel
from sweep.made_rows import closing, plan, row, tuning

PLAN = plan(["init_a", "init_b", "third"])
ROWS = [
    *tuning("init_a", {1e-4: 0.5, 1e-3: 0.9, 1e-2: "diverged"}),
    *tuning("init_b", {1e-4: 0.7, 1e-3: 0.6, 1e-2: 0.1}),
    row("init_a", lr=1e-4, seed=999, value=0.1),  # of no tuning seed
]


def test_a_panel_of_rates_has_what_each_tuning_seed_reached_on_validation() -> None:
    panel = rate_panel("TREC-6", PLAN, rows=ROWS, scale=100.0)
    assert panel.title == "TREC-6"
    assert list(panel.lines) == ["Init[A]", "Init[B]"]
    assert panel.lines["Init[A]"] == {1e-4: pytest.approx([51, 49]), 1e-3: pytest.approx([91, 89]), 1e-2: []}


def test_it_marks_the_best_rate_the_edge_and_where_runs_were_lost() -> None:
    panel = rate_panel("", PLAN, rows=ROWS)
    assert panel.best == {"Init[A]": 1e-3, "Init[B]": 1e-4}
    assert panel.lost == {"Init[A]": [1e-2]}
    # No run of Init[B] was lost, so the edge of its stability was not found.
    assert panel.edge == {"Init[A]": 1e-3}


def test_a_rate_at_which_a_run_collapsed_is_lost_too() -> None:
    ended = {1e-4: 0.5, 1e-3: 0.2, 1e-2: 0.99}
    rows = [
        row("init_a", lr=lr, seed=seed, value=0.5, losses={"step": [1, 2], "loss": [1.0, end]})
        for lr, end in ended.items()
        for seed in (100, 101)
    ]
    panel = rate_panel("", PLAN, rows=rows)
    assert (panel.lost, panel.edge) == ({"Init[A]": [1e-2]}, {"Init[A]": 1e-3})


def test_it_may_show_the_last_training_loss() -> None:
    panel = rate_panel("", PLAN, rows=ROWS, quantity="last loss", names={"init_b": "B"})
    assert panel.lines["B"] == {lr: [0.5, 0.5] for lr in (1e-4, 1e-3, 1e-2)}
    assert panel.lines["init_a"][1e-4] == [0.5, 0.5]


def test_a_course_is_of_the_closing_runs_that_are_quoted() -> None:
    dynamics = {"step": [1, 2], "Z_A": [1.0, 2.0], "grad_A": [None, 3.0]}
    rows = [*ROWS, *closing("init_a", 1e-3, [0.9, 0.8], dynamics=dynamics), *closing("init_b", 1e-4, [0.7])]
    assert course_panel("Z_A", rows, quantity="Z_A").lines == {"Init[A]": {1.0: [1.0, 1.0], 2.0: [2.0, 2.0]}}
    assert course_panel("grad", rows, quantity="grad_A").lines == {"Init[A]": {2.0: [3.0, 3.0]}}
    assert course_panel("loss", rows, quantity="loss").lines["Init[B]"] == {1.0: [1.0], 2.0: [0.5]}


def test_a_course_of_tuning_runs_is_at_the_best_rate() -> None:
    rows = [
        *tuning("init_a", {1e-4: 0.5}, losses={"step": [9], "loss": [1.0]}),
        *tuning("init_a", {1e-3: 0.9}, losses={"step": [9], "loss": [0.25]}),
    ]
    assert course_panel("", rows, quantity="loss", phase="tuning").lines == {"Init[A]": {9.0: [0.25, 0.25]}}
