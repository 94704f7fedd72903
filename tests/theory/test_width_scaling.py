from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import pytest

from asymlora.errors import SpecError, UnknownNameError
from asymlora.theory.width_scaling import (
    CONSTANT,
    SCHEMES,
    ZERO,
    Exponent,
    FactorStart,
    Scheme,
    find_scheme,
    scaling_exponents,
    stability_edge,
)

GRID = [ZERO, *(Exponent(Fraction(k, 4)) for k in range(-8, 5))]
HALF = Fraction(1, 2)


def _start(A: Exponent, B: Exponent) -> Scheme:
    """Return the scheme whose A acts on x with exponent A, and whose B has entries of exponent B."""
    return Scheme(A=FactorStart(width=A * Exponent(-HALF)), B=FactorStart(width=B))


def test_exponents_are_those_of_a_semiring() -> None:
    for a, b, c in itertools.product(GRID[::3], repeat=3):
        assert (a + b, a * b) == (b + a, b * a)
        assert a * (b + c) == a * b + a * c
        assert (a + b) + c == a + (b + c)
        assert (a + ZERO, a * CONSTANT, a * ZERO) == (a, a, ZERO)
        assert a + a == a


def test_sums_over_the_width_grow_and_those_over_the_rank_do_not() -> None:
    minus_half = Exponent.of("-1/2")
    assert (minus_half.aligned(), minus_half.independent(), minus_half.over_rank()) == (
        Exponent(HALF),
        CONSTANT,
        minus_half,
    )
    assert ZERO.aligned() == ZERO.independent() == ZERO


@pytest.mark.parametrize(
    ("power", "value"),
    [(-1, -1), ("-3/4", Fraction(-3, 4)), (-0.25, Fraction(-1, 4)), (Fraction(1, 3), Fraction(1, 3))],
)
def test_an_exponent_is_read_exactly(power: Fraction | float | str, value: Fraction) -> None:
    assert Exponent.of(power).value == value
    assert Exponent.of(Exponent.of(power)) == Exponent.of(power)


def test_an_exact_zero_is_below_every_power() -> None:
    assert Exponent.of("-inf") == Exponent.of(-math.inf) == ZERO
    assert ZERO.is_zero
    assert float(ZERO) == -math.inf
    assert ZERO < Exponent.of(-1000) < CONSTANT
    assert not ZERO < ZERO
    assert sorted([CONSTANT, ZERO, Exponent.of(-1)]) == [ZERO, Exponent.of(-1), CONSTANT]
    assert ZERO / CONSTANT == ZERO
    with pytest.raises(ZeroDivisionError, match="exact zero"):
        _ = CONSTANT / ZERO


@pytest.mark.parametrize("power", [math.inf, math.nan, "half", "1/0", None])
def test_what_is_no_exponent_is_refused(power: object) -> None:
    with pytest.raises(SpecError, match=r"no exponent of the width.*'-1/2'"):
        Exponent.of(power)  # pyright: ignore


def test_an_unknown_scheme_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"'init_c'.*init_a, init_b.*Scheme of your own"):
        find_scheme("init_c")


@pytest.mark.parametrize(
    ("scheme", "edge"),
    [
        ("init_a", "-1/2"),
        ("init_b", "-1"),
        # The variance of B, not which factor is zero, decides.
        ("init_b_small", "-1/2"),
        ("init_ab", "-1/2"),
        ("b_only", "0"),
        ("a_only", "-1"),
        ("peft_gaussian", "-1/2"),
    ],
)
def test_stability_edge_of_each_scheme(scheme: str, edge: str) -> None:
    assert stability_edge(scheme) == Exponent.of(edge)


@pytest.mark.parametrize("trains", ["A", "B", "AB"])
@pytest.mark.parametrize("ratio", [Fraction(0), HALF, Fraction(1)])
def test_at_the_edge_the_output_is_stable_and_beyond_it_is_not(trains: str, ratio: Fraction) -> None:
    for A, B in itertools.product(GRID, GRID):
        scheme = replace(_start(A, B), trains_A="A" in trains, trains_B="B" in trains)
        if A * B > CONSTANT:
            with pytest.raises(SpecError, match="before the first update"):
                stability_edge(scheme, ratio=ratio)
            continue
        if (B.is_zero or "A" not in trains) and (A.is_zero or "B" not in trains):
            with pytest.raises(SpecError, match="no factor ever moves"):
                stability_edge(scheme, ratio=ratio)
            continue
        edge = stability_edge(scheme, ratio=ratio)
        for shift, stable in ((Fraction(0), True), (Fraction(1, 1000), False)):
            rate = edge * Exponent(shift)
            found = scaling_exponents(scheme, rate, rate * Exponent(ratio), updates=6)
            assert found.is_stable == stable


