"""An artefact's run on disk: ``artefact.json``, what was typed and on what, a folder for each part, what was found.

A part is the folder of a sweep, or holds ``measured.jsonl``. What the first look decides stands in ``first_look.json``
before the second begins, so a run that was ended at any moment goes on to the same records. No torch in here; reading
is in `asymlora.reproduce.run_records`, and to be had from here too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from asymlora.atomic import STAGING_PREFIX, held_folder, remove_folder, remove_leftovers, write_file
from asymlora.errors import RunExistsError, RunFolderError, SpecError
from asymlora.reproduce.artefact import ScaleName
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.run_records import (
    ARTEFACT,
    FINDINGS,
    FIRST_LOOK,
    FirstLook,
    Look,
    PartRecords,
    read_evidence,
    read_findings,
    read_first_look,
    read_object,
    read_stated,
)
from asymlora.sweep.store import refused_writes_said
from asymlora.sweep.sweep_folder import ENVIRONMENT, SESSIONS
from asymlora.train.run_folder import environment

__all__ = [
    "ARTEFACT", "DOING", "REPRODUCTIONS", "ArtefactFolder", "FirstLook", "Look", "PartRecords", "claim_artefact",
    "read_evidence", "read_findings", "read_first_look", "read_object", "read_stated",
]  # fmt: skip
REPRODUCTIONS = Path("reproductions")
VERSION = 1
"""Of the form of ``artefact.json``."""
DOING = "is reproducing in"
"""What a process that holds the folder of a run does."""
_THEN = "go on with the same command"


@dataclass(frozen=True, kw_only=True)
class ArtefactFolder:
    """A claimed place for an artefact's run. Nothing of an older one is touched before `begun`.

    Attributes:
        path: The folder.
        name: Name of the artefact.
        scale: Its scale.
        resumes: Whether it holds a run that is gone on with.
        replaces: Whether it holds a run that `begun` removes.
    """

    path: Path
    name: str
    scale: ScaleName
    resumes: bool = False
    replaces: bool = False

    @contextmanager
    def begun(self, *, command: str) -> Iterator[None]:
        """Make the folder, or clean up the one that is gone on with, hold it, and note who began.

        Args:
            command: What was typed.

        Yields:
            Nothing; until the block ends no other process can run an artefact here.

        Raises:
            RunExistsError: Another process is running an artefact here, or has begun another one meanwhile.
            RunFolderError: The folder cannot be written.
        """
        if self.replaces:
            with held_folder(self.path, doing=DOING):
                self._refuse_another()
                remove_folder(self.path)
        with refused_writes_said(self.path, then=_THEN):
            self.path.mkdir(parents=True, exist_ok=True)
        with held_folder(self.path, doing=DOING):
            self._refuse_another()
            remove_leftovers(self.path)
            if not (self.path / ARTEFACT).exists():
                self._write(ENVIRONMENT, environment())
                self._write(ARTEFACT, {**self._head(), "done": {}})
            self._note_session(command)
            yield

    def _refuse_another(self) -> None:
        # It was free, or held another run, when it was claimed.
        if (self.path / ARTEFACT).is_file():
            _refuse_another(self.path, name=self.name, scale=self.scale)

    def part(self, name: str) -> Path:
        """Return the folder of a part.

        Args:
            name: Name of the part.
        """
        return self.path / name

    def done(self, part: str) -> tuple[Look, str] | None:
        """Return which look at a part is complete, and the digest of what it ran; None where none is.

        Args:
            part: Name of the part.
        """
        found = self._done().get(part)
        return None if found is None else (found["look"], found["protocol"])

    def done_rows(self, part: str) -> frozenset[str]:
        """Return the ids of the rows that a part had when a look at it became complete.

        Args:
            part: Name of the part.
        """
        return frozenset(self._done().get(part, {}).get("rows", ()))

    def note_done(self, part: str, look: Look, *, protocol: str, rows: Iterable[str] = ()) -> None:
        """Note that a look at a part is complete.

        Args:
            part: Name of the part.
            look: Which look.
            protocol: Digest of what was run.
            rows: Ids of its rows.
        """
        done = {**self._done(), part: {"look": look, "protocol": protocol, "rows": sorted(rows)}}
        self._change(done=done)

    def note_data(self, root: Path, digests: Mapping[str, str]) -> None:
        """Note which data are read, or refuse others than those of the sessions before.

        Args:
            root: Where they stand.
            digests: Of each data set.

        Raises:
            SpecError: A data set has another content now; rows of both would mix.
        """
        stored: Mapping[str, str] = read_object(self.path / ARTEFACT).get("data", {}).get("digests", {})
        if other := sorted(name for name in digests.keys() & stored.keys() if digests[name] != stored[name]):
            raise SpecError(
                f"{self.path} was begun with other data: {', '.join(other)} had another content then than below {root}"
                " now, and the runs of both would count as those of one. Give the --data-root that it was begun with,"
                " choose another --out, or begin anew with --overwrite."
            )
        place = root.relative_to(self.path).as_posix() if root.is_relative_to(self.path) else None
        self._change(data={"prepared": place, "digests": {**stored, **digests}})

    def prepared(self) -> Path | None:
        """Return where an earlier session has prepared data below this folder; None where none has."""
        if not (self.path / ARTEFACT).is_file():
            return None
        place: str | None = read_object(self.path / ARTEFACT).get("data", {}).get("prepared")
        return None if place is None else self.path / place

    def note_stated(self, *, minutes: float | None, tests: Mapping[str, str]) -> None:
        """Note what is stated before the first run; later sessions leave it as it is, and add what is new.

        Args:
            minutes: How long the artefact is to take.
            tests: By its key, the test of each claim of which nothing has been run yet.
        """
        stated = read_stated(self.path)
        if stated is None:
            self._change(stated={"minutes": minutes, "tests": dict(tests)})
        elif tests.keys() - stated["tests"].keys():
            self._change(stated={**stated, "tests": {**tests, **stated["tests"]}})

    def first_look(self) -> FirstLook | None:
        """Return what the first look decided; None before all parts have been run once.

        Raises:
            RunFolderError: Its file is damaged.
        """
        return read_first_look(self.path)

    def write_first_look(self, look: FirstLook) -> None:
        """Keep what the first look decided.

        Args:
            look: What it decided.

        Raises:
            SpecError: A finding holds a number that is not finite.
        """
        records = {part: {"plan": had.plan, "rows": list(had.rows)} for part, had in look.records.items()}
        content = {"second": list(look.second), "protocols": dict(look.protocols), "records": records}
        self._write(FIRST_LOOK, {"findings": _plain(look.findings), **content})

    def write_findings(
        self, findings: Mapping[str, Finding], *, finished: bool, decided: Mapping[str, Look] | None = None
    ) -> None:
        """Write what the records say of each claim, whole.

        Args:
            findings: By the claim's key.
            finished: Whether everything that the artefact asks for has been run.
            decided: At which look, of claims that hold or fail.

        Raises:
            SpecError: A finding holds a number that is not finite.
        """
        look = self.first_look()
        first = None if look is None else _plain(look.findings)
        self._write(
            FINDINGS,
            {
                "artefact": self.name,
                "scale": self.scale,
                "finished": finished,
                "second": [] if look is None else list(look.second),
                "first_look": first,
                "decided": dict(decided or {}),
                "findings": _plain(findings),
            },
        )

    def _head(self) -> dict[str, Any]:
        return {"kind": "reproduction", "version": VERSION, "name": self.name, "scale": self.scale}

    def _done(self) -> dict[str, Any]:
        return read_object(self.path / ARTEFACT)["done"]

    def _change(self, **content: Any) -> None:
        stored = read_object(self.path / ARTEFACT)
        if any(stored.get(key) != value for key, value in content.items()):
            self._write(ARTEFACT, {**stored, **content})

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        with refused_writes_said(self.path / name, then=_THEN):
            write_file(self.path / name, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def _note_session(self, command: str) -> None:
        began = datetime.now(UTC).isoformat(timespec="seconds")
        session = {"command": command, "began": began, "environment": environment()}
        path = self.path / SESSIONS
        with refused_writes_said(path, then=_THEN), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(session) + "\n")


def claim_artefact(path: str | Path, *, name: str, scale: ScaleName, overwrite: bool) -> ArtefactFolder:
    """Decide where an artefact's run goes: one that is there is gone on with, as its protocol is fixed.

    Args:
        path: The folder.
        name: Name of the artefact.
        scale: Its scale.
        overwrite: Remove the run that is there, and begin anew.

    Returns:
        The claimed place; nothing is written yet.

    Raises:
        RunExistsError: The folder holds the run of another artefact or scale.
        RunFolderError: The folder holds files that are no run of an artefact; they are never removed.
    """
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()
    if not path.exists() or (path.is_dir() and _holds_nothing(path)):
        return ArtefactFolder(path=path, name=name, scale=scale)
    if not (path / ARTEFACT).is_file():
        raise RunFolderError(
            f"{path} exists and holds no run of an artefact. It is left alone; choose another folder with --out."
        )
    _refuse_another(path, name=name, scale=scale)
    return ArtefactFolder(path=path, name=name, scale=scale, resumes=not overwrite, replaces=overwrite)


def _plain(findings: Mapping[str, Finding]) -> dict[str, Any]:
    plain = {key: found.to_dict() for key, found in findings.items()}
    wrong = [key for key, found in plain.items() if not _is_finite(found)]
    if wrong:
        raise SpecError(
            f"Findings hold numbers that are not finite: {', '.join(wrong)}. A claim's test gives None for what cannot"
            " be told."
        )
    return plain


def _is_finite(found: Mapping[str, Any]) -> bool:
    numbers = [found[name] for name in ("estimate", "p", "detectable")] + list(found["interval"] or ())
    return all(number is None or math.isfinite(number) for number in numbers)


def _refuse_another(path: Path, *, name: str, scale: ScaleName) -> None:
    stored = read_object(path / ARTEFACT)
    _refuse_newer(path, stored)
    if (stored["name"], stored["scale"]) != (name, scale):
        raise RunExistsError(
            f"{path} holds a run of {stored['name']} at the {stored['scale']} scale, and not of {name} at the {scale}"
            " scale. Choose another folder with --out."
        )


def _refuse_newer(path: Path, stored: Mapping[str, Any]) -> None:
    version = stored.get("version")
    if (
        stored.get("kind") != "reproduction"
        or not isinstance(version, int)
        or not {"name", "scale", "done"} <= set(stored)
    ):
        raise RunFolderError(f"{path / ARTEFACT} is damaged: it names no artefact. Put it back from a copy.")
    if version > VERSION:
        raise RunFolderError(
            f"{path} is a run of version {version}; this asymlora reads up to version {VERSION}. Update asymlora, or"
            " choose another folder with --out."
        )


def _holds_nothing(path: Path) -> bool:
    # A run that was killed while it began left at most these.
    names: Sequence[str] = [file.name for file in path.iterdir()]
    return all(name.startswith(STAGING_PREFIX) or name == ENVIRONMENT for name in names)
