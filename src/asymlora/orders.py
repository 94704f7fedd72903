"""In which order a low-rank product is evaluated: chosen by shape from measured costs. No tensors in here.

``T`` tokens, ``n`` features in, ``m`` features out, ``r`` rank.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple


class Order(NamedTuple):
    """How one adapted linear layer is evaluated. All orders agree to rounding.

    Attributes:
        folds_forward: The output comes from ``W0 + s B A``, formed anew, instead of from the code and ``B``.
        folds_backward: The input's gradient comes from ``W0 + s B A``, formed again: keeping it would cost ``m n``
            values between forward and backward.
    """

    folds_forward: bool = False
    folds_backward: bool = False


LOW_RANK = Order()
"""The order that holds for every dtype, device and dropout."""


class Cost(NamedTuple):
    """Seconds of one thin product on a matrix of ``e`` entries: ``call + e * (entry + r * rank)``."""

    call: float
    entry: float
    rank: float

    def __call__(self, entries: int, r: int) -> float:
        """Return the predicted seconds."""
        return self.call + entries * (self.entry + r * self.rank)


class Costs(NamedTuple):
    """What the parts of a layer cost that differ between the orders.

    Attributes:
        fold: ``W0 + s B A``, ``e = m n``.
        expand: ``out += code B`` or ``grad += code A``, ``e = T m`` or ``T n``.
        reduce: The code of the input or of the gradient, ``e = T n`` or ``T m``.
        add: A sum of two gradients of the input, ``e = T n``; autograd forms it where no order is folded.
        python: An autograd function written in Python, over torch's own, where an order is folded.
    """

    fold: Cost
    expand: Cost
    reduce: Cost
    add: Cost
    python: Cost


# Measured by benchmarks/product_costs.py on 2 threads of an AVX2 machine in float32 (results/product_costs.json). Only
# their ratios decide, and these travel better than seconds do.
_FOLD = Cost(call=13e-6, entry=0.27e-9, rank=0.0112e-9)
_NOTHING = Cost(call=0.0, entry=0.0, rank=0.0)
TORCH_COSTS = Costs(
    fold=_FOLD,
    expand=Cost(call=4.4e-6, entry=0.156e-9, rank=0.0095e-9),
    reduce=Cost(call=6.3e-6, entry=0.15e-9, rank=0.0116e-9),
    add=Cost(call=0.5e-6, entry=0.226e-9, rank=0.0),
    python=Cost(call=50e-6, entry=0.0, rank=0.0),  # an estimate from profiles, printed by no script
)
"""Of torch's own products."""
KERNEL_COSTS = Costs(
    fold=_FOLD,  # by torch
    expand=Cost(call=4.8e-6, entry=0.146e-9, rank=0.0142e-9),
    reduce=Cost(call=9.1e-6, entry=0.078e-9, rank=0.0122e-9),
    add=_NOTHING,  # every order runs in the same function, and adds in place
    python=_NOTHING,
)
"""Of those of `asymlora.cpu_kernel`."""
NARROW_BELOW = 32
"""Rank below which the gradient of ``B`` is cheaper as ``(r, m)`` than as ``(m, r)``, by up to 8 times (as above)."""


@lru_cache(maxsize=4096)
def choose_order(
    tokens: int, n: int, m: int, r: int, trains_A: bool, input_grad: bool = True, costs: Costs = TORCH_COSTS
) -> Order:
    """Return the cheapest order for a float32 layer on a CPU, without dropout.

    Args:
        tokens: Tokens of the batch, ``T``.
        n: Features in.
        m: Features out.
        r: Rank.
        trains_A: Whether ``A`` is trained; then the code of the output's gradient is needed in any order.
        input_grad: Whether the input needs a gradient.
        costs: Those of who runs the products.

    Returns:
        The order. The base weight is folded only where that is predicted to be faster.

    Example:
        >>> choose_order(4096, 768, 768, 64, trains_A=False).folds_forward
        True
        >>> choose_order(128, 768, 768, 8, trains_A=True)
        Order(folds_forward=False, folds_backward=False)
    """
    fold, expand, reduce, add, python = costs
    # The products that every order has (the codes that a gradient needs, the gradients) are left out.
    forward = {False: expand(tokens * m, r), True: fold(m * n, r)}
    backward = {False: expand(tokens * n, r) + (0.0 if trains_A else reduce(tokens * m, r)), True: fold(m * n, r)}
    if not input_grad:
        backward = {False: 0.0, True: math.inf}

    def seconds(order: Order) -> float:
        by_torch = not (order.folds_forward or order.folds_backward)
        return (
            forward[order.folds_forward]
            + backward[order.folds_backward]
            + (add(tokens * n, r) * input_grad if by_torch else python(0, r))
        )

    return min((Order(f, b) for f in (False, True) for b in (False, True)), key=seconds)
