"""Whose singular vectors a start holds, and how the released code's start is trained."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from asymlora.diagnostics.similarity import A_similarity, B_similarity, chance_similarity
from asymlora.papers import singular_points
from asymlora.papers.singular_points import (
    RANDOM,
    RELEASED,
    TOP,
    measure_similarity,
    measure_training,
    released_start,
    similarity_points,
    training_points,
)
from asymlora.papers.zhu_singular import ARM_OF, ARMS
from asymlora.sweep.grid import SweepPlan
from asymlora.train.recipe import Recipe

DRAWS = 60


@pytest.mark.parametrize("shape", [(16, 16), (24, 16), (16, 24)], ids=["square", "tall", "wide"])
def test_a_released_start_is_orthonormal_and_as_near_to_any_space_as_chance(shape: tuple[int, int]) -> None:
    m, n = shape
    given = torch.linalg.qr(torch.from_numpy(singular_frame(max(shape)))).Q
    A_near, B_near = [], []
    for seed in range(DRAWS):
        A, B = released_start(shape, 4, seed=seed, site="layer")
        assert (A.shape, B.shape) == ((4, n), (m, 4))
        assert torch.allclose(A @ A.T, torch.eye(4), atol=1e-5)
        assert torch.allclose(B.T @ B, torch.eye(4), atol=1e-5)
        A_near.append(A_similarity(A.double(), torch.eye(n, dtype=torch.float64)[:4] @ given[:n, :n]))
        B_near.append(B_similarity(B.double(), given[:m, :4]))
    for near, width in ((A_near, n), (B_near, m)):
        # Four standard errors: one draw of the seeds in 16,000 would miss; the draws are fixed.
        error = statistics.stdev(near) / math.sqrt(DRAWS)
        assert abs(statistics.fmean(near) - chance_similarity(4, width)) < 4 * error


def singular_frame(size: int) -> Any:
    """A fixed full-rank matrix."""
    return torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).numpy()


def test_a_released_start_belongs_to_its_seed_and_layer() -> None:
    first, again = (released_start((8, 8), 2, seed=1, site="a")[0] for _ in range(2))
    assert torch.equal(first, again)
    for seed, site in ((2, "a"), (1, "b")):
        assert not torch.allclose(first, released_start((8, 8), 2, seed=seed, site=site)[0], atol=1e-2)


def test_the_informed_start_alone_holds_the_weights_own_space(small_encoder: Path) -> None:
    (point,) = similarity_points(str(small_encoder), ("query", "output.dense"), rank=2, seeds=(3,))
    records = measure_similarity(point)
    assert [(row["start"], row["factor"]) for row in records] == [
        (start, factor) for start in (TOP, RELEASED, RANDOM) for factor in "AB"
    ]
    for row in records:
        assert (row["seed"], row["layers"]) == (3, records[0]["layers"])
        assert row["not_orthonormal"] < 1e-5
        assert (row["least"] > 1 - 1e-6) == (row["start"] == TOP)
        assert row["least"] <= row["similarity"]
    assert records[0]["layers"] > 2


def test_every_seed_is_trained_from_every_start_at_one_rate() -> None:
    assert [tuple(point.values()) for point in training_points(0.1, (0, 1))] == [
        (start, 0.1, seed) for seed in (0, 1) for start in (TOP, RELEASED, RANDOM)
    ]


def test_a_run_takes_the_released_draw_where_it_is_asked_for(
    small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.from_dict(small_recipe)
    recipe = replace(recipe, train=replace(recipe.train, steps=2, evaluate_every=2, head_start="random"))
    plan = SweepPlan(recipe=recipe, arms=ARMS, rates=(1e-3, 1e-2), tuning_seeds=(200,), closing_seeds=(0,))
    drawn: list[tuple[int, str]] = []

    def recorded(shape: tuple[int, int], rank: int, *, seed: int, site: str) -> Any:
        drawn.append((seed, site))
        return released_start(shape, rank, seed=seed, site=site)

    monkeypatch.setattr(singular_points, "released_start", recorded)
    records = []
    for point in training_points(0.01, (7,)):
        drawn.clear()
        records += measure_training(point, plan=plan, arms=ARM_OF)
        assert {seed for seed, _ in drawn} == ({7} if point["start"] == RELEASED else set())
    assert [record["start"] for record in records] == [TOP, RELEASED, RANDOM]
    assert all(0 <= record["value"] <= 1 for record in records)


def test_a_run_that_diverges_has_no_value(small_recipe: dict[str, Any]) -> None:
    recipe = Recipe.from_dict(small_recipe)
    recipe = replace(recipe, train=replace(recipe.train, steps=4, head_start="random", max_grad_norm=0))
    plan = SweepPlan(recipe=recipe, arms=ARMS, rates=(1e-3, 1e-2), tuning_seeds=(200,), closing_seeds=(0,))
    (record,) = measure_training({"start": RANDOM, "rate": 1e38, "seed": 0}, plan=plan, arms=ARM_OF)
    assert record == {"start": RANDOM, "seed": 0, "rate": 1e38, "value": None}
