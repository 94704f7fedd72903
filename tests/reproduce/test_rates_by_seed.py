from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from asymlora.errors import UnknownNameError
from asymlora.reproduce.evidence import MissingEvidenceError, SweepEvidence
from asymlora.reproduce.paired_tests import OCTAVES, equivalence_finding, paired_finding
from asymlora.reproduce.rates_by_seed import (
    best_ends,
    best_rates,
    censored_seeds,
    closing_values,
    comparable_rates,
    is_interior,
    known_rates,
    largest_stable_rates,
    rate_sentence,
    tuned_rate,
)
from asymlora.sweep.run_record import RunRow
from sweep.made_rows import closing, plan, row, tuning

OCTAVE_RATES = (2.0**-10, 2.0**-9, 2.0**-8, 2.0**-7)
CURVE = {1e-4: 0.7, 1e-3: 0.8, 1e-2: 0.6}


def _sweep(rows: Sequence[RunRow], arms: Sequence[str] = ("a", "b"), **more: Any) -> SweepEvidence:
    return SweepEvidence(plan=plan(arms, **more), rows=rows)


def _curves(curves: Mapping[int, Sequence[Any]], **more: Any) -> SweepEvidence:
    """A sweep of one arm with a curve over `OCTAVE_RATES` for each tuning seed; a word is how a run ended."""
    rows: list[RunRow] = []
    for seed, values in curves.items():
        for lr, value in zip(OCTAVE_RATES, values, strict=False):
            if isinstance(value, str):
                rows.append(row("a", lr=lr, seed=seed, status=value, **more))  # pyright: ignore[reportArgumentType]
            elif value is not None:
                rows.append(row("a", lr=lr, seed=seed, value=value, **more))
    return _sweep(rows, ["a"], rates=list(OCTAVE_RATES), tuning_seeds=list(curves))


# Closing figures -----------------------------------------------------------------------------------------------------


def test_closing_values_are_those_at_the_best_rate() -> None:
    rows = tuning("a", CURVE) + closing("a", 1e-3, [0.8, 0.82]) + closing("a", 1e-2, [0.1, 0.2, 0.3])
    assert closing_values(_sweep(rows), "a") == {0: 0.8, 1: 0.82}


def test_a_metric_may_be_named() -> None:
    both = {"accuracy": 0.7, "f1": 0.5}
    rows = [*closing("a", 1e-3, [0.8]), row("a", lr=1e-3, seed=1, value=0.7, phase="closing", test=both)]
    assert closing_values(_sweep(rows), "a", metric="f1") == {1: 0.5}
    with pytest.raises(UnknownNameError, match=r"metric='f2' is none of the test part. Did you mean 'f1'"):
        closing_values(_sweep(rows), "a", metric="f2")


def test_runs_that_did_not_finish_have_no_closing_value() -> None:
    rows = closing("a", 1e-3, [0.8, 0.7])
    rows.append(row("a", lr=1e-3, seed=2, phase="closing", status="diverged"))
    rows.append(row("a", lr=1e-3, seed=3, phase="closing", value=0.8, test={"accuracy": math.nan}))
    assert closing_values(_sweep(rows), "a") == {0: 0.8, 1: 0.7}


def test_runs_that_the_plan_does_not_ask_for_do_not_count() -> None:
    rows = closing("a", 1e-3, [0.8, 0.7, 0.6])
    assert closing_values(_sweep(rows, closing_seeds=[0, 1]), "a") == {0: 0.8, 1: 0.7}


def test_the_later_row_of_a_run_counts() -> None:
    rows = [*closing("a", 1e-3, [0.8]), *closing("a", 1e-3, [0.9])]
    assert closing_values(_sweep(rows), "a") == {0: 0.9}


def test_what_has_not_run_is_missing_and_what_is_not_planned_is_unknown() -> None:
    sweep = _sweep(tuning("a", CURVE))
    with pytest.raises(MissingEvidenceError, match="closing runs of a"):
        closing_values(sweep, "a")
    with pytest.raises(MissingEvidenceError, match="runs of b"):
        closing_values(sweep, "b")
    with pytest.raises(UnknownNameError, match=r"arm='c' is none of the sweep.*Its arms: a, b"):
        tuned_rate(sweep, "c")


def test_an_arm_at_a_point_of_an_axis_is_named_by_its_cell() -> None:
    axes = [{"field": "adapter.rank", "values": [2, 4]}]
    rows = closing("a", 1e-3, [0.5], axes={"adapter.rank": 2}) + closing("a", 1e-3, [0.6], axes={"adapter.rank": 4})
    assert closing_values(_sweep(rows, axes=axes), "a, adapter.rank 4") == {0: 0.6}


# The tuned rate ------------------------------------------------------------------------------------------------------


def test_the_tuned_rate_has_the_best_mean_and_may_be_interior() -> None:
    sweep = _sweep(tuning("a", CURVE) + tuning("b", {1e-4: 0.7, 1e-3: 0.8, 1e-2: 0.9}))
    assert (tuned_rate(sweep, "a"), is_interior(sweep, "a")) == (1e-3, True)
    assert (tuned_rate(sweep, "b"), is_interior(sweep, "b")) == (1e-2, False)
    assert rate_sentence(sweep, "a") == "a: best rate 1e-3, interior of 1e-4 to 1e-2."
    assert rate_sentence(sweep, "b") == "b: best rate 1e-2, at the upper end of 1e-4 to 1e-2."


