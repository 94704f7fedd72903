"""Advice from made-up measurements, without a model: for tests of records, tables and the page."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from asymlora.diagnostics.advice import advise
from asymlora.diagnostics.advised_rate import RateMeasures, advise_rate
from asymlora.diagnostics.captured_gradient import Shares, SiteMeasures
from asymlora.theory.rate_laws import Setting
from asymlora.train.advised_record import advised_record
from asymlora.train.advising import Advised
from asymlora.train.range_rules import RangeTest, RateProbe, ramp_points
from asymlora.train.recipe import Recipe

RATES = [1e-4 * 2**i for i in range(12)]
LOSSES = [1.0, 1.1, 0.9, *[0.8] * 6, 1.5, 4.0, math.nan]


def small_range() -> RangeTest:
    """Return a range test whose edge lies at 0.02."""
    return RangeTest(
        points=tuple(ramp_points(RATES, LOSSES)),
        probes=(
            RateProbe(0.02, (1.0, 0.9), -0.1, stable=True),
            RateProbe(0.04, (9.0, math.inf), math.inf, stable=False),
        ),
        start_loss=1.0,
        ramp_edge=0.0256,
        edge=0.02,
        outcome="found",
        steepest=0.0004,
        suggested=0.005,
        steps=16,
        seconds=2.0,
    )


def small_measures(
    name: str, *, fan_in: int = 64, outputs: int = 256, ratio: float = 5.0, random_A: float = 0.6
) -> Any:
    """Return a layer's measures at ranks 1, 2, 4 and 8: a random `A` reaches ``random_A`` at rank 8."""
    shares = [
        {"random_A": random_A * rank / 8, "activation_A": 0.9 * rank / 8, "random_B": rank / outputs, "best": 0.95}
        for rank in (1, 2, 4, 8)
    ]
    whole = [
        Shares(
            rank=rank, **reached, singular_A=None, singular_B=None, gradient_B=0.5,
            **{f"weight_{other}": 0.1 for other in ("random_A", "activation_A", "random_B", "gradient_B", "best")},
            weight_singular_A=None, weight_singular_B=None,
        )
        for rank, reached in zip((1, 2, 4, 8), shares, strict=True)
    ]  # fmt: skip
    return SiteMeasures(
        name=name, kind="linear", fan_in=fan_in, outputs=outputs, rows=900, batches=2, input_ratio=ratio,
        output_ratio=3.0, noise=0.2, shares=tuple(whole),
    )  # fmt: skip


def small_record(**changed: Any) -> dict[str, Any]:
    """Return the record of an advice on three layers, and two others without gradients."""
    inside = tuple(small_measures(f"net.layer.{i}.dense", random_A=share) for i, share in enumerate((0.4, 0.6, 0.7)))
    lone = {"rows": 90, "batches": 2, "input_ratio": 40.0, "why_no_shares": "nothing follows it"}
    outside = (
        SiteMeasures(name="words", kind="embedding", fan_in=900, outputs=64, **lone),
        SiteMeasures(name="head<b>", kind="linear", fan_in=64, outputs=3, **lone),
    )
    test = small_range()
    scheme = Setting(method="b_only", width_in=64, width_out=256, rank=8, scaling=2.0, start="orthonormal")
    rates, losses = zip(*((p.rate, p.loss) for p in test.points), strict=True)
    measured = RateMeasures(rates=rates, losses=losses, edge=test.edge, suggested=test.suggested, scheme=scheme)
    advice = advise(inside, rank=8)
    given = Recipe()
    adapter = advice.to_spec(targets=given.adapter.targets)
    advised = Advised(
        recipe=replace(given, adapter=adapter, train=replace(given.train, lr=0.005)),
        given=given,
        advice=replace(advice, rate=advise_rate(measured, scheme)),
        measures=inside,
        elsewhere=advise(outside, rank=8),
        measures_elsewhere=outside,
        range_test=test,
        other_rates=({"what": "rank 16", "rate": 0.004, "law": "a law", "status": "derived", "confirmed": False},),
        head_fitted=True,
        model="a <small> model",
        rows=900,
        batches=2,
        notes=("3 rows were dropped.",),
        seconds={"reading": 1.0, "head": 2.0, "moments": 3.0, "range test": 4.0, "in all": 10.0},
    )
    return advised_record(replace(advised, **changed))
