from __future__ import annotations

import json
import math

import pytest

from asymlora.papers.least_squares_points import (
    SURE,
    closed_form_points,
    draw_points,
    gap_points,
    gradient_points,
    measure_closed_forms,
    measure_draws,
    measure_gap_formula,
    measure_gradients,
    measure_nested,
    measure_reparameterisation,
    nested_points,
    reparameterisation_points,
)
from asymlora.theory.gap_draws import GapCase


def test_points_are_plain_and_stand_once() -> None:
    for points in (
        closed_form_points(), gradient_points(), draw_points(256), draw_points(1024), gap_points(),
        reparameterisation_points(), nested_points(),
    ):  # fmt: skip
        texts = [json.dumps(point, sort_keys=True) for point in points]
        assert len(texts) == len(set(texts)) > 2


def test_cases_of_draws_are_cases_of_the_theory_at_any_width() -> None:
    for width in (256, 1024):
        cases = [GapCase(**{name: value for name, value in p.items() if name != "draws"}) for p in draw_points(width)]
        assert {(case.inputs, case.outputs) for case in cases} == {
            (width, width), (width // 4, width // 4), (width, width // 4), (width // 4, width),
        }  # fmt: skip


def test_both_closed_forms_are_those_of_the_data() -> None:
    small = {"seed": 1, "inputs": 6, "outputs": 5, "rank": 2, "rows": 40, "noise": 0.5, "noisy_rows": 20_000}
    records = measure_closed_forms(small)
    assert [record["trained"] for record in records] == ["B", "A"]
    for record in records:
        assert record["loss_error"] < 1e-12
        assert record["solution_error"] < 1e-10
        assert record["gradient"] < 1e-12
        assert record["descent_error"] < 1e-8
        # 20,000 rows of five squared outputs: the mean is off by about 1 / sqrt(20000 * 5 / 2), and 5 times that.
        assert 0 < record["noise_error"] < 0.025


def test_gradients_are_as_exact_as_their_precision() -> None:
    errors = {
        dtype: max(
            max(record["error_A"], record["error_B"])
            for seed in (0, 1)
            for record in measure_gradients(
                {"seed": seed, "dtype": dtype, "width": 8, "classes": 3, "rank": 2, "rows": 16, "scaling": 2.0}
            )
        )
        for dtype in ("float64", "float32")
    }
    assert errors["float64"] < 1e-13
    assert 1e-9 < errors["float32"] < 1e-5


def test_draws_count_wins_and_hold_the_criterion() -> None:
    case = {"inputs": 32, "outputs": 32, "decay": 1.0, "rank": 4, "wanted": "generic", "draws": 20}
    (record,) = measure_draws(case)
    variances = [1 / i for i in range(1, 33)]
    ratio = sum(variances) ** 2 / sum(v * v for v in variances)
    assert record["criterion"] == pytest.approx(32 / ratio)
    assert record["wins"] == 20
    assert record["ratio"] == pytest.approx(record["explained_A"] / record["explained_B"])
    assert 0 < record["ratio_error"] < 0.2
    (reversed_,) = measure_draws({**case, "wanted": "low variance"})
    assert reversed_["wins"] == 0
    assert reversed_["criterion"] == record["criterion"]


def test_as_many_draws_as_it_takes_to_say_nearly_always() -> None:
    assert 0.025 ** (1 / SURE) >= 0.99


def test_few_dimensions_lose_nothing_and_leave_the_gap_of_the_formula() -> None:
    (record,) = measure_gap_formula({"seed": 0, "width": 16, "rank": 4, "variance": 0.7, "draws": 50})
    assert record["formula"] == 0.75
    assert record["expected"] == pytest.approx(0.75, rel=1e-12)
    assert record["not_recovered"] < 1e-9
    assert abs(record["gap"] - 0.75) < 4 * record["error"]


@pytest.mark.parametrize(("filled", "exact"), [(2, True), (4, True), (8, False)])
def test_an_update_moves_where_the_rank_covers_the_inputs(filled: int, *, exact: bool) -> None:
    (record,) = measure_reparameterisation({"seed": 0, "width": 12, "rank": 4, "dimensions": filled})
    assert (record["error"] < 1e-10) == exact
    assert exact or record["error"] > 1e-2


def test_nested_factors_end_at_the_whole() -> None:
    records = measure_nested({"seed": 0, "width": 8, "decay": 1.0, "ranks": [1, 4, 8]})
    assert [record["rank"] for record in records] == [1, 4, 8]
    for name in ("explained_A", "explained_B", "best"):
        assert math.isclose(records[-1][name], 1, rel_tol=1e-9)
        assert records[0][name] < records[1][name] < records[2][name]
