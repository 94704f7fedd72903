"""What the factors do, `experiments/factor_dynamics.py`: its arms meet the same rows, its verdict follows from them."""

from __future__ import annotations

import gc
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments"
CLAIMS = ("first_step", "b_only", "identity", "internal", "one_sided", "undertrained")


@pytest.fixture(scope="module")
def dynamics() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        # The Trainer collects garbage before each run, which takes longer than these runs do.
        patch.setattr(gc, "collect", lambda *generation: 0)
        import factor_dynamics

        yield factor_dynamics


@pytest.fixture(params=["MiniLM", "SmolLM2"])
def stored(request: pytest.FixtureRequest, dynamics: ModuleType) -> list[dict[str, Any]]:
    import paired_runs

    return paired_runs.read_records(FOLDER / "results" / f"factor_dynamics_{request.param.lower()}.jsonl")


def test_every_arm_is_measured_at_the_same_steps_of_the_same_rows(
    dynamics: ModuleType, small_encoder: Path, small_data: Path
) -> None:
    short = replace(dynamics.QUICK.models["MiniLM"], model=str(small_encoder), data=str(small_data))
    *records, found = dynamics.measure(replace(dynamics.QUICK, models={"small": short}))
    steps = [r for r in records if r["kind"] == "step"]
    assert {(r["arm"], r["step"], r["quantile"]) for r in steps} == set(
        itertools.product(dynamics.ARMS, (1, 2, 3), dynamics.QUANTILES)
    )
    runs = {r["arm"]: r for r in records if r["kind"] == "run"}
    # Before the first step every arm gives the base's own output, so the same rows give the same first loss.
    assert len({r["first_loss"] for r in runs.values()}) == 1
    assert len({r["last_loss"] for r in runs.values()}) == 4
    assert (runs["B alone"]["moved_A"], runs["B alone"]["moved_B"]) == (0.0, None)
    assert runs["Init[B]"]["moved_A"] is None
    exact = found["small, seed 0"]
    assert [exact[name]["holds"] for name in ("first_step", "b_only", "identity")] == [True] * 3
    for low, high in itertools.pairwise(dynamics.QUANTILES):
        by_place = [{(r["arm"], r["step"]): r["Z_B"] for r in steps if r["quantile"] == q} for q in (low, high)]
        assert all(by_place[0][place] <= by_place[1][place] for place in by_place[0])


def test_quantiles_are_those_of_linear_interpolation(dynamics: ModuleType) -> None:
    ordered = [1.0, 2.0, 4.0, 8.0]
    assert [dynamics._quantile(ordered, level) for level in (0.25, 0.5, 0.75, 1.0)] == [1.75, 3.0, 5.0, 8.0]


def test_features_are_told_relative_to_the_layer(dynamics: ModuleType) -> None:
    sizes = {"Z_A": 3.0, "Z_B": 4.0, "delta1": 0.0, "delta2": 1.0, "delta3": 2.0}
    (row, *_) = dynamics._quantiles(5, [{**sizes, "rms_x": 2.0, "rms_base": 8.0}])
    assert row == {
        "kind": "step", "step": 5, "quantile": "0.25",
        "Z_A": 1.5, "Z_B": 0.5, "delta1": 0.0, "delta2": 0.125, "delta3": 0.25,
    }  # fmt: skip


