"""The rules of the range test on made-up losses: each on both sides of where it turns."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable

import pytest

from asymlora.errors import SpecError
from asymlora.train.range_rules import (
    RangeSettings,
    RangeTest,
    RateProbe,
    confirmed,
    edge_of_probes,
    edge_of_ramp,
    has_risen,
    judged,
    probe_rates,
    ramp_points,
    rise_rule,
    steepest_rate,
)

SETTINGS = RangeSettings(lowest=1e-4, highest=1.0, steps=20, probe_steps=4)
QUIET = [1.0, 1.2, 0.8, 1.0, 1.0]  # mean 1, standard deviation sqrt(0.08 / 4)
NOISE = math.sqrt(0.08 / 4)


def test_rates_rise_in_equal_ratios_from_the_lowest_to_the_highest() -> None:
    rates = RangeSettings(lowest=1e-6, highest=1.0, steps=61).rates()
    assert rates[0] == 1e-6
    assert rates[-1] == pytest.approx(1.0, rel=1e-12)
    assert [b / a for a, b in itertools.pairwise(rates)] == pytest.approx([10**0.1] * 60)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lowest": 0.0}, "rising numbers above 0"),
        ({"lowest": 0.1, "highest": 0.1}, "rising numbers above 0"),
        ({"highest": math.inf}, "rising numbers above 0"),
        ({"steps": 11}, "at least 12"),
        ({"steps": 20, "probe_steps": 6}, "a quarter of steps=20"),
        ({"probe_steps": 1}, "between 2 and"),
        ({"most_probes": 0}, "most_probes=0"),
        ({"rise": 0.0}, "rise=0"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(values: dict[str, float], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        RangeSettings(**values)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("steps", "probe"), [(12, 3), (40, 10), (200, 10)])
def test_a_ramp_of_another_length_keeps_its_probes_within_its_first_quarter(steps: int, probe: int) -> None:
    assert (RangeSettings.of_length(steps).steps, RangeSettings.of_length(steps).probe_steps) == (steps, probe)


def test_the_ramp_stops_above_half_more_than_the_start() -> None:
    rises = rise_rule(SETTINGS)
    assert NOISE * 4 / math.sqrt(3) < 0.5  # so the share decides
    assert not rises([*QUIET, 1.49, 1.49, 1.49])
    assert rises([*QUIET, 1.51, 1.51, 1.51])
    assert not rises([*QUIET, 1.51, 1.51])  # three are needed
    assert not rises([*QUIET, 9.0, 1.0, 1.0, 1.0])  # one bad batch that is over


def test_the_ramp_stops_outside_of_the_scatter_where_that_is_wide() -> None:
    wide = [1.0, 3.0, -1.0, 1.0, 1.0]
    margin = 4 * math.sqrt(8 / 4) / math.sqrt(3)
    assert margin > 0.5
    assert not rise_rule(SETTINGS)([*wide, *[1.0 + margin - 0.01] * 3])
    assert rise_rule(SETTINGS)([*wide, *[1.0 + margin + 0.01] * 3])


def test_the_edge_of_a_ramp_is_where_the_rise_began() -> None:
    losses = [*QUIET, *[0.5] * 8, 2.0, 4.0, math.nan]
    points = ramp_points(SETTINGS.rates(), losses)
    assert has_risen(points, SETTINGS)
    # Around index 10 the window ends before the rise; at 11 its mean is 0.8, at 12 it is 1.5, above the start's 1.
    assert points[11].smoothed == pytest.approx((4 * 0.5 + 2.0) / 5)
    assert edge_of_ramp(points, SETTINGS) == SETTINGS.rates()[10]


def test_a_loss_that_is_not_finite_is_left_out_of_its_mean() -> None:
    points = ramp_points(SETTINGS.rates(), [*QUIET, 1.0, 2.0, math.inf])
    assert points[-1].smoothed == pytest.approx(1.5)


def test_a_ramp_without_a_rise_is_stable_up_to_its_highest_rate() -> None:
    points = ramp_points(SETTINGS.rates(), [*QUIET, *[0.5] * 15])
    assert not has_risen(points, SETTINGS)
    assert edge_of_ramp(points, SETTINGS) == 1.0


def test_a_ramp_that_is_above_its_start_all_along_has_its_edge_at_the_lowest_rate() -> None:
    rising = [1.0, 2.0, 3.0, 4.0, 5.0, 90.0, 90.0, 90.0]
    assert edge_of_ramp(ramp_points(SETTINGS.rates(), rising), SETTINGS) <= SETTINGS.rates()[1]


def test_the_steepest_rate_is_where_the_smoothed_loss_falls_most_and_none_where_it_never_falls() -> None:
    falling = ramp_points(SETTINGS.rates(), [*[1.0] * 10, *[0.2] * 10])
    assert steepest_rate(falling, 1.0) in SETTINGS.rates()[8:12]
    assert steepest_rate(falling, SETTINGS.rates()[6]) is None
    assert steepest_rate(ramp_points(SETTINGS.rates(), [float(i) for i in range(20)]), 1.0) is None


def test_a_probe_is_stable_while_its_second_half_is_at_most_half_above_the_start() -> None:
    start = [5.0, 5.0, 1.0, 3.0, 7.0]
    below = judged(0.1, [9.0, 9.0, 2.0, 4.0], start=start, rise=0.5)  # 1 above a start of 2, in the second half
    assert (below.change, below.stable) == (1.0, True)
    assert not judged(0.1, [0.0, 0.0, 2.0, 4.1], start=start, rise=0.5).stable


def test_a_warm_up_rises_over_the_half_that_is_not_judged() -> None:
    assert probe_rates(2.0, 10, warm_up=True) == pytest.approx([0.4, 0.8, 1.2, 1.6, *[2.0] * 6])
    assert probe_rates(2.0, 3, warm_up=False) == [2.0] * 3


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_a_probe_that_lost_its_loss_is_not_stable(lost: float) -> None:
    probe = judged(0.1, [1.0, lost], start=[1.0, 1.0, 1.0], rise=0.5)
    assert (probe.stable, probe.change) == (False, math.inf)


def _probe(edge: float) -> Callable[[float], RateProbe]:
    return lambda rate: RateProbe(rate, (1.0,), 0.0, stable=rate <= edge)


@pytest.mark.parametrize(
    ("edge", "tried", "found"),
    [
        (0.11, [0.1, 0.2], (0.1, "found")),
        (0.45, [0.1, 0.2, 0.4, 0.8], (0.4, "found")),
        (0.06, [0.1, 0.05], (0.05, "found")),
        (9.0, [0.1, 0.2, 0.4, 0.8], (0.8, "highest stable")),
        (0.001, [0.1, 0.05, 0.025, 0.0125], (0.00625, "none stable")),
    ],
)
def test_probes_halve_or_double_until_the_edge_lies_between_two(
    edge: float, tried: list[float], found: tuple[float, str]
) -> None:
    probes = confirmed(_probe(edge), 0.1, highest=1.0, most=4)
    assert [probe.rate for probe in probes] == pytest.approx(tried)
    rate, outcome = edge_of_probes(probes)
    assert (pytest.approx(rate), outcome) == found


def test_the_usual_number_of_runs_climbs_from_where_noise_may_stop_a_ramp() -> None:
    # The first step that can stop the default ramp is the third after its quiet quarter; B alone stands 5e-3.
    usual = RangeSettings()
    earliest = usual.rates()[usual.steps // 4 + 2]
    probes = confirmed(_probe(5e-3), earliest, highest=usual.highest, most=usual.most_probes)
    assert edge_of_probes(probes)[1] == "found"


def test_no_rate_above_the_highest_is_tried() -> None:
    assert [probe.rate for probe in confirmed(_probe(9.0), 0.3, highest=1.0, most=9)] == [0.3, 0.6]


def test_losses_that_json_has_no_word_for_become_null() -> None:
    points = tuple(ramp_points([0.1, 0.2], [1.0, math.nan]))
    probes = (judged(0.1, [math.inf], start=[1.0], rise=0.5),)
    test = RangeTest(
        points=points, probes=probes, start_loss=1.0, ramp_edge=0.1, edge=0.05, outcome="none stable", steepest=None,
        suggested=0.025, steps=3, seconds=1.0,
    )  # fmt: skip
    plain = json.loads(json.dumps(test.to_dict(), allow_nan=False))
    assert plain["points"][1] == {"step": 2, "rate": 0.2, "loss": None, "smoothed": 1.0}
    assert plain["probes"][0] == {"rate": 0.1, "losses": [None], "change": None, "stable": False}
    assert plain["edge"] == 0.05


def test_the_rules_load_no_torch() -> None:
    light = "import sys, asymlora.train.range_rules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", light], check=False).returncode == 0
