"""Kept adapters of a real sweep of a tiny model, scored by domain: as `finetune` of the same recipe scores them."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from asymlora.errors import RunFolderError
from asymlora.papers.arm_comparisons import plan_of
from asymlora.papers.domain_scores import DomainScores, domain_points
from asymlora.papers.zhu_settings import B_ONLY
from asymlora.reproduce.artefact import SweepPart
from asymlora.reproduce.part_runs import Means, do_part
from asymlora.sweep.axes import Arm
from asymlora.sweep.executors import InProcess
from asymlora.sweep.run_record import RunRow
from asymlora.sweep.store import RunStore
from asymlora.sweep.sweep_folder import RUNS
from asymlora.train.recipe import Recipe
from asymlora.train.run import finetune

COLOURS = ((30, 30, 220), (30, 200, 30))
SPLITS = ("train", "train", "train", "validation", "test")


def _write_domain(file: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for row in range(20):
        pixels = (np.array(COLOURS[row % 2]) + random.integers(-90, 91, (16, 16, 3))).clip(0, 255)
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
        image = {"bytes": buffer.getvalue(), "path": "x.png"}
        rows.append({"image": image, "label": ("blue", "green")[row % 2], "split": SPLITS[row // 4]})
    pd.DataFrame(rows).to_parquet(file)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepPart]:
    """The folder of a run whose sweep of B-only and full fine-tuning has ended, one seed each, and that sweep."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=16, patch_size=4
    )
    Dinov2Model(config).save_pretrained(folder / "model")
    (folder / "sets").mkdir()
    for seed, domain in enumerate(("day", "dusk", "night")):
        _write_domain(folder / "sets" / f"{domain}.parquet", seed)
    recipe = Recipe.from_dict(
        {
            "task": "image_classification",
            "model": {"name": str(folder / "model")},
            "data": {"name": str(folder / "sets"), "train_environment": "day", "image_size": 16},
            "adapter": {"preset": "b_only", "rank": 2},
            "train": {"steps": 3, "batch_size": 4, "evaluate_every": 3, "head_start": "random"},
        }
    )
    arms = (B_ONLY, Arm(name="full", word="full"))
    part = SweepPart(name="made", plan=plan_of(recipe, arms, (1e-2,), seeds=(1, 1)))
    do_part(part, "first", folder / "made", Means(executor=InProcess))
    return folder, part


def _measured(folder: Path, point: Mapping[str, Any]) -> dict[tuple[str, str], tuple[float, float]]:
    records = DomainScores(folder, trained_rows=8).measure(point)
    assert {record["rows"] for record in records if record["kind"] == "trained"} == {8}
    return {(record["kind"], record["domain"]): (record["accuracy"], record["loss"]) for record in records}


def test_each_closing_run_is_a_point(swept: tuple[Path, SweepPart]) -> None:
    assert domain_points(swept[1]) == (
        {"sweep": "made", "arm": "b_only", "seed": 0},
        {"sweep": "made", "arm": "full", "seed": 0},
    )


def test_scores_are_those_of_the_same_recipe_fine_tuned_by_itself(swept: tuple[Path, SweepPart]) -> None:
    folder, part = swept
    points = domain_points(part)
    found = [_measured(folder, point) for point in (*points, points[0])]
    assert found[0] == found[2]  # the other run's weights are gone from the shared model
    for point, scores in zip(points, found, strict=False):
        (row,) = [r for r in RunStore(folder / "made" / RUNS).rows() if (r.arm, r.phase) == (point["arm"], "closing")]
        alone = finetune(Recipe.from_dict(row.recipe), output=folder / f"alone-{point['arm']}")
        expected = {("other", name): both["after"] for name, both in alone.environments.items()}
        expected[("own", "day")] = alone.metrics["after"]
        assert scores.keys() - expected.keys() == {("trained", "day")}
        for key, metrics in expected.items():
            # Batches of other sizes sum in another order.
            assert scores[key] == pytest.approx((metrics["accuracy"], metrics["loss"]), rel=1e-5), key


def test_rows_that_were_trained_on_are_scored_as_they_are(swept: tuple[Path, SweepPart]) -> None:
    folder, part = swept
    point = domain_points(part)[0]
    first, second = (DomainScores(folder, trained_rows=100).measure(point) for _ in range(2))
    assert first == second  # no crop, no tint
    assert [record["rows"] for record in first] == [4, 12, 4, 4]


def test_what_cannot_be_scored_is_told(swept: tuple[Path, SweepPart], tmp_path: Path) -> None:
    folder, part = swept
    point = domain_points(part)[0]
    with pytest.raises(RunFolderError, match=r"no closing run of b_only with seed 0 in .*Run the part made first"):
        DomainScores(tmp_path, trained_rows=8).measure(point)
    shutil.copytree(folder / "made", tmp_path / "made")
    with pytest.raises(RunFolderError, match="no closing run of b_only with seed 7"):
        DomainScores(tmp_path, trained_rows=8).measure({**point, "seed": 7})
    shutil.rmtree(tmp_path / "made" / "adapters")
    with pytest.raises(RunFolderError, match=r"adapter of b_only with seed 0 is gone from .*adapters"):
        DomainScores(tmp_path, trained_rows=8).measure(point)


def test_a_run_that_diverged_has_no_scores(swept: tuple[Path, SweepPart], tmp_path: Path) -> None:
    folder, part = swept
    shutil.copytree(folder / "made", tmp_path / "made")
    rows = RunStore(folder / "made" / RUNS).rows()
    (tmp_path / "made" / RUNS).unlink()
    store = RunStore(tmp_path / "made" / RUNS)
    for row in rows:
        lost = {"status": "diverged", "adapter": None, "test": None} if row.phase == "closing" else {}
        store.append(RunRow.from_dict({**row.to_dict(), **lost}))
    assert DomainScores(tmp_path, trained_rows=8).measure(domain_points(part)[0]) == []
