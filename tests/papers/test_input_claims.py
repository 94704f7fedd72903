"""Claims of zhu_inputs on made-up layers and runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from asymlora.papers.input_claims import CLAIMS, CONVOLUTIONS, GROUPS, SITES, arm_of, predicted
from asymlora.papers.zhu_inputs import small_parts
from asymlora.reproduce.artefact import SweepPart
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence, Record, SweepEvidence
from asymlora.sweep.run_record import RunRow
from sweep.made_rows import row

(SWEPT,) = [part for part in small_parts(Path("nowhere")) if isinstance(part, SweepPart)]


def _layer(role: str, *, block: int | None = 0, model: str = "minilm", **changes: Any) -> Record:
    record = {
        "model": model, "site": f"layer.{block}.{role}", "block": block, "role": role, "kind": "linear", "fan_in": 64,
        "outputs": 64, "input_ratio": 8.0, "centred_ratio": 16.0, "rank": 8, "random_A": 0.5, "random_B": 0.125,
    }  # fmt: skip
    record |= changes
    return {"drawn_A": record["random_A"], "drawn_B": record["random_B"], **record}


def _claim(key: str, *, layers: Sequence[Record], part: str = SITES) -> Finding:
    (claim,) = [claim for claim in CLAIMS if claim.key == key]
    return claim.finding(Evidence(measured={part: layers}))


def _layers(last: Record, count: int = 9) -> list[Record]:
    return [*(_layer("attention.self.query", block=block) for block in range(count)), last]


@pytest.mark.parametrize(("others", "verdict"), [(9, "holds"), (8, "fails")])
def test_nine_layers_of_ten_are_nearly_all(others: int, verdict: str) -> None:
    assert _claim("inputs_fill_few", layers=_layers(_layer("query", input_ratio=33.0), others)).verdict == verdict
    assert _claim("random_a_reaches_more", layers=_layers(_layer("query", random_B=0.49), others)).verdict == verdict
    assert _claim("criterion_agrees", layers=_layers(_layer("query", drawn_A=0.1), others)).verdict == verdict


def test_heads_count_for_the_criterion_alone_and_one_model_fails_for_all() -> None:
    head = _layer("classifier", block=None, outputs=4, random_A=0.3, random_B=1.0)
    layers = [*_layers(_layer("query")), *([head] * 9)]
    assert _claim("inputs_fill_few", layers=layers).verdict == "holds"
    agrees = _claim("criterion_agrees", layers=layers)
    assert agrees.verdict == "holds"
    assert "the criterion names A alone at 9 of them, the draws agree at 9" in agrees.ours
    wide = _layer("fc1", model="vit", input_ratio=60.0)
    assert _claim("inputs_fill_few", layers=[*layers, wide]).verdict == "fails"


def test_convolutions_have_claims_of_their_own() -> None:
    wide = [_layer("_project_conv", model="efficientnet", input_ratio=60.0)]
    assert _claim("convolutions_inputs_fill_few", layers=wide, part=CONVOLUTIONS).verdict == "fails"
    assert _claim("convolutions_random_a_reaches_more", layers=wide, part=CONVOLUTIONS).verdict == "holds"


@pytest.mark.parametrize(("drawn", "verdict"), [(0.52, "holds"), (0.55, "fails")])
def test_the_closed_form_is_held_to_the_median_of_the_draws(drawn: float, verdict: str) -> None:
    layers = [_layer("query", drawn_A=value) for value in (0.3, drawn, drawn, drawn, 0.9)]
    assert _claim("closed_form_of_the_mean", layers=layers).verdict == verdict
    sketched = [{**layer, "drawn_A": None} for layer in layers]
    assert _claim("closed_form_of_the_mean", layers=sketched).verdict == "undecided"


@pytest.mark.parametrize(("down", "verdict"), [(0.2, "holds"), (0.5, "fails")])
def test_the_weakest_layer_is_told_from_the_attentions_output(down: float, verdict: str) -> None:
    layers = [
        _layer("attention.self.query"), _layer("intermediate.dense"), _layer("output.dense", random_A=down, outputs=32),
        # Ends as the down-projection does, and is none.
        _layer("attention.output.dense", random_A=0.126), _layer("attention.output.dense", random_A=0.9, block=1),
    ]  # fmt: skip
    assert _claim("weakest_at_down_projections", layers=layers).verdict == verdict
    assert _claim("weakest_at_down_projections", layers=layers[:2]).verdict == "undecided"


# Layer groups --------------------------------------------------------------------------------------------------------

OCTAVES = {"qv": 2.0, "up": 4.0, "down": 3.0}


def _groups(behind: Mapping[str, float], *, octaves: Mapping[str, float] = OCTAVES, best: int = 1) -> Evidence:
    """Return evidence in which A alone is behind by so many nats, in each group a little more in every other seed."""
    roles = {"qv": ("attention.self.query", "attention.self.value"), "up": ("intermediate.dense",)}
    roles["down"] = ("output.dense",)
    layers = [
        _layer(role, random_A=2.0 ** octaves[group] * 0.01, random_B=0.01) for group in roles for role in roles[group]
    ]
    rows: list[RunRow] = []
    for group, nats in behind.items():
        for letter, more in (("a", nats), ("b", 0.0)):
            rows += _runs(arm_of(group, letter), 0.5 + more, best)
    sweep = SweepEvidence(plan=SWEPT.plan.to_dict(), rows=rows)
    return Evidence(sweeps={GROUPS: sweep}, measured={SITES: layers})


def _runs(arm: str, loss: float, best: int) -> list[RunRow]:
    plan = SWEPT.plan
    tuning = [
        row(arm, lr=lr, seed=seed, value=loss + abs(place - best), metric="loss", greater_is_better=False)
        for place, lr in enumerate(plan.rates)
        for seed in plan.tuning_seeds
    ]
    closing = [
        row(
            arm, lr=plan.rates[best], seed=seed, value=loss, phase="closing", metric="loss", greater_is_better=False,
            test={"loss": loss + 0.01 * (seed % 2) * (arm[-6] == "a"), "accuracy": 1 - loss / 2},
        )
        for seed in plan.closing_seeds
    ]  # fmt: skip
    return [*tuning, *closing]


def _judge(key: str, evidence: Evidence) -> Finding:
    (claim,) = [claim for claim in CLAIMS if claim.key == key]
    return claim.finding(evidence)


def test_the_prediction_is_the_mean_over_the_layers_of_a_group() -> None:
    layers = [
        _layer("attention.self.query", random_A=0.4, random_B=0.1),
        _layer("attention.self.value", random_A=1.6, random_B=0.1),
        _layer("intermediate.dense", random_A=0.8, random_B=0.1), _layer("output.dense", random_A=0.1, random_B=0.2),
        _layer("query", model="vit", random_A=0.01, random_B=0.1),
    ]  # fmt: skip
    assert predicted(Evidence(measured={SITES: layers})) == pytest.approx({"qv": 3.0, "up": 3.0, "down": -1.0})


@pytest.mark.parametrize(
    ("down", "octaves", "verdict"),
    [(0.1, 3.0, "holds"), (-0.1, 3.0, "fails"), (-0.1, -3.0, "holds"), (-0.005, 3.0, "undecided")],
)
def test_signs_are_those_of_the_prediction_in_every_group(down: float, octaves: float, verdict: str) -> None:
    evidence = _groups({"qv": 0.1, "up": 0.2, "down": down}, octaves={**OCTAVES, "down": octaves})
    found = _judge("signs_as_predicted", evidence)
    assert found.verdict == verdict
    assert f"B alone predicted to be {octaves:+.2f} octaves ahead" in found.ours


@pytest.mark.parametrize(
    ("behind", "verdict"),
    [
        ({"qv": 0.1, "up": 0.3, "down": 0.2}, "holds"),
        ({"qv": 0.3, "up": 0.1, "down": 0.2}, "fails"),
        ({"qv": 0.1, "up": 0.1, "down": 0.1}, "undecided"),
    ],
)
def test_the_order_is_the_slope_over_the_groups(behind: dict[str, float], verdict: str) -> None:
    found = _judge("order_as_predicted", _groups(behind))
    assert found.verdict == verdict
    assert found.estimate == pytest.approx((behind["up"] - behind["qv"]) / 2, abs=1e-9)
    assert "feed-forward, up 4.00 octaves and" in found.ours


def test_a_best_rate_at_an_end_leaves_both_claims_open() -> None:
    evidence = _groups({"qv": 0.1, "up": 0.3, "down": 0.2}, best=0)
    for key in ("signs_as_predicted", "order_as_predicted"):
        found = _judge(key, evidence)
        assert found.verdict == "undecided"
        assert "the best rate of A alone in query and value and of B alone in query and value" in found.ours


def test_accuracies_are_described_by_group() -> None:
    found = _judge("accuracy_by_group", _groups({"qv": 0.1, "up": 0.3, "down": 0.2}))
    assert found.verdict == "undecided"
    assert "query and value: B alone 75.00, A alone 70.00" in found.ours


def test_nothing_is_judged_without_records() -> None:
    assert {claim.finding(Evidence()).verdict for claim in CLAIMS} == {"undecided"}
