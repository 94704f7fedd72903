from __future__ import annotations

from typing import Any

import pytest

from asymlora.papers.row_scores import scores_of
from asymlora.sweep.loaded_base import LoadedBase
from asymlora.train.recipe import Recipe


def test_scores_are_those_of_all_rows_whatever_the_batches(small_recipe: dict[str, Any]) -> None:
    prepared = LoadedBase(Recipe.from_dict(small_recipe)).prepared
    prepared.model.train()
    whole = scores_of(prepared.model, prepared, prepared.train, batch_size=10_000)
    assert not prepared.model.training
    # Rows of a batch are padded to its longest, which changes sums by rounding.
    assert scores_of(prepared.model, prepared, prepared.train, batch_size=7) == pytest.approx(whole, abs=1e-6)
    labels = [prepared.train[row]["labels"] for row in range(len(prepared.train))]
    # An untrained head on two labels: one of them for most rows, or all.
    assert min(labels.count(0), labels.count(1)) / len(labels) - 0.2 < whole["accuracy"] < 1
    assert whole["loss"] == pytest.approx(0.7, abs=0.2)
