from __future__ import annotations

from collections.abc import Mapping

import pytest

from asymlora.reproduce.evidence import Evidence, SweepEvidence
from asymlora.reproduce.tuned_rates import TunedRates, tuned_rates
from sweep.made_rows import closing, plan, tuning

RATES = (1e-4, 1e-3, 1e-2)
TRAIN = {"steps": 64, "batch_size": 16, "head_start": "random"}
MODEL = {"recipe": {"task": "text_classification", "model": {"name": "embedded:minilm-l6"}, "train": TRAIN}}


def _kept(curves: Mapping[str, Mapping[float, float]]) -> dict[str, Evidence]:
    rows = [row for arm, curve in curves.items() for row in tuning(arm, curve)]
    sweep = SweepEvidence(plan=plan(list(curves), rates=list(RATES)) | MODEL, rows=rows)
    return {"zhu_rank": Evidence(sweeps={"trec6": sweep}, measured={"gaps": []})}


def test_the_best_rate_is_told_by_arm_and_an_end_of_what_was_tried_as_one() -> None:
    curves = {
        "inside": dict(zip(RATES, (0.7, 0.8, 0.6), strict=True)),
        "low": dict(zip(RATES, (0.8, 0.7, 0.6), strict=True)),
        "high": dict(zip(RATES, (0.6, 0.7, 0.8), strict=True)),
    }
    told = {"inside": "1e-3", "low": "at most 1e-4", "high": "at least 1e-2"}
    expected = TunedRates(
        artefact="zhu_rank",
        part="trec6",
        model="embedded:minilm-l6",
        training="64 steps of 16 rows, random head",
        rates=told,
    )
    assert tuned_rates(_kept(curves)) == [expected]


@pytest.mark.parametrize(
    ("task", "start", "told"),
    [("text_classification", "probe", ", fitted head"), ("image_classification", "random", ", random head"),
     ("language_modeling", "probe", "")],
)  # fmt: skip
def test_how_a_head_started_is_told_where_there_is_one(task: str, start: str, told: str) -> None:
    (evidence,) = _kept({"swept": dict(zip(RATES, (0.7, 0.8, 0.6), strict=True))}).values()
    sweep = evidence.sweeps["trec6"]
    recipe = {**sweep.plan["recipe"], "task": task, "train": {**TRAIN, "head_start": start}}
    (found,) = tuned_rates(
        {"x": Evidence(sweeps={"x": SweepEvidence(plan={**sweep.plan, "recipe": recipe}, rows=sweep.rows)})}
    )
    assert found.training == f"64 steps of 16 rows{told}"


def test_arms_of_a_single_rate_and_sweeps_without_tuning_say_nothing() -> None:
    (told,) = tuned_rates(_kept({"plain": {1e-3: 0.8}, "swept": dict(zip(RATES, (0.7, 0.8, 0.6), strict=True))}))
    assert told.rates == {"swept": "1e-3"}
    assert tuned_rates(_kept({"plain": {1e-3: 0.8}})) == []
    untuned = SweepEvidence(plan=plan(["a"], rates=list(RATES)) | MODEL, rows=closing("a", 1e-3, [0.8]))
    assert tuned_rates({"advice": Evidence(sweeps={"trec6": untuned})}) == []
    assert tuned_rates({"zhu_bounds": Evidence(measured={"gaps": []})}) == []
