"""Successive halving: who goes on at which rung, and that nothing but ended runs and own scores decides."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest

from asymlora.sweep.pruning import is_behind, with_rivals
from asymlora.sweep.run_record import RunJob, RunRow
from asymlora.train.recipe import Recipe

Scores = Mapping[int, float]


def _promoted(values: Sequence[float], own: float, *, eta: int, greater_is_better: bool) -> bool:
    # By the definition: among the best len // eta of all at the rung, and at least among the best one.
    everyone = sorted([*values, own], reverse=greater_is_better)
    places = max(1, len(everyone) // eta)
    last = everyone[places - 1]
    return own >= last if greater_is_better else own <= last


@pytest.mark.parametrize("greater_is_better", [True, False])
@pytest.mark.parametrize("eta", [2, 3, 4])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 8])
def test_at_the_first_rung_the_best_share_goes_on(count: int, eta: int, greater_is_better: bool) -> None:
    draw = random.Random(100 * count + eta)
    for _ in range(5):
        values, own = [draw.random() for _ in range(count)], draw.random()
        behind = is_behind([{10: v} for v in values], {10: own}, every=10, eta=eta, greater_is_better=greater_is_better)
        assert behind != _promoted(values, own, eta=eta, greater_is_better=greater_is_better)


def test_the_first_run_of_all_is_never_stopped() -> None:
    own: dict[int, float] = {}
    for step in (10, 20, 30, 40):
        own[step] = 0.1
        assert not is_behind([], own, every=10, eta=2, greater_is_better=True)


def test_between_rungs_nothing_is_decided() -> None:
    rivals: list[Scores] = [{10: 0.5, 20: 0.6, 30: 0.99, 40: 0.99}]
    own = {10: 0.9, 20: 0.9, 30: 0.1}  # the rungs of every=10, eta=2 are 10, 20, 40
    assert not is_behind(rivals, own, every=10, eta=2, greater_is_better=True)
    assert is_behind(rivals, {**own, 40: 0.1}, every=10, eta=2, greater_is_better=True)


def test_rivals_that_stopped_early_do_not_count_at_later_rungs() -> None:
    # At 10 the two rivals are ahead of nobody; at 20 only the one that got there counts, and it is worse.
    rivals: list[Scores] = [{10: 0.2}, {10: 0.3, 20: 0.3}]
    assert not is_behind(rivals, {10: 0.4, 20: 0.35}, every=10, eta=2, greater_is_better=True)


def test_a_tie_goes_on() -> None:
    assert not is_behind([{10: 0.5}], {10: 0.5}, every=10, eta=2, greater_is_better=True)


def test_a_run_is_held_against_ended_runs_of_its_own_seed() -> None:
    ended = [ended_run(seed, score) for seed, score in ((100, 0.9), (101, 0.1), (100, 0.8))]
    jobs = [RunJob(recipe=Recipe(), phase="tuning", arm="a", seed=seed) for seed in (101, 100, 102)]
    assert [job.rivals for job in with_rivals(jobs, iter(ended))] == [[{10: 0.1}], [{10: 0.9}, {10: 0.8}], []]


def ended_run(seed: int, score: float) -> RunRow:
    return RunRow(
        id=f"{seed} {score}", phase="tuning", arm="a", axes={}, seed=seed, repeat=0, lr=1e-3, rank=8, recipe={},
        status="finished", scores={"step": [10], "value": [score]},
    )  # fmt: skip


def test_the_order_of_the_rivals_does_not_matter() -> None:
    draw = random.Random(7)
    rivals: list[Scores] = [{10: draw.random(), 20: draw.random()} for _ in range(7)]
    own = {10: 0.9, 20: 0.5}
    answers = set()
    for _ in range(10):
        draw.shuffle(rivals)
        answers.add(is_behind(rivals, own, every=10, eta=2, greater_is_better=True))
    assert len(answers) == 1
