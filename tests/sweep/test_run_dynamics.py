from __future__ import annotations

import math
from typing import Any

from asymlora.sweep.run_dynamics import QUANTITIES, median_dynamics


def _row(step: int, site: str, **values: Any) -> dict[str, Any]:
    return {"step": step, "site": site, **dict.fromkeys(QUANTITIES, 1.0), **values}


def test_each_step_has_the_median_over_sites() -> None:
    rows = [
        _row(step, site, Z_B=step * number)
        for step in (1, 2)
        for site, number in zip("abc", (5.0, 1.0, 2.0), strict=True)
    ]
    found = median_dynamics(rows)
    assert list(found) == ["step", *QUANTITIES]
    assert found["step"] == [1, 2]
    assert found["Z_B"] == [2.0, 4.0]


def test_a_site_without_a_number_does_not_count() -> None:
    rows = [_row(1, "a", grad_A=None), _row(1, "b", grad_A=3.0), _row(2, "a", grad_A=None), _row(2, "b", grad_A=None)]
    assert median_dynamics(rows)["grad_A"] == [3.0, None]


def test_what_is_not_finite_counts_as_too_large() -> None:
    most = [_row(1, "a", Z_A=math.nan), _row(1, "b", Z_A=math.inf), _row(1, "c", Z_A=1.0)]
    assert median_dynamics(most)["Z_A"] == [None]
    one = [_row(1, "a", Z_A=math.nan), _row(1, "b", Z_A=2.0), _row(1, "c", Z_A=1.0)]
    assert median_dynamics(one)["Z_A"] == [2.0]


def test_nothing_measured_is_nothing() -> None:
    assert median_dynamics([]) == {}
