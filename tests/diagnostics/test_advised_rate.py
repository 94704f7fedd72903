"""Rates from a stability edge: where they lie, how they are carried, when they are doubted."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from asymlora.diagnostics.advised_rate import BELOW_EDGE, RateMeasures, advise_rate
from asymlora.errors import SpecError
from asymlora.theory.learning_rates import transfer
from asymlora.theory.rate_laws import Setting

TESTED = Setting(method="b_only", width_in=384, rank=8, scaling=2.0, start="orthonormal")


def _measures(**changes: Any) -> RateMeasures:
    rates = tuple(2.0**-power for power in range(12, 3, -1))
    known = {"rates": rates, "losses": (1.0,) * 8 + (math.nan,), "edge": 2.0**-5, "suggested": 2.0**-7}
    return RateMeasures(**{**known, "scheme": TESTED, **changes})


def test_the_same_adapter_starts_two_octaves_below_the_edge() -> None:
    advice = advise_rate(_measures(), TESTED)
    assert advice.start == 2.0**-7
    assert advice.bracket == (2.0**-8, 2.0**-7, 2.0**-6)
    assert advice.edge == 2.0**-5
    assert (advice.confirmed, advice.status, advice.confidence.level) == (True, "measured here", "high")


def test_a_confirmed_law_carries_start_and_edge_alike() -> None:
    # B-only's rate goes as 1/s, an exact symmetry of Adam.
    advice = advise_rate(_measures(), replace(TESTED, scaling=1.0))
    assert advice.start == pytest.approx(2.0**-6)
    assert advice.edge == pytest.approx(2.0**-4)
    assert (advice.confirmed, advice.status, advice.confidence.failed) == (True, "derived", ())


@pytest.mark.parametrize("changed", [{"rank": 32}, {"method": "a_only"}, {"method": "init_b", "start": "gaussian"}])
def test_an_unconfirmed_law_is_used_named_and_doubted(changed: dict[str, Any]) -> None:
    to = replace(TESTED, **changed)
    advice = advise_rate(_measures(), to)
    assert advice.start == pytest.approx(transfer(2.0**-7, TESTED, to, unconfirmed=True).rate)
    assert not advice.confirmed
    assert advice.confidence.level == "medium"
    assert "not confirmed" in advice.confidence.failed[0]
    assert advice.law in advice.confidence.failed[0]
    assert "so a guess" in advice.reason


def test_the_start_scales_with_the_edge() -> None:
    starts = [advise_rate(_measures(edge=edge), replace(TESTED, rank=4)).start for edge in (1e-3, 1e-2, 1e-1)]
    assert starts[1] / starts[0] == pytest.approx(10)
    assert starts[2] / starts[1] == pytest.approx(10)
    assert BELOW_EDGE * advise_rate(_measures(edge=1e-3), TESTED).start == pytest.approx(1e-3)


def test_without_an_edge_the_tests_own_rate_is_taken_and_doubted() -> None:
    advice = advise_rate(_measures(edge=None), TESTED)
    assert (advice.start, advice.edge, advice.confidence.level) == (2.0**-7, None, "medium")
    assert "No tested rate was unstable" in advice.confidence.failed[0]


def test_a_test_in_which_nothing_was_stable_never_calls_for_larger_rates() -> None:
    advice = advise_rate(_measures(edge=None, none_stable=True), TESTED)
    assert (advice.start, advice.edge, advice.confidence.level) == (2.0**-7, None, "medium")
    assert "as it met no stable rate" in advice.reason
    assert "try smaller rates" in advice.confidence.failed[0]
    with pytest.raises(SpecError, match="none_stable"):
        _measures(none_stable=True)


def test_disagreement_and_coarse_rates_are_doubted() -> None:
    coarse = _measures(rates=(1e-4, 1e-3, 1e-2), losses=(1.0, 0.5, math.inf), edge=1e-3, suggested=1e-5)
    advice = advise_rate(coarse, TESTED)
    assert advice.confidence.level == "low"
    assert any("differ by more than a factor 4" in sentence for sentence in advice.confidence.failed)
    assert any("more than an octave apart" in sentence for sentence in advice.confidence.failed)


def test_a_test_that_found_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="nothing to start from"):
        _measures(edge=None, suggested=None)
    with pytest.raises(SpecError, match="one loss for each rate"):
        _measures(losses=(1.0,))
    with pytest.raises(SpecError, match="must be above 0 and ascend"):
        _measures(rates=(0.2, 0.1), losses=(1.0, 1.0))
    with pytest.raises(SpecError, match="edge=0"):
        _measures(edge=0.0)
    with pytest.raises(SpecError, match="two rates"):
        advise_rate(_measures(scheme=replace(TESTED, method="lora_plus")), TESTED)
    with pytest.raises(SpecError, match="optimizer"):
        advise_rate(_measures(), replace(TESTED, optimizer="sgd"))
