"""A head that is drawn again is the one of a model which is loaded with that seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from asymlora.tasks.head_draws import HeadDraws
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.tasks.preparing import prepare_task
from asymlora.tasks.task import Prepared


def _prepared(small_encoder: Path, data: Path, pooling: Literal["mean", "native"], seed: int) -> Prepared:
    model = ModelRecipe(name=str(small_encoder), pooling=pooling)
    return prepare_task("text_classification", model, DataRecipe(name=str(data), group="film"), head_seed=seed)


def _heads(prepared: Prepared) -> dict[str, Any]:
    return {path: prepared.model.get_submodule(path).state_dict() for path in prepared.heads}


def _equal(some: dict[str, Any], others: dict[str, Any]) -> bool:
    return all(torch.equal(some[p][n], others[p][n]) for p in some for n in some[p])


@pytest.mark.parametrize("pooling", ["mean", "native"])
def test_it_is_the_head_of_a_fresh_model(
    pooling: Literal["mean", "native"], small_encoder: Path, small_data: Path
) -> None:
    used = _prepared(small_encoder, small_data, pooling, 0)
    fresh = {seed: _heads(_prepared(small_encoder, small_data, pooling, seed)) for seed in (0, 5)}
    assert not _equal(fresh[0], fresh[5])
    assert used.draw_head is not None
    for seed in (5, 0, 5):
        draws = torch.get_rng_state()
        used.draw_head(seed)
        assert torch.equal(torch.get_rng_state(), draws)
        assert _equal(_heads(used), fresh[seed])


def test_where_the_heads_alone_are_drawn_otherwise_the_model_is_loaded_again(
    small_encoder: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = _prepared(small_encoder, small_data, "native", 0)
    fresh = _heads(_prepared(small_encoder, small_data, "native", 5))
    drawn = used.draw_head
    assert isinstance(drawn, HeadDraws)
    loaded: list[int] = []
    reload = drawn.reload
    drawn._alone = False
    monkeypatch.setattr(drawn, "reload", lambda: (loaded.append(1), reload())[1])
    drawn(5)
    drawn(5)
    assert loaded == [1]  # the second time it is remembered
    assert _equal(_heads(used), fresh)


def test_it_finds_out_by_itself_whether_the_heads_alone_are_enough(small_encoder: Path, small_data: Path) -> None:
    alone = _prepared(small_encoder, small_data, "native", 0).draw_head
    whole = _prepared(small_encoder, small_data, "mean", 0).draw_head
    assert isinstance(alone, HeadDraws)
    assert isinstance(whole, HeadDraws)
    alone(1)
    whole(1)
    # The class of ours draws its whole encoder first, so its head alone would come out differently.
    assert (alone._alone, whole._alone) == (True, False)
