"""Ladders, orders and choices of learning rates, on made-up rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asymlora.sweep.rates import (
    Ladder,
    RateChoice,
    RateScore,
    best_rate,
    choose_rate,
    divergence_edge,
    exponent_of,
    grid_of,
    ladder_through,
    largest_stable,
    order_of_rates,
    rate_scores,
    rate_text,
)
from asymlora.sweep.run_record import RunRow

SEEDS = (100, 101)
WIDE = (1e-9, 1e9)
THIRDS = [float(f"{10 ** (k / 3):.6g}") for k in range(-15, 4)]
"""Three rates a decade from 1e-5 to 10, as defined: the roots of powers of ten to six digits."""


def _row(lr: float, seed: int, value: float | None, *, status: str = "finished", phase: str = "tuning") -> RunRow:
    return RunRow(
        id=f"{lr}-{seed}-{phase}", phase=phase, arm="b_only", axes={}, seed=seed, repeat=0, lr=lr, rank=8, recipe={},
        status=status, validation=value,
    )  # pyright: ignore[reportArgumentType]  # fmt: skip


def _scores(*points: tuple[float, str | float]) -> list[RateScore]:
    # A rate with a mean, or with the status of one of its two seeds; the other one finished at 0.5.
    rows: list[RunRow] = []
    for lr, found in points:
        if isinstance(found, str):
            rows.append(_row(lr, 100, 0.5))
            rows += [] if found == "missing" else [_row(lr, 101, None, status=found)]
        else:
            rows += [_row(lr, seed, found) for seed in SEEDS]
    return rate_scores(rows, seeds=SEEDS)


def _choice(scores: Sequence[RateScore], bounds: tuple[float, float] = WIDE, *, more: bool = True) -> RateChoice:
    ladder = Ladder(exponent=0, per_decade=1)
    return choose_rate(scores, greater_is_better=more, ladder=ladder, bounds=bounds)


# The ladder


def test_a_range_holds_both_ends_and_thirds_of_a_decade() -> None:
    assert grid_of(1e-4, 1e-2, per_decade=3) == tuple(THIRDS[3:10])


def test_ends_that_fit_no_whole_number_of_steps_stay_and_the_ratio_gives_way() -> None:
    rates = grid_of(3e-4, 1e-2, per_decade=3)  # 1.52 decades: 4.6 steps
    assert (rates[0], rates[-1], len(rates)) == (3e-4, 1e-2, 6)
    assert [b / a for a, b in itertools.pairwise(rates)] == pytest.approx([(1e-2 / 3e-4) ** 0.2] * 5, rel=1e-5)


def test_a_range_narrower_than_a_step_is_its_two_ends_and_one_point_is_one_rate() -> None:
    assert grid_of(1e-3, 1.1e-3, per_decade=3) == (1e-3, 1.1e-3)
    assert grid_of(1e-3, 1e-3, per_decade=3) == (1e-3,)


def test_a_printed_rate_stands_for_the_member_that_it_was_printed_from() -> None:
    assert grid_of(2.15e-4, 4.64e-3, per_decade=3) == tuple(THIRDS[4:9])
    assert grid_of(2.2e-4, 4.7e-3, per_decade=3)[::4] == (2.2e-4, 4.7e-3)  # and others stay as typed


@given(st.integers(-15, 2), st.integers(1, 12), st.integers(1, 6))
def test_two_sweeps_share_every_rate_of_their_overlap(first: int, steps: int, shift: int) -> None:
    one, other = (
        grid_of(float(f"{10 ** (k / 3):.6g}"), float(f"{10 ** ((k + steps) / 3):.6g}"), per_decade=3)
        for k in (first, first + shift)
    )
    overlap = [lr for lr in one if other[0] <= lr <= one[-1]]
    assert set(overlap) <= set(other)
    assert len(overlap) == max(0, steps + 1 - shift)


@given(st.floats(1e-7, 1.0), st.floats(1.0, 1e4), st.integers(1, 12))
def test_any_range_rises_in_equal_ratios_near_the_wanted_one(low: float, width: float, per_decade: int) -> None:
    rates = grid_of(low, low * width, per_decade=per_decade)
    assert list(rates) == sorted(set(rates))
    assert rates[0] == pytest.approx(low, rel=1e-2)  # the same three digits, where it is a root
    assert rates[-1] == pytest.approx(low * width, rel=1e-2)
    gaps = [math.log10(b / a) * per_decade for a, b in itertools.pairwise(rates)]
    if len(gaps) > 1:
        assert gaps == pytest.approx([gaps[0]] * len(gaps), abs=1e-4 * per_decade)
        assert 0.74 < gaps[0] < 1.26  # rounding to 2 steps or more moves a step by a quarter at most


@pytest.mark.parametrize(
    ("rates", "below", "above"),
    [
        (THIRDS[3:10], THIRDS[2], THIRDS[10]),
        (THIRDS[4:6], THIRDS[3], THIRDS[6]),
        ([3e-4, 3e-3, 3e-2], 3e-5, 3e-1),
        ([1e-4, 3e-4, 1e-3], 3.16228e-5, 3.16228e-3),
        ([1e-3, 2e-3], 5e-4, 4e-3),
    ],
)
def test_a_ladder_goes_on_in_the_ratio_of_its_grid(rates: list[float], below: float, above: float) -> None:
    ladder = ladder_through(rates)
    assert ladder.below(min(rates)) == pytest.approx(below, rel=2e-6)
    assert ladder.above(max(rates)) == pytest.approx(above, rel=2e-6)


def test_growth_of_thirds_stays_among_the_same_floats() -> None:
    ladder, lr = ladder_through(grid_of(1e-3, 1e-2, per_decade=3)), 1e-3
    for expected in reversed(THIRDS[:6]):
        lr = ladder.below(lr)
        assert lr == expected
    for expected in THIRDS[1:]:
        lr = ladder.above(lr)
        assert lr == expected


def test_a_rung_next_to_a_rate_between_rungs() -> None:
    ladder = Ladder(exponent=0, per_decade=1)
    assert (ladder.below(3.0), ladder.above(3.0), ladder.below(10.0), ladder.above(10.0)) == (1.0, 10.0, 1.0, 100.0)


@pytest.mark.parametrize(
    ("lr", "text"),
    [(1e-4, "1e-4"), (THIRDS[4], "2.15e-4"), (0.02, "2e-2"), (1.0, "1e0"), (12.0, "1.2e1"), (9.999e-4, "1e-3")],
)
def test_rates_are_written_to_three_digits(lr: float, text: str) -> None:
    assert rate_text(lr) == text


def test_an_exponent_is_a_root_only_to_three_digits() -> None:
    assert exponent_of(2.15e-4, 3) == -11 / 3
    assert exponent_of(2.16e-4, 3) == math.log10(2.16e-4)


@given(st.lists(st.floats(1e-7, 10), unique=True, max_size=30))
def test_the_order_covers_every_rate_once_from_the_middle_outwards(rates: list[float]) -> None:
    waves = order_of_rates(rates)
    assert all(len(wave) == 1 for wave in waves)
    assert sorted(wave[0] for wave in waves) == sorted(rates)
    rising = sorted(rates)
    distances = [abs(rising.index(wave[0]) - (len(rates) - 1) / 2) for wave in waves]
    assert distances == sorted(distances)


# Scores


def test_rows_are_sorted_into_rates_and_seeds() -> None:
    rows = [
        _row(1e-3, 100, 0.7),
        _row(1e-3, 101, 0.8),
        _row(1e-4, 100, 0.1),
        _row(1e-4, 100, 0.6),  # once more, after a failure: the later row counts
        _row(1e-2, 100, None, status="diverged"),
        _row(1e-2, 101, 0.3, status="pruned"),
        _row(1e-1, 100, math.nan),
        _row(1e-1, 101, None, status="failed"),
        _row(1e-3, 0, 0.9, phase="closing"),
        _row(1e-3, 7, 0.9),  # no seed of this plan
    ]
    low, middle, high, last = rate_scores(rows, seeds=SEEDS)
    assert (low.lr, low.values, low.missing, low.status, low.mean) == (1e-4, {100: 0.6}, (101,), "incomplete", 0.6)
    assert (middle.values, middle.status, middle.mean) == ({100: 0.7, 101: 0.8}, "finished", pytest.approx(0.75))
    assert (high.diverged, high.pruned, high.status, high.mean) == ((100,), (101,), "diverged", None)
    assert (last.failed, last.status, last.tried) == ((100, 101), "failed", False)
    assert [score.complete for score in (low, middle, high, last)] == [False, True, False, False]


def test_rates_of_the_grid_without_a_row_lack_every_seed() -> None:
    (score,) = rate_scores([], seeds=SEEDS, rates=[1e-3])
    assert (score.missing, score.status, score.tried) == (SEEDS, "incomplete", False)


# The best rate


def test_the_best_rate_has_the_highest_mean_or_the_lowest() -> None:
    scores = _scores((1, 0.1), (10, 0.9), (100, 0.5))
    assert _best(scores) == 10
    assert _best(scores, more=False) == 1


@pytest.mark.parametrize("status", ["pruned", "diverged", "failed", "missing"])
def test_a_rate_one_of_whose_seeds_did_not_finish_is_not_the_best(status: str) -> None:
    assert _best(_scores((1, 0.1), (10, status), (100, 0.2))) == 100  # its other seed reached 0.5


@pytest.mark.parametrize(
    ("tied", "best"), [([1, 10], 1), ([1, 10, 100], 10), ([1, 10, 100, 1000], 10), ([1, 1000], 1), ([100], 100)]
)
def test_of_rates_that_tie_the_middle_one_is_taken(tied: list[float], best: float) -> None:
    scores = _scores(*((lr, 0.9 if lr in tied else 0.2) for lr in (1, 10, 100, 1000)))
    assert _best(scores) == best


def test_a_plateau_does_not_make_the_grid_grow() -> None:
    choice = _choice(_scores((1, 0.5), (10, 0.5), (100, 0.5)))
    assert (choice.best_at, choice.next_rates) == ("interior", ())


def _best(scores: Sequence[RateScore], *, more: bool = True) -> float | None:
    found = best_rate(scores, greater_is_better=more)
    return found.lr if found else None


@pytest.mark.parametrize(
    ("points", "best_at", "next_rates"),
    [
        ([(1, 0.1), (10, 0.9), (100, 0.5)], "interior", ()),
        ([(1, "pruned"), (10, 0.9), (100, "diverged")], "interior", ()),
        ([(1, 0.1), (10, 0.9)], "upper end", (100,)),
        ([(1, 0.9), (10, 0.1)], "lower end", (0.1,)),
        ([(1, 0.9), (10, "diverged")], "lower end", (0.1,)),
        ([(1, 0.9)], "only rate", (0.1, 10)),
        ([(1, "diverged"), (10, "diverged")], None, (0.1,)),
        ([(1, "pruned"), (10, "diverged")], None, (0.1,)),
    ],
)
def test_a_grid_grows_where_its_best_rate_is_at_an_end(
    points: list[tuple[float, str | float]], best_at: str | None, next_rates: tuple[float, ...]
) -> None:
    choice = _choice(_scores(*points))
    assert (choice.best_at, choice.next_rates, choice.at_bound) == (best_at, next_rates, False)
    assert choice.interior == (best_at == "interior")


def test_growth_waits_for_the_seeds_that_are_missing() -> None:
    assert _choice(_scores((1, 0.1), (10, 0.9), (100, "missing"))).next_rates == (100,)
    assert _choice(_scores((1, "missing"), (10, 0.9))).next_rates == (1,)


def test_a_bound_stops_the_growth_and_is_told() -> None:
    scores = _scores((1, 0.1), (10, 0.9))
    for high, found in ((99.0, ((), True)), (100.0, ((100.0,), False)), (99.9999, ((100.0,), False))):
        choice = _choice(scores, (1, high))
        assert (choice.next_rates, choice.at_bound) == found
    assert _choice(_scores((1, "diverged")), (1, 10)).at_bound


def test_what_failed_everywhere_neither_grows_nor_has_a_best_rate() -> None:
    failed = [_row(lr, seed, None, status="failed") for lr in (1.0, 10.0) for seed in SEEDS]
    choice = _choice(rate_scores(failed, seeds=SEEDS))
    assert (choice.best, choice.best_at, choice.next_rates, choice.at_bound) == (None, None, (), False)
    assert (choice.largest_stable, choice.divergence_edge) == (None, None)


def test_a_neighbour_that_failed_is_not_proposed_again() -> None:
    rows = [_row(1, 100, 0.1), _row(1, 101, 0.1), _row(10, 100, 0.9), _row(10, 101, 0.9)]
    rows += [_row(100, seed, None, status="failed") for seed in SEEDS]
    choice = _choice(rate_scores(rows, seeds=SEEDS))
    assert (choice.best_at, choice.next_rates) == ("upper end", ())


def test_without_a_ladder_nothing_is_added() -> None:
    scores = _scores((1, 0.1), (10, 0.9))
    choice = choose_rate(scores, greater_is_better=True, ladder=None, bounds=WIDE)
    assert (choice.next_rates, choice.at_bound, choice.best_at) == ((), False, "upper end")


@pytest.mark.parametrize(
    ("found", "stable", "edge"),
    [
        ([0.1, 0.2, "diverged", "diverged"], 10, 100),
        ([0.1, "diverged", 0.2, "diverged"], 1, 1000),  # a stable island: the edge is above it
        ([0.1, "pruned", "diverged", "diverged"], 10, 100),
        ([0.1, 0.2, 0.3, 0.4], 1000, None),
        (["diverged", 0.1, 0.1, 0.1], None, None),
        (["diverged"] * 4, None, 1),
    ],
)
def test_the_edge_of_divergence(found: list[str | float], stable: float | None, edge: float | None) -> None:
    scores = _scores(*zip((1, 10, 100, 1000), found, strict=True))
    assert (largest_stable(scores), divergence_edge(scores)) == (stable, edge)


# Growth as a whole


def _grown(quality: Callable[[float], str | float], rows: Sequence[RunRow] = (), *, more: bool = True) -> list[RunRow]:
    # What a sweep does: run what is asked for until nothing is.
    rates, result = grid_of(1e-4, 1e-2, per_decade=3), list(rows)
    for _ in range(40):
        choice = choose_rate(
            rate_scores(result, seeds=SEEDS, rates=rates),
            greater_is_better=more, ladder=ladder_through(rates), bounds=(1e-6, 1.0),
        )  # fmt: skip
        if not choice.next_rates:
            return result
        done = {(row.lr, row.seed) for row in result}
        for lr, seed in itertools.product(choice.next_rates, SEEDS):
            if (lr, seed) not in done:
                found = quality(lr)
                status, value = (found, None) if isinstance(found, str) else ("finished", found)
                result.append(_row(lr, seed, value, status=status))
    raise AssertionError("the growth did not end")


def _hill(peak: float, edge: float) -> Callable[[float], str | float]:
    return lambda lr: "diverged" if math.log10(lr) > edge else -abs(math.log10(lr) - peak)


@given(st.floats(-8, 2), st.floats(-8, 2), st.integers(0, 60), st.booleans())
def test_growth_ends_at_the_best_rate_or_at_a_bound_and_goes_on_after_an_interruption(
    peak: float, edge: float, kept: int, more: bool
) -> None:
    hill = _hill(peak, edge)

    def quality(lr: float) -> str | float:
        found = hill(lr)
        return found if isinstance(found, str) or more else -found

    rows = _grown(quality, more=more)
    assert _grown(quality, rows, more=more) == rows
    assert _grown(quality, rows[:kept], more=more) == rows
    rates = grid_of(1e-4, 1e-2, per_decade=3)
    choice = choose_rate(
        rate_scores(rows, seeds=SEEDS, rates=rates), greater_is_better=more, ladder=ladder_through(rates),
        bounds=(1e-6, 1.0),
    )  # fmt: skip
    stable: Mapping[float, float] = {lr: v for lr in THIRDS_OF_BOUNDS if not isinstance(v := hill(lr), str)}
    assert choice.interior or choice.at_bound
    if not stable:
        assert choice.best is None
    else:
        assert choice.best is not None
        assert hill(choice.best.lr) == max(stable.values())  # of all rates within the bounds, tried or not


THIRDS_OF_BOUNDS = [float(f"{10 ** (k / 3):.6g}") for k in range(-18, 1)]
