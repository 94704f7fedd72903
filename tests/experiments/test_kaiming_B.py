"""Check Z11, `experiments/kaiming_B.py`: it runs, pairs its arms, and its verdict follows from its records."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import asymlora as al

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments"


@pytest.fixture
def kaiming_B(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import kaiming_B

    return kaiming_B


@pytest.fixture
def paired_runs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import paired_runs

    return paired_runs


@pytest.fixture
def small_nets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import small_nets

    return small_nets


def _records(module: ModuleType, accuracies: dict[str, float], *, best: int = 1) -> list[dict[str, Any]]:
    """Return made-up records: mean test accuracy by arm, a spread of 0.01 over three seeds."""
    tuning = [
        {"kind": "tuning", "scheme": kind, "rate": 2.0**e, "seed": 9, "validation_loss": 1.0 + abs(e - best)}
        for kind in module.FROZEN_B
        for e in range(3)
    ]
    runs = [
        {
            "kind": "run",
            "scheme": scheme,
            "rate": 2.0,
            "seed": seed,
            "test_accuracy": accuracy + 0.01 * (seed - 1) * (1 if scheme == "orthonormal" else 2),
            "test_loss": 1 - accuracy,
        }
        for scheme, accuracy in accuracies.items()
        for seed in range(3)
    ]
    return [{"kind": "base", "seed": 0}, *tuning, *runs]


def _accuracies(**changed: float) -> dict[str, float]:
    arms = dict.fromkeys(
        ("orthonormal", "kaiming_rescaled", "kaiming_unit", "kaiming_tuned", "kaiming_unit_tuned"), 0.9
    )
    return {**arms, "kaiming": 0.7, **changed}


def test_the_quick_form_pairs_its_arms_and_records_every_setting(
    kaiming_B: ModuleType, paired_runs: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "records.jsonl"
    kaiming_B.main(["--quick", "--threads", "1", "--output", str(file)])
    settings, *records, verdict = paired_runs.read_records(file)
    assert settings.items() >= json.loads(json.dumps(asdict(kaiming_B.QUICK))).items()
    assert settings["environment"]["threads"] == 1
    quick = kaiming_B.QUICK
    assert {r["seed"] for r in records if r["kind"] == "base"} == {*quick.tuning_seeds, *quick.seeds}
    assert {r["seed"] for r in records if r["kind"] == "tuning"} == set(quick.tuning_seeds)
    runs = [r for r in records if r["kind"] == "run"]
    assert len(runs) == len(verdict["arms"]) * len(quick.seeds) == 6 * len(quick.seeds)
    batches = [{r["batches"] for r in runs if r["seed"] == seed} for seed in quick.seeds]
    assert all(len(seen) == 1 for seen in batches)
    assert batches[0] != batches[1]
    rates = {arm: {r["rate"] for r in runs if r["scheme"] == arm} for arm in verdict["arms"]}
    assert (
        rates["orthonormal"] == rates["kaiming"] == rates["kaiming_unit"] == {verdict["tuned"]["orthonormal"]["rate"]}
    )
    # Columns of a Kaiming B: sqrt(out/(3 r)) = 1.6 at 32/4, within 15 % over 8 columns of 32 entries.
    expected = verdict["tuned"]["orthonormal"]["rate"] / math.sqrt(32 / 12)
    assert all(rate == pytest.approx(expected, rel=0.15) for rate in rates["kaiming_rescaled"])
    assert verdict["outcome"] == "untuned"
    assert "untuned" in capsys.readouterr().out


def test_fewer_seeds_may_be_asked_for(kaiming_B: ModuleType, paired_runs: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    kaiming_B.main(["--quick", "--seeds", "1", "--output", str(file)])
    assert {r["seed"] for r in paired_runs.read_records(file) if r["kind"] == "run"} == {0}


def test_either_repair_that_closes_the_gap_is_enough(kaiming_B: ModuleType) -> None:
    found = kaiming_B.verdict(_records(kaiming_B, _accuracies(kaiming_unit=0.7, kaiming_rescaled=0.87)))
    assert found["outcome"] == "holds"
    assert found["arms"]["kaiming_rescaled"]["test_accuracy_closed"] == pytest.approx(0.85)
    assert found["arms"]["kaiming_unit"]["test_accuracy_closed"] == pytest.approx(0.0)
    assert found["arms"]["kaiming_rescaled"]["test_loss_closed"] == pytest.approx(0.85)
    assert found["arms"]["kaiming"]["test_accuracy_lacking"][0] == pytest.approx(0.2)


def test_repairs_that_close_less_fail_though_tuning_closes_all(kaiming_B: ModuleType) -> None:
    accuracies = _accuracies(kaiming_unit=0.84, kaiming_rescaled=0.85, kaiming_tuned=0.95)
    assert kaiming_B.verdict(_records(kaiming_B, accuracies))["outcome"] == "fails"


@pytest.mark.parametrize("kaiming", [0.9, 0.91, 0.895])
def test_where_there_is_no_gap_nothing_is_closed(kaiming_B: ModuleType, kaiming: float) -> None:
    found = kaiming_B.verdict(_records(kaiming_B, _accuracies(kaiming=kaiming)))
    assert found["outcome"] == "no gap"
    assert found["arms"]["kaiming_unit"]["test_accuracy_closed"] is None


def test_a_rate_at_the_edge_leaves_it_untuned(kaiming_B: ModuleType) -> None:
    assert kaiming_B.verdict(_records(kaiming_B, _accuracies(), best=2))["outcome"] == "untuned"


def test_the_stored_verdict_follows_from_the_stored_runs(kaiming_B: ModuleType, paired_runs: ModuleType) -> None:
    settings, *records = paired_runs.read_records(FOLDER / "results" / "kaiming_B.jsonl")
    assert settings.items() >= json.loads(json.dumps(asdict(kaiming_B.FULL))).items()
    stored = records.pop()
    assert json.loads(json.dumps({"kind": "verdict", **kaiming_B.verdict(records)})) == stored
    assert len(settings["seeds"]) >= 6
    assert not set(settings["seeds"]) & set(settings["tuning_seeds"])
    for seed in settings["seeds"]:
        assert len({r["batches"] for r in records if r["kind"] == "run" and r["seed"] == seed}) == 1


def test_the_stored_figures_stand_in_the_readme(paired_runs: ModuleType) -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    *records, found = paired_runs.read_records(FOLDER / "results" / "kaiming_B.jsonl")
    for scheme, arm in found["arms"].items():
        lacking, error = arm["test_accuracy_lacking"]
        closed = arm["test_accuracy_closed"]
        cells = [f"`{scheme}`", f"{arm['rate']:.2e}", f"{100 * arm['test_accuracy']:.1f} %"]
        cells += [f"{100 * lacking:.2f} ± {100 * error:.2f}", "-" if closed is None else f"{100 * closed:.0f} %"]
        assert f"| {' | '.join(cells)} |" in text
    rates = {kind: tuned["rate"] for kind, tuned in found["tuned"].items()}
    assert 8 * rates["kaiming"] == rates["orthonormal"]
    assert f"{rates['orthonormal'] / found['arms']['kaiming_rescaled']['rate']:.1f}" == "6.5"
    slow = [r for r in records if r["kind"] == "tuning" and r["rate"] == 2.0**-4]
    ahead, behind = (
        statistics.mean(r["validation_accuracy"] for r in slow if r["scheme"] == kind)
        for kind in ("kaiming", "orthonormal")
    )
    assert f"{100 * ahead:.1f} % against {100 * behind:.1f} %" in " ".join(text.split())
    assert f"Z11: {found['outcome']}." in " ".join(text.split())


def test_AdamW_sees_the_size_of_B_only_through_the_step_it_makes(small_nets: ModuleType) -> None:
    """The identity behind the experiment: B at eta/c moves the product as B/c at eta, in float64 to rounding."""
    moved = {}
    for norm, rate in ((1.0, 0.01), (8.0, 0.01 / 8.0), (8.0, 0.01)):
        net = small_nets.digit_net(width=16, seed=0).double()
        B = al.FactorSpec(init="kaiming_uniform", trainable=False, component_norm=norm)
        spec = al.AdapterSpec(A=al.FactorSpec(init="zeros"), B=B, rank=2, targets=("first", "second"))
        al.attach(net, spec).double()
        optimizer = torch.optim.AdamW(al.param_groups(net, lr=rate), eps=1e-30)
        rows = small_nets.digit_parts(seed=0, pretraining=False).train
        rows = small_nets.Rows(rows.inputs.double(), rows.labels)
        small_nets.train_steps(net, optimizer, rows, small_nets.Training(steps=10), seed=0)
        moved[norm, rate] = torch.cat([(site.B @ site.A).flatten() for site in al.sites(net)])
    plain, rescaled, at_eta = moved.values()
    # Column norms are 1 and 8 to float32 rounding.
    assert torch.allclose(rescaled, plain, rtol=1e-4, atol=1e-7)
    assert (at_eta - plain).norm() > plain.norm()


def test_halves_of_the_digits_are_disjoint_and_complete(small_nets: ModuleType) -> None:
    mine, other = (small_nets.digit_parts(seed=1, pretraining=half) for half in (True, False))
    rows = [row for parts in (mine, other) for part in parts for row in part.inputs]
    assert len(rows) == 1797
    assert torch.stack(rows).unique(dim=0).shape[0] == 1797
    assert all(set(part.labels.tolist()) == set(range(5)) for parts in (mine, other) for part in parts)


def test_a_base_that_does_not_generalise_is_refused(small_nets: ModuleType) -> None:
    how = small_nets.Pretraining(until=1.01, most_rounds=1, batch_size=8)
    net, parts = small_nets.digit_net(width=8, seed=0), small_nets.digit_parts(seed=0, pretraining=True)
    with pytest.raises(al.errors.DivergedError, match=r"wanted are 1\.01\. Train longer"):
        small_nets.pretrain(net, parts, how, seed=0)
