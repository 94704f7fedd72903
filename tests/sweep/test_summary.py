"""The summary as plain values: what ``summary.json`` holds."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from asymlora.sweep.summary import CellSummary, Comparison, Interval, RatePoint, SeedValue, Spent, Summary


def _summary() -> Summary:
    point = RatePoint(
        lr=0.1, status="finished", values=(SeedValue(100, 0.5),), mean=0.5, losses=(), mean_loss=None, pruned=(101,)
    )
    cell = CellSummary(
        label="a, adapter.rank 4",
        arm="a",
        axes={"adapter.rank": 4},
        rank=4,
        rates=(point,),
        best_rate=0.1,
        best_validation=0.5,
        best_at="only rate",
        at_bound=False,
        largest_stable=0.1,
        divergence_edge=None,
        basin=None,
        rate_doubt=None,
        closing_rate=0.1,
        closing=(SeedValue(0, 0.5), SeedValue(1, 0.75)),
        mean=0.625,
        interval=Interval(low=0.5, high=0.75, level=0.95, method="by hand"),
        deviation=0.2,
        cost={"closing": Spent(runs=2, steps=8, planned_steps=8, saved_steps=0, seconds=1.0, flops=None)},
    )
    return Summary(
        answer="One.",
        metric="accuracy",
        greater_is_better=True,
        scale=100.0,
        unit="points",
        cells=(cell,),
        comparisons=(),
        noise=None,
        validation_noise=None,
        repeats=None,
        alpha=0.05,
        runs={"finished": 3},
        cost={},
        finished=True,
        notes=("A note.",),
    )


def test_plain_values_survive_json_unchanged() -> None:
    plain = _summary().to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_plain_values_hold_every_field_and_the_verdicts() -> None:
    plain = _summary().to_dict()
    assert set(plain) == {field.name for field in fields(Summary)} | {"verdicts"}
    (cell,) = plain["cells"]
    assert set(cell) == {field.name for field in fields(CellSummary)}
    assert cell["closing"] == [{"seed": 0, "value": 0.5}, {"seed": 1, "value": 0.75}]
    assert cell["rates"][0]["pruned"] == [101]
    assert cell["axes"] == {"adapter.rank": 4}


@pytest.mark.parametrize("kind", [RatePoint, CellSummary, Comparison, Summary, Interval, Spent])
def test_every_field_is_described(kind: type) -> None:
    described = kind.__doc__ or ""
    assert not [field.name for field in fields(kind) if f"        {field.name}: " not in described]
