"""Which kind of adapter layer a base is. What each kind computes is tested over all of them in `test_layers.py`."""

from __future__ import annotations

import pytest
from torch import nn

from asymlora.kinds import kind_of


@pytest.mark.parametrize(
    ("base", "rank", "why"),
    [
        (nn.Linear(6, 4), 5, "6 -> 4, and the rank may be at most 4"),
        (nn.Embedding(3, 8), 4, "3 -> 8, and the rank may be at most 3"),
        (nn.Conv2d(1, 8, 2), 5, "4 -> 8, and the rank may be at most 4"),
        (nn.Conv2d(4, 6, 3, groups=2), 3, "has 2 groups, which must divide the rank"),
        (nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), 2, "pads by 'circular'"),
        (nn.Embedding(9, 5, max_norm=1.0), 2, "max_norm"),
    ],
    ids=str,
)
def test_a_layer_says_why_it_cannot_take_an_adapter(base: nn.Module, rank: int, why: str) -> None:
    kind = kind_of(base)
    assert kind is not None
    assert why in str(kind.why_not(base, rank))


@pytest.mark.parametrize(
    "base",
    [
        nn.LayerNorm(4),
        nn.ConvTranspose2d(2, 2, 2),
        nn.Bilinear(2, 3, 4),
        nn.LazyLinear(3),
        nn.EmbeddingBag(4, 3),
        nn.GRU(2, 3),
    ],
    ids=lambda base: type(base).__name__,
)
def test_other_layers_are_of_no_kind(base: nn.Module) -> None:
    assert kind_of(base) is None
