from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from asymlora.orders import KERNEL_COSTS, LOW_RANK, TORCH_COSTS, Cost, Costs, Order, choose_order

SHAPES = tuple(itertools.product((8, 384, 4096), (8, 768, 3072), (1, 8, 64)))
TRAINED = pytest.mark.parametrize("trains_A", [False, True])
BY = pytest.mark.parametrize("costs", [TORCH_COSTS, KERNEL_COSTS], ids=["torch", "kernel"])


def _folds(order: Order) -> int:
    return order.folds_forward + order.folds_backward


def test_the_order_that_always_holds_folds_nothing() -> None:
    assert _folds(LOW_RANK) == 0


@BY
@TRAINED
def test_one_token_never_folds_and_many_tokens_on_a_small_weight_fold_both_ways(costs: Costs, trains_A: bool) -> None:
    for n, m, r in SHAPES:
        if min(n, m) > 8:
            assert _folds(choose_order(1, n, m, r, trains_A, costs=costs)) == 0
        assert _folds(choose_order(10**8, n, m, r, trains_A, costs=costs)) == 2


@BY
@TRAINED
def test_more_tokens_never_fold_less(costs: Costs, trains_A: bool) -> None:
    # Every order costs a constant and a multiple of the tokens; folding lowers the multiple.
    for n, m, r in SHAPES:
        folds = [_folds(choose_order(2**power, n, m, r, trains_A, costs=costs)) for power in range(27)]
        assert folds == sorted(folds)


@BY
@TRAINED
def test_an_input_without_a_gradient_folds_no_backward(costs: Costs, trains_A: bool) -> None:
    for (n, m, r), tokens in itertools.product(SHAPES, (1, 128, 4096, 10**6)):
        assert not choose_order(tokens, n, m, r, trains_A, input_grad=False, costs=costs).folds_backward


@BY
def test_a_trained_A_never_makes_folding_backward_more_attractive(costs: Costs) -> None:
    # Its gradient needs the code of the output's gradient anyway, which folding would save.
    for (n, m, r), tokens in itertools.product(SHAPES, (128, 1024, 4096, 16384)):
        both = choose_order(tokens, n, m, r, True, costs=costs).folds_backward
        assert both <= choose_order(tokens, n, m, r, False, costs=costs).folds_backward


def test_costs_are_not_negative_and_grow_with_size_and_rank() -> None:
    assert Cost(call=1.0, entry=2.0, rank=3.0)(10, 4) == 1.0 + 10 * (2.0 + 4 * 3.0)
    for cost in (*TORCH_COSTS, *KERNEL_COSTS):
        assert 0 <= cost(1, 1) <= cost(2, 1) <= cost(2, 2)


def test_the_costs_are_those_that_were_measured() -> None:
    stored = Path(__file__).parents[1] / "benchmarks" / "results" / "product_costs.json"
    held = TORCH_COSTS._asdict() | {f"kernel {name}": cost for name, cost in KERNEL_COSTS._asdict().items()}
    for name, (call, entry, rank) in json.loads(stored.read_text())["fitted"].items():
        # Rounded to two digits; the call and the additions' share of the rank are at the size of the noise.
        assert abs(held[name].entry - entry) <= 0.05 * entry
        assert abs(held[name].rank - rank) <= max(0.05 * rank, 1e-12)
        assert abs(held[name].call - call) <= 1e-6
