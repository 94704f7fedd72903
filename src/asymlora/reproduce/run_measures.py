"""Figures of one run that claims are about, from the row that it left. No torch in here."""

from __future__ import annotations

import math
from typing import Literal

from asymlora.reproduce.evidence import MissingEvidenceError
from asymlora.sweep.run_record import RunRow

LEARNT = 0.9
"""Share of the loss of chance below which a run counts as having learnt something."""


def last_loss(row: RunRow) -> float | None:
    """Return the last training loss that was logged, in nats; None where none was.

    It is the mean since the log before. What is not finite is not logged, so of a run that diverged it is the last
    finite one.

    Args:
        row: The run.
    """
    losses = row.losses.get("loss") or ()
    return losses[-1] if losses and math.isfinite(losses[-1]) else None


def has_learnt(row: RunRow, chance: float) -> bool:
    """Return whether a run finished with a last training loss below nine tenths of chance.

    Args:
        row: The run.
        chance: Loss of guessing, in nats: the entropy of the labels, or the logarithm of their number.
    """
    loss = last_loss(row)
    return row.status == "finished" and loss is not None and loss < LEARNT * chance


def dynamic(row: RunRow, name: str, step: int | None = None) -> float:
    """Return what one quantity of the factors was after a step: its median over the sites.

    Args:
        row: The run.
        name: One of `asymlora.sweep.run_dynamics.QUANTITIES`.
        step: One of the measured steps; None: the last of them.

    Raises:
        MissingEvidenceError: The run did not measure it, or not at that step; or it has no finite value there.
    """
    values, steps = row.dynamics.get(name), row.dynamics.get("step") or ()
    if not values:
        raise MissingEvidenceError(f"{name} of {_run(row)}")
    if step is not None and step not in steps:
        measured = ", ".join(f"{each:g}" for each in steps if each is not None)
        raise MissingEvidenceError(f"{name} after step {step} of {_run(row)}, which measured steps {measured}")
    value = values[-1 if step is None else list(steps).index(step)]
    if value is None:
        when = "the last measured step" if step is None else f"step {step}"
        raise MissingEvidenceError(f"a finite {name} after {when} of {_run(row)}")
    return float(value)


def growth(row: RunRow, name: str) -> float:
    """Return one quantity after the last measured step over what it was at the first at which it was not zero.

    Args:
        row: The run.
        name: As for `dynamic`.

    Raises:
        MissingEvidenceError: The run did not measure it, or it was zero throughout, or the last value is not finite.
    """
    last = dynamic(row, name)
    first = next((value for value in row.dynamics[name] if value), None)
    if first is None:
        raise MissingEvidenceError(f"{name} other than zero of {_run(row)}")
    return last / first


def moved(row: RunRow, factor: Literal["A", "B"]) -> float:
    """Return how far a factor ended from its start, over the norm of the start (Frobenius): its median over the sites.

    Args:
        row: The run.
        factor: Which factor; one that starts at zero has no such number.

    Raises:
        MissingEvidenceError: The run did not measure it, or the factor starts at zero.
    """
    return dynamic(row, f"moved_{factor}")


def _run(row: RunRow) -> str:
    return f"the {row.phase} run of {row.arm} with seed {row.seed}"