def test_init_A_learns_at_its_edge_with_both_factors_but_grows_inside() -> None:
    at = scaling_exponents("init_a", "-1/2")
    assert at.is_efficient
    assert at.learns
    assert at.is_stable
    assert not at.is_internally_stable
    inside = scaling_exponents("init_a", -1)
    assert inside.is_internally_stable
    assert not inside.learns
    assert Exponent.of(-1) == inside.Z_B


def test_init_B_at_its_edge_is_undertrained() -> None:
    at = scaling_exponents("init_b", -1)
    assert at.learns
    assert at.is_internally_stable
    assert not at.is_efficient
    assert at.step_B == Exponent.of(-1)


@pytest.mark.parametrize("scheme", ["init_a", "init_b", "init_b_small", "init_ab"])
def test_under_the_rates_of_loraplus_every_exponent_is_zero(scheme: str) -> None:
    found = scaling_exponents(scheme, -1, 0)
    assert (found.Z_A, found.Z_B, found.delta1, found.delta2, found.delta3) == (CONSTANT,) * 5
    assert stability_edge(scheme, ratio=1) == Exponent.of(-1)


def test_stable_and_efficient_learning_is_the_condition_of_the_follow_up() -> None:
    # arXiv 2505.23194 (second-hand): the rates multiply to 1/n, and no start is larger than what the updates reach.
    met = 0
    for A, B in itertools.product(GRID[::2], GRID[::2]):
        for rate_A, rate_B in itertools.product(GRID[1:10:2], GRID[1:10:2]):
            found = scaling_exponents(_start(A, B), rate_A, rate_B, updates=6)
            product_is_right = rate_A * rate_B == Exponent.of(-1)
            starts_are_small = rate_A.aligned() >= A and rate_B >= B
            condition = product_is_right and starts_are_small and not (A.is_zero and B.is_zero)
            assert (found.is_stable and found.is_efficient) == condition
            met += condition
    assert met > 20


def test_the_first_update_moves_exactly_one_factor() -> None:
    first = scaling_exponents("init_a", "-1/2", updates=1)
    assert first.delta1 == first.delta3 == ZERO
    assert first.delta2 == Exponent.of("-1/2")
    first = scaling_exponents("init_b", -1, updates=1)
    assert first.delta2 == first.delta3 == ZERO
    assert first.delta1 == CONSTANT


def test_both_zero_never_moves() -> None:
    for updates in range(6):
        found = scaling_exponents("both_zero", 0, updates=updates)
        assert (found.A, found.B, found.Z_A, found.Z_B) == (ZERO,) * 4


def test_a_frozen_factor_has_a_rate_of_zero() -> None:
    found = scaling_exponents("b_only", 0)
    assert (found.rate_A, found.rate_B, found.delta1, found.delta2) == (ZERO, CONSTANT, ZERO, CONSTANT)
    assert scaling_exponents("a_only", -1, 5) == scaling_exponents("a_only", -1)


def test_no_updates_give_the_start_and_fewer_are_refused() -> None:
    start = scaling_exponents("init_a", 0, updates=0)
    assert (start.Z_A, start.Z_B, start.delta2) == (CONSTANT, ZERO, ZERO)
    with pytest.raises(SpecError, match="updates=-1"):
        scaling_exponents("init_a", 0, updates=-1)
    with pytest.raises(SpecError, match="freeze it in the scheme"):
        stability_edge("init_a", ratio="-inf")


def test_the_starts_have_the_variances_of_the_source() -> None:
    n, r = 256, 4
    assert SCHEMES["init_a"].A.std(n, r) == n**-0.5
    assert SCHEMES["init_b"].B.std(n, r) == r**-0.5
    assert SCHEMES["init_b_small"].B.std(n, r) == n**-0.5
    # PEFT's "gaussian" has a standard deviation of 1/r, whatever the width: A x starts at n^1/2.
    assert SCHEMES["peft_gaussian"].A.std(n, r) == 1 / r
    assert SCHEMES["peft_gaussian"].code == Exponent.of("1/2")
    assert FactorStart(width=CONSTANT, variance=0.25).std(n, r) == 0.5
    assert FactorStart().std(n, r) == 0
