"""Rows of a made-up sweep in which every figure is stated by the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asymlora.sweep.run_record import Phase, RunRow, Status

TUNING, CLOSING = (100, 101), (0, 1, 2, 3, 4, 5)
RATES = (1e-4, 1e-3, 1e-2)


def row(
    arm: str, *, lr: float, seed: int, value: float | None = None, phase: Phase = "tuning",
    status: Status = "finished", **more: Any,
) -> RunRow:  # fmt: skip
    """Return what one run leaves; a closing run has the value on test as well."""
    taken = {"finished": 80, "pruned": 20, "diverged": 5, "failed": 0}[status]
    scored = value is not None and status == "finished" and phase != "tuning"
    axes = more.get("axes", {})
    return RunRow(**{
        "id": f"{arm} {axes} {lr} {seed} {phase} {more.get('repeat', 0)}", "phase": phase, "arm": arm, "axes": {},
        "seed": seed, "repeat": 0, "lr": lr, "rank": 8, "recipe": {}, "status": status, "metric": "accuracy",
        "steps": taken, "planned_steps": 80, "validation": value, "flops_per_step": 10.0, "train_seconds": 2.0,
        "setup_seconds": 0.5, "evaluate_seconds": 0.25, "trained_parameters": 100, "head_parameters": 10,
        "test": {"accuracy": value} if scored else None, "before": {"accuracy": 0.25} if scored else None,
        "losses": {"step": [1, 2], "loss": [1.0, 0.5]}, **more,
    })  # fmt: skip


def tuning(arm: str, means: Mapping[float, float | Status], **more: Any) -> list[RunRow]:
    """Return tuning runs of two seeds, 0.01 above and below the mean, or that ended otherwise."""
    rows: list[RunRow] = []
    for lr, mean in means.items():
        for seed, off in zip(TUNING, (0.01, -0.01), strict=True):
            if isinstance(mean, str):
                rows.append(row(arm, lr=lr, seed=seed, status=mean, value=0.5 if mean == "pruned" else None, **more))
            else:
                rows.append(row(arm, lr=lr, seed=seed, value=round(mean + off, 6), **more))
    return rows


def closing(arm: str, lr: float, values: Sequence[float], **more: Any) -> list[RunRow]:
    """Return closing runs of the seeds 0, 1, ..."""
    return [row(arm, lr=lr, seed=seed, value=value, phase="closing", **more) for seed, value in enumerate(values)]


def plan(arms: Sequence[str], **more: Any) -> dict[str, Any]:
    """Return the plan as ``sweep.yaml`` holds it."""
    return {
        "kind": "sweep", "version": 1, "arms": [{"name": arm, "word": arm, "options": {}} for arm in arms], "axes": [],
        "rates": list(RATES), "bounds": None, "grow": True, "tuning_seeds": list(TUNING),
        "closing_seeds": list(CLOSING), "margin": None, **more,
    }  # fmt: skip
