"""Best learning rates of kept sweeps, arm by arm, for who needs one to start from. No torch in here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from asymlora.reproduce.evidence import Evidence, SweepEvidence
from asymlora.sweep.rates import rate_text

_AT_AN_END: Mapping[str, str] = {"lower end": "at most ", "upper end": "at least "}


@dataclass(frozen=True, kw_only=True)
class TunedRates:
    """Best rates of one sweep.

    Attributes:
        artefact: Of which artefact.
        part: Of which part of it: a task, or a group of layers.
        model: Name of the model.
        training: Its steps, the rows of each, and how the head starts where there is one.
        rates: By the label of the arm; a rate, ``at most`` or ``at least`` one where it is an end of what was tried.
    """

    artefact: str
    part: str
    model: str
    training: str
    rates: Mapping[str, str]


def tuned_rates(kept: Mapping[str, Evidence]) -> list[TunedRates]:
    """Return the rates with the best mean on validation over the tuning seeds.

    Args:
        kept: Records by artefact.

    Returns:
        One for each sweep in which an arm had several rates that finished with every tuning seed.
    """
    found = [
        TunedRates(
            artefact=name,
            part=part,
            model=sweep.plan["recipe"]["model"]["name"],
            training=_training(sweep.plan["recipe"]),
            rates=dict(_rates(sweep)),
        )
        for name, evidence in kept.items()
        for part, sweep in evidence.sweeps.items()
    ]
    return [one for one in found if one.rates]


def _training(recipe: Mapping[str, Any]) -> str:
    train = recipe["train"]
    head = ""
    if "classification" in recipe["task"]:
        head = ", fitted head" if train["head_start"] == "probe" else ", random head"
    return f"{train['steps']} steps of {train['batch_size']} rows{head}"


def _rates(sweep: SweepEvidence) -> Iterator[tuple[str, str]]:
    for label, cell in sweep.cells.items():
        best, at = cell.choice.best, cell.choice.best_at
        if best is not None and at is not None and at != "only rate":
            yield label, f"{_AT_AN_END.get(at, '')}{rate_text(best.lr)}"
