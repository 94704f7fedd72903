from __future__ import annotations

import math
from typing import Any

import pytest

from asymlora.reproduce.evidence import MissingEvidenceError
from asymlora.reproduce.run_measures import dynamic, growth, has_learnt, last_loss, moved
from asymlora.sweep.run_dynamics import median_dynamics
from asymlora.sweep.run_record import RunRow
from sweep.made_rows import row

CHANCE = math.log(6)


def _row(logged: list[float] | None = None, **more: Any) -> RunRow:
    if logged is not None:
        more["losses"] = {"step": list(range(1, len(logged) + 1)), "loss": logged}
    return row("init_a", lr=1e-3, seed=3, **more)


def test_the_last_loss_is_the_last_that_was_logged() -> None:
    assert last_loss(_row([1.5, 0.75])) == 0.75
    assert last_loss(_row([])) is None
    assert last_loss(_row(losses={})) is None


@pytest.mark.parametrize(
    ("loss", "status", "learnt"),
    [(0.89, "finished", True), (0.9, "finished", False), (1.2, "finished", False), (0.1, "diverged", False),
     (0.1, "pruned", False), (0.1, "failed", False)],
)  # fmt: skip
def test_a_run_has_learnt_where_it_finished_below_nine_tenths_of_chance(loss: float, status: Any, learnt: bool) -> None:
    assert has_learnt(_row([CHANCE, loss * CHANCE], status=status), CHANCE) == learnt


def test_a_run_without_a_logged_loss_has_not_learnt() -> None:
    assert not has_learnt(_row([]), CHANCE)


MEASURED = {
    "step": [1, 2, 3, 8],
    "Z_A": [0.0, 0.5, 0.6, 2.0],
    "delta2": [0.1, 0.2, 0.3, None],
    "delta3": [0.0] * 4,
    "moved_A": [0.01, 0.02, 0.03, 0.25],
    "moved_B": [None] * 4,
}


def test_a_quantity_is_of_the_last_measured_step_or_of_the_one_that_is_named() -> None:
    found = _row(dynamics=MEASURED)
    assert (dynamic(found, "Z_A"), dynamic(found, "Z_A", 3), dynamic(found, "Z_A", 1)) == (2.0, 0.6, 0.0)


def test_what_was_not_measured_is_missing_and_named() -> None:
    found = _row(dynamics=MEASURED)
    with pytest.raises(MissingEvidenceError, match="norm_A of the tuning run of init_a with seed 3"):
        dynamic(found, "norm_A")
    with pytest.raises(MissingEvidenceError, match=r"Z_A after step 5 of .*, which measured steps 1, 2, 3, 8"):
        dynamic(found, "Z_A", 5)
    with pytest.raises(MissingEvidenceError, match="a finite delta2 after the last measured step"):
        dynamic(found, "delta2")
    with pytest.raises(MissingEvidenceError, match="Z_A of the tuning run"):
        dynamic(_row(), "Z_A")


def test_growth_is_from_the_first_value_that_is_not_zero() -> None:
    assert growth(_row(dynamics=MEASURED), "Z_A") == 4.0
    late = {"step": [1, 2, 3], "Z_A": [None, 0.5, 0.25]}
    assert growth(_row(dynamics=late), "Z_A") == 0.5


def test_what_is_zero_throughout_or_lost_has_no_growth() -> None:
    found = _row(dynamics=MEASURED)
    with pytest.raises(MissingEvidenceError, match="delta3 other than zero"):
        growth(found, "delta3")
    with pytest.raises(MissingEvidenceError, match="a finite delta2"):
        growth(found, "delta2")


def test_a_factors_way_is_over_the_norm_of_its_start_and_one_from_zero_has_none() -> None:
    found = _row(dynamics=MEASURED)
    assert moved(found, "A") == 0.25
    with pytest.raises(MissingEvidenceError, match="a finite moved_B"):
        moved(found, "B")


def test_ways_are_read_from_the_medians_that_a_run_keeps() -> None:
    sites = [{"step": 4, "site": site, "moved_A": way} for site, way in (("q", 0.1), ("k", 0.5), ("v", 0.2))]
    assert moved(_row(dynamics=median_dynamics(sites)), "A") == 0.2
