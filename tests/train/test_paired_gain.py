from __future__ import annotations

import numpy as np
import pytest

from asymlora.train.paired_gain import paired_gain


def _mean(rows: np.ndarray) -> float:
    return float(rows[:, 0].mean())


def _correlation(rows: np.ndarray) -> float:
    return float(np.corrcoef(rows[:, 0], rows[:, 1])[0, 1])


def test_of_a_mean_it_is_the_standard_error_of_the_mean_difference() -> None:
    before, after = np.random.default_rng(0).integers(0, 2, size=(2, 300, 1)).astype(float)
    gain, error = paired_gain(_mean, before, after)
    difference = after[:, 0] - before[:, 0]
    assert gain == pytest.approx(difference.mean(), abs=1e-12)
    assert error == pytest.approx(difference.std(ddof=1) / np.sqrt(300), rel=1e-9)


def test_above_the_number_of_blocks_it_still_estimates_that_error() -> None:
    before, after = np.random.default_rng(1).integers(0, 2, size=(2, 4000, 1)).astype(float)
    _, error = paired_gain(_mean, before, after)
    exact = (after - before).std(ddof=1) / np.sqrt(4000)
    # A variance from 500 blocks has a relative deviation of sqrt(2/499) = 6.3 %, its root 3.2 %: four of these.
    assert error == pytest.approx(exact, rel=0.13)


def test_of_a_correlation_it_is_near_the_known_error() -> None:
    # Of a correlation r over n rows of two normal variables the standard error is (1 - r**2) / sqrt(n); the model
    # before gives noise, whose own correlation with the wanted numbers has the error 1 / sqrt(n).
    generator = np.random.default_rng(2)
    wanted = generator.normal(size=400)
    noise = np.column_stack([generator.normal(size=400), wanted])
    good = np.column_stack([0.8 * wanted + 0.6 * generator.normal(size=400), wanted])
    _, error = paired_gain(_correlation, noise, good)
    assert error == pytest.approx(np.hypot(1 / 20, (1 - 0.8**2) / 20), rel=0.15)


def test_equal_models_have_no_gain_and_no_error() -> None:
    rows = np.random.default_rng(3).normal(size=(50, 2))
    assert paired_gain(_correlation, rows, rows) == (0.0, 0.0)


def test_one_row_has_no_error() -> None:
    assert paired_gain(_mean, np.zeros((1, 1)), np.ones((1, 1))) == (1.0, None)
