"""Results as the repository keeps them: ``artefact.json`` and one ``PART.jsonl`` of short rows a part. No torch.

``artefact.json`` is what makes a folder of them: it is written last and removed first. Judging the kept rows gives the
kept findings; no text in them names a place of the machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asymlora.atomic import held_folder, staged_folder, write_file
from asymlora.errors import DataError, RunFolderError
from asymlora.reproduce.artefact import Artefact, ScaleName
from asymlora.reproduce.artefact_folder import DOING
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence, Record, SweepEvidence
from asymlora.reproduce.kept_parts import SECOND, KeptPart, kept_parts
from asymlora.reproduce.kept_rows import (
    places_in,
    records_of,
    rounded,
    run_of,
    texts_of,
    without_places,
)
from asymlora.reproduce.looks import Judged, judge
from asymlora.reproduce.run_records import (
    FirstLook,
    Look,
    read_evidence,
    read_findings,
    read_first_look,
    read_object,
    read_stated,
)
from asymlora.sweep.sweep_folder import ENVIRONMENT, SESSIONS, read_sessions
from asymlora.train.recipe import differing_keys

KEPT = "artefact.json"
VERSION = 1
"""Of the form of ``artefact.json``."""
_KIND = "kept results"
_AGAIN = "Put it back from a copy, or keep the run again."


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Results that are kept.

    Attributes:
        artefact: Name of the artefact.
        scale: Its scale.
        evidence: The records, as claims read them.
        findings: What they say of each claim, by its key.
        environment: What they were made on.
        changes: What was another in later sessions, each ``key: first / later``.
        commands: What was typed, in order; options as they were, of paths from the root the last name.
        seconds: Of all runs and measurements, one after another.
        finished: Whether all that the artefact asks for had been run.
        stated: What was stated before the first run: ``minutes``, and ``tests`` by the claim's key; empty: unknown.
        decided: At which look, of claims that hold or fail.
        first: The records that the first look had; None: there was no second look.
        parts: By name: ``kind`` (``sweep`` or ``measured``), ``seconds``, ``runs`` or ``points`` and ``records``; of a
            sweep ``plan``, ``threads``, ``memory_gib`` (largest process) and ``ended`` (days of its first and last
            run), of measurements ``ended``.
        second_look: Parts that got more seeds, as a claim of the abstract was undecided after the first look.
        digest: SHA-256 of the records, hexadecimal.
    """

    artefact: str
    scale: ScaleName
    evidence: Evidence
    findings: Mapping[str, Finding]
    environment: Mapping[str, Any] = field(default_factory=dict[str, Any])
    changes: Sequence[str] = ()
    commands: Sequence[str] = ()
    seconds: float = 0.0
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    second_look: Sequence[str] = ()
    digest: str = ""
    finished: bool = False
    stated: Mapping[str, Any] = field(default_factory=dict[str, Any])
    decided: Mapping[str, Look] = field(default_factory=dict[str, Look])
    first: Evidence | None = None


