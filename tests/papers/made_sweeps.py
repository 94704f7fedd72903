"""Made-up evidence of sweeps over texts: what each arm does is stated by the test, the plan is the artefact's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from asymlora.reproduce.evidence import SweepEvidence
from asymlora.sweep.grid import SweepPlan
from asymlora.sweep.run_record import Phase, RunRow
from sweep.made_rows import row

LEARNT, LOST = 0.6, 1.7
"""Training losses of a run that has learnt something, and of one that has not."""


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What an arm does.

    Attributes:
        best: Its best rate.
        top: Accuracy there.
        lost_from: Smallest rate at which it learns nothing any more.
        slow_loss: Training loss at the smallest rate of the grid.
        learnt: Training loss at the other rates at which it is not lost.
        uneven: What closing runs with an even seed have more, and the others less.
    """

    best: float = 1e-2
    top: float = 0.9
    lost_from: float = math.inf
    slow_loss: float = LEARNT
    learnt: float = LEARNT
    uneven: float = 0.0


def made(plan: SweepPlan, arms: Mapping[str, Behaviour]) -> SweepEvidence:
    """Return what a sweep would leave; accuracies fall by 0.05 a decade squared from the best rate.

    Args:
        plan: The artefact's own.
        arms: All of its arms by name.
    """
    rows: list[RunRow] = []
    for name, arm in arms.items():
        for lr in plan.rates:
            rows += [_run(plan, name, arm, lr=lr, seed=seed, phase="tuning") for seed in plan.tuning_seeds]
        best = min(plan.rates, key=lambda lr: abs(math.log(lr / arm.best)))
        rows += [_run(plan, name, arm, lr=best, seed=seed, phase="closing") for seed in plan.closing_seeds]
    return SweepEvidence(plan=plan.to_dict(), rows=rows)


def _run(plan: SweepPlan, name: str, arm: Behaviour, *, lr: float, seed: int, phase: Phase) -> RunRow:
    # Seeds differ, and all arms of a seed alike: what is paired must not see it.
    value = arm.top - 0.05 * math.log10(lr / arm.best) ** 2 + 0.01 * (seed % 3)
    if phase == "closing":
        value += arm.uneven if seed % 2 == 0 else -arm.uneven
    loss = LOST if lr >= arm.lost_from else arm.slow_loss if lr == plan.rates[0] else arm.learnt
    return row(name, lr=lr, seed=seed, value=value, phase=phase, losses={"step": [10, 60], "loss": [LOST, loss]})
