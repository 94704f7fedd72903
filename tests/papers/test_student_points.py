from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch

from asymlora.papers import student_points
from asymlora.papers.student_points import (
    MOST_GROWTH,
    TRACED,
    measure_sweep,
    measure_trace,
    rates_around,
    sweep_points,
    trace_points,
    tuned_rate,
)
from asymlora.reproduce.evidence import Record
from asymlora.theory.teacher_student import TeacherStudent, draw_data, draw_student, sweep, train

TINY: dict[str, Any] = {"train_points": 20, "test_points": 5, "teacher_width": 16, "steps": 10}
SETTINGS = TeacherStudent(**TINY)


def test_the_grid_follows_the_width_between_the_two_laws() -> None:
    middles = [rates_around(width, 7)[3] for width in (128, 512, 2048, 8192)]
    assert middles[0] == -5
    # Six octaves of width: between three octaves of the rate (n^-1/2) and six (n^-1).
    assert -6 < middles[-1] - middles[0] < -3
    assert len(rates_around(4096, 7)) == 7


def test_points_are_plain_and_stand_once() -> None:
    points = (*sweep_points((128, 512), (0, 1)), *trace_points((128, 512)))
    texts = [json.dumps(point, sort_keys=True) for point in points]
    assert len(texts) == len(set(texts)) == 2 * 2 * 2 + 2 * 2
    assert all(not set(point["tuning_seeds"]) & set(point["closing_seeds"]) for point in trace_points((128,)))


def test_a_sweep_trains_what_the_theory_trains() -> None:
    records = measure_sweep({"width": 8, "scheme": "init_b", "seed": 3, "log2_rates": [-6, -4], **TINY})
    expected = list(sweep(SETTINGS, widths=[8], schemes=["init_b"], rates=[2.0**-6, 2.0**-4], seeds=[3]))
    assert [record["log2_rate"] for record in records] == [-6, -4]
    for record, known in zip(records, expected, strict=True):
        assert all(record[name] == known[name] for name in ("width", "scheme", "seed", "train_loss", "Z_A", "Z_B"))


def test_what_diverges_has_no_loss() -> None:
    point = {"width": 8, "scheme": "init_a", "seed": 0, "log2_rates": [100], "activation": "identity", **TINY}
    (record,) = measure_sweep(point)
    assert record["train_loss"] is None
    json.dumps(record, allow_nan=False)


# The grid of rates ----------------------------------------------------------------------------------------------


class Valley:
    """Losses that are lowest at one rate, in the place of training."""

    def __init__(self, best: float) -> None:
        self.best = best
        self.tried: list[tuple[int, int]] = []

    def __call__(self, point: Mapping[str, Any], rates: Sequence[int], seed: int) -> Iterator[dict[str, Any]]:
        for rate in rates:
            self.tried.append((rate, seed))
            yield {"log2_rate": rate, "train_loss": None if rate > 20 else (rate - self.best) ** 2 + seed}


@pytest.mark.parametrize(("best", "found"), [(-5, (-5, True)), (-8, (-8, True)), (-2, (-2, True))])
def test_the_rate_is_tuned_until_it_is_interior(
    best: int, found: tuple[int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    valley = Valley(best)
    monkeypatch.setattr(student_points, "_losses", valley)
    (point, _) = trace_points((128,))
    assert tuned_rate(point) == found
    assert {(best - 1, 400), (best + 1, 401)} <= set(valley.tried)
    assert len(valley.tried) == len(set(valley.tried))


@pytest.mark.parametrize("side", [-1, 1])
def test_the_grid_stops_growing(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student_points, "_losses", Valley(100.0 * side))
    (point, _) = trace_points((128,))
    end = point["log2_rates"][0 if side < 0 else -1]
    assert tuned_rate(point) == (end + side * MOST_GROWTH, False)


def test_a_rate_at_which_a_seed_diverges_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student_points, "_losses", Valley(21.0))
    (point, _) = trace_points((128,))
    assert tuned_rate({**point, "log2_rates": [18, 19, 20, 21, 22]})[0] == 20


def test_a_sweep_goes_on_until_the_best_rate_of_the_seed_is_interior(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student_points, "_losses", Valley(-8))
    (point,) = (p for p in sweep_points((128,), (300,)) if p["scheme"] == "init_a")
    # The first grid is -8 to -2, so one octave more is tried.
    assert [record["log2_rate"] for record in measure_sweep(point)] == list(range(-9, -1))
    monkeypatch.setattr(student_points, "_losses", Valley(-100.0))
    assert min(record["log2_rate"] for record in measure_sweep(point)) == -8 - MOST_GROWTH


def test_a_sweep_of_which_every_run_diverged_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student_points, "_losses", Valley(0.0))
    point = {"width": 128, "scheme": "init_a", "seed": 0, "log2_rates": [21, 22, 23], "growth": MOST_GROWTH}
    assert [record["log2_rate"] for record in measure_sweep(point)] == [21, 22, 23]


