from __future__ import annotations

import math
from typing import Any

import pytest

from asymlora.errors import SpecError
from asymlora.theory.best_rates import best_rate


def _records(losses: dict[float, list[float]], **fields: Any) -> list[dict[str, Any]]:
    return [
        {"rate": rate, "seed": seed, "train_loss": loss} | fields
        for rate, values in losses.items()
        for seed, loss in enumerate(values)
    ]


def test_the_smallest_mean_over_seeds_wins_not_the_smallest_loss() -> None:
    found = best_rate(_records({1.0: [0.0, 1.0], 2.0: [0.3, 0.5], 4.0: [0.6, 0.4]}))
    assert (found.argmin, found.seeds, found.at_edge) == (2.0, 2, False)
    assert found.loss == pytest.approx(0.4)
    assert found.standard_error == pytest.approx(0.1)  # |0.3 - 0.5| / 2


def test_the_order_of_the_records_does_not_matter() -> None:
    records = _records({1.0: [0.3, 0.4], 2.0: [0.2, 0.1], 4.0: [0.4, 0.4]})
    assert best_rate(records) == best_rate(records[::-1])


def test_the_parabola_is_exact_on_a_parabola_in_logarithms() -> None:
    for best, ratio in ((0.013, 2.0), (0.05, 1.5)):
        losses = {
            rate: [math.exp(0.7 * math.log(rate / best) ** 2 - 3)] for rate in (0.01 * ratio**k for k in range(-6, 7))
        }
        found = best_rate(_records(losses))
        assert found.parabola == pytest.approx(best, rel=1e-9)
        assert abs(math.log(found.argmin / best)) <= math.log(ratio) / 2


def test_the_parabola_works_on_an_uneven_grid() -> None:
    losses = {rate: [math.exp(math.log(rate / 0.3) ** 2)] for rate in (0.05, 0.2, 0.5, 3.0)}
    assert best_rate(_records(losses)).parabola == pytest.approx(0.3, rel=1e-9)


@pytest.mark.parametrize(
    ("losses", "at_edge"),
    [
        ({1.0: [0.1], 2.0: [0.2], 4.0: [0.3]}, True),
        ({1.0: [0.3], 2.0: [0.2], 4.0: [0.1]}, True),
        ({1.0: [0.3], 2.0: [0.2], 4.0: [math.inf]}, False),
        ({1.0: [0.3], 2.0: [0.2], 4.0: [math.nan]}, False),
        ({1.0: [0.3], 2.0: [0.0], 4.0: [0.3]}, False),
    ],
)
def test_where_no_parabola_can_be_there_is_none(losses: dict[float, list[float]], at_edge: bool) -> None:
    found = best_rate(_records(losses))
    assert found.parabola is None
    assert found.at_edge == at_edge


def test_one_diverged_seed_rules_a_rate_out() -> None:
    assert best_rate(_records({1.0: [0.3, 0.3], 2.0: [0.0, math.nan]})).argmin == 1.0
    with pytest.raises(SpecError, match=r"\(1.0, 2.0\) diverged for some seed"):
        best_rate(_records({1.0: [0.3, math.inf], 2.0: [math.nan, 0.1]}))


def test_ties_go_as_asked() -> None:
    records = _records({1.0: [0.2], 2.0: [0.1], 4.0: [0.104], 8.0: [0.1051]})
    assert best_rate(records).tied == (2.0,)
    wide = best_rate(records, tolerance=0.05)
    assert (wide.argmin, wide.tied, wide.loss) == (2.0, (2.0, 4.0), 0.1)
    assert best_rate(records, tolerance=0.05, tie="largest").argmin == 4.0
    assert best_rate(records, tolerance=0.06, tie="largest").at_edge


def test_another_loss_can_be_asked_for() -> None:
    records = _records({1.0: [0.2], 2.0: [0.1]}) + _records({4.0: [0.0]})
    for record in records:
        record["test_loss"] = 1 - record["train_loss"]
    assert best_rate(records, loss="test_loss").argmin == 1.0


def test_records_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(SpecError, match="no record"):
        best_rate([])
    arms = _records({1.0: [0.1]}, scheme="init_a", width=8) + _records({1.0: [0.1]}, scheme="init_b", width=8)
    with pytest.raises(SpecError, match=r"mix 2 arms.*one at a time"):
        best_rate(arms)
    with pytest.raises(SpecError, match=r"\[\(0,\), \(0, 1\)\].*Run what is missing"):
        best_rate(_records({1.0: [0.1], 2.0: [0.1, 0.2]}))
    with pytest.raises(SpecError, match="each run once"):
        best_rate(_records({1.0: [0.1]}) * 2)


def test_one_seed_has_no_standard_error() -> None:
    assert math.isnan(best_rate(_records({1.0: [0.1]})).standard_error)
