"""A made-up summary of a sweep of two cells, for tests of tables and formats; every figure is easy to recognise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from asymlora.sweep.summary import (
    Basin,
    CellSummary,
    Comparison,
    Interval,
    RatePoint,
    SeedValue,
    Spent,
    Summary,
)

SPENT = Spent(runs=12, steps=900, planned_steps=960, saved_steps=60, seconds=240.0, flops=2e14)
CLOSED = Spent(runs=2, steps=160, planned_steps=160, saved_steps=0, seconds=60.0, flops=4e13)
BASIN = Basin(
    low=1e-3, high=4e-3, octaves=2.0, most_octaves=2.0, low_end="crossed", high_end="crossed", floor=0.004
)  # fmt: skip


def cell(label: str = "init_a", **changes: Any) -> CellSummary:
    """Return a cell with two closing runs, at 0.9 and 0.92."""
    made = CellSummary(
        label=label,
        arm=label.partition(",")[0],
        axes={},
        rank=8,
        rates=(rate(1e-3), rate(3.16e-3, mean=0.915), rate(1e-2, status="diverged", mean=None)),
        best_rate=3.16e-3,
        best_validation=0.915,
        best_at="interior",
        at_bound=False,
        largest_stable=3.16e-3,
        divergence_edge=1e-2,
        basin=BASIN,
        rate_doubt=None,
        closing_rate=3.16e-3,
        closing=(SeedValue(0, 0.9), SeedValue(1, 0.92)),
        mean=0.91,
        interval=Interval(low=0.895, high=0.925, level=0.95, method="sign flips"),
        deviation=0.0141,
        test={"accuracy": 0.91, "macro_f1": 0.88},
        before={"accuracy": 0.25, "macro_f1": 0.2},
        closing_loss=0.123,
        trained_parameters=332_546,
        head_parameters=2_310,
        cost={"tuning": SPENT, "closing": CLOSED},
    )
    return replace(made, **changes)


def rate(lr: float, *, status: str = "finished", mean: float | None = 0.9) -> RatePoint:
    """Return a tried rate with the seeds 100 and 101."""
    values = () if mean is None else (SeedValue(100, mean), SeedValue(101, mean))
    return RatePoint(
        lr=lr, status=status, values=values, mean=mean, losses=(), mean_loss=None,  # pyright: ignore[reportArgumentType]
        diverged=(100, 101) if status == "diverged" else (),
    )  # fmt: skip


def comparison(first: str = "init_a", second: str = "b_only", **changes: Any) -> Comparison:
    """Return two cells that two pairs cannot tell apart."""
    made = Comparison(
        first=first, second=second, differences=(SeedValue(0, 0.01), SeedValue(1, -0.01)), mean=0.0, deviation=0.0141,
        interval=None, p=1.0, p_adjusted=1.0, least_p=0.5, comparisons=0, allowance=0.0,
        p_beyond=1.0, margin=None, p_equivalence=None,
        outcome="not testable", better=None, seeds_needed=None, caveats=(), sentence=f"{first} and {second}: 2 pairs.",
    )  # fmt: skip
    return replace(made, **changes)


def summary(*cells: CellSummary, **changes: Any) -> dict[str, Any]:
    """Return the summary of some cells, by default init_a and b_only, as plain values."""
    made = Summary(
        answer="They cannot be told apart.", metric="accuracy", greater_is_better=True, scale=100.0, unit="points",
        cells=cells or (cell(), cell("b_only", trained_parameters=167_426, caveats=("One run of b_only is missing.",))),
        comparisons=(comparison(),), noise=None, validation_noise=None, repeats=None, alpha=0.05,
        runs={"finished": 26, "pruned": 0, "diverged": 2}, cost={"all": replace(SPENT, runs=28, seconds=600.0)},
        finished=True, notes=("No run was repeated.",),
    )  # fmt: skip
    return replace(made, **changes).to_dict()
