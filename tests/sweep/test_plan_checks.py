"""What makes a plan one that cannot be run, and what is said of one that can."""

from __future__ import annotations

import math
from typing import Any

import pytest

from asymlora.errors import SpecError
from asymlora.sweep.axes import parse_arm, parse_axis
from asymlora.sweep.grid import SweepPlan
from asymlora.sweep.plan_checks import notes, plan_problems
from asymlora.sweep.searching import Search, parse_searched

GOOD: dict[str, Any] = {"rates": (1e-4, 1e-3, 1e-2), "arms": (parse_arm("init_a"), parse_arm("b_only"))}
SIZES = (parse_axis("train.batch_size=16,32"),)
RANKS = (parse_axis("adapter.rank=4,8"),)


def _arms(*texts: str) -> dict[str, Any]:
    return {"arms": tuple(map(parse_arm, texts))}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rates": ()}, "there are no learning rates"),
        ({"rates": (0.0, 1e-3)}, "the rates 0.0 are no numbers above 0"),
        ({"rates": (1e-3, math.inf)}, "the rates inf are no numbers"),
        ({"rates": (1e-3, 1e-3)}, "the rate 1e-3 is given twice"),
        ({"bounds": (1e-3, 1.0)}, r"bounds \(0.001, 1\) must be two numbers above 0 around all rates, 1e-4 to 1e-2"),
        ({"bounds": (1e-4, 5e-3)}, "around all rates"),
        ({"bounds": (1e-4,)}, "must be two numbers"),
        ({"bounds": (0.0, 1.0)}, "above 0"),
        ({"prune_eta": 1}, "prune_eta=1 must be at least 2"),
        ({"repeats": -1}, "repeats=-1 must be at least 0"),
        ({"threads": 0}, "threads=0 must be at least 1"),
        ({"margin": 0.0}, "margin=0.0 must be a number above 0"),
        ({"tuning_seeds": ()}, "tuning_seeds is empty"),
        ({"closing_seeds": ()}, "closing_seeds is empty"),
        ({"rates": (1e-3,), "closing_seeds": ()}, "closing_seeds is empty"),
        ({"closing_seeds": (1, 2, 1)}, "closing_seeds holds 1 twice"),
        ({"tuning_seeds": (5, 100)}, "5 stands in tuning_seeds and in closing_seeds"),
        ({"tuning_seeds": (-1, 2**32)}, "tuning_seeds holds -1, 4294967296, and seeds lie between 0"),
        ({"arms": ()}, "there are no arms"),
        (_arms("b_only", "b_only"), "arm 'b_only' is given twice"),
        ({"axes": SIZES + SIZES}, "axis 'train.batch_size' is given twice"),
        (
            {"axes": RANKS, **_arms("b_only:rank=4", "init_a")},
            "arm 'b_only:rank=4' sets adapter.rank, which is an axis",
        ),
        ({"axes": RANKS, **_arms("b_only", "full")}, "arm 'full' does not read adapter.rank"),
        ({"axes": RANKS, "match": "parameters"}, "match=parameters sets adapter.rank .* and it is an axis"),
        ({"match": "parameters", **_arms("init_a", "b_only:rank=4")}, "arm 'b_only:rank=4' sets its own"),
        ({"match": "compute", **_arms("init_a", "x=b_only:train.steps=9")}, "sets train.steps .* arm 'x' sets its own"),
        ({"match": "compute", "axes": (parse_axis("train.steps=9,10"),)}, "train.steps .* it is an axis"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        SweepPlan(**{**GOOD, **values})


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"rates": (1e-3,), "tuning_seeds": ()},
        {"bounds": (1e-4, 1e-2)},
        {"axes": SIZES, **_arms("b_only", "full", "peft:lora")},
        {"axes": RANKS, **_arms("b_only", "peft:lora")},
        {"axes": (parse_axis("adapter.rank=4"),), **_arms("b_only", "full")},
        {"match": "parameters", **_arms("init_a:rank=4", "b_only")},
        {"match": "compute", **_arms("x=init_a:train.steps=9", "b_only:rank=4")},
    ],
)
def test_a_plan_that_can_be_run_is_not_refused(values: dict[str, Any]) -> None:
    assert plan_problems(SweepPlan(**{**GOOD, **values})) == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"axes": RANKS}, "adapter.rank is searched, and it is an axis"),
        ({"match": "parameters"}, "match=parameters sets adapter.rank, and it is searched"),
        (_arms("b_only:rank=4", "init_a"), "adapter.rank is searched, and arm 'b_only:rank=4' sets its own"),
        (_arms("b_only", "full"), "adapter.rank is searched, and arm 'full' does not read it"),
        ({"bounds": (1e-6, 1.0)}, "bounds and grow are of a grid"),
        ({"grow": False}, "bounds and grow are of a grid"),
        ({"rates": (1e-3,), "tuning_seeds": ()}, "tuning_seeds is empty"),
    ],
)
def test_a_search_that_others_would_undo_is_refused(values: dict[str, Any], words: str) -> None:
    search = Search(space=(parse_searched("adapter.rank=4,8"),))
    assert plan_problems(SweepPlan(**GOOD, search=search)) == []
    with pytest.raises(SpecError, match=words):
        SweepPlan(**{**GOOD, **values, "search": search})


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(SpecError, match=r"repeats=-1.*threads=0.*tuning_seeds is empty.*'b_only' is given twice"):
        SweepPlan(rates=(1e-3, 1e-2), repeats=-1, threads=0, tuning_seeds=(), **_arms("b_only", "b_only"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, []),
        ({"rates": (1e-3,)}, ["One learning rate, 1e-3: nothing is tuned"]),
        ({"rates": (1e-3,), "tuning_seeds": ()}, ["One learning rate"]),
        ({"tuning_seeds": (100,)}, ["One tuning seed"]),
        ({"closing_seeds": (0, 1, 2, 3, 4)}, ["5 closing seeds: fewer than 6 pairs cannot reach p < 0.05"]),
        ({"closing_seeds": (0,)}, ["1 closing seed: "]),
        (_arms("b_only"), ["One cell"]),
        ({"axes": SIZES, **_arms("b_only")}, []),
        ({"closing_seeds": (0,), "tuning_seeds": (100,), **_arms("b_only")}, ["One tuning", "1 closing", "One cell"]),
    ],
)
def test_what_limits_a_plan_is_told(values: dict[str, Any], words: list[str]) -> None:
    said = notes(SweepPlan(**{**GOOD, **values}))
    assert len(said) == len(words)
    assert all(sentence.startswith(start) for sentence, start in zip(said, words, strict=True))


def test_six_pairs_are_the_least_that_reach_the_level() -> None:
    # A two-sided sign-flip test of n pairs has 2**n outcomes, of which two are the extreme ones.
    assert 2 / 2**6 < 0.05 < 2 / 2**5