# Traces --------------------------------------------------------------------------------------------------------------


def trace(scheme: str, **more: Any) -> list[Record]:
    """Trace two seeds of a tiny student."""
    point = {"width": 8, "scheme": scheme, "log2_rates": [-6, -5, -4], "tuning_seeds": [200], "closing_seeds": [0, 1]}
    return measure_trace({**point, **TINY, **more})


@pytest.mark.parametrize("scheme", ["init_a", "init_b"])
def test_a_trace_ends_where_the_same_run_ends_without_it(scheme: str) -> None:
    for record in trace(scheme):
        seed, rate = record["seed"], 2.0 ** record["log2_rate"]
        data, student = draw_data(SETTINGS, seed), draw_student(SETTINGS, 8, scheme, seed)
        outcome = train(SETTINGS, data, student, scheme=scheme, rate=rate, seed=seed)
        assert record["train_loss"] == outcome.train_loss
        assert (record["Z_A"][-1], record["Z_B"][-1]) == (outcome.Z_A, outcome.Z_B)
        assert record["step"] == [0, *(step for step in TRACED if step <= 10)]
        json.dumps(record, allow_nan=False)


@pytest.mark.parametrize(
    ("scheme", "letter", "alone", "others"),
    [("init_a", "A", "delta2", ("delta1", "delta3")), ("init_b", "B", "delta1", ("delta2", "delta3"))],
)
def test_a_trace_begins_at_the_start_and_with_a_step_of_one_factor(
    scheme: str, letter: str, alone: str, others: tuple[str, str]
) -> None:
    record = trace(scheme)[0]
    assert record["Z_B"][0] == 0
    assert (record["Z_A"][0] == 0) == (scheme == "init_b")
    assert record["delta1"][0] is None
    assert record[alone][1] > 0
    assert [record[name][1] for name in others] == [0, 0]
    assert record[f"moved_{letter}"] > 0
    assert record["moved_B" if letter == "A" else "moved_A"] is None


def test_the_parts_of_a_step_bound_the_change_of_the_output() -> None:
    for scheme in ("init_a", "init_b"):
        record = trace(scheme)[0]
        for at in (1, 2, 3, 4):  # steps in a row
            change = record["Z_B"][at] - record["Z_B"][at - 1]
            parts = sum(record[name][at] for name in ("delta1", "delta2", "delta3"))
            # Means of absolute values: the triangle inequality, and rounding in float32.
            assert abs(change) <= parts * (1 + 1e-4)


def test_nothing_listens_after_a_trace_even_after_an_error() -> None:
    data, student = draw_data(SETTINGS, 0), draw_student(SETTINGS, 8, "init_a", 0)
    path = student_points.frozen_path(SETTINGS, data, student)
    listening = student_points.Trace(path, student)
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with pytest.raises(KeyError), student_points.listening(listening):
        raise KeyError
    weight.grad = torch.ones(2)
    optimizer.step()
    assert listening.step == 0