def _records(dynamics: ModuleType) -> list[dict[str, Any]]:
    """Made-up records of three steps in which everything that is expected holds."""
    sizes = {
        "Init[A]": {"Z_A": (1.0, 1.2, 1.5), "delta1": (0.0, 0.02, 0.04), "delta2": (0.1, 0.1, 0.1)},
        "Init[B]": {"Z_A": (0.1, 0.2, 0.3), "delta1": (0.1, 0.1, 0.1), "delta2": (0.0, 0.01, 0.01)},
        "LoRA+": {"Z_A": (1.0, 1.05, 1.1), "delta1": (0.0, 0.02, 0.04), "delta2": (0.1, 0.1, 0.1)},
        "B alone": {"Z_A": (1.0, 1.0, 1.0), "delta1": (0.0, 0.0, 0.0), "delta2": (0.1, 0.1, 0.1)},
    }
    records: list[dict[str, Any]] = []
    for arm, columns in sizes.items():
        of = {"model": "net", "arm": arm, "seed": 0}
        for step, quantile in itertools.product((1, 2, 3), dynamics.QUANTILES):
            row = {name: values[step - 1] for name, values in columns.items()}
            row |= {"Z_B": 0.5, "delta3": 0.0 if step == 1 or arm == "B alone" else 0.001}
            records.append({"kind": "step", "step": step, "quantile": quantile, **row, **of})
        moved = {"moved_A": None, "moved_B": 0.01} if arm == "Init[B]" else {"moved_A": 0.2, "moved_B": None}
        records.append(
            {"kind": "run", "sites": 4, "first_loss": 1.0, "last_loss": 0.5, "identity_error": 1e-7, **moved, **of}
        )
    return records


def _verdict(dynamics: ModuleType, records: list[dict[str, Any]]) -> dict[str, Any]:
    return dynamics.verdict(records)["net, seed 0"]


def test_what_is_expected_holds_where_it_is_so(dynamics: ModuleType) -> None:
    found = _verdict(dynamics, _records(dynamics))
    assert tuple(found) == CLAIMS
    assert all(claim["holds"] for claim in found.values())
    assert found["one_sided"]["Init[B]"] == pytest.approx(0.1)
    assert found["one_sided"]["LoRA+"] == pytest.approx(math.sqrt(5 * 2.5), rel=1e-4)
    assert found["internal"] == {"Init[A]": 1.5, "LoRA+": 1.1, "B alone": 1.0, "holds": True}


@pytest.mark.parametrize(
    ("claim", "arm", "step", "change"),
    [
        ("first_step", "Init[A]", 1, {"delta1": 1e-9}),
        ("first_step", "LoRA+", 1, {"delta3": 1e-9}),
        ("first_step", "Init[B]", 1, {"delta2": 1e-9}),
        ("b_only", "B alone", 3, {"delta1": 1e-9}),
        ("b_only", "B alone", 2, {"Z_A": 1.0001}),
        ("internal", "LoRA+", 3, {"Z_A": 1.6}),
        ("internal", "Init[A]", 3, {"Z_A": 1.05}),
        ("one_sided", "Init[B]", 3, {"delta2": 0.5}),
        ("one_sided", "LoRA+", 2, {"delta2": 100.0}),
        ("identity", "Init[A]", None, {"identity_error": 2e-5}),
        ("undertrained", "Init[B]", None, {"moved_B": 0.3}),
    ],
)
def test_each_expectation_can_fail(
    dynamics: ModuleType, claim: str, arm: str, step: int | None, change: dict[str, float]
) -> None:
    records = _records(dynamics)
    for row in records:
        if row["arm"] == arm and row.get("step") == step:
            row.update(change)
    found = _verdict(dynamics, records)
    assert found[claim]["holds"] is False
    others = [name for name in CLAIMS if name != claim]
    assert all(found[name]["holds"] for name in others)


def test_the_stored_verdict_follows_from_the_stored_records(dynamics: ModuleType, stored: list[dict[str, Any]]) -> None:
    settings, *records, verdict = stored
    (model,) = settings["models"]
    assert settings.items() >= json.loads(json.dumps(asdict(dynamics.FULL[model]))).items()
    assert json.loads(json.dumps({"kind": "verdict", **dynamics.verdict(records)})) == verdict
    runs = {(r["model"], r["arm"]) for r in records if r["kind"] == "run"}
    assert runs == set(itertools.product((model,), dynamics.ARMS))


def test_what_is_exact_is_so_in_the_stored_records(stored: list[dict[str, Any]]) -> None:
    for run, claims in stored[-1].items():
        if run != "kind":
            assert all(claims[name]["holds"] for name in ("first_step", "b_only", "identity"))