def test_where_no_rate_finished_there_is_no_tuned_one() -> None:
    sweep = _sweep(tuning("a", dict.fromkeys(CURVE, "diverged")))
    assert (tuned_rate(sweep, "a"), is_interior(sweep, "a")) == (None, False)
    assert rate_sentence(sweep, "a") == "a: no rate has finished with every tuning seed."


# The best rate of each seed ------------------------------------------------------------------------------------------


def test_the_best_rate_is_the_top_of_the_parabola() -> None:
    # 0.8 - (x + 8.7)^2 / 10 at x = -10, -9, -8, -7 has its top at -8.7, next to -9.
    curve = [0.8 - (x + 8.7) ** 2 / 10 for x in (-10, -9, -8, -7)]
    assert best_rates(_curves({100: curve, 101: curve}), "a") == pytest.approx({100: -8.7, 101: -8.7})


def test_of_a_loss_the_best_rate_is_the_bottom_of_the_parabola() -> None:
    curve = [3.0 + (x + 8.2) ** 2 for x in (-10, -9, -8, -7)]
    found = best_rates(_curves({100: curve}, metric="loss", greater_is_better=False), "a")
    assert found == pytest.approx({100: -8.2})


def test_the_parabola_knows_of_unequal_distances() -> None:
    curve = [0.8 - (x + 8.7) ** 2 / 10 for x in (-10, -9, -7)]
    rows = [row("a", lr=2.0**x, seed=100, value=value) for x, value in zip((-10, -9, -7), curve, strict=True)]
    sweep = _sweep(rows, ["a"], rates=[2.0**-10, 2.0**-9, 2.0**-7], tuning_seeds=[100])
    assert best_rates(sweep, "a") == pytest.approx({100: -8.7})


def test_each_seed_has_its_own_best_rate() -> None:
    assert best_rates(_curves({100: [0.1, 0.5, 0.1, 0.0], 101: [0.0, 0.1, 0.5, 0.1]}), "a") == {100: -9.0, 101: -8.0}


def test_the_best_rate_is_at_most_half_way_to_a_neighbour() -> None:
    found = best_rates(_curves({100: [0.0, 0.5, 0.5 - 1e-12, 0.0]}), "a")[100]
    assert found == pytest.approx(-8.5)
    assert found <= -8.5


@pytest.mark.parametrize(
    ("values", "best"),
    [([0.0, 0.5, 0.5, 0.0], -8.5), ([0.5, 0.5, 0.5, 0.0], -9.0), ([0.5, 0.5, 0.5, 0.5], -9.0)],
)
def test_of_rates_that_tie_it_is_the_middle(values: list[float], best: float) -> None:
    assert best_rates(_curves({100: values}), "a") == pytest.approx({100: best})


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([0.5, 0.4, 0.3, 0.2], -10.0),
        ([0.2, 0.3, 0.4, 0.5], -7.0),
        ([0.2, 0.3, 0.4, "diverged"], -8.0),
        (["diverged", 0.5, "diverged", "diverged"], -9.0),
    ],
)
def test_at_an_end_of_what_finished_it_is_that_end(values: list[Any], best: float) -> None:
    assert best_rates(_curves({100: values}), "a") == {100: best}


def test_seeds_that_never_finished_or_are_not_through_have_no_best_rate() -> None:
    sweep = _curves({100: [0.1, 0.5, 0.1, 0.0], 101: ["diverged"] * 4, 102: [None, 0.5, 0.4, None],
                     103: [0.1, 0.5, 0.1, "failed"]})  # fmt: skip
    assert best_rates(sweep, "a") == {100: -9.0}
    with pytest.raises(MissingEvidenceError, match="tuning runs of a that finished"):
        best_rates(_curves({101: ["diverged"] * 4}), "a")


def test_a_rate_to_which_the_grid_grew_is_waited_for_in_every_seed() -> None:
    sweep = _curves({100: [0.1, 0.2, 0.3, 0.4], 101: [0.1, 0.5, 0.1, 0.0]})
    rows = [*sweep.rows, row("a", lr=2.0**-6, seed=100, value=0.2)]
    assert list(best_rates(SweepEvidence(plan=sweep.plan, rows=rows), "a")) == [100]


def test_rates_of_kept_results_have_six_digits() -> None:
    rates = [10**-3.5, 10**-3.0, 10**-2.5]
    rows = [row("a", lr=float(f"{lr:.6g}"), seed=100, value=v) for lr, v in zip(rates, (0.1, 0.5, 0.1), strict=True)]
    assert best_rates(_sweep(rows, ["a"], rates=rates, tuning_seeds=[100]), "a") == pytest.approx(
        {100: math.log2(1e-3)}
    )


