"""A claim of a paper, the test of it that is stated before the runs, and what the test found. No torch in here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, PartNotRunError

Verdict = Literal["holds", "fails", "undecided", "not testable here"]
VERDICTS: tuple[Verdict, ...] = ("holds", "fails", "undecided", "not testable here")
Kind = Literal["abstract", "paper", "derived", "question"]
"""``abstract``: stated in the paper's abstract, so it has six or ten paired seeds; ``paper``: stated elsewhere in it;
``derived``: follows from its theory, by us; ``question``: the paper leaves it open."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a claim's test found.

    Attributes:
        verdict: What the records say of the claim.
        ours: Our numbers, as one sentence.
        estimate: The measured effect; None where the test has no single one.
        interval: Its interval, at 1 less the level of the test, and of 95 % where there is no test; None where there is
            none.
        p: Two-sided p of the stated test; None where it has none.
        pairs: Paired seeds that went into it; None where it is not of seeds.
        detectable: Effect that so many pairs would find with 80 % power; None where it cannot be told.
        seeds_needed: Seeds that would decide the measured effect; None where it is decided or cannot be told.
        joined: Findings of which it was joined, whose numbers stand in its sentence; 0: it is one by itself.
        brief: Verdicts and effects of the parts of a joined finding; empty where it is one by itself.
    """

    verdict: Verdict
    ours: str
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    pairs: int | None = None
    detectable: float | None = None
    seeds_needed: int | None = None
    joined: int = 0
    brief: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, the inverse of `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Finding:
        """Return the finding of plain values.

        Args:
            mapping: As `to_dict` gives it.
        """
        interval = mapping.get("interval")
        return cls(**{**mapping, "interval": None if interval is None else (interval[0], interval[1])})


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim and its test.

    Attributes:
        key: Name that is unique in its artefact, of lower-case letters and underscores.
        says: What is claimed, as a sentence.
        kind: Where it stands.
        source: Paper, and section or equation as far as it is known; confidence where it is second-hand.
        paper: The paper's number, as a text; empty where it gives none.
        test: The test and what decides each verdict, as a sentence that was written before the runs.
        parts: Parts of the artefact whose records it reads.
        judge: From the records to the finding. What is missing raises `MissingEvidenceError` on the way.
    """

    key: str
    says: str
    kind: Kind
    source: str
    paper: str = ""
    test: str
    parts: tuple[str, ...]
    judge: Callable[[Evidence], Finding] = field(repr=False)

    @property
    def runs_until_decided(self) -> bool:
        """Whether its parts get more seeds while it is undecided."""
        return self.kind == "abstract"

    def finding(self, evidence: Evidence) -> Finding:
        """Return what the records say.

        Args:
            evidence: Records of the artefact.

        Returns:
            The finding; ``undecided`` where something that it reads is not there: a part that has no records has not
            been run yet, and from those of the others what it reads cannot be told.
        """
        try:
            return self.judge(evidence)
        except PartNotRunError as missing:
            return Finding(verdict="undecided", ours=f"Not run yet: {missing}.")
        except MissingEvidenceError as missing:
            run = any(evidence.has(part) for part in self.parts)
            said = "Not to be told from the records" if run else "Not run yet"
            return Finding(verdict="undecided", ours=f"{said}: {missing}.")
