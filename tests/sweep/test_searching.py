"""Searches: what is proposed lies in the space, is the same each time, and leaves what is bad."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from asymlora.errors import SpecError, UnknownKeyError
from asymlora.sweep.searching import Outcome, Point, Proposals, SamplerName, Search, Searched, parse_searched

SPACE = (
    Searched(name="train.lr", low=1e-4, high=1e-1, log=True),
    Searched(name="adapter.rank", low=2, high=32, whole=True, log=True),
    Searched(name="adapter.dropout", low=0.0, high=0.5),
    Searched(name="train.schedule", choices=("linear", "cosine")),
)
BATCH = 4


def _run(sampler: SamplerName, score: Callable[[Point], Outcome], *, batches: int, seed: int = 0) -> list[Point]:
    proposals = Proposals(Search(space=SPACE, sampler=sampler, trials=BATCH * batches, seed=seed))
    found: list[Point] = []
    for _ in range(batches):
        asked = proposals.ask(BATCH)
        found += [point for _, point in asked]
        proposals.tell({number: score(point) for number, point in reversed(asked)})
    return found


def _near_one_percent(point: Point) -> Outcome:
    return Outcome(value=(math.log10(point["train.lr"]) + 2) ** 2)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_points_lie_in_the_space(sampler: SamplerName) -> None:
    for point in _run(sampler, _near_one_percent, batches=5):
        assert 1e-4 <= point["train.lr"] <= 1e-1
        assert point["adapter.rank"] in range(2, 33)
        assert 0 <= point["adapter.dropout"] <= 0.5
        assert point["train.schedule"] in ("linear", "cosine")


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_outcomes_bring_the_same_points(sampler: SamplerName) -> None:
    assert _run(sampler, _near_one_percent, batches=6) == _run(sampler, _near_one_percent, batches=6)
    assert _run(sampler, _near_one_percent, batches=6) != _run(sampler, _near_one_percent, batches=6, seed=1)


def test_tpe_listens_and_random_does_not() -> None:
    def opposite(point: Point) -> Outcome:
        value = _near_one_percent(point).value
        assert value is not None
        return Outcome(value=-value)

    assert _run("random", _near_one_percent, batches=6) == _run("random", opposite, batches=6)
    assert _run("tpe", _near_one_percent, batches=6) != _run("tpe", opposite, batches=6)


def _distance(points: list[Point]) -> float:
    return sum(abs(math.log10(point["train.lr"]) + 2) for point in points) / len(points)


def test_tpe_comes_closer_than_it_began_and_leaves_what_diverges() -> None:
    def diverges_above(point: Point) -> Outcome:
        return Outcome(value=None) if point["train.lr"] > 3e-2 else _near_one_percent(point)

    late, early = [], []
    for seed in range(5):
        points = _run("tpe", diverges_above, batches=12, seed=seed)
        early += points[:12]
        late += points[-12:]
    assert _distance(late) < 0.6 * _distance(early)
    assert sum(p["train.lr"] > 3e-2 for p in late) < sum(p["train.lr"] > 3e-2 for p in early)


def test_a_pruned_point_counts_by_where_it_stopped() -> None:
    def stops(point: Point) -> Outcome:
        value = _near_one_percent(point).value
        return Outcome(value=value, pruned_at=10 if point["train.lr"] > 1e-2 else None)

    assert _run("tpe", stops, batches=6) == _run("tpe", stops, batches=6)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"low": 1e-2, "high": 1e-4}, "empty range"),
        ({"low": 1e-2, "high": 1e-2}, "empty range"),
        ({"low": 0.0, "high": 1.0, "log": True}, "must lie above 0"),
        ({"low": math.nan, "high": 1.0}, "empty range"),
        ({}, "over nothing"),
        ({"name": "adapter.rank", "choices": (4, "many")}, "adapter.rank"),
        ({"choices": (1e-3, -1.0)}, "train.lr=-1.0 is no number above 0"),
        ({"name": "adapter.rank", "low": -2, "high": 4, "whole": True}, "rank"),
    ],
)
def test_an_impossible_range_is_refused(field: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        Searched(**{"name": "train.lr", **field})


@pytest.mark.parametrize(
    ("text", "searched"),
    [
        ("train.lr=1e-4..1e-2", Searched(name="train.lr", low=1e-4, high=1e-2, log=True)),
        ("train.lr_head=1e-4..5e-4", Searched(name="train.lr_head", low=1e-4, high=5e-4, log=True)),
        ("adapter.rank=4..64", Searched(name="adapter.rank", low=4, high=64, whole=True, log=True)),
        ("adapter.rank=4,8", Searched(name="adapter.rank", choices=(4, 8))),
        ("adapter.dropout=0..0.5", Searched(name="adapter.dropout", low=0.0, high=0.5)),
        ("train.schedule=linear,cosine", Searched(name="train.schedule", choices=("linear", "cosine"))),
    ],
)
def test_what_is_typed_becomes_a_space(text: str, searched: Searched) -> None:
    assert parse_searched(text) == searched


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("train.lr", SpecError, "--search train.lr: Write FIELD=LOW..HIGH"),
        ("train.rate=1..2", UnknownKeyError, "--search train.rate=1..2: 'train.rate' names no field"),
        ("adapter.rank=few..many", SpecError, "no number"),
        ("train.lr=1e-3,large", SpecError, "'large' is no number"),
        ("train.schedule=linear..cosine", SpecError, "no number"),
        ("adapter.rank=8..4", SpecError, "empty range"),
    ],
)
def test_what_cannot_be_searched_is_told_with_what_was_typed(text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        parse_searched(text)


def test_a_search_names_all_that_is_wrong_with_it() -> None:
    lr = Searched(name="train.lr", low=1e-4, high=1e-2)
    with pytest.raises(SpecError, match=r"train.lr is searched twice.*trials=0 must be at least 1"):
        Search(space=(lr, lr), trials=0)
    with pytest.raises(SpecError, match="at least one field"):
        Search(space=())
