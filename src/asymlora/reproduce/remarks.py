"""What a person says of claims, of all that fail or stay undecided: ``remarks.yaml`` beside kept results. No torch.

A remark names the verdict that it explains, so one that was written for an older verdict is found and refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asymlora.errors import SpecError
from asymlora.reproduce.claim import VERDICTS, Finding, Verdict
from asymlora.train.recipe import read_yaml

REMARKS = "remarks.yaml"
NEED_ONE: tuple[Verdict, ...] = ("fails", "undecided")
"""Verdicts of which the best explanation is to be given, and the experiment that would decide."""
_FIELDS = ("verdict", "explanation", "would_decide")


@dataclass(frozen=True, kw_only=True)
class Remark:
    """What is said of one claim.

    Attributes:
        verdict: The verdict that it explains.
        explanation: The best explanation; of a claim that holds, what limits it.
        would_decide: The experiment that would decide it, or tell more.
    """

    verdict: Verdict
    explanation: str
    would_decide: str


def read_remarks(folder: Path, findings: Mapping[str, Finding]) -> dict[str, Remark]:
    """Read the remarks beside kept results.

    Args:
        folder: Of the results.
        findings: Theirs, by the claim's key.

    Returns:
        Remarks by the claim's key; none where there is no file.

    Raises:
        SpecError: A remark is of no claim, of another verdict than the kept one, or lacks something. All such are told.
    """
    path = folder / REMARKS
    if not path.is_file():
        return {}
    content = read_yaml(path)
    problems = [problem for key, given in content.items() if (problem := _problem(str(key), given, findings))]
    if problems:
        raise SpecError(f"{path}: {' '.join(problems)}")
    return {str(key): Remark(**{name: _line(given[name]) for name in _FIELDS}) for key, given in content.items()}


def without_remark(findings: Mapping[str, Finding], remarks: Mapping[str, Remark]) -> list[str]:
    """Return the claims that fail or are undecided and of which nothing is said.

    Args:
        findings: By the claim's key.
        remarks: By the claim's key.
    """
    return [key for key, found in findings.items() if found.verdict in NEED_ONE and key not in remarks]


def _problem(key: str, given: Any, findings: Mapping[str, Finding]) -> str | None:
    if key not in findings:
        return f"{key} is no claim here; claims are {', '.join(findings)}."
    if not isinstance(given, Mapping) or set(given) != set(_FIELDS):
        return f"{key} needs {', '.join(_FIELDS)} and nothing else."
    if any(not isinstance(given[name], str) or not given[name].strip() for name in _FIELDS):
        return f"{key} has an empty text, or one that is no text; put it in quotes."
    if given["verdict"] not in VERDICTS:
        return f"{key} has verdict {given['verdict']!r}; allowed: {', '.join(VERDICTS)}."
    if given["verdict"] != findings[key].verdict:
        return (
            f"{key} explains {given['verdict']!r}, and the kept verdict is {findings[key].verdict!r}: write it again."
        )
    return None


def _line(text: str) -> Any:
    return " ".join(text.split())
