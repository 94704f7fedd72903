"""The experiment on advised rates: it skips without data, runs, and its verdict follows from its records."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def advised_rates(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import advised_rates

    return advised_rates


def _records(advised: float, losses: dict[float, float | None]) -> list[dict[str, Any]]:
    return [
        {
            "kind": "advice",
            "set": "made up",
            "rate": {"lr": advised},
            "range_test": {"edge": 4 * advised, "outcome": "found"},
            "seconds": {"in all": 3.0},
        },
        *(
            {"kind": "run", "set": "made up", "rate": rate, "seed": seed, "validation_loss": loss,
             "validation_accuracy": 0.5}
            for rate, loss in losses.items()
            for seed in (0, 1)
        ),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("advised", "octaves", "agrees"),
    [(2**-8, 0.0, True), (2**-10, -2.0, True), (2**-6, 2.0, True), (2**-10.5, -2.5, False), (2**-5, 3.0, False)],
)
def test_agreement_is_two_octaves_to_either_side(
    advised_rates: ModuleType, advised: float, octaves: float, agrees: bool
) -> None:
    found = advised_rates.verdict(_records(advised, {2**-9: 0.5, 2**-8: 0.4, 2**-7: 0.6}))
    assert found["sets"]["made up"]["octaves"] == octaves
    assert found["sets"]["made up"]["agrees"] is agrees
    assert found["holds"] is agrees


def test_a_best_rate_at_an_edge_decides_nothing(advised_rates: ModuleType) -> None:
    found = advised_rates.verdict(_records(2**-8, {2**-9: 0.5, 2**-8: 0.4, 2**-7: 0.3}))
    assert found["holds"] is found["sets"]["made up"]["agrees"] is None


def test_a_rate_that_diverged_is_the_worst(advised_rates: ModuleType) -> None:
    found = advised_rates.verdict(_records(2**-9, {2**-9: 0.5, 2**-8: 0.4, 2**-7: None}))
    assert found["sets"]["made up"]["best"] == 2**-8
    assert found["sets"]["made up"]["excess_loss"] == pytest.approx(0.1)


def test_without_the_data_nothing_is_run(
    advised_rates: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "records.jsonl"
    advised_rates.main(["--data-root", str(tmp_path), "--output", str(output)])
    assert "Nothing is run" in capsys.readouterr().out
    assert not output.exists()


@pytest.mark.optional  # an experiment in small: ten seconds
def test_it_runs_and_writes_settings_runs_and_verdict(
    advised_rates: ModuleType, small_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = replace(advised_rates.QUICK, sets=("one.csv",), model=str(small_encoder))
    small_data.rename(tmp_path / "one.csv")
    records = advised_rates.measure(quick, tmp_path)
    assert [record["kind"] for record in records] == ["advice", "run", "run", "verdict"]
    assert {record["rate"] for record in records if record["kind"] == "run"} == {2**-9, 2**-8}
    assert all(math.isfinite(record["validation_loss"]) for record in records if record["kind"] == "run")
    advised_rates.write_records(tmp_path / "out.jsonl", {"steps": quick.steps}, records)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines[0]["kind"] == "settings"
    assert advised_rates.table(records).row_count == 2