def test_seeds_whose_best_rate_is_at_an_end_are_told() -> None:
    sweep = _curves({100: [0.5, 0.4, 0.3, 0.2], 101: [0.2, 0.3, 0.4, "diverged"], 102: [0.1, 0.5, 0.1, 0.0],
                     103: ["diverged", 0.5, "diverged", "diverged"]})  # fmt: skip
    assert best_ends(sweep, "a", end="lower") == (100, 103)
    assert best_ends(sweep, "a", end="upper") == (101, 103)


# Rates that are bounds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "bounds", "stays"),
    [
        (1.0, {}, True),
        (0.0, {}, True),
        (1.0, {"open_first": [0]}, True),  # the first is larger still
        (-1.0, {"open_first": [0]}, False),  # it may be larger than the second
        (0.0, {"open_first": [0]}, False),
        (1.0, {"open_second": [0]}, False),
        (-1.0, {"open_second": [0]}, True),
        (1.0, {"open_first": [0], "open_second": [0]}, False),
        (-1.0, {"open_first": [0], "open_second": [0]}, False),
        (1.0, {"low_first": [0]}, False),
        (-1.0, {"low_first": [0]}, True),
        (1.0, {"low_second": [0]}, True),
        (-1.0, {"low_second": [0]}, False),
        (1.0, {"open_first": [0], "low_second": [0]}, True),
        (1.0, {"open_first": [1]}, True),
    ],
)
def test_a_pair_with_a_bound_stays_where_its_sign_is_known(
    difference: float, bounds: dict[str, list[int]], stays: bool
) -> None:
    first, second = comparable_rates({0: -8.0 + difference}, {0: -8.0}, **bounds)
    assert (first, second) == (({0: -8.0 + difference}, {0: -8.0}) if stays else ({}, {}))
    assert first.planned == second.planned == (0,)


def test_a_shorter_grid_does_not_make_the_other_arm_the_larger_one() -> None:
    # Each arm's grid grows by itself: the second ends two octaves earlier, still stable in every seed.
    first, second = dict.fromkeys(range(6), -6.0), dict.fromkeys(range(6), -8.0)
    told = comparable_rates(first, second, open_second=range(6))
    with pytest.raises(MissingEvidenceError, match="no seed has a value on both sides"):
        paired_finding(*told, claimed="greater", show=OCTAVES, what="x")
    assert paired_finding(first, second, claimed="greater", show=OCTAVES, what="x").verdict == "holds"


def test_of_equal_rates_none_may_be_a_bound() -> None:
    first = dict.fromkeys(range(7), -8.0)
    one, other = known_rates(first, first, open_seeds=[3])
    found = equivalence_finding(one, other, margin=0.5, show=OCTAVES, what="x")
    assert found.pairs == 6
    assert "at a level of 0.01875" in found.ours  # seven seeds were asked for
    assert "1 seed (3)" in found.ours


def test_seeds_that_were_asked_for_come_with_the_values() -> None:
    sweep = _curves({100: [0.1, 0.5, 0.1, 0.0], 101: ["diverged"] * 4})
    assert best_rates(sweep, "a").planned == (100, 101)
    assert largest_stable_rates(sweep, "a", stable=_stable).planned == (100, 101)
    rows = [*closing("a", 1e-3, [0.8, 0.7]), row("a", lr=1e-3, seed=2, phase="closing", status="diverged")]
    assert closing_values(_sweep(rows, closing_seeds=[0, 1, 2, 3]), "a").planned == (0, 1, 2, 3)


# The largest stable rate of each seed --------------------------------------------------------------------------------


def _stable(found: RunRow) -> bool:
    return found.status == "finished" and (found.validation or 0.0) > 0.25


def test_the_largest_stable_rate_is_the_last_before_the_first_unstable_one() -> None:
    sweep = _curves({100: [0.5, 0.5, 0.1, 0.5], 101: [0.5, "diverged", "diverged", 0.5], 102: [0.5] * 4})
    assert largest_stable_rates(sweep, "a", stable=_stable) == {100: -9.0, 101: -10.0, 102: -7.0}
    assert censored_seeds(sweep, "a", stable=_stable) == (102,)


def test_rates_that_are_too_small_to_learn_are_passed_over() -> None:
    sweep = _curves({100: [0.1, 0.1, 0.5, "diverged"], 101: [0.1, 0.5, 0.5, 0.5]})
    assert largest_stable_rates(sweep, "a", stable=_stable) == {100: -8.0, 101: -7.0}
    assert censored_seeds(sweep, "a", stable=_stable) == (101,)


def test_seeds_without_a_stable_rate_or_that_are_not_through_are_left_out() -> None:
    sweep = _curves({100: [0.1] * 4, 101: [0.5, 0.5, None, None], 102: [0.5, 0.5, 0.5, "diverged"]})
    assert largest_stable_rates(sweep, "a", stable=_stable) == {102: -8.0}
    nowhere = _curves({100: [0.1] * 4})
    assert censored_seeds(nowhere, "a", stable=_stable) == ()
    with pytest.raises(MissingEvidenceError, match="tuning runs of a that were stable"):
        largest_stable_rates(nowhere, "a", stable=_stable)
