"""The folder of a made-up run of ``asymlora finetune``, without a model: for tests of reports and comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asymlora.train.recipe import Recipe, merged

STEPS = 40
DYNAMICS = ("Z_A", "Z_B", "delta1", "delta2", "delta3", "update_A", "update_B", "grad_A", "grad_B", "norm_A", "norm_B")
ENVIRONMENT = {"python": "3.11.9", "packages": {"torch": "2.6.0"}, "system": "Linux x86_64", "cpus": 2, "threads": 3}


def result(score: float = 0.9, **changes: Any) -> dict[str, Any]:
    """Return the content of ``result.json``, as far as it is read.

    Args:
        score: Accuracy on the test part.
        changes: Other values of single keys.
    """
    metrics = {"accuracy": score, "f1": score - 0.1}
    before = {"accuracy": 0.5, "f1": 0.4}
    made: dict[str, Any] = {
        "metric": "accuracy", "greater_is_better": True, "validation": 0.88, "best_step": 20, "steps": STEPS,
        "metrics": {"baseline": before, "before": before, "after": metrics}, "trained_parameters": 12_000,
        "head_parameters": 500, "baseline_seconds": 2.0, "train_seconds": 10.0, "total_seconds": 15.0,
        "peak_memory_bytes": 900_000_000, "health": [{"name": "B has not moved", "says": "It stands still."}],
    }  # fmt: skip
    return {**made, **changes}


def records() -> list[dict[str, Any]]:
    """Return rows of ``records.jsonl``: a loss that was not finite among them."""
    train = [{"split": "train", "step": step, "loss": 1 / step, "wall_s": 1.0} for step in (10, 30, 40)]
    train.insert(1, {"split": "train", "step": 20, "loss": None, "wall_s": 1.0})
    scored = [{"split": "validation", "step": at, "loss": 0.5, "accuracy": at / 50, "f1": 0.1} for at in (20, 40)]
    return [{"split": "test", "step": 0, "what": "head alone", "accuracy": 0.5}, *train, *scored]


def dynamics() -> list[dict[str, Any]]:
    """Return rows of ``dynamics.jsonl``: of three sites at two steps, `A` frozen."""
    return [
        {"step": step, "site": f"layer.{n}", **{name: float(step * 10**n) for name in DYNAMICS}, "grad_A": None}
        for step in (1, 20)
        for n in range(3)
    ]


def write_run(
    path: Path, *, score: float | None = 0.9, recipe: Mapping[str, Any] | None = None, **changes: Any
) -> Path:  # fmt: skip
    """Write the folder of a run.

    Args:
        path: The folder, which is made.
        score: Accuracy on the test part; None: the run has not ended.
        recipe: Values that differ from a recipe of 40 steps.
        changes: Other values of single keys of the result.

    Returns:
        The folder.
    """
    path.mkdir(parents=True)
    made = Recipe.from_dict(merged({"train": {"steps": STEPS, "lr": 1e-2}}, recipe or {}))
    (path / "recipe.yaml").write_text(made.to_yaml())
    (path / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records()))
    (path / "dynamics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dynamics()))
    if score is not None:
        (path / "result.json").write_text(json.dumps(result(score, **changes)))
        (path / "adapter").mkdir()
        (path / "adapter" / "adapter_model.safetensors").write_bytes(b"\0" * 1234)
    return path
