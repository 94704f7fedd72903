from __future__ import annotations

import math

import pytest

from asymlora.papers.student_records import StudentRuns, mean_and_error, slope
from asymlora.reproduce.evidence import MissingEvidenceError, Record

RATES = (-8, -7, -6, -5, -4)


def valley(width: int, scheme: str, seed: int, *, best: float, floor: float = 1.0, Z_A: float = 1.0) -> list[Record]:
    """Losses of one seed that are a parabola in the logarithms of rate and loss, lowest at ``best``."""
    return [
        {"width": width, "scheme": scheme, "seed": seed, "log2_rate": rate, "Z_A": Z_A + rate / 100, "Z_B": 1.0,
         "train_loss": floor * 2 ** (0.25 * (rate - best) ** 2), "test_loss": 2.0}
        for rate in RATES
    ]  # fmt: skip


def test_the_best_rate_of_a_seed_lies_between_the_points_of_the_grid() -> None:
    records = valley(64, "init_a", 0, best=-6.25) + valley(64, "init_a", 1, best=-5.0)
    assert StudentRuns(records).best_rates(64, "init_a") == pytest.approx({0: -6.25, 1: -5.0})


def test_at_an_end_of_the_grid_the_best_rate_is_the_end() -> None:
    runs = StudentRuns(valley(64, "init_a", 0, best=-9.0) + valley(64, "init_b", 0, best=-6.0))
    assert runs.best_rates(64, "init_a") == {0: -8.0}
    assert runs.at_an_end(64) == ["Init[A]"]
    assert (runs.open_seeds(64, "init_a"), runs.open_seeds(64, "init_b")) == ([0], [])


def test_a_seed_at_an_end_is_told_though_the_mean_is_interior() -> None:
    records = [r for seed, best in enumerate((-9.0, -6.0, -6.0)) for r in valley(64, "init_a", seed, best=best)]
    runs = StudentRuns([*records, *valley(64, "init_b", 0, best=-6.0)])
    assert runs.at_an_end(64) == []
    assert runs.open_seeds(64, "init_a") == [0]


def test_beside_a_run_that_diverged_the_best_rate_is_that_of_the_grid() -> None:
    records = [
        {**record, "train_loss": None} if record["log2_rate"] > -6 else record
        for record in valley(64, "init_a", 0, best=-5.8)
    ]
    assert StudentRuns(records).best_rates(64, "init_a") == {0: -6.0}
    lost = [{**record, "train_loss": None} for record in records]
    assert StudentRuns(lost).best_rates(64, "init_a") == {}


def test_a_seed_is_quoted_at_the_rate_that_the_others_choose() -> None:
    # Seed 0 alone would take -7; the others take -5, and it is quoted there.
    records = valley(64, "init_a", 0, best=-7.0) + valley(64, "init_a", 1, best=-5.0) + valley(64, "init_a", 2, best=-5)
    quoted = StudentRuns(records).quoted(64, "init_a", "train_loss")
    assert quoted[0] == pytest.approx(2 ** (0.25 * 4))
    # The mean loss of seeds 0 and 2 is lowest between their best rates.
    assert quoted[1] == pytest.approx(2**0.25)
    assert StudentRuns(records).quoted(64, "init_a", "Z_A")[0] == pytest.approx(0.95)


def test_a_run_that_diverged_is_not_quoted_and_does_not_choose() -> None:
    records = [
        {**record, "train_loss": None, "Z_A": None} if record["seed"] == 1 and record["log2_rate"] == -6 else record
        for seed in range(3)
        for record in valley(64, "init_a", seed, best=-6.0)
    ]
    quoted = StudentRuns(records).quoted(64, "init_a", "train_loss")
    # Seeds 0 and 2 must not take the rate at which seed 1 diverged; seed 1 is quoted there, and left out.
    assert quoted == pytest.approx({0: 2**0.25, 2: 2**0.25})


def test_one_seed_has_no_others() -> None:
    with pytest.raises(MissingEvidenceError, match=r"a second seed of Init\[A\] at width 64"):
        StudentRuns(valley(64, "init_a", 0, best=-6)).quoted(64, "init_a", "Z_A")


def test_widths_are_those_of_both_starts() -> None:
    records = valley(64, "init_a", 0, best=-6) + valley(64, "init_b", 0, best=-6) + valley(128, "init_a", 0, best=-6)
    assert StudentRuns(records).widths == [64]
    assert StudentRuns(records).largest == 64
    with pytest.raises(MissingEvidenceError, match=r"Init\[B\] at width 128"):
        StudentRuns(records).best_rates(128, "init_b")
    with pytest.raises(MissingEvidenceError, match="both starts"):
        _ = StudentRuns([]).largest


def test_slopes_of_what_has_none_are_no_numbers() -> None:
    assert slope([2, 8, 32], [1.0, 0.5, 0.25]) == pytest.approx(-0.5)
    assert math.isnan(slope([2, 2], [1.0, 2.0]))
    assert math.isnan(slope([2, 4], [1.0, 0.0]))


def test_the_error_of_a_mean_needs_two_values() -> None:
    assert mean_and_error([2.0]) == (2.0, None)
    mean, error = mean_and_error([1.0, 3.0])
    assert (mean, error) == (2.0, pytest.approx(1.0))
