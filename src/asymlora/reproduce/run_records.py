"""Reading the run of an artefact: its records at either look, what the looks found, what was stated before. No torch.

Nothing is locked or written here; `asymlora.reproduce.artefact_folder` writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from asymlora.errors import RunFolderError
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence, Record, SweepEvidence
from asymlora.reproduce.measured_store import MEASURED, MeasuredStore
from asymlora.sweep.sweep_folder import PLAN, read_sweep

Look = Literal["first", "second"]
ARTEFACT, FIRST_LOOK, FINDINGS = "artefact.json", "first_look.json", "findings.json"


@dataclass(frozen=True, kw_only=True)
class PartRecords:
    """Which records of a part the first look had.

    Attributes:
        rows: Their ids.
        plan: The sweep that was run, as ``sweep.yaml`` held it; None for what is measured.
    """

    rows: tuple[str, ...]
    plan: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class FirstLook:
    """What the first look found and decided: written before the second begins, and anew where a protocol is another.

    Attributes:
        findings: Of each claim by its key.
        second: Parts that are gone on with, as a claim of the abstract that reads them is undecided.
        protocols: Digest of what each part had run.
        records: What it had of the parts that a second look may go on with.
    """

    findings: Mapping[str, Finding]
    second: tuple[str, ...]
    protocols: Mapping[str, str]
    records: Mapping[str, PartRecords] = field(default_factory=dict[str, PartRecords])


def read_evidence(path: str | Path, *, first: Mapping[str, PartRecords] | None = None) -> Evidence:
    """Read the records of an artefact's run, ended or not; no lock is taken and nothing is written.

    Args:
        path: The folder of the run.
        first: Parts of which only the records that the first look had are wanted.

    Returns:
        The records of every part that was begun.

    Raises:
        RunFolderError: The folder is not there, or a part's store is of a newer version or damaged.
        SpecError: A part's ``sweep.yaml`` is damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is no folder. Give one that `asymlora reproduce` has written to.")
    sweeps: dict[str, SweepEvidence] = {}
    measured: dict[str, Sequence[Record]] = {}
    for part in sorted(part for part in folder.iterdir() if part.is_dir()):
        had = (first or {}).get(part.name)
        wanted = None if had is None else frozenset(had.rows)
        if (part / PLAN).is_file():
            found = read_sweep(part)
            rows = [row for row in found.rows if wanted is None or row.id in wanted]
            sweeps[part.name] = SweepEvidence(plan=found.plan if had is None else had.plan or found.plan, rows=rows)
        elif (part / MEASURED).is_file():
            points = MeasuredStore(part / MEASURED).rows()
            kept = [point for point in points if wanted is None or point.id in wanted]
            measured[part.name] = [record for point in kept for record in point.records]
    return Evidence(sweeps=sweeps, measured=measured)


def read_first_look(path: Path) -> FirstLook | None:
    """Return what the first look of a run decided; None before all parts have been run once.

    Args:
        path: The folder of the run.

    Raises:
        RunFolderError: Its file is damaged.
    """
    if not (path / FIRST_LOOK).is_file():
        return None
    content = read_object(path / FIRST_LOOK)
    try:
        findings = {key: Finding.from_dict(found) for key, found in content["findings"].items()}
        records = {
            part: PartRecords(rows=tuple(had["rows"]), plan=had["plan"]) for part, had in content["records"].items()
        }
        second, protocols = tuple(content["second"]), content["protocols"]
        return FirstLook(findings=findings, second=second, protocols=protocols, records=records)
    except (KeyError, TypeError, AttributeError):
        raise RunFolderError(
            f"{path / FIRST_LOOK} is damaged. Remove it: the first look is then judged again, from the records of its"
            " seeds and points."
        ) from None


def read_stated(path: Path) -> dict[str, Any] | None:
    """Return what was stated before the first run: ``minutes``, and ``tests`` by the claim's key; None: unknown.

    Args:
        path: The folder of the run.
    """
    return read_object(path / ARTEFACT).get("stated") if (path / ARTEFACT).is_file() else None


def read_findings(path: str | Path) -> dict[str, Any] | None:
    """Return the content of ``findings.json``; None where no session has ended yet.

    Args:
        path: The folder of the run.
    """
    file = Path(path) / FINDINGS
    return read_object(file) if file.is_file() else None


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        RunFolderError: It cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read ({error.strerror or error}). Put it back from a copy.") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise RunFolderError(f"{path} is damaged: a JSON object is needed. Put it back from a copy.")
    return content
