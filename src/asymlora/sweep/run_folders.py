"""Plain runs of ``asymlora finetune`` as sweeps of one run, and folders of either kind. No torch in here."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from asymlora.errors import AsymloraError, RunFolderError
from asymlora.sweep.run_record import RunRow, run_id
from asymlora.sweep.sweep_folder import PLAN, SweepRecords, read_sweep
from asymlora.train.recipe import Recipe
from asymlora.train.run_folder import ADAPTER, ENVIRONMENT, RECIPE, RESULT, RunFolder, stored_recipe

MEASURED = ("Z_A", "Z_B", "delta1", "delta2", "delta3", "update_A", "update_B", "grad_A", "grad_B", "norm_B")
"""Quantities of a run's ``dynamics.jsonl`` that are shown, as medians over its sites."""
_OTHER = ("split", "step", "loss", "wall_s")
"""Fields of a record that are no metric."""


def read_results(paths: Sequence[str | Path]) -> list[SweepRecords]:
    """Read the records of sweeps and of plain runs; a folder that is named twice is read once.

    Args:
        paths: Their folders.

    Returns:
        The records of each in the order of the folders, under the shortest names that tell them apart.

    Raises:
        RunFolderError: At least one cannot be read; what is wrong with each of them is said.
    """
    records: list[SweepRecords] = []
    problems: list[str] = []
    unique = list({Path(path).resolve(): Path(path) for path in paths}.values())
    for path, name in zip(unique, _names(unique), strict=True):
        try:
            records.append(replace(_read(path, name), name=name))
        except (AsymloraError, OSError) as error:
            problems.append(str(error))
    if problems:
        raise RunFolderError(" ".join(problems))
    return records


def is_run(path: Path) -> bool:
    """Return whether a folder is that of a plain run."""
    return (path / RECIPE).is_file() and not (path / PLAN).is_file()


def read_run(path: str | Path, *, name: str | None = None) -> SweepRecords:
    """Read a run of ``asymlora finetune`` as a sweep of one closing run.

    Args:
        path: Its folder.
        name: What its arm is called; None: as its folder.

    Returns:
        The records; the row of a run that has not ended has the status ``failed`` and its curves so far.

    Raises:
        RunFolderError: One of its files is damaged.
        SpecError: Its recipe is of a newer version.
    """
    folder = Path(path)
    name = name or folder.resolve().name
    recipe = stored_recipe(folder)
    result = _json(folder / RESULT) if (folder / RESULT).is_file() else None
    environment = _json(folder / ENVIRONMENT) if (folder / ENVIRONMENT).is_file() else {}
    try:
        row = _row(RunFolder(path=folder), recipe, arm=name, result=result)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"The records of the run in {folder} are damaged ({error!r} was looked for). Put them back from a copy, or"
            " train it again."
        ) from None
    plan = {
        "recipe": recipe.to_dict(),
        "arms": [{"label": name}],
        "rates": [recipe.train.lr],
        "tuning_seeds": [],
        "closing_seeds": [recipe.train.seed],
        "match": "steps",
    }
    unfinished = [] if result else [f"The run in {folder} has not ended; its curves go as far as it went."]
    row = replace(row, threads=environment.get("threads") or 1)
    return SweepRecords(
        name=name, path=folder, plan=plan, environment=environment, rows=(row,), warnings=tuple(unfinished)
    )


def _read(path: Path, name: str) -> SweepRecords:
    if not path.is_dir():
        what = "is a file" if path.exists() else "is not there"
        raise RunFolderError(f"{path} {what}. Give the folder of a sweep or of a run.")
    if is_run(path):
        return read_run(path, name=name)
    if not (path / PLAN).is_file():
        raise RunFolderError(
            f"{path} holds no results: neither {PLAN} of asymlora sweep nor {RECIPE} of asymlora finetune."
            f"{_inside(path)} Give the folder that --out or --output named."
        )
    return read_sweep(path)


def _inside(path: Path) -> str:
    found = sorted(child.name for child in path.iterdir() if child.is_dir() and {PLAN, RECIPE} & _files(child))
    return f" These folders in it do: {', '.join(found[:5])}." if found else ""


def _files(path: Path) -> set[str]:
    return {file.name for file in path.iterdir()}


def _row(folder: RunFolder, recipe: Recipe, *, arm: str, result: Mapping[str, Any] | None) -> RunRow:
    records = folder.records()
    metric = result["metric"] if result else _metric(records)
    trained = [row for row in records if row["split"] == "train" and row.get("loss") is not None]
    scored = [row for row in records if row["split"] == "validation" and row.get(metric) is not None]
    return RunRow(
        id=run_id(recipe),
        phase="closing",
        arm=arm,
        axes={},
        seed=recipe.train.seed,
        repeat=0,
        lr=recipe.train.lr,
        rank=recipe.adapter.rank,
        recipe=recipe.to_dict(),
        metric=metric,
        losses={"step": [row["step"] for row in trained], "loss": [row["loss"] for row in trained]},
        scores={"step": [row["step"] for row in scored], "value": [row[metric] for row in scored]},
        dynamics=_medians(folder.dynamics()),
        adapter=ADAPTER if folder.adapter.is_dir() else None,
        planned_steps=recipe.train.steps,
        **(_unfinished(records) if result is None else _finished(result)),
    )


def _unfinished(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    steps = max((row["step"] for row in records), default=0)
    return {"status": "failed", "error": "The run has not ended.", "steps": steps}


def _finished(result: Mapping[str, Any]) -> dict[str, Any]:
    before, train = result["baseline_seconds"], result["train_seconds"]
    return {
        "status": "finished",
        "greater_is_better": result["greater_is_better"],
        "steps": result["steps"],
        "validation": result["validation"],
        "best_step": result["best_step"],
        "test": result["metrics"]["after"],
        "before": result["metrics"]["before"],
        "health": tuple(verdict["name"] for verdict in result.get("health", ())),
        "trained_parameters": result["trained_parameters"],
        "head_parameters": result["head_parameters"],
        "setup_seconds": before,
        "train_seconds": train,
        # An interrupted run's last command may have taken less than all of its training.
        "evaluate_seconds": max(result["total_seconds"] - before - train, 0.0),
        "peak_memory_bytes": result["peak_memory_bytes"],
    }


def _metric(records: Sequence[Mapping[str, Any]]) -> str:
    row = next((row for row in records if row["split"] == "validation"), {})
    return next((name for name in row if name not in _OTHER), "")


def _medians(rows: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[float | None]]:
    if not rows:
        return {}
    of_step: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        of_step.setdefault(row["step"], []).append(row)
    steps = sorted(of_step)
    return {"step": steps, **{name: [_median(of_step[step], name) for step in steps] for name in MEASURED}}


def _median(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return statistics.median(values) if values and all(map(math.isfinite, values)) else None


def _names(paths: Sequence[Path]) -> list[str]:
    parts = [path.resolve().parts for path in paths]
    names: list[str] = []
    for own in parts:
        count = 1
        while any(other is not own and other[-count:] == own[-count:] for other in parts):
            count += 1
        names.append("/".join(own[-count:]))
    return names


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise RunFolderError(f"{path} is damaged: a JSON object is needed. Put it back from a copy.")
    return content
