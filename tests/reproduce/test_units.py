from __future__ import annotations

import pytest

from asymlora.reproduce.units import NATS, OCTAVES, POINTS, RATIO, Unit


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        (POINTS, 0.0122, "+1.22 points"),
        (POINTS, -0.5, "-50.00 points"),
        (OCTAVES, 3, "+3.00 octaves"),
        (NATS, -0.12345, "-0.1235 nats"),
        (RATIO, 2.5, "+2.500 (ratio)"),
        (Unit(1e3, "ms", 0), 0.25, "+250 ms"),
    ],
)
def test_a_difference_has_its_sign_and_its_unit(unit: Unit, value: float, text: str) -> None:
    assert unit.text(value) == text


def test_an_amount_has_no_sign_above_zero() -> None:
    assert (POINTS.amount(0.9069), POINTS.amount(-0.01)) == ("90.69 points", "-1.00 points")


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-15, -1e-15])
def test_zero_and_rounding_have_no_sign(value: float) -> None:
    assert POINTS.text(value) == "0.00 points"


@pytest.mark.parametrize("value", [5.6e-8, -6.7e-8, 9e-6])
def test_what_the_rounding_of_kept_fractions_leaves_is_no_difference(value: float) -> None:
    assert POINTS.text(value) == POINTS.number(value) + " points" == "0.00 points"


def test_a_small_value_is_not_shown_as_zero() -> None:
    assert (RATIO.text(-3.14e-5), POINTS.text(2e-5), RATIO.text(0.0004)) == (
        "-3.1e-05 (ratio)",
        "+2.0e-03 points",
        "+4.0e-04 (ratio)",
    )
    assert RATIO.text(0.0006) == "+0.001 (ratio)"
