from __future__ import annotations

from dataclasses import replace

import pytest

from asymlora.papers.feature_readings import of_sweep, of_traces, reading_of
from asymlora.reproduce.evidence import MissingEvidenceError, SweepEvidence
from papers.made_features import EFFICIENT, ONE_SIDED, swept, traces

ARMS = {"init_a": EFFICIENT, "init_b": ONE_SIDED}
COURSES = {
    "step": [0, 1, 2, 10, 15],
    "Z_A": [0.0, 0.0, 0.5, 1.0, 2.0],
    "delta1": [None, 0.0, 0.4, 0.2, 0.1],
    "delta2": [None, 0.0, 0.0, 0.1, 0.1],
    "delta3": [None, 0.0, 0.0, 0.01, 0.1],
}


def test_a_reading_takes_the_step_nearest_to_two_thirds_of_the_run() -> None:
    reading = reading_of(COURSES, steps=15, moved={"A": None, "B": 0.25})
    assert reading.step == 10
    assert reading.parts == (0.2, 0.1, 0.01)
    assert (reading.of_B, reading.balance) == (0.5, 0.5)
    assert reading.joint == pytest.approx(10 * 0.05)
    assert reading.moved == {"B": 0.25}


def test_a_reading_begins_where_something_moves() -> None:
    reading = reading_of(COURSES, steps=15, moved={})
    # A rate that warms up from zero moves nothing in its first step.
    assert reading.first_parts == (0.4, 0.0, 0.0)
    assert (reading.Z_A, reading.growth) == (2.0, 4.0)


def test_balance_is_the_same_whichever_part_is_larger() -> None:
    swapped = {**COURSES, "delta1": COURSES["delta2"], "delta2": COURSES["delta1"]}
    assert reading_of(swapped, steps=15, moved={}).balance == 0.5


@pytest.mark.parametrize("wrong", [{"delta2": []}, {"delta1": [None] * 5}, {"Z_A": [1.0, 1.0, 1.0, 1.0, None]}])
def test_what_was_not_measured_or_overflowed_is_missing(wrong: dict[str, list[float | None]]) -> None:
    with pytest.raises(MissingEvidenceError):
        reading_of({**COURSES, **wrong}, steps=15, moved={})


def test_traces_and_rows_of_a_sweep_are_read_alike() -> None:
    traced = of_traces(traces((64,), {arm: {64: course} for arm, course in ARMS.items()}), 64)
    run = of_sweep(swept(ARMS))
    for arm, course in ARMS.items():
        for seed in range(6):
            for reading in (traced[arm][seed], run[arm][seed]):
                assert reading.of_B == pytest.approx(course.of_B * (1 + 0.01 * seed))
                assert reading.joint == pytest.approx(course.joint * (1 + 0.01 * seed))
                assert (reading.growth, reading.Z_A) == pytest.approx((course.growth, course.end * (1 + 0.01 * seed)))
                assert reading.moved == {
                    "A" if arm == "init_a" else "B": pytest.approx(course.moved * (1 + 0.01 * seed))
                }
        assert (traced[arm][0].step, run[arm][0].step) == (63, 60)


def test_runs_at_another_rate_or_that_did_not_finish_are_not_read() -> None:
    sweep = swept(ARMS)
    rows = [
        replace(row, lr=1e-4) if (row.phase, row.seed) == ("closing", 0)
        else replace(row, status="diverged") if (row.phase, row.seed) == ("closing", 1)
        else replace(row, dynamics={}) if (row.phase, row.seed) == ("closing", 2)
        else row
        for row in sweep.rows
    ]  # fmt: skip
    found = of_sweep(SweepEvidence(plan=sweep.plan, rows=rows))
    assert {arm: list(readings) for arm, readings in found.items()} == {"init_a": [3, 4, 5], "init_b": [3, 4, 5]}


def test_a_start_without_runs_is_missing() -> None:
    with pytest.raises(MissingEvidenceError, match="width 64"):
        of_traces(traces((64,), {"init_a": {64: EFFICIENT}}), 64)
    sweep = swept(ARMS)
    rows = [row for row in sweep.rows if row.phase == "tuning" or row.arm == "init_a"]
    with pytest.raises(MissingEvidenceError, match="closing runs"):
        of_sweep(SweepEvidence(plan=sweep.plan, rows=rows))
