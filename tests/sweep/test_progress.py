from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import small_sweep
from asymlora.sweep.progress import SweepProgress, cell_label
from asymlora.sweep.run_record import RunJob, RunRow
from asymlora.train.recipe import Recipe


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def job_of(row: RunRow) -> RunJob:
    """The job whose row this is, with an id of its own."""
    return RunJob(recipe=Recipe.from_dict(row.recipe), phase=row.phase, arm=row.arm, axes=row.axes, seed=row.seed)


def done(job: RunJob, **changes: Any) -> RunRow:
    """The row of a job of small_sweep that ended."""
    row = small_sweep.row(job.arm, lr=job.recipe.train.lr, seed=job.seed, phase=job.phase, axes=job.axes)
    return replace(row, id=job.id, **changes)


def jobs(arm: str = "init_a", *, lr: float = 1e-3, seeds: tuple[int, ...] = (100, 101)) -> list[RunJob]:
    return [job_of(small_sweep.row(arm, lr=lr, seed=seed)) for seed in seeds]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(clock: Clock) -> SweepProgress:
    made = SweepProgress(clock=clock)
    made.planned(["init_a", "b_only"], 10, each={"init_a": 6, "b_only": 4})
    return made


def test_a_run_is_waiting_then_running_then_ended(state: SweepProgress) -> None:
    (job, _) = jobs()
    assert (state.waiting("init_a"), state.running, state.ended_runs) == (6, 0, 0)
    state.started(job)
    assert (state.waiting("init_a"), state.running, state.ended_runs) == (5, 1, 0)
    state.ended(done(job))
    assert (state.waiting("init_a"), state.running, state.ended_runs) == (5, 0, 1)
    assert state.waiting("b_only") == 4
    assert state.cells["init_a"].ended == {"finished": 1}


def test_a_lost_run_waits_again(state: SweepProgress) -> None:
    (job, _) = jobs()
    state.started(job)
    state.lost(job)
    assert (state.waiting("init_a"), state.running, state.ended_runs) == (6, 0, 0)


def test_a_run_that_failed_earlier_is_not_done_and_one_of_this_session_is(state: SweepProgress) -> None:
    first, second = jobs()
    state.ended(done(first, status="failed"))
    assert state.ended_runs == 0
    state.started(second)
    state.ended(done(second, status="failed"))
    assert state.ended_runs == 1
    state.started(first)
    state.ended(done(first))
    assert state.ended_runs == 2
    assert state.cells["init_a"].ended == {"finished": 1, "failed": 1}


def test_time_left_is_the_steps_left_at_this_sessions_pace(state: SweepProgress, clock: Clock) -> None:
    stored, job = jobs()
    state.ended(done(stored, train_seconds=1e6))  # what an earlier session took does not count
    assert state.seconds_left() is None
    state.started(job)
    clock.now += 1000  # the model is loaded
    assert state.seconds_left() is None
    state.progress(job, 1, 80, {})
    clock.now += 20
    state.progress(job, 41, 80, {})
    # 40 steps in 20 s, and of 10 runs of 80 steps one is done and 41 steps of another.
    assert state.seconds_left() == pytest.approx((9 * 80 - 41) / 2)
    state.ended(done(job))
    assert state.seconds_left() == pytest.approx(8 * 80 * 20 / 79)


def test_time_left_is_known_without_steps_being_told(state: SweepProgress, clock: Clock) -> None:
    (job, other) = jobs()
    state.started(job)
    state.started(other)
    clock.now += 40
    state.ended(done(job))
    assert state.seconds_left() == pytest.approx(9 * 80 * 40 / 80)


def test_nothing_is_left_when_all_runs_have_ended(clock: Clock) -> None:
    state = SweepProgress(clock=clock)
    state.planned(["init_a"], 2)
    for job in jobs():
        state.started(job)
        clock.now += 3
        state.ended(done(job))
    assert state.seconds_left() == 0
    assert state.share() == 1


