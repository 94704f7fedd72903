"""Whether a claim that was run again agrees with results that were kept. No torch in here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from asymlora.reproduce.artefact import Artefact
from asymlora.reproduce.claim import Finding, Verdict

ROUNDING = 1e-4
"""Relative difference within which two estimates without an interval are the same: kept records are rounded."""
Agreement = Literal["agrees", "same verdict", "outside", "another verdict", "not compared"]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A claim of two runs.

    Attributes:
        key: The claim.
        kept: What was kept.
        new: What was found now.
        agreement: ``agrees``: the same verdict, and the new estimate is within the kept interval, or without one equal;
            ``same verdict``: there is no number to compare; ``outside``: the number does not agree; ``not compared``: a
            part that the claim reads has no records in one of the two.
    """

    key: str
    kept: Finding | None
    new: Finding
    agreement: Agreement

    @property
    def verdicts(self) -> tuple[Verdict | None, Verdict]:
        """Kept and new verdict."""
        return (None if self.kept is None else self.kept.verdict), self.new.verdict


def compared(
    artefact: Artefact, *, kept: Mapping[str, Finding], new: Mapping[str, Finding], unknown: Sequence[str]
) -> list[Compared]:
    """Compare what was found now with what was kept, claim by claim.

    Args:
        artefact: Whose claims they are.
        kept: Kept findings by the claim's key.
        new: New findings likewise.
        unknown: Parts of the compared scale that lack records in one of the runs. (A claim may name parts of both
            scales.)

    Returns:
        The claims, in their order.
    """
    found: list[Compared] = []
    for claim in artefact.claims:
        before, now = kept.get(claim.key), new[claim.key]
        comparable = before is not None and not set(claim.parts) & set(unknown)
        agreement = _agreement(before, now) if before is not None and comparable else "not compared"
        found.append(Compared(key=claim.key, kept=before, new=now, agreement=agreement))
    return found


def _agreement(kept: Finding, new: Finding) -> Agreement:
    if kept.verdict != new.verdict:
        return "another verdict"
    if kept.estimate is None and new.estimate is None:
        return "same verdict"
    return "agrees" if _is_within(kept, new) else "outside"


def _is_within(kept: Finding, new: Finding) -> bool:
    if kept.estimate is None or new.estimate is None:
        return False
    if kept.interval is not None:
        low, high = kept.interval
        if low <= new.estimate <= high:
            return True
    return math.isclose(kept.estimate, new.estimate, rel_tol=ROUNDING, abs_tol=1e-12)
