from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from asymlora.papers import bound_points
from asymlora.papers.bound_points import (
    LAYERS,
    MORE_LAYERS,
    gap_points,
    measure_bound,
    measure_gaps,
    paper_gap_points,
)
from cases import small_reviews


def test_points_are_plain_and_stand_once() -> None:
    points = (
        *bound_points.bound_points(LAYERS), *bound_points.bound_points(MORE_LAYERS), *gap_points((0, 1), "model"),
        *paper_gap_points((0, 1)),
    )  # fmt: skip
    texts = [json.dumps(point, sort_keys=True) for point in points]
    assert len(texts) == len(set(texts))
    assert not set(LAYERS) & set(MORE_LAYERS)


def test_layers_are_those_of_the_models() -> None:
    def values(layers: str, rank: int = 8) -> int:
        shapes = {**LAYERS, **MORE_LAYERS}[layers]
        return sum(rank * (out + into) * count for out, into, count in shapes)

    # The counts of our notes on the paper: rank 8 on query and value of RoBERTa-large, rank 32 of LLaMA-2-7B.
    assert values("query and value of RoBERTa-large") == 786_432
    assert values("query and value of LLaMA-2-7B", rank=32) == 16_777_216


def test_a_bound_is_that_of_the_formula() -> None:
    point = {"layers": "two", "shapes": [[3, 5, 2]], "rank": 2, "samples": 7, "bits": 4}
    (record,) = measure_bound(point)
    per_value = 2 * 0.25 * 4 * math.log(2) / 7
    for way, values in (("both", 2 * 2 * 8), ("b_only", 2 * 2 * 3), ("a_only", 2 * 2 * 5)):
        assert record[way] == pytest.approx(math.sqrt(values * per_value))
    assert record["square"] is False
    assert max(record[f"{name}_error"] for name in ("squares", "rank", "samples")) < 1e-14
    # Unequal sides: B alone has 3 of 8 values, at twice the rank 6.
    assert record["one_factor_error"] == pytest.approx(1 - math.sqrt(2 * 3 / 8))
    assert record["doubled_error"] == pytest.approx(1 - math.sqrt(6 / 8))
    assert record["samples_needed"] == math.floor(12 * 4 * math.log(2) / 2) + 1


@pytest.fixture
def small_set(tmp_path: Path) -> Path:
    """A data root with a small set in the place of TREC-6."""
    folder = tmp_path / "text" / "trec6"
    folder.mkdir(parents=True)
    for part, seed in (("train", 0), ("test", 1)):
        rows = [{"text": row["text"], "label": int(row["label"] == "fresh")} for row in small_reviews(80, seed=seed)]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def test_each_arm_is_scored_on_the_rows_that_it_was_trained_on(small_set: Path, small_encoder: Path) -> None:
    point: dict[str, Any] = {
        "set": "trec6", "rows": 16, "seed": 3, "model": str(small_encoder), "steps": 12, "batch_size": 8, "lr": 3e-2,
    }  # fmt: skip
    records = measure_gaps(point, data_root=small_set)
    assert [record["arm"] for record in records] == ["both", "b_only", "a_only"]
    for record in records:
        assert (record["rows"], record["seed"]) == (16, 3)
        assert (16 * record["train_error"]) == pytest.approx(round(16 * record["train_error"]))
        assert record["train_loss"] < record["test_loss"]
        # Sixteen rows six times: what was trained on is fitted better than what was not.
        assert record["both"] ** 2 == pytest.approx(record["a_only"] ** 2 + record["b_only"] ** 2)


def test_a_run_that_diverges_has_no_gap(small_set: Path, small_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound_points, "ARMS", bound_points.ARMS[:1])
    point = {
        "set": "trec6", "rows": 16, "seed": 0, "model": str(small_encoder), "steps": 3, "batch_size": 8, "lr": 1e30,
    }  # fmt: skip
    (record,) = measure_gaps(point, data_root=small_set)
    assert record["test_error"] is None
    assert record["train_error"] is None
