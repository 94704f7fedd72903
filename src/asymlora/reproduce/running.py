"""An artefact from its parts to its findings: the first look, what it decides, the second look, the verdicts.

What is run depends on the artefact and on results alone, never on the time at which a session ended: what the first
look decided stands on disk before the second begins. No torch in here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from asymlora.errors import UnknownNameError, nearest
from asymlora.reproduce.artefact import Artefact, Part, Scale, SweepPart
from asymlora.reproduce.artefact_folder import ArtefactFolder
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence
from asymlora.reproduce.looks import Judged, judge
from asymlora.reproduce.part_runs import (
    Means,
    SilentWatcher,
    Watcher,
    do_part,
    final_rows,
    first_records,
    ready,
)
from asymlora.reproduce.protocol import data_digest, digest, has_second, plan_digest, points_of
from asymlora.reproduce.run_records import FirstLook, Look, read_evidence
from asymlora.sweep.sweep_folder import ENVIRONMENT, PLAN, changed_environment, stored_plan

__all__ = ["Means", "Outcome", "SilentWatcher", "Watcher", "ready", "run_artefact", "to_be_run"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a session ended with.

    Attributes:
        findings: Of each claim by its key.
        finished: Whether everything that the artefact asks for has been run.
        second: Parts that got their second look.
        failed: Parts of which runs of this session have failed, and how many; the next session does them again.
        new: Runs and points that this session has done.
    """

    findings: Mapping[str, Finding]
    finished: bool
    second: tuple[str, ...] = ()
    failed: Mapping[str, int] = field(default_factory=dict[str, int])
    new: int = 0


def run_artefact(
    artefact: Artefact, folder: ArtefactFolder, *, data_root: Path, means: Means, only: Sequence[str] = ()
) -> Outcome:
    """Do all of an artefact that is not done yet, and judge its claims.

    The second look begins when the first look of all parts is there, so that an artefact that is run part by part ends
    with the records of one that was run as a whole.

    Args:
        artefact: The artefact.
        folder: A claimed folder; its scale is what is run.
        data_root: Where data sets stand.
        means: How runs are done, and who is told.
        only: Parts that are run in this session; none named: all.

    Returns:
        What the records say; it also stands in ``findings.json``.

    Raises:
        UnknownNameError: ``only`` names no part of the artefact.
        SpecError: A part was begun with another protocol that cannot be gone on with, or with other data.
        SweepFailedError: The first runs of a sweep all failed.
        RunFolderError: The folder cannot be written any more; what was stored stays.
    """
    scale = artefact.scale(folder.scale)
    if folder.replaces:
        _check_before_removal(scale, data_root=data_root, means=means)
    with folder.begun(command=means.command):
        folder.note_stated(minutes=scale.minutes, tests=_not_begun(artefact, folder))
        root = _root(folder, scale, data_root)
        doing = _Doing(artefact, folder, scale.parts(root), means)
        chosen = _chosen(doing.parts, only)
        if doing.remaining(chosen):
            _tell_changes(folder, means.watcher)
            if scale.prepare is not None:
                root = scale.prepare(data_root, folder.path)
                doing = _Doing(artefact, folder, scale.parts(root), means)
                chosen = _chosen(doing.parts, only)
            folder.note_data(root, _data_digests(scale, root))
        return doing.all_of(chosen)


