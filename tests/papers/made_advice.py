"""Made-up records of the artefact `advice`: what each recipe reaches is stated by the test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asymlora.papers.advice_runs import ADVISED, OWN, PLAIN, TUNED, small_parts
from asymlora.reproduce.artefact import SweepPart
from asymlora.reproduce.evidence import Evidence, Record
from papers.made_sweeps import Behaviour, made

SETS = ("trec6", "sst2_500")


def advised(text_set: str, seed: int, *, cost_counted: bool = True, **changed: Any) -> Record:
    """Return one record of an advised run; accuracies differ by seed as those of `made` do."""
    return {
        "set": text_set, "seed": seed, "cost_counted": cost_counted, "lr": 1e-3, "outcome": "found", "values": 331_776,
        "rank": 16, "per_site_ranks": False, "sites_A": 0, "sites_B": 36, "sites_both": 0, "advice_seconds": 30.0,
        "range_steps": 60, "gradient_steps": 8, "head_steps": 38, "steps": 86 if cost_counted else 192,
        "status": "finished", "validation": 0.9, "trained_values": 334_000, "train_seconds": 17.2 if cost_counted else
        38.4, **changed, "accuracy": None if changed.get("accuracy", 0.9) is None else
        changed.get("accuracy", 0.9) + 0.01 * (seed % 3),
    }  # fmt: skip


def records(**changed: Any) -> list[Record]:
    """Return the records of both sets and six seeds: runs whose cost is counted, and runs with all steps."""
    return [advised(name, seed, cost_counted=counted, **changed)
            for name in SETS for seed in range(6) for counted in (True, False)]  # fmt: skip


def evidence(
    *, plain: float = 0.8, own: float = 0.8, tuned: Mapping[str, Behaviour] | None = None,
    measured: list[Record] | None = None,
) -> Evidence:  # fmt: skip
    """Return the records of all parts.

    Args:
        plain: Accuracy of the plain defaults.
        own: Accuracy at the rate of asymlora finetune.
        tuned: What tuned arms do that are not as `Behaviour` has it with a best rate of 3.16e-3.
        measured: Of the advised runs.
    """
    tops = {PLAIN: plain, OWN: own}
    sweeps: dict[str, Any] = {}
    for part in small_parts(Path("nowhere")):
        if isinstance(part, SweepPart):
            which, (rate, *_) = part.name.rpartition("_")[2], part.plan.rates
            told = Behaviour(best=3.16e-3) if which == TUNED else Behaviour(best=rate, top=tops[which])
            given = (tuned or {}) if which == TUNED else {}
            names = [arm.name for arm in part.plan.arms]
            sweeps[part.name] = made(part.plan, {name: given.get(name, told) for name in names})
    return Evidence(sweeps=sweeps, measured={ADVISED: records() if measured is None else measured})
