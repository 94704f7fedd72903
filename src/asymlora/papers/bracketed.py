"""Claims on arms "at their own best rate" are open where that rate is the first or the last one tried. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import SweepEvidence
from asymlora.reproduce.rates_by_seed import is_interior

AT_AN_END = "Undecided also where the best rate of an arm is the first or the last one that was tried."
"""As claims state it."""


def open_arms(sweep: SweepEvidence, names: Mapping[str, str], *, where: str = "") -> list[str]:
    """Return the arms whose tuned rate is the smallest or the largest tried one, or is not settled.

    Args:
        sweep: What the sweep left.
        names: Names for people by arm, of the arms that are asked for.
        where: Of which set, as the end of each name.

    Raises:
        MissingEvidenceError: There is no run of an arm.
    """
    return [f"{name}{where}" for arm, name in names.items() if not is_interior(sweep, arm)]


def undecided_at_ends(found: Finding, ends: Sequence[str]) -> Finding:
    """Return a finding, without its verdict where a best rate is not known.

    Args:
        found: What the runs say at the rates that were tried.
        ends: Of what the best rate is at an end of them, in words.
    """
    if not ends:
        return found
    said = f"Undecided, as the best rate of {' and of '.join(ends)} is the first or the last one tried."
    return replace(found, verdict="undecided", ours=f"{found.ours} {said}", seeds_needed=None)
