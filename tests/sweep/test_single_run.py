"""Parts of a single run; that it gives what `finetune` gives is in test_session."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
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


def test_closing_measurements_stand_beside_the_test_metrics_of_a_run_that_is_scored_on_test(
    small_recipe: dict[str, Any],
) -> None:
    recipe = Recipe.from_dict(small_recipe)
    base = LoadedBase(recipe)
    asked: list[bool] = []

    def measure(network: torch.nn.Module) -> dict[str, float]:
        asked.append(network.training)
        return {"accuracy": 0.25, "questions": 4.0}

    base.prepared = replace(base.prepared, closing={"choices": measure})
    tuning = SingleRun(base, _job(recipe), folder=None, progress=None)
    tuning.do()
    assert not asked
    closing = SingleRun(base, replace(_job(recipe), phase="closing", scores_test=True), folder=None, progress=None)
    closing.do()
    assert asked == [False]
    metrics = closing.found["test"]
    assert (metrics["choices.accuracy"], metrics["choices.questions"]) == (0.25, 4.0)
    assert metrics.keys() - closing.found["before"].keys() == {"choices.accuracy", "choices.questions"}
