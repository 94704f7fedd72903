from __future__ import annotations

from typing import Any

import pytest
import torch

from asymlora.installing import drawn_factors
from asymlora.spec import AdapterSpec
from asymlora.sweep import kept_draws
from asymlora.sweep.kept_draws import KeptDraws
from asymlora.targets import match_targets
from cases import MODELS

BERT = MODELS[0]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[AdapterSpec]:
    drawn: list[AdapterSpec] = []

    def draw(bases: Any, spec: AdapterSpec) -> Any:
        drawn.append(spec)
        return drawn_factors(bases, spec)

    monkeypatch.setattr(kept_draws, "drawn_factors", draw)
    return drawn


def _spec(**options: Any) -> AdapterSpec:
    return AdapterSpec.parse("lora", **{"rank": 2, "targets": BERT.targets, **options})


def test_a_draw_is_kept_and_never_handed_out_itself(counted: list[AdapterSpec]) -> None:
    model, draws = BERT.build(), KeptDraws(slow_seconds=0.0)
    bases = match_targets(model, _spec(), ())
    first = draws(bases, _spec())
    expected = {name: (A.clone(), B.clone()) for name, (A, B) in first.items()}
    for A, B in first.values():  # as training does
        A.add_(1)
        B.add_(1)
    again = draws(bases, _spec())
    assert len(counted) == 1
    assert all(torch.equal(again[n][0], A) and torch.equal(again[n][1], B) for n, (A, B) in expected.items())
    draws(bases, _spec(seed=1))
    draws(bases, _spec(rank=1))
    assert len(counted) == 3


def test_sites_that_share_an_A_go_on_sharing_it(counted: list[AdapterSpec]) -> None:
    model, draws = BERT.build(), KeptDraws(slow_seconds=0.0)
    spec = AdapterSpec.parse("b_only", rank=2, targets=("query", "value"), shared_A=(("query", "value"),))
    bases = match_targets(model, spec, ())
    draws(bases, spec)
    again = draws(bases, spec)
    assert len(counted) == 1
    assert len({id(A) for A, _ in again.values()}) < len(again)
    fresh = drawn_factors(bases, spec)
    groups = [
        {n for n, (A, _) in factors.items() if A is first}
        for factors in (again, fresh)
        for first in (next(iter(factors.values()))[0],)
    ]
    assert groups[0] == groups[1]


def test_quick_draws_are_drawn_again_and_the_oldest_go_first(counted: list[AdapterSpec]) -> None:
    model = BERT.build()
    bases = match_targets(model, _spec(), ())
    quick = KeptDraws(slow_seconds=60.0)
    quick(bases, _spec())
    quick(bases, _spec())
    assert len(counted) == 2
    size = sum(t.numel() * t.element_size() for pair in drawn_factors(bases, _spec()).values() for t in pair)
    two = KeptDraws(slow_seconds=0.0, most_bytes=2 * size)
    for seed in (0, 1, 0, 2):  # the third is a hit, which makes seed 1 the oldest
        two(bases, _spec(seed=seed))
    before = len(counted)
    two(bases, _spec(seed=0))
    assert len(counted) == before
    two(bases, _spec(seed=1))
    assert len(counted) == before + 1
