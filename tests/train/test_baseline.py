from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asymlora.train.baseline import Baseline, stored_baseline
from asymlora.train.recipe import Recipe
from asymlora.train.run import finetune


@pytest.fixture
def baseline() -> Baseline:
    return Baseline(
        kind="head alone",
        evidence=[[1.0, 0.5], [0.0, 0.25]],
        before=None,
        environments={"art": {"accuracy": 0.5}},
        closing={},
        seconds=1.5,
        data_sha256="ab",
    )


def test_a_stored_baseline_is_the_same_when_read(baseline: Baseline, tmp_path: Path) -> None:
    baseline.store(tmp_path)
    assert stored_baseline(tmp_path) == baseline


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"kind": "head alone"}'])
def test_a_damaged_or_missing_one_is_none(damage: str, baseline: Baseline, tmp_path: Path) -> None:
    assert stored_baseline(tmp_path) is None
    baseline.store(tmp_path)
    (tmp_path / "baseline.json").write_text(damage)
    assert stored_baseline(tmp_path) is None


def test_a_head_that_cannot_be_copied_is_still_the_baseline(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    # The native class reads one token; the fitted head reads the mean of all.
    small_recipe["model"]["pooling"] = "native"
    result = finetune(Recipe.from_dict(small_recipe), output=tmp_path / "run")
    assert result.baseline_kind == "head alone"
    assert result.metrics["before"] != result.metrics["baseline"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    (first,) = [row for row in rows if row["split"] == "test" and row["step"] == 0]
    assert first["what"] == "head alone"
    assert first["accuracy"] == result.baseline
