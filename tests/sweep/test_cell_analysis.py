"""One cell: its curve, its best rate, its closing figures, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from asymlora.sweep.cell_analysis import PlanView, analyse_cell, cells_of, spent
from asymlora.sweep.noise import noise_floor
from asymlora.sweep.run_record import RunRow
from asymlora.sweep.statistics import ALPHA
from asymlora.sweep.summary import CellSummary, SeedValue
from sweep.made_rows import closing, plan, row, tuning

SIX = (0.80, 0.82, 0.81, 0.83, 0.79, 0.81)
CURVE = {1e-4: 0.7, 1e-3: 0.8, 1e-2: "diverged"}


def _cell(rows: Sequence[RunRow], noise: Sequence[float] = (0.1, 0.2), **of_plan: Any) -> CellSummary:
    view = PlanView.of(plan(["a"], **of_plan), rows)
    (cell,) = cells_of(view, rows)
    return analyse_cell(cell, view, noise=noise_floor([noise], of="made up"), resamples=99)


def test_the_curve_holds_each_seed_the_mean_and_how_runs_ended() -> None:
    found = _cell(tuning("a", CURVE))
    assert [point.lr for point in found.rates] == [1e-4, 1e-3, 1e-2]
    assert [point.status for point in found.rates] == ["finished", "finished", "diverged"]
    assert found.rates[0].values == (SeedValue(100, 0.71), SeedValue(101, 0.69))
    assert [point.mean for point in found.rates] == [pytest.approx(0.7), pytest.approx(0.8), None]
    assert found.rates[0].losses == (SeedValue(100, 0.5), SeedValue(101, 0.5))
    assert found.rates[2].diverged == (100, 101)
    assert (found.largest_stable, found.divergence_edge) == (1e-3, 1e-2)


def test_the_best_rate_is_interior_with_a_diverged_rate_above_it() -> None:
    found = _cell(tuning("a", CURVE) + closing("a", 1e-3, SIX))
    assert (found.best_rate, found.best_at, found.at_bound) == (1e-3, "interior", False)
    assert found.best_validation == pytest.approx(0.8)
    assert found.caveats == ()


@pytest.mark.parametrize(("bounds", "at_bound"), [((1e-4, 1e-2), True), ((1e-4, 1.0), False)])
def test_a_best_rate_at_the_end_is_a_caveat_that_names_the_bound(bounds: tuple[float, float], at_bound: bool) -> None:
    found = _cell(tuning("a", {1e-4: 0.6, 1e-3: 0.7, 1e-2: 0.8}), bounds=bounds)
    assert (found.best_at, found.at_bound) == ("upper end", at_bound)
    (caveat,) = found.caveats
    assert caveat.startswith("The rate of a is the largest of the tried ones")
    assert ("where the plan's bound stops the grid" in caveat) == at_bound


def test_closing_figures_are_those_of_the_best_rate() -> None:
    found = _cell(tuning("a", CURVE) + closing("a", 1e-3, SIX) + closing("a", 1e-4, [0.1] * 6))
    assert found.closing_rate == 1e-3
    assert [value for _, value in found.closing] == list(SIX)
    assert found.mean == found.test["accuracy"] == found.closing_validation == pytest.approx(0.81)
    # Squares around 0.81: 0.0001 * (1 + 1 + 0 + 4 + 4 + 0) over 5.
    assert found.deviation == pytest.approx(math.sqrt(0.001 / 5))
    assert found.before == {"accuracy": 0.25}
    assert found.closing_loss == 0.5
    assert found.interval is not None
    assert found.interval.low <= 0.81 <= found.interval.high


def test_closing_runs_at_another_rate_alone_are_quoted_with_a_caveat() -> None:
    found = _cell(tuning("a", CURVE) + closing("a", 1e-4, SIX))
    assert found.closing_rate == 1e-4
    assert found.caveats == ("The closing runs of a are at 1e-4, not at its best rate 1e-3.",)


def test_closing_runs_that_diverged_or_failed_have_no_figure_and_are_named() -> None:
    rows = tuning("a", CURVE) + closing("a", 1e-3, SIX[:4], health=["B is zero"])
    rows.append(row("a", lr=1e-3, seed=4, phase="closing", status="diverged", health=["head is zero"]))
    rows.append(row("a", lr=1e-3, seed=5, phase="closing", status="failed"))
    rows.append(row("a", lr=1e-3, seed=6, phase="closing", value=0.8, test={"accuracy": math.nan}))
    found = _cell(rows)
    assert [seed for seed, _ in found.closing] == [0, 1, 2, 3]
    assert (found.closing_diverged, found.closing_failed) == ((4,), (5,))
    assert found.health == {"B is zero": 4, "head is zero": 1}
    assert "1 of 7 closing runs of a diverged; its figures are those of the others." in found.caveats


def test_one_rate_alone_is_not_tuned_and_says_so() -> None:
    found = _cell(closing("a", 1e-3, SIX), rates=[1e-3])
    assert (found.best_rate, found.best_at, found.closing_rate) == (None, None, 1e-3)
    assert found.caveats == ("The rate of a was not tuned.",)


def test_nothing_but_failures_leaves_everything_open() -> None:
    found = _cell(tuning("a", {1e-4: "failed", 1e-3: "diverged"}))
    assert (found.best_rate, found.best_validation, found.basin, found.rate_doubt) == (None, None, None, None)
    assert (found.mean, found.interval, found.closing) == (None, None, ())


def test_the_basins_floor_is_the_standard_error_of_a_mean_of_the_tuning_seeds() -> None:
    found = _cell(tuning("a", {1e-4: 0.7, 1e-3: 0.8, 1e-2: "pruned"}))
    assert found.basin is not None
    # The deviation of 0.1 and 0.2 is 0.1 / sqrt(2); the error of a mean of two is 0.05: half of a decade below.
    assert found.basin.floor == pytest.approx(0.05)
    assert found.basin.low == pytest.approx(10**-3.5)
    assert (found.basin.low_end, found.basin.high_end) == ("crossed", "pruned")


@pytest.mark.parametrize(("cells", "quantile"), [(2, 1.644854), (3, 1.959964)])
def test_the_doubt_about_the_rate_is_a_bound_on_what_the_others_could_add(cells: int, quantile: float) -> None:
    rows = tuning("a", {1e-4: 0.7, 1e-3: 0.8, 1e-2: 0.79})
    view = PlanView.of(plan("abc"[:cells]), rows)
    (cell,) = cells_of(view, rows)
    found = analyse_cell(cell, view, noise=noise_floor([(0.1, 0.2)], of="made up"), resamples=99)
    # Normal points of any table, at 0.05 over the number of rivals; two means differ with an error of 0.05 * sqrt(2).
    assert ALPHA == 0.05
    assert found.rate_doubt == pytest.approx(quantile * 0.05 * math.sqrt(2) - 0.01, rel=1e-5)
    sharp = analyse_cell(cell, view, noise=noise_floor([(0.1, 0.1001)], of="made up"), resamples=99)
    assert sharp.rate_doubt == 0.0


@pytest.mark.parametrize(("then", "doubted"), [(0.79, True), (0.5, False)])
def test_a_rate_that_was_stopped_early_counts_by_how_far_it_was_behind_then(then: float, doubted: bool) -> None:
    whole = tuning("a", {1e-3: 0.8}, scores={"step": [20, 80], "value": [0.7, 0.8]})
    stopped = [row("a", lr=1e-2, seed=seed, value=then - 0.1, status="pruned") for seed in (100, 101)]
    found = _cell(whole + stopped)
    # The error of a difference of means, 0.1 / sqrt(2), at the 5 % point of a normal curve; behind at step 20.
    gap = 0.7 - (then - 0.1)
    assert found.rate_doubt is not None
    assert found.rate_doubt == pytest.approx(max(0.0, 1.644854 * 0.1 / math.sqrt(2) - gap), abs=1e-6)
    assert (found.rate_doubt > 0) == doubted


def test_a_search_belongs_to_the_cell_that_it_ended_with() -> None:
    points = {(1e-3, 8): 0.8, (1e-3, 4): 0.79, (2e-3, 8): 0.7}
    searched = [
        found
        for (lr, rank), mean in points.items()
        for found in tuning("a", {lr: mean}, phase="search", axes={"adapter.rank": rank})
    ]
    found = _cell(searched + closing("a", 1e-3, SIX, axes={"adapter.rank": 8}))
    assert (found.label, found.axes, found.rates) == ("a, adapter.rank 8", {"adapter.rank": 8}, ())
    assert (found.cost["search"].runs, found.cost["closing"].runs) == (6, 6)
    assert found.rate_doubt == pytest.approx(1.644854 * 0.1 / math.sqrt(2) - 0.01, abs=1e-6)
    assert found.caveats == ()


def test_a_search_of_one_rate_is_not_tuned_and_one_without_closing_runs_is_no_cell() -> None:
    searched = tuning("a", {1e-3: 0.8}, phase="search", axes={"adapter.rank": 8})
    assert cells_of(PlanView.of(plan(["a"]), searched), searched) == []
    found = _cell(searched + closing("a", 1e-3, SIX, axes={"adapter.rank": 8}))
    assert found.caveats == ("The rate of a, adapter.rank 8 was not tuned.",)


def test_a_cell_without_a_stable_rate_says_why_it_is_not_quoted() -> None:
    found = _cell(tuning("a", {1e-4: "diverged", 1e-3: "diverged"}))
    assert found.caveats == ("No rate of a has finished with all its seeds, so it has no closing runs.",)


def test_where_less_is_better_the_lowest_mean_is_best() -> None:
    rows = tuning("a", {1e-4: 0.9, 1e-3: 0.5, 1e-2: 0.52}, greater_is_better=False, metric="loss")
    found = _cell(rows, noise=(0.1, 0.1001))
    assert (found.best_rate, found.best_at) == (1e-3, "interior")
    assert found.rate_doubt == 0.0


def test_without_tuning_seeds_nothing_is_known_of_other_rates() -> None:
    assert _cell(closing("a", 1e-3, SIX), tuning_seeds=[]).rate_doubt is None


def test_costs_count_every_run_and_what_early_stopping_saved() -> None:
    found = spent(tuning("a", {1e-4: 0.7, 1e-3: "pruned", 1e-2: "diverged"}))
    assert (found.runs, found.steps, found.planned_steps) == (6, 2 * (80 + 20 + 5), 480)
    # A run that diverged was not saved by stopping it.
    assert found.saved_steps == 2 * 60
    assert found.seconds == pytest.approx(6 * 2.75)
    assert found.flops == 10 * found.steps
    assert spent([row("a", lr=1.0, seed=0, flops_per_step=None)]).flops is None
    assert spent([]).runs == 0


def test_cells_come_in_the_plans_order_and_searches_are_none() -> None:
    rows = [
        row("b", lr=1e-3, seed=100, axes={"adapter.rank": 4}),
        row("a", lr=1e-3, seed=100, axes={"adapter.rank": 8}),
        row("new", lr=1e-3, seed=100),
        row("a", lr=1e-3, seed=100, axes={"adapter.rank": 4}),
        row("a", lr=2e-3, seed=100, phase="search"),
    ]
    view = PlanView.of(plan(["a", "b"], axes=[{"field": "adapter.rank", "values": [4, 8]}]), rows)
    labels = [cell.label for cell in cells_of(view, rows)]
    assert labels == ["a, adapter.rank 4", "a, adapter.rank 8", "b, adapter.rank 4", "new"]
    assert view.cells == 4


def test_a_plan_without_words_is_read_from_the_rows() -> None:
    view = PlanView.of({}, tuning("a", CURVE) + closing("a", 1e-3, SIX))
    assert (view.rates, view.tuning_seeds, view.closing_seeds) == ((1e-4, 1e-3, 1e-2), (100, 101), (0, 1, 2, 3, 4, 5))
    assert view.margin is None
    assert PlanView.of({}, []).rates == ()
