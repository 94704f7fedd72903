"""Made-up records of a sweep whose arms end with stated figures; the plan is the artefact's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from asymlora.reproduce.evidence import SweepEvidence
from asymlora.sweep.grid import SweepPlan
from sweep.made_rows import row


def swept(
    plan: SweepPlan,
    figures: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    metric: str = "loss",
    best: Mapping[str, float] | None = None,
) -> SweepEvidence:
    """Return what a sweep would leave.

    Args:
        plan: Its plan.
        figures: By arm and metric of the test part, a figure a closing seed.
        metric: By which the rates are chosen; less of it is better.
        best: Best rates of arms; of the others it is the second of the grid.
    """
    rows = []
    more = {"metric": metric, "greater_is_better": False}
    for arm, by_metric in figures.items():
        top = (best or {}).get(arm, plan.rates[1])
        for lr in plan.rates:
            value = 2.0 + abs(math.log10(lr / top))
            rows += [row(arm, lr=lr, seed=seed, value=value, **more) for seed in plan.tuning_seeds]
        count = len(next(iter(by_metric.values())))
        for seed in plan.closing_seeds[:count]:
            test = {name: values[seed] for name, values in by_metric.items()}
            rows.append(row(arm, lr=top, seed=seed, value=2.0, phase="closing", **{**more, "test": test}))
    return SweepEvidence(plan=plan.to_dict(), rows=rows)


def raised(values: Sequence[float], by: float) -> list[float]:
    """Return values that are greater by nearly so much, not all by the same."""
    return [value + by * (1 + 0.01 * seed) for seed, value in enumerate(values)]
