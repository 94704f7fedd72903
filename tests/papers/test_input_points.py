from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from asymlora.papers import efficientnet_lite, input_points
from asymlora.papers.input_points import (
    CONVOLUTIONS,
    convolution_points,
    measure_sites,
    paper_points,
    place_of,
    site_points,
)
from asymlora.train.recipe import Recipe


@pytest.fixture
def small(small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A point of a small BERT."""
    recipe = Recipe.from_dict(small_recipe)
    monkeypatch.setattr(input_points, "MODELS", {"small": lambda data_root: recipe})
    return {"name": "small", "blocks": None, "batches": 3, "rank": 2, "draws": 40, "seed": 0}


def test_points_are_plain_and_stand_once() -> None:
    points = (*site_points(), *convolution_points(), *paper_points())
    texts = [json.dumps(point, sort_keys=True) for point in points]
    assert len(texts) == len(set(texts))
    blocks = [point["blocks"] for point in points if point["name"] == "smollm2"]
    assert blocks == [[0, 10], [10, 20], [20, 30]]


@pytest.mark.parametrize(
    ("site", "place"),
    [
        ("encoder.encoder.layer.0.attention.self.query", (0, "attention.self.query")),
        ("encoder.encoder.layer.11.output.dense", (11, "output.dense")),
        ("_blocks.15._project_conv", (15, "_project_conv")),
        ("classifier", (None, "classifier")),
        ("layers.3", (None, "layers.3")),
    ],
)
def test_a_layer_stands_in_a_block(site: str, place: tuple[int | None, str]) -> None:
    assert place_of(site) == place


def test_every_linear_layer_is_measured_and_draws_agree_with_the_means(small: dict[str, Any]) -> None:
    records = measure_sites(small, data_root=Path("nowhere"))
    json.dumps(records, allow_nan=False)
    roles = {record["role"] for record in records}
    assert {"attention.self.query", "intermediate.dense", "output.dense", "classifier"} <= roles
    assert not [role for role in roles if "embeddings" in role]
    for record in records:
        assert record["model"] == "small"
        assert 1 <= record["input_ratio"] <= record["fan_in"]
        assert record["random_B"] == pytest.approx(record["rank"] / record["outputs"])
        assert max(record["random_A"], record["random_B"]) <= record["best"] + 1e-9
        # 40 draws of a share with a deviation of at most a half: five standard errors are 0.4.
        assert record["drawn_A"] == pytest.approx(record["random_A"], abs=0.4)
        assert record["drawn_B"] == pytest.approx(record["random_B"], abs=0.4)
    (head,) = [record for record in records if record["role"] == "classifier"]
    assert (head["block"], head["outputs"], head["random_B"]) == (None, 2, 1.0)
    alone = measure_sites({**small, "blocks": [1, 2]}, data_root=Path("nowhere"))
    expected = [record for record in records if record["block"] == 1]
    assert [record["site"] for record in alone] == [record["site"] for record in expected]
    assert [record["random_A"] for record in alone] == pytest.approx([record["random_A"] for record in expected])


class _Images:
    """Twelve random images of three labels."""

    labels = np.arange(12) % 3

    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> dict[str, Any]:
        pixels = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(row))
        return {"pixel_values": pixels, "labels": int(self.labels[row])}


def _collated(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    labels = torch.tensor([item["labels"] for item in items])
    return {"pixel_values": torch.stack([item["pixel_values"] for item in items]), "labels": labels}


def _lively() -> torch.nn.ModuleDict:
    # torch's own start shrinks features at each of 49 convolutions, so that no gradient is left.
    layers = efficientnet_lite.network()
    torch.manual_seed(0)
    for layer in layers.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    return layers


def test_convolutions_are_measured_but_for_those_in_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepared = SimpleNamespace(
        train=_Images(), validation=_Images(), collator=_collated, label_names=("a", "b", "c"),
        processor=SimpleNamespace(mean=(0.5,) * 3, std=(0.5,) * 3),
    )  # fmt: skip
    monkeypatch.setattr("asymlora.tasks.preparing.prepare_task", lambda *args, **options: prepared)
    monkeypatch.setattr(efficientnet_lite, "pretrained", _lively)
    point = {"name": CONVOLUTIONS, "blocks": [0, 2], "batches": 1, "rank": 2, "draws": 1, "seed": 0}
    records = measure_sites(point, data_root=tmp_path)
    assert {(record["block"], record["role"], record["outputs"]) for record in records} == {
        (0, "_project_conv", 16), (1, "_expand_conv", 96), (1, "_project_conv", 24),
    }  # fmt: skip
    assert {record["kind"] for record in records} == {"convolution"}