def test_share_counts_running_runs_in_parts(state: SweepProgress) -> None:
    first, second = jobs()
    state.started(first)
    state.ended(done(first))
    state.started(second)
    state.progress(second, 20, 80, {})
    assert state.share() == pytest.approx(1.25 / 10)


def test_newest_run_keeps_the_values_told_last(state: SweepProgress) -> None:
    first, second = jobs()
    for job in (first, second):
        state.started(job)
    state.progress(second, 5, 80, {"loss": 1.0})
    state.progress(second, 6, 80, {"accuracy": 0.5})
    newest = state.newest()
    assert newest is not None
    assert (newest.job, newest.step, newest.values) == (second, 6, {"loss": 1.0, "accuracy": 0.5})
    state.ended(done(second))
    assert state.newest() is not None
    assert state.newest().job == first  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize(("greater", "best"), [(True, 3e-3), (False, 1e-3)])
def test_best_rate_is_by_the_mean_in_the_metrics_direction(greater: bool, best: float, state: SweepProgress) -> None:
    for lr, values in ((1e-3, (0.1, 0.2)), (3e-3, (0.0, 0.9))):
        for job, value in zip(jobs(lr=lr), values, strict=True):
            state.ended(done(job, validation=value, greater_is_better=greater))
    found = state.cells["init_a"].best()
    assert found is not None
    assert (found.lr, found.seeds) == (best, 2)


@pytest.mark.parametrize("status", ["pruned", "diverged"])
def test_a_rate_with_a_run_that_was_stopped_or_diverged_is_not_best(status: str, state: SweepProgress) -> None:
    good, bad = jobs(lr=3e-3)
    (worse, _) = jobs(lr=1e-3)
    state.ended(done(good, validation=0.99))
    state.ended(done(bad, status=status, validation=0.99 if status == "pruned" else None))
    state.ended(done(worse, validation=0.5))
    found = state.cells["init_a"].best()
    assert found is not None
    assert (found.lr, found.mean, found.seeds) == (1e-3, 0.5, 1)


def test_closing_runs_count_for_the_test_figure_and_not_for_the_rate(state: SweepProgress) -> None:
    cell = state.cells["init_a"]
    assert (cell.best(), cell.test()) == (None, None)
    for seed in (0, 1):
        state.ended(small_sweep.row("init_a", lr=3e-3, seed=seed, phase="closing"))
    assert cell.best() is None
    test = cell.test()
    assert test is not None
    # small_sweep's test accuracy is the validation one less 0.01, rounded to 1e-4.
    wanted = sum(small_sweep.quality("init_a", 3e-3, seed) for seed in (0, 1)) / 2 - 0.01
    assert test.mean == pytest.approx(wanted, abs=1e-4)
    assert test.seeds == 2


def test_points_of_a_search_are_one_cell_unless_planned() -> None:
    state = SweepProgress()
    state.planned(["init_a"], 4)
    for rank in (4, 8):
        state.ended(small_sweep.row("init_a", lr=1e-3, seed=100, phase="search", axes={"adapter.rank": rank}))
    assert list(state.cells) == ["init_a"]
    best = state.cells["init_a"].best()
    assert best is not None
    assert best.seeds == 1  # of one point, though both have one rate
    state.ended(small_sweep.row("init_a", lr=1e-3, seed=100, axes={"adapter.rank": 4}))
    assert list(state.cells) == ["init_a", "init_a, adapter.rank 4"]


def test_cells_stand_in_the_plans_order_whatever_ended_first() -> None:
    state = SweepProgress()
    state.ended(small_sweep.row("other", lr=1e-3, seed=100))
    state.ended(small_sweep.row("b_only", lr=1e-3, seed=100))
    state.planned(["init_a", "b_only"], 4)
    assert list(state.cells) == ["init_a", "b_only", "other"]
    assert state.ended_runs == 2


def test_label_names_every_axis() -> None:
    assert cell_label("b_only", {"adapter.rank": 4, "train.batch_size": 16}) == (
        "b_only, adapter.rank 4, train.batch_size 16"
    )
