from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from asymlora.papers.one_layer_points import (
    FIRST_SEEDS,
    MORE_SEEDS,
    Point,
    draw_points,
    exponent_points,
    freezing_points,
    measure_draws,
    measure_exponents,
    measure_freezing,
    measure_ranks,
    measure_stable_rates,
    measure_start,
    rank_points,
    stable_points,
    start_points,
)


@pytest.mark.parametrize(
    ("points", "measure", "smaller"),
    [
        (start_points(), measure_start, {"width": 32, "steps": 2}),
        (draw_points(), measure_draws, {"width": 64}),
        (exponent_points(), measure_exponents, {"widths": [32, 64], "seeds": [0]}),
        (stable_points(FIRST_SEEDS), measure_stable_rates, {"width": 32, "seeds": [0]}),
        (freezing_points(), measure_freezing, {"widths": [32, 64], "steps": 2}),
        (rank_points(), measure_ranks, {"width": 32, "ranks": [2, 4]}),
    ],
)
def test_every_point_gives_plain_finite_records_and_stands_once(
    points: tuple[Point, ...], measure: Callable[[Point], list[dict[str, Any]]], smaller: Point
) -> None:
    texts = [json.dumps(point, sort_keys=True, allow_nan=False) for point in points]
    assert len(texts) == len(set(texts)) > 0
    for point in points:
        records = measure({**point, **smaller})
        assert records
        assert json.loads(json.dumps(records, allow_nan=False)) == records


def test_the_second_look_at_stable_rates_brings_other_seeds() -> None:
    assert not set(FIRST_SEEDS) & set(MORE_SEEDS)
    assert len(FIRST_SEEDS + MORE_SEEDS) == 10


@pytest.mark.parametrize(("scheme", "still", "moving"), [("init_a", "A", "B"), ("init_b", "B", "A")])
def test_the_start_tells_which_factor_the_first_step_moves(scheme: str, still: str, moving: str) -> None:
    point = next(p for p in start_points() if p["scheme"] == scheme and p["optimizer"] == "adam")
    (record,) = measure_start({**point, "width": 32})
    assert record["output_at_start"] == record[f"step_{still}"] == record[f"grad_{still}"] == 0
    assert record[f"step_{moving}"] > 0
    assert record["identity_error"] < 1e-12


def test_the_controls_are_a_start_of_zeros_and_weight_decay() -> None:
    (zeros,) = measure_start({**next(p for p in start_points() if p["scheme"] == "both_zero"), "width": 32})
    (decayed,) = measure_start({**next(p for p in start_points() if p["weight_decay"]), "width": 32})
    assert zeros["moved"] == 0
    assert decayed["step_A"] > 0
    assert decayed["grad_A"] == 0


def test_exponents_are_those_of_the_theory() -> None:
    row = {"scheme": "init_a", "rate_A": -0.5, "rate_B": -0.5, "coefficient": 1.0, "target": 1e9}
    (record,) = measure_exponents({**row, "widths": [128, 512, 2048], "seeds": [0, 1, 2, 3, 4, 5]})
    assert record["slopes"]["Z_A"] == pytest.approx(0.5, abs=0.1)
    assert record["slopes"]["Z_B"] == pytest.approx(0, abs=0.1)
    assert record["flipped"] == 0
    assert {name: record[name] for name in row} == row


def test_an_exact_zero_has_no_slope() -> None:
    row = {"scheme": "b_only", "rate_A": -0.5, "rate_B": -0.5, "coefficient": 1.0, "target": 1e9}
    (record,) = measure_exponents({**row, "widths": [32, 64], "seeds": [0]})
    assert "delta1" not in record["slopes"]
    assert "delta2" in record["slopes"]


def test_stable_rates_fall_by_the_edge_of_each_start() -> None:
    def octaves(scheme: str) -> float:
        small, large = (
            [r["log2_rate"] for r in measure_stable_rates({"scheme": scheme, "width": n, "seeds": [0, 1]})]
            for n in (64, 1024)
        )
        return (sum(small) - sum(large)) / 2

    # Four octaves of width: two of the rate under Init[A], four under Init[B].
    assert octaves("init_a") == pytest.approx(2, abs=0.4)
    assert octaves("init_b") == pytest.approx(4, abs=0.4)


def test_freezing_and_ranks_have_a_record_for_each_size() -> None:
    gaps = measure_freezing({**freezing_points()[0], "widths": [64, 1024]})
    assert [record["width"] for record in gaps] == [64, 1024]
    assert gaps[1]["gap"] < gaps[0]["gap"]
    sizes = measure_ranks({**rank_points()[0], "width": 256, "ranks": [2, 8]})
    assert [record["rank"] for record in sizes] == [2, 8]
    # Init[A], scaling 1: Z_B grows as the rank.
    assert math.log2(sizes[1]["Z_B"] / sizes[0]["Z_B"]) == pytest.approx(2, abs=0.5)