def to_be_run(
    artefact: Artefact, folder: ArtefactFolder, *, data_root: Path, only: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the parts of which a session may have to run something; nothing is written.

    Args:
        artefact: The artefact.
        folder: A claimed folder.
        data_root: Where data sets stand.
        only: Parts of the session; none named: all.

    Returns:
        Their names; also those that are done, while the first look has not decided whether they are gone on with.

    Raises:
        UnknownNameError: ``only`` names no part of the artefact.
    """
    scale = artefact.scale(folder.scale)
    parts = scale.parts(_root(folder, scale, data_root))
    chosen = _chosen(parts, only)
    if not folder.resumes:
        return tuple(part.name for part in chosen)
    doing = _Doing(artefact, folder, parts, Means(executor=_no_executor))
    return tuple(part.name for part in doing.remaining(chosen))


def _root(folder: ArtefactFolder, scale: Scale, data_root: Path) -> Path:
    # What was prepared before need not be prepared again to tell whether all of it has been run.
    prepared = None if scale.prepare is None or folder.replaces else folder.prepared()
    return prepared or data_root


def _no_executor(path: Path) -> NoReturn:
    raise AssertionError(path)


def _not_begun(artefact: Artefact, folder: ArtefactFolder) -> dict[str, str]:
    # A claim that is asked later has been stated before its runs if these are parts of its own.
    return {
        claim.key: claim.test
        for claim in artefact.claims
        if not any(folder.part(part).exists() for part in claim.parts)
    }


def _check_before_removal(scale: Scale, *, data_root: Path, means: Means) -> None:
    # What fails here would otherwise fail when the older run is gone.
    with TemporaryDirectory() as place:
        root = data_root if scale.prepare is None else scale.prepare(data_root, Path(place))
        for part in scale.parts(root):
            if isinstance(part, SweepPart):
                means.ready(part.plan)
            else:
                points_of(part, "second")


def _data_digests(scale: Scale, root: Path) -> dict[str, str]:
    places = {data.name: root / data.place for data in scale.data if data.place}
    if scale.prepare is not None:
        places = {"what was prepared": root}
    return {name: data_digest(place) for name, place in places.items() if place.exists()}


def _tell_changes(folder: ArtefactFolder, watcher: Watcher) -> None:
    changed = changed_environment(folder.path) if folder.resumes and (folder.path / ENVIRONMENT).is_file() else []
    if changed:
        watcher.stage(f"Not the machine or the versions that it began with (then / now): {'; '.join(changed)}.")


@dataclass(frozen=True)
class _Doing:
    # One session of an artefact.
    artefact: Artefact
    folder: ArtefactFolder
    parts: tuple[Part, ...]
    means: Means
    failed: dict[str, int] = field(default_factory=dict[str, int])
    new: list[int] = field(default_factory=list[int])

    def all_of(self, chosen: Sequence[Part]) -> Outcome:
        ahead = self._second_look()
        for part in chosen:
            if part.name not in ahead:
                self._do(part, "first")
        ahead = self._decided(ahead)
        for part in chosen:
            if part.name in ahead:
                self._do(part, "second")
        self.means.watcher.stage("Judging the claims")
        judged = self._judged(ahead)
        whole = self._is_looked_at(ahead) and all(
            self._has(part, "second") for part in self.parts if part.name in ahead
        )
        self.folder.write_findings(judged.findings, finished=whole, decided=judged.decided)
        return Outcome(
            findings=judged.findings, finished=whole, second=tuple(ahead), failed=self.failed, new=sum(self.new)
        )

    def remaining(self, chosen: Sequence[Part]) -> list[Part]:
        ahead, look = self._second_look(), self.folder.first_look()
        decided = look is not None and self._is_of_today(look)
        return [
            part
            for part in chosen
            if not self._has(part, "second" if part.name in ahead else "first") or (has_second(part) and not decided)
        ]

    # What the first look decides ---------------------------------------------------------------------------------

    def _second_look(self) -> list[str]:
        # Parts whose second look has begun or is decided upon; in the order of the artefact.
        look = self.folder.first_look()
        ahead = set(look.second if look is not None and self._is_of_today(look) else ())
        ahead |= {part.name for part in self.parts if self._was_begun_again(part)}
        return [part.name for part in self.parts if part.name in ahead]

    def _is_of_today(self, look: FirstLook) -> bool:
        return all(look.protocols.get(part.name) == digest(part, "first") for part in self.parts)

    def _was_begun_again(self, part: Part) -> bool:
        # Where the record of the decision was lost, a sweep's own plan still tells, and the sweep does not fall back
        # behind it. Of measurements nothing tells; their further points stay, and are asked for anew or not.
        path = self.folder.part(part.name)
        if not isinstance(part, SweepPart) or part.second is None or not (path / PLAN).is_file():
            return False
        return plan_digest(stored_plan(path)) == digest(part, "second")

    def _decided(self, ahead: list[str]) -> list[str]:
        look = self.folder.first_look()
        if look is not None and self._is_of_today(look):
            return ahead
        if not self._is_looked_at(ahead):
            return ahead
        records = {part.name: first_records(part, self.folder.part(part.name)) for part in self.parts}
        findings = judge(self.artefact.claims, read_evidence(self.folder.path, first=records), first=None).findings
        undecided = [
            claim
            for claim in self.artefact.claims
            if claim.runs_until_decided and findings[claim.key].verdict == "undecided"
        ]
        read = {name for claim in undecided for name in claim.parts} | set(ahead)
        second = tuple(part.name for part in self.parts if part.name in read and has_second(part))
        protocols = {part.name: digest(part, "first") for part in self.parts}
        had = {part.name: records[part.name] for part in self.parts if has_second(part)}
        self.folder.write_first_look(FirstLook(findings=findings, second=second, protocols=protocols, records=had))
        if undecided:
            keys, names = ", ".join(claim.key for claim in undecided), ", ".join(second) or "none"
            self.means.watcher.stage(f"Undecided after the first look: {keys}. Gone on with: {names}")
        return list(second)

    def _is_looked_at(self, ahead: Sequence[str]) -> bool:
        return all(part.name in ahead or self._has(part, "first") for part in self.parts)

    def _judged(self, ahead: Sequence[str]) -> Judged:
        look, path = self.folder.first_look(), self.folder.path
        first: Evidence | None = None
        if ahead and look is not None and self._is_of_today(look):
            first = read_evidence(path, first=look.records)
        return judge(self.artefact.claims, read_evidence(path), first=first)

    # Parts ----------------------------------------------------------------------------------------------------------

    def _has(self, part: Part, look: Look) -> bool:
        path = self.folder.part(part.name)
        if self.folder.done(part.name) != (look, digest(part, look)):
            return False
        # What was removed from the store since, or cannot be read any more, is done again.
        return self.folder.done_rows(part.name) <= final_rows(part, path)

    def _do(self, part: Part, look: Look) -> None:
        if self._has(part, look):
            self.means.watcher.stage(f"Part {part.name} is done")
            return
        self.means.watcher.stage(f"Part {part.name}, {look} look")
        path = self.folder.part(part.name)
        new, failed = do_part(part, look, path, self.means)
        self.new.append(new)
        if failed:
            self.failed[part.name] = failed
            return
        self.folder.note_done(part.name, look, protocol=digest(part, look), rows=final_rows(part, path))


def _chosen(parts: Sequence[Part], only: Sequence[str]) -> list[Part]:
    names = [part.name for part in parts]
    for name in only:
        if name not in names:
            raise UnknownNameError(f"No part is called {name!r}.{nearest(name, names)} Known: {', '.join(names)}.")
    return [part for part in parts if not only or part.name in only]
