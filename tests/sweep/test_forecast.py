"""What a sweep will take, added up from a worker whose times are known."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from asymlora.sweep.axes import parse_arm, parse_rates
from asymlora.sweep.executors import Progress
from asymlora.sweep.forecast import PROBE_STEPS, forecast, planned_runs
from asymlora.sweep.grid import SweepPlan, cells
from asymlora.sweep.run_record import RunJob, RunRow
from asymlora.sweep.searching import Search, parse_searched
from asymlora.train.recipe import Recipe

LOADING, SETUP, STEP, VALIDATION, TEST = 20.0, 1.0, 0.5, 3.0, 7.0


@dataclass
class Clockwork:
    """Takes known times; the first run loads."""

    broken: bool = False
    done: list[RunJob] = field(default_factory=list[RunJob])

    def run(self, job: RunJob, *, progress: Progress | None = None) -> RunRow:
        """Do a run."""
        self.done.append(job)
        steps = job.recipe.train.steps
        return RunRow(
            id=job.id, phase=job.phase, arm=job.arm, axes={}, seed=job.seed, repeat=0, lr=1.0, rank=1, recipe={},
            status="failed" if self.broken else "finished", error="It broke." if self.broken else None, steps=steps,
            setup_seconds=SETUP + (LOADING if len(self.done) == 1 else 0.0), train_seconds=STEP * steps,
            evaluate_seconds=VALIDATION + (TEST if job.scores_test else 0.0), peak_memory_bytes=123,
        )  # fmt: skip


def _plan(**values: object) -> SweepPlan:
    given: dict[str, object] = {
        "recipe": Recipe.from_dict({"train": {"steps": 40, "evaluate_every": 10}}),
        "arms": (parse_arm("b_only"), parse_arm("init_a")),
        "rates": parse_rates("1e-4..1e-2:2"),
        "repeats": 1,
        **values,
    }
    return SweepPlan(**given)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("workers", [1, 4])
def test_the_times_add_up(workers: int) -> None:
    plan, work = _plan(), Clockwork()
    found = forecast(planned_runs(plan, cells(plan)), work, workers=workers)
    each = SETUP + 40 * STEP + 4 * VALIDATION
    wanted = {"tuning": (10, 10 * each), "closing": (6, 6 * (each + TEST)), "repeat": (1, each + TEST)}
    assert {(row["cell"], row["phase"]): (row["runs"], row["seconds"]) for row in found["rows"]} == {
        (cell, phase): value for cell in ("b_only", "init_a") for phase, value in wanted.items()
    }
    assert found["seconds"] == pytest.approx(2 * sum(seconds for _, seconds in wanted.values()) / workers + LOADING)
    assert found["memory_bytes"] == 123
    assert ("workers" in found["notes"][0]) == (workers > 1)


def test_only_a_few_steps_are_taken() -> None:
    plan, work = _plan(), Clockwork()
    forecast(planned_runs(plan, cells(plan)), work, workers=1)
    assert {job.recipe.train.steps for job in work.done} == {PROBE_STEPS}
    assert len(work.done) == 2 * 3
    assert not any(job.keeps_adapter or job.rivals for job in work.done)


def test_a_run_shorter_than_a_probe_is_probed_whole() -> None:
    plan, work = _plan(recipe=Recipe.from_dict({"train": {"steps": 2, "evaluate_every": 1}})), Clockwork()
    forecast(planned_runs(plan, cells(plan)), work, workers=1)
    assert {job.recipe.train.steps for job in work.done} == {2}


def test_what_cannot_run_has_no_time_and_says_why() -> None:
    plan = _plan()
    found = forecast(planned_runs(plan, cells(plan)), Clockwork(broken=True), workers=1, notes=["A note."])
    assert {row["seconds"] for row in found["rows"]} == {None}
    assert found["seconds"] is None
    assert found["notes"][1:] == ["b_only: It broke.", "init_a: It broke.", "A note."]


def test_one_rate_has_no_tuning_and_a_search_no_grid() -> None:
    alone = _plan(rates=(1e-3,))
    assert {group.phase for group in planned_runs(alone, cells(alone))} == {"closing", "repeat"}
    search = _plan(search=Search(space=(parse_searched("train.lr=1e-4..1e-2"),), trials=7))
    groups = {(g.cell, g.phase): g.runs for g in planned_runs(search, cells(search))}
    assert groups["b_only", "search"] == 7 * 2
    assert ("b_only", "tuning") not in groups
