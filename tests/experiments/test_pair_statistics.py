"""Pairs of runs, `experiments/pair_statistics.py`: panels, intervals over crossed draws, the exact label test."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TASKS, SEEDS = ("a", "b", "c"), (0, 1, 2)
Run = tuple[str, int]


@pytest.fixture
def stats(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import pair_statistics

    return pair_statistics


def _pairs(stats: ModuleType, value: Callable[[Run, Run], float]) -> list[Any]:
    runs = list(itertools.product(TASKS, SEEDS))
    return [
        stats.Pair(tasks=(one[0], other[0]), seeds=(one[1], other[1]), value=value(one, other))
        for one, other in itertools.combinations(runs, 2)
    ]


def test_every_pair_is_of_one_panel_and_the_counts_are_those_of_three_by_three(stats: ModuleType) -> None:
    runs = list(itertools.product(TASKS, SEEDS))
    found = [stats.PANELS.of(*pair) for pair in itertools.combinations(runs, 2)]
    assert [found.count(name) for name in stats.PANELS.names] == [9, 9, 18]


def test_a_panel_mean_counts_weights_and_leaves_the_other_panels_out(stats: ModuleType) -> None:
    pairs = [
        stats.Pair(tasks=("a", "a"), seeds=(0, 1), value=1.0, weight=3.0),
        stats.Pair(tasks=("b", "b"), seeds=(0, 1), value=5.0, weight=1.0),
        stats.Pair(tasks=("a", "b"), seeds=(0, 0), value=100.0),
    ]
    assert stats.panel_mean("same task")(pairs) == 2.0
    assert stats.panel_mean("shared start")(pairs) == 100.0
    with pytest.raises(ZeroDivisionError):
        stats.panel_mean("both other")(pairs)


def test_the_interval_is_that_of_runs_that_are_laid_out_one_by_one(stats: ModuleType) -> None:
    values = random.Random(1)
    pairs = _pairs(stats, lambda one, other: values.random())
    by_runs = {frozenset(zip(p.tasks, p.seeds, strict=True)): p.value for p in pairs}
    draw, means = random.Random(7), []
    while len(means) < 200:
        tasks, seeds = draw.choices(TASKS, k=3), draw.choices(SEEDS, k=3)
        if len(set(tasks)) > 1 and len(set(seeds)) > 1:
            # Two places of the draw with other tasks and other seeds are two runs.
            met = [
                by_runs[frozenset([(tasks[i], seeds[j]), (tasks[k], seeds[m])])]
                for i, j, k, m in itertools.product(range(3), repeat=4)
                if tasks[i] != tasks[k] and seeds[j] != seeds[m]
            ]
            means.append(sum(met) / len(met))
    means.sort()
    found = stats.interval_of(pairs, stats.panel_mean("both other"), resamples=200, seed=7)
    assert found == pytest.approx((means[5], means[195]))


def test_the_interval_is_as_wide_as_tasks_and_seeds_differ_and_no_wider(stats: ModuleType) -> None:
    flat = _pairs(stats, lambda one, other: 0.25)
    assert stats.interval_of(flat, stats.panel_mean("same task"), resamples=50) == (0.25, 0.25)
    by_task = _pairs(stats, lambda one, other: float(TASKS.index(one[0])))
    low, high = stats.interval_of(by_task, stats.panel_mean("same task"), resamples=500)
    assert 0 < low < 0.75
    assert 1.25 < high < 2


def test_labels_that_decide_everything_have_the_smallest_p_there_is(stats: ModuleType) -> None:
    planted = _pairs(stats, lambda one, other: float(one[0] == other[0]))
    # 6 of the 216 exchanges rename the tasks alike in every seed, and change nothing.
    assert stats.label_test(planted) == pytest.approx(6 / 216)
    assert stats.label_test(_pairs(stats, lambda one, other: float(one[0] != other[0]))) == 1.0
    assert stats.label_test(_pairs(stats, lambda one, other: 0.5)) == 1.0


def test_pairs_that_share_a_start_do_not_enter_the_label_test(stats: ModuleType) -> None:
    values = random.Random(3)
    drawn = {frozenset(pair): values.random() for pair in itertools.combinations(itertools.product(TASKS, SEEDS), 2)}
    plain = _pairs(stats, lambda one, other: drawn[frozenset([one, other])])
    lifted = _pairs(stats, lambda one, other: drawn[frozenset([one, other])] + 9.0 * (one[1] == other[1]))
    assert stats.label_test(plain) == stats.label_test(lifted)
