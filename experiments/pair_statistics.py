"""Statistics of pairs of runs that are crossed by task and seed: means of a panel, intervals, a test of the labels."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Pair(NamedTuple):
    """What two runs have in common.

    Attributes:
        tasks: Task of each run.
        seeds: Seed of each run.
        value: The figure.
        weight: How often it counts.
    """

    tasks: tuple[str, str]
    seeds: tuple[int, int]
    value: float
    weight: float = 1.0


class PANELS:
    """Kinds of pairs."""

    names = ("same task", "shared start", "both other")

    @staticmethod
    def of(one: tuple[str, int], other: tuple[str, int]) -> str:
        """Return the panel of two different runs, each a task and a seed."""
        if one[0] == other[0]:
            return "same task"
        return "shared start" if one[1] == other[1] else "both other"


Statistic = Callable[[Sequence[Pair]], float]


def panel_mean(panel: str) -> Statistic:
    """Return what gives the weighted mean of a panel's pairs; it raises ZeroDivisionError where they weigh nothing."""

    def mean(pairs: Sequence[Pair]) -> float:
        mine = [p for p in pairs if PANELS.of(*zip(p.tasks, p.seeds, strict=True)) == panel]
        return sum(p.weight * p.value for p in mine) / sum(p.weight for p in mine)

    return mean


def interval_of(pairs: Sequence[Pair], statistic: Statistic, *, resamples: int, seed: int = 0) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % points of a statistic over resampled tasks and seeds.

    Tasks and seeds are drawn with replacement, each as often as there are. A pair counts as often as its two runs meet
    in the draw; runs that were drawn twice make no pair with themselves. A draw in which a panel is empty (one task or
    one seed alone) is drawn again.

    Args:
        pairs: Every pair of runs once.
        statistic: Of weighted pairs.
        resamples: Draws.
        seed: Of the draws.

    Source:
        Owen, 2007, "The pigeonhole bootstrap", for crossed effects; for pairs of runs ours.
    """
    draw = random.Random(seed)
    tasks = sorted({task for p in pairs for task in p.tasks})
    seeds = sorted({s for p in pairs for s in p.seeds})
    found: list[float] = []
    while len(found) < resamples:
        drawn = Counter(draw.choices(tasks, k=len(tasks))), Counter(draw.choices(seeds, k=len(seeds)))
        if min(map(len, drawn)) > 1:
            found.append(statistic([p._replace(weight=_meetings(p, *drawn)) for p in pairs]))
    found.sort()
    return found[int(0.025 * resamples)], found[min(int(0.975 * resamples), resamples - 1)]


def _meetings(pair: Pair, tasks: Counter[str], seeds: Counter[int]) -> float:
    # A task or seed that both runs share is one level, drawn once for the two.
    of_tasks, of_seeds = set(pair.tasks), set(pair.seeds)
    weight = 1.0
    for level in of_tasks:
        weight *= tasks[level]
    for level in of_seeds:
        weight *= seeds[level]
    return weight


def label_test(pairs: Sequence[Pair]) -> float:
    """Return the exact one-sided p of 'runs of one task are no more alike than runs of two', over pairs of two seeds.

    If the task means nothing, its labels can be exchanged among the runs of a seed. The p is the share of all such
    exchanges under which the runs of one label are at least as much more alike as they are.

    Args:
        pairs: Every pair of runs once, every task with every seed.
    """
    tasks = sorted({task for p in pairs for task in p.tasks})
    seeds = sorted({s for p in pairs for s in p.seeds})
    across = [p for p in pairs if p.seeds[0] != p.seeds[1]]
    values: list[float] = []
    for orders in itertools.product(itertools.permutations(tasks), repeat=len(seeds)):
        labels = {
            (task, s): new
            for s, order in zip(seeds, orders, strict=True)
            for task, new in zip(tasks, order, strict=True)
        }
        same = [p.value for p in across if labels[p.tasks[0], p.seeds[0]] == labels[p.tasks[1], p.seeds[1]]]
        values.append(sum(same) / len(same))
    # The sum over all pairs is fixed, so the mean of the same label orders the exchanges as the difference does. The
    # exchange that changes nothing comes first.
    return sum(value >= values[0] - 1e-12 for value in values) / len(values)
