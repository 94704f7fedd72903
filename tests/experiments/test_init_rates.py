"""Check C13, `experiments/init_rates.py`: it runs, pairs its arms, and its verdict follows from its records."""

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

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments"
RATES = (0.01, 0.02, 0.04)


@pytest.fixture
def init_rates(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import init_rates

    return init_rates


@pytest.fixture
def small_nets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import small_nets

    return small_nets


@pytest.fixture
def paired_runs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import paired_runs

    return paired_runs


def _runs(arm: str, losses: tuple[float, float, float], accuracies: tuple[float, ...]) -> list[dict[str, Any]]:
    """Return made-up runs: validation losses by rate, the same test accuracies at every rate."""
    return [
        {
            "kind": "run",
            "scheme": arm,
            "rate": rate,
            "seed": seed,
            "validation_loss": loss,
            "test_loss": 1 - accuracy,
            "test_accuracy": accuracy,
        }
        for rate, loss in zip(RATES, losses, strict=True)
        for seed, accuracy in enumerate(accuracies)
    ]


def _verdict(module: ModuleType, a: list[dict[str, Any]], b: list[dict[str, Any]]) -> dict[str, Any]:
    return module.verdict([{"kind": "base"}, *a, *b])


def test_the_quick_form_pairs_its_arms_and_records_every_setting(
    init_rates: ModuleType, paired_runs: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "records.jsonl"
    init_rates.main(["--quick", "--threads", "1", "--output", str(file)])
    settings, base, *runs, verdict = paired_runs.read_records(file)
    assert [record["kind"] for record in (settings, base, verdict)] == ["settings", "base", "verdict"]
    assert settings.items() >= json.loads(json.dumps(asdict(init_rates.QUICK))).items()
    assert settings["environment"]["threads"] == 1
    assert settings["environment"]["packages"]["torch"] == torch.__version__
    assert {(r["scheme"], r["rate"], r["seed"]) for r in runs} == {
        (arm, 2.0**exponent, seed)
        for arm in init_rates.ARMS
        for exponent in init_rates.QUICK.exponents
        for seed in init_rates.QUICK.seeds
    }
    batches = {seed: {r["batches"] for r in runs if r["seed"] == seed} for seed in init_rates.QUICK.seeds}
    assert all(len(seen) == 1 for seen in batches.values())
    assert batches[0] != batches[1]
    assert len({r["test_loss"] for r in runs}) > len(batches)  # the arms did train
    # Two rates have no interior one.
    assert (verdict["rates"], verdict["accuracy"]) == (None, None)
    assert "undecided" in capsys.readouterr().out


def test_fewer_seeds_may_be_asked_for(init_rates: ModuleType, paired_runs: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    init_rates.main(["--quick", "--seeds", "1", "--output", str(file)])
    assert {r["seed"] for r in paired_runs.read_records(file) if r["kind"] == "run"} == {0}


def test_a_larger_best_rate_of_A_and_a_tie_in_accuracy_hold(init_rates: ModuleType) -> None:
    # Larger by one step of the grid, behind by 0.01 ± 0.01: within two standard errors.
    a = _runs("init_a", (3.0, 1.0, 2.0), (0.89, 0.92))
    b = _runs("init_b", (3.0, 1.0, 2.0), (0.91, 0.92))
    found = _verdict(init_rates, a, b)
    assert (found["rates"], found["accuracy"]) == (True, True)
    assert found["init_a"]["rate"] == found["init_b"]["rate"] == 0.02
    assert found["test_accuracy_difference"] == pytest.approx((-0.01, 0.01))
    assert found["test_loss_difference"] == pytest.approx((0.01, 0.01))


def test_an_A_that_is_worse_by_more_than_two_errors_fails(init_rates: ModuleType) -> None:
    a = _runs("init_a", (3.0, 1.0, 2.0), (0.80, 0.81, 0.80))
    b = _runs("init_b", (3.0, 1.0, 2.0), (0.91, 0.92, 0.90))
    assert _verdict(init_rates, a, b)["accuracy"] is False


@pytest.mark.parametrize(("smaller", "held"), [("init_b", True), ("init_a", False)])
def test_the_arm_with_the_smaller_best_rate_decides(init_rates: ModuleType, smaller: str, held: bool) -> None:
    # Four rates, so that both the second and the third are interior.
    runs = {arm: _runs(arm, (3.0, 1.0, 2.0), (0.9, 0.91)) for arm in init_rates.ARMS}
    for arm, found in runs.items():
        loss = 4.0 if arm == smaller else 0.5
        found += [{**r, "rate": 0.08, "validation_loss": 5.0} for r in found if r["rate"] == RATES[0]]
        for record in found:
            if record["rate"] == RATES[2]:
                record["validation_loss"] = loss
    assert _verdict(init_rates, runs["init_a"], runs["init_b"])["rates"] is held


def test_a_best_rate_at_an_edge_decides_nothing(init_rates: ModuleType) -> None:
    a = _runs("init_a", (3.0, 2.0, 1.0), (0.5, 0.6))
    b = _runs("init_b", (3.0, 1.0, 2.0), (0.9, 0.9))
    found = _verdict(init_rates, a, b)
    assert (found["init_a"]["interior"], found["rates"], found["accuracy"]) == (False, None, None)


def test_the_stored_verdict_follows_from_the_stored_runs(init_rates: ModuleType, paired_runs: ModuleType) -> None:
    settings, *records = paired_runs.read_records(FOLDER / "results" / "init_rates.jsonl")
    assert settings.items() >= json.loads(json.dumps(asdict(init_rates.FULL))).items()
    stored = records.pop()
    assert json.loads(json.dumps({"kind": "verdict", **init_rates.verdict(records)})) == stored
    assert len(settings["seeds"]) >= 5
    for seed in settings["seeds"]:
        assert len({r["batches"] for r in records if r["kind"] == "run" and r["seed"] == seed}) == 1


def test_the_stored_figures_stand_in_the_readme(paired_runs: ModuleType) -> None:
    text = " ".join((FOLDER / "README.md").read_text(encoding="utf-8").split())
    *records, found = paired_runs.read_records(FOLDER / "results" / "init_rates.jsonl")
    difference, error = found["test_accuracy_difference"]
    assert f"{100 * difference:+.2f} ± {100 * error:.2f} points" in text
    for arm in ("init_a", "init_b"):
        assert f"2^{math.log2(found[arm]['rate']):.0f} and {100 * found[arm]['test_accuracy']:.1f} %" in text
    ratio = found["init_a"]["between_rates"] / found["init_b"]["between_rates"]
    assert f"says {ratio:.1f} times" in text
    smallest = [r for r in records if r["kind"] == "run" and r["rate"] == 2.0**-8]
    means = [
        statistics.mean(r["test_accuracy"] for r in smallest if r["scheme"] == arm) for arm in ("init_b", "init_a")
    ]
    assert f"({100 * means[0]:.1f} % against {100 * means[1]:.1f} %)" in text
    base = next(r for r in records if r["kind"] == "base")
    assert f"{100 * base['test_accuracy']:.1f} % on test rows" in text
    words = {True: "holds", False: "fails", None: "undecided"}
    assert f"C13, rates: {words[found['rates']]}." in text
    assert f"C13, accuracy: {words[found['accuracy']]}." in text


def test_a_row_is_labelled_by_the_class_of_most_of_its_tokens(small_nets: ModuleType) -> None:
    task = small_nets.TokenTask()
    table = small_nets.token_classes(task, seed=3)
    rows = small_nets.token_rows(task, table, 200, small_nets.generator("rows", 0))
    assert rows.inputs.shape == (200, 1 + task.length)
    assert (rows.inputs[:, 0] == task.tokens).all()
    for tokens, label in zip(rows.inputs[:, 1:].tolist(), rows.labels.tolist(), strict=True):
        counts = [sum(int(table[token]) == c for token in tokens) for c in range(task.classes)]
        assert counts[label] == max(counts)
        assert counts.count(max(counts)) == 1


def test_the_downstream_table_moves_some_tokens_and_keeps_class_sizes(small_nets: ModuleType) -> None:
    task = small_nets.TokenTask()
    home = small_nets.token_classes(task, seed=None)
    tables = [small_nets.token_classes(task, seed=seed) for seed in range(5)]
    for table in tables:
        assert 0 < int((table != home).sum()) <= task.moved
        assert torch.equal(table.bincount(), home.bincount())
    assert not torch.equal(tables[0], tables[1])
    assert torch.equal(tables[0], small_nets.token_classes(task, seed=0))


def test_parts_of_the_token_task_share_no_draws(small_nets: ModuleType) -> None:
    parts = small_nets.token_parts(small_nets.TokenTask(), seed=0, train=50, other=50)
    assert not torch.equal(parts.train.inputs, parts.validation.inputs)
    assert not torch.equal(parts.validation.inputs, parts.test.inputs)
    again = small_nets.token_parts(small_nets.TokenTask(), seed=0, train=50, other=50)
    assert all(torch.equal(a, b) for one, two in zip(parts, again, strict=True) for a, b in zip(one, two, strict=True))


def test_a_sweep_goes_on_until_its_best_rate_is_interior(paired_runs: ModuleType) -> None:
    asked: list[float] = []

    def run(rate: float) -> list[dict[str, Any]]:
        asked.append(rate)
        return [{"rate": rate, "seed": seed, "validation_loss": abs(math.log2(rate) + 9)} for seed in (0, 1)]

    records = paired_runs.sweep_octaves(run, (-6, -5), most=10)
    assert asked == [2.0**e for e in (-6, -5, -7, -8, -9, -10)]
    assert [r["rate"] for r in records[::2]] == sorted(asked)
    asked.clear()
    paired_runs.sweep_octaves(run, (-6, -5), most=3)
    assert len(asked) == 3


def test_Init_A_is_ahead_on_every_stored_seed(paired_runs: ModuleType) -> None:
    *records, found = paired_runs.read_records(FOLDER / "results" / "init_rates.jsonl")
    arms = [
        {r["seed"]: r["test_accuracy"] for r in records if r.get("scheme") == arm and r["rate"] == found[arm]["rate"]}
        for arm in ("init_a", "init_b")
    ]
    assert len(arms[0]) == 6
    assert all(arms[0][seed] > arms[1][seed] for seed in arms[0])


def test_arms_with_other_seeds_are_not_compared(paired_runs: ModuleType) -> None:
    rows = [{"scheme": "init_a", "seed": 0, "x": 1.0}, {"scheme": "init_b", "seed": 1, "x": 1.0}]
    with pytest.raises(ValueError, match=r"seeds \[0\], init_b with \[1\]"):
        paired_runs.paired(rows, "init_a", "init_b", "x")