def keep(artefact: Artefact, scale_name: ScaleName, folder: Path, target: Path, *, command: str) -> None:
    """Write the results of a run in short form, in the place of older ones; remarks that stand there stay.

    Args:
        artefact: What was run.
        scale_name: At which scale.
        folder: The run's folder: a folder for each part.
        target: Folder of the kept results; made where it is not there.
        command: What was typed now.

    Raises:
        DataError: The folder has no records, or lacks a part that is kept, or a verdict stands on digits that are not
            kept.
        RunExistsError: A process is running the artefact, or keeping results there.
        RunFolderError: A store cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} has no records to keep. Run `asymlora reproduce {artefact.name}` first.")
    with held_folder(folder, doing=DOING):
        _keep(artefact, scale_name, folder, target, command=command)


def _keep(artefact: Artefact, scale_name: ScaleName, folder: Path, target: Path, *, command: str) -> None:
    look = read_first_look(folder)
    parts = list(kept_parts(folder, look))
    if not parts:
        raise DataError(f"{folder} has no records to keep. Run `asymlora reproduce {artefact.name}` first.")
    sessions, found = _sessions(folder, parts), read_findings(folder) or {}
    content: dict[str, Any] = {
        "kind": _KIND,
        "version": VERSION,
        "artefact": artefact.name,
        "scale": scale_name,
        "commands": without_places(_commands(sessions, command)),
        **_environments(folder, sessions),
        "seconds": rounded(sum(part.seconds for part in parts)),
        "finished": bool(found.get("finished")),
        "stated": read_stated(folder) or {},
        "second_look": [] if look is None else list(look.second),
        "parts": {part.name: part.head for part in parts},
    }
    judged = _judged(artefact, content, {part.name: part.rows for part in parts})
    _require_same_verdicts(judged.findings, _judged_whole(artefact, folder, look))
    content |= _judged_content(judged)
    _refuse_places(content, parts)
    text = _text(content)
    target.parent.mkdir(parents=True, exist_ok=True)
    with held_folder(target.parent, doing="is keeping results in"):
        _refuse_fewer(folder, target, parts)
        with staged_folder(target, last=KEPT) as staging:
            for part in parts:
                write_file(staging / f"{part.name}.jsonl", "".join(map(_line, part.rows)))
            write_file(staging / KEPT, text)
        for stale in target.glob("*.jsonl"):
            if stale.stem not in content["parts"]:
                stale.unlink()


def read_kept(path: str | Path) -> Kept:
    """Read kept results.

    Args:
        path: Their folder.

    Returns:
        The results.

    Raises:
        RunFolderError: There are none, they are damaged or of a newer version.
    """
    folder = Path(path)
    content = _content(folder)
    rows = {name: _rows(folder / f"{name}.jsonl") for name in content["parts"]}
    try:
        return Kept(
            finished=content["finished"],
            stated=content["stated"],
            decided=content["decided"],
            first=_first_evidence(content, rows),
            artefact=content["artefact"],
            scale=content["scale"],
            evidence=_evidence_of(content, rows),
            findings={key: Finding.from_dict(found) for key, found in content["findings"].items()},
            environment=content["environment"],
            changes=content["changes"],
            commands=content["commands"],
            seconds=content["seconds"],
            parts=content["parts"],
            second_look=content["second_look"],
            digest=_digest(content, rows),
        )
    except (KeyError, TypeError, AttributeError, DataError) as error:
        raise RunFolderError(f"{folder} is damaged ({error}). {_AGAIN}") from None


def kept_findings(path: str | Path) -> dict[str, Finding]:
    """Read the findings of kept results alone, which takes no time.

    Args:
        path: Their folder.

    Returns:
        By the claim's key; empty where nothing is kept.

    Raises:
        RunFolderError: They are damaged or of a newer version.
    """
    folder = Path(path)
    if not (folder / KEPT).is_file():
        return {}
    try:
        return {key: Finding.from_dict(found) for key, found in _content(folder)["findings"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{folder} is damaged ({error}). {_AGAIN}") from None


def judge_again(artefact: Artefact, path: str | Path) -> None:
    """Write what the kept records say of the claims as they are now; the records stay.

    Args:
        artefact: The artefact.
        path: Folder of its kept results.

    Raises:
        RunFolderError: There are none, or they are damaged.
    """
    folder = Path(path)
    kept = read_kept(folder)
    judged = judge(artefact.claims, kept.evidence, first=kept.first)
    write_file(folder / KEPT, _text({**_content(folder), **_judged_content(judged)}))


def _refuse_fewer(folder: Path, target: Path, parts: Sequence[KeptPart]) -> None:
    there: set[str] = set(_content(target)["parts"]) if (target / KEPT).is_file() else set()
    if lacking := sorted(there - {part.name for part in parts}):
        raise DataError(
            f"{target} keeps records of {', '.join(lacking)}, and the run in {folder} has none: they would be lost. Run"
            " the whole artefact (without --part) before it is kept; or remove that folder, if its results are to go."
        )


def _sessions(folder: Path, parts: Sequence[KeptPart]) -> list[Mapping[str, Any]]:
    """Return the sessions of the run; where it notes none, those of its sweeps."""
    return list(read_sessions(folder / SESSIONS)) or [session for part in parts for session in part.sessions]


def _commands(sessions: Sequence[Mapping[str, Any]], command: str) -> list[str]:
    typed = [str(session["command"]) for session in sessions if session.get("command")]
    return list(dict.fromkeys([*typed, command]))


def _environments(folder: Path, sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = [session["environment"] for session in sessions if session.get("environment")]
    first = read_object(folder / ENVIRONMENT) if (folder / ENVIRONMENT).is_file() else (found or [{}])[0]
    changes = [change for other in found for change in differing_keys(first, other)]
    return {"environment": first, "changes": list(dict.fromkeys(changes))}


def _evidence_of(
    content: Mapping[str, Any], rows: Mapping[str, Sequence[Mapping[str, Any]]], *, look: Look = "second"
) -> Evidence:
    sweeps: dict[str, SweepEvidence] = {}
    measured: dict[str, Sequence[Record]] = {}
    for name, head in content["parts"].items():
        had = [row for row in rows[name] if look == "second" or not row.get(SECOND)]
        if head["kind"] == "sweep":
            plan = head["plan"] if look == "second" else head.get("first_plan", head["plan"])
            sweeps[name] = SweepEvidence(plan=plan, rows=[run_of(row) for row in had])
        else:
            measured[name] = [record for row in had for record in records_of(row)]
    return Evidence(sweeps=sweeps, measured=measured)


def _first_evidence(content: Mapping[str, Any], rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Evidence | None:
    return _evidence_of(content, rows, look="first") if content["second_look"] else None


def _judged(artefact: Artefact, content: Mapping[str, Any], rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Judged:
    return judge(artefact.claims, _evidence_of(content, rows), first=_first_evidence(content, rows))


def _judged_whole(artefact: Artefact, folder: Path, look: FirstLook | None) -> Judged:
    first = read_evidence(folder, first=look.records) if look is not None and look.second else None
    return judge(artefact.claims, read_evidence(folder), first=first)


def _judged_content(judged: Judged) -> dict[str, Any]:
    findings = {key: found.to_dict() for key, found in judged.findings.items()}
    return {"decided": dict(judged.decided), "findings": findings}


def _require_same_verdicts(kept: Mapping[str, Finding], whole: Judged) -> None:
    differing = [
        f"{key} ({found.verdict} from all digits, {kept[key].verdict} from those that are kept)"
        for key, found in whole.findings.items()
        if found.verdict != kept[key].verdict
    ]
    if differing:
        raise DataError(
            f"Verdicts stand on digits that are not kept: {', '.join(differing)}. Give these claims a test with a"
            " tolerance, or keep more digits in asymlora.reproduce.kept_rows."
        )


def _refuse_places(content: Mapping[str, Any], parts: Sequence[KeptPart]) -> None:
    found = places_in(texts_of({**content, "rows": [part.rows for part in parts]}))
    if found:
        raise DataError(
            f"The results name places of this machine: {', '.join(sorted(set(found))[:5])}. Kept results may hold"
            " relative paths alone: leave them out of what is measured and of what claims say."
        )


def _content(folder: Path) -> dict[str, Any]:
    if not (folder / KEPT).is_file():
        raise RunFolderError(f"{folder} holds no kept results: there is no {KEPT}. Write some with --keep.")
    content = read_object(folder / KEPT)
    version = content.get("version")
    if content.get("kind") != _KIND or not isinstance(version, int) or not isinstance(content.get("parts"), dict):
        raise RunFolderError(f"{folder / KEPT} holds no kept results. {_AGAIN}")
    if version > VERSION:
        raise RunFolderError(
            f"{folder} holds results of version {version}; this asymlora reads up to version {VERSION}. Update"
            " asymlora."
        )
    return content


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        raise RunFolderError(f"{path} is not there or damaged. {_AGAIN}") from None


def _digest(content: Mapping[str, Any], rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    # Of the plans too, as a figure marks the rate that they let choose; not of times and what was typed.
    plans = {name: head.get("plan") for name, head in content["parts"].items()}
    timeless = {
        name: [{key: value for key, value in row.items() if key != "seconds"} for row in part]
        for name, part in rows.items()
    }
    canonical = json.dumps({"plans": plans, "rows": timeless}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"


def _text(content: Mapping[str, Any]) -> str:
    try:
        return json.dumps(content, allow_nan=False, ensure_ascii=False, indent=1) + "\n"
    except ValueError:
        raise DataError(
            "A finding holds a number that is not finite. Claims give None for an interval or an effect that cannot be"
            " told."
        ) from None
