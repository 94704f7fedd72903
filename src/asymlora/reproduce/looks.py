"""What the two looks say of claims together: what the first look decided stands, the others are judged on all records.

So the records alone say what was found, at any time and in any order of claims: those that the first look had are known
by their ids. No torch in here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from asymlora.reproduce.claim import Claim, Finding, Verdict
from asymlora.reproduce.evidence import Evidence
from asymlora.reproduce.run_records import Look

DECIDED: tuple[Verdict, ...] = ("holds", "fails")
"""Verdicts after which a claim has no further look: it would be one look more than the levels add up for."""


class Judged(NamedTuple):
    """What was found of claims.

    Attributes:
        findings: By the claim's key.
        decided: At which look, of those that hold or fail.
    """

    findings: Mapping[str, Finding]
    decided: Mapping[str, Look]


def judge(claims: Iterable[Claim], evidence: Evidence, *, first: Evidence | None) -> Judged:
    """Judge claims at both looks.

    Args:
        claims: The claims.
        evidence: All records.
        first: The records that the first look had; None: there has been no second look.

    Returns:
        The finding of the first look where that holds or fails, of all records otherwise.
    """
    findings: dict[str, Finding] = {}
    decided: dict[str, Look] = {}
    for claim in claims:
        look: Look = "first"
        found = claim.finding(evidence if first is None else first)
        if first is not None and found.verdict not in DECIDED:
            look, found = "second", claim.finding(evidence)
        findings[claim.key] = found
        if found.verdict in DECIDED:
            decided[claim.key] = look
    return Judged(findings, decided)
