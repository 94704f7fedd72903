"""Parts of a single run; that it gives what `finetune` gives is in test_session."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest
import torch

from asymlora.errors import SpecError
from asymlora.sweep.loaded_base import LoadedBase
from asymlora.sweep.run_record import RunJob
from asymlora.sweep.single_run import SingleRun, digest, finite
from asymlora.train import processes
from asymlora.train.recipe import Recipe


def _job(recipe: Recipe | None = None) -> RunJob:
    return RunJob(recipe=recipe or Recipe(), phase="tuning", arm="arm", seed=0)


def test_a_digest_is_of_names_shapes_types_and_bytes() -> None:
    tensor = torch.tensor([[1.0, 2.0]])
    by_hand = hashlib.sha256(b"w\x1f(1, 2)\x1ftorch.float32\x1f" + tensor.numpy().tobytes()).hexdigest()
    assert digest({"w": tensor}) == by_hand
    assert digest({"w": tensor.T.contiguous().T}) == by_hand  # layout does not matter
    others = [{"v": tensor}, {"w": tensor.T}, {"w": tensor.double()}, {"w": tensor + 1}, {}]
    assert len({by_hand, *map(digest, others)}) == 6
    assert digest({"w": torch.tensor(1.0, dtype=torch.bfloat16)}) != digest({"w": torch.tensor(2.0).bfloat16()})


def test_metrics_become_what_json_takes() -> None:
    assert finite({"a": 1, "b": math.nan, "c": -math.inf}) == {"a": 1.0, "b": None, "c": None}


def test_several_processes_are_refused(small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.from_dict(small_recipe)
    run = SingleRun(LoadedBase(recipe), _job(recipe), folder=None, progress=None)
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(SpecError, match="one process"):
        run.do()
