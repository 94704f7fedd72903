"""A sweep on disk: ``sweep.yaml`` (the plan), ``environment.json``, ``runs.jsonl``, ``adapters/``, what was found.

What was found stands in ``similarity.jsonl`` (pairs of adapters) and ``summary.json``. A folder with a plan is a sweep;
it is whole at any moment, and what is missing of it is done on resuming. It holds no absolute path, so it can be moved.
No torch in here.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from asymlora.atomic import STAGING_PREFIX, held_folder, remove_folder, remove_leftovers, staged_folder, write_file
from asymlora.errors import (
    NothingToResumeError,
    RunExistsError,
    RunFolderError,
    SpecError,
)
from asymlora.sweep.run_record import RunRow
from asymlora.sweep.store import RunStore, refused_writes_said
from asymlora.train.recipe import differing_keys, read_yaml
from asymlora.train.run_folder import check_space, environment

SWEEPS = Path("sweeps")
PLAN, ENVIRONMENT, RUNS, ADAPTERS = "sweep.yaml", "environment.json", "runs.jsonl", "adapters"
SIMILARITY, SUMMARY, SESSIONS = "similarity.jsonl", "summary.json", "sessions.jsonl"
FIXED_KEYS = ("kind", "version", "recipe", "match", "margin", "prune", "prune_eta", "search")
"""Keys of a plan that a resumed sweep must share with the stored one; arms, rates and seeds may be added, and values to
axes. The margin of equivalence is one of them: chosen after a look at the runs it would be no margin. What was stopped
early is not gone on with, and another search would propose other points."""
_DOING = "is running the sweep in"


@dataclass(frozen=True, kw_only=True)
class SweepFolder:
    """A claimed place for a sweep. Nothing of an older sweep is touched before `begun`.

    Attributes:
        path: The folder.
        resumes: Whether it holds a sweep that is gone on with.
        replaces: Whether it holds a sweep that `begun` removes.
    """

    path: Path
    resumes: bool = False
    replaces: bool = False

    @property
    def adapters(self) -> Path:
        """Where the adapters of closing runs stand, each under its run's id."""
        return self.path / ADAPTERS

    @contextmanager
    def begun(self, plan: str, *, command: str = "") -> Iterator[RunStore]:
        """Make the folder with its plan and environment, or clean up the one that is resumed, and hold it.

        Args:
            plan: The plan as YAML; on resuming it takes the place of the stored one.
            command: What was typed; kept, with the time and the environment, as a line of ``sessions.jsonl``.

        Yields:
            The store; until the block ends no other process can begin or resume a sweep here.

        Raises:
            RunExistsError: Another process has begun a sweep here meanwhile, or is running one.
            RunFolderError: The store cannot be read.
        """
        if self.replaces:
            with held_folder(self.path, doing=_DOING):
                remove_folder(self.path)
        there = self.resumes or self._make_whole(plan)
        with held_folder(self.path, doing=_DOING):
            if not there:
                self._fill(plan)
            remove_leftovers(self.path)
            store = RunStore(self.path / RUNS)
            self._remove_unfinished_adapters(store)
            if (self.path / PLAN).read_text(encoding="utf-8") != plan:
                with refused_writes_said(self.path / PLAN):
                    write_file(self.path / PLAN, plan)
            self._note_session(command)
            yield store

    def _note_session(self, command: str) -> None:
        began = datetime.now(UTC).isoformat(timespec="seconds")
        session = {"command": command, "began": began, "environment": environment()}
        with refused_writes_said(self.path / SESSIONS), (self.path / SESSIONS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(session) + "\n")

    def _make_whole(self, plan: str) -> bool:
        # False where it is there and empty: its first files are then written while it is held.
        if self.path.is_dir():
            return False
        try:
            with staged_folder(self.path) as staging:
                for name, text in _first_files(plan).items():
                    write_file(staging / name, text)
        except OSError as error:
            if (self.path / PLAN).exists():
                raise self._begun_elsewhere() from error
            with refused_writes_said(self.path):
                raise
        return True

    def _fill(self, plan: str) -> None:
        if (self.path / PLAN).exists():
            raise self._begun_elsewhere()
        with refused_writes_said(self.path):
            for name, text in _first_files(plan).items():
                write_file(self.path / name, text)

    def _begun_elsewhere(self) -> RunExistsError:
        return RunExistsError(f"Another process has begun a sweep in {self.path}. Choose another folder with --out.")

    def _remove_unfinished_adapters(self, store: RunStore) -> None:
        # A run that was killed between its adapter and its row is done again.
        remove_leftovers(self.adapters)
        finished = store.finished()
        for folder in self.adapters.iterdir() if self.adapters.is_dir() else ():
            if folder.name not in finished:
                remove_folder(folder)

    def write_similarity(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the rows of compared adapters, whole.

        Args:
            rows: Plain values.

        Raises:
            RunFolderError: The disk refuses it.
        """
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        with refused_writes_said(self.path / SIMILARITY):
            write_file(self.path / SIMILARITY, lines)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write what the analysis found, whole.

        Args:
            summary: Plain values.

        Raises:
            RunFolderError: The disk refuses it.
        """
        with refused_writes_said(self.path / SUMMARY):
            write_file(self.path / SUMMARY, json.dumps(summary, indent=2, allow_nan=False) + "\n")

    def check_space(self, needed_bytes: int) -> None:
        """Find out before the first run whether the folder can be written and the disk has room.

        Args:
            needed_bytes: What the sweep will write: mostly its kept adapters.

        Raises:
            UnwritableFolderError: A file cannot be made there.
            DiskSpaceError: There is less room than the sweep needs.
        """
        check_space(self.path, needed_bytes, what="this sweep", kept="kept adapters and rows", option="--out")


def claim(out: str | Path | None, *, resume: bool, overwrite: bool) -> SweepFolder:
    """Decide where a sweep goes, and refuse what would harm an older one.

    A sweep has no last file: one that has all its runs can be resumed too, with more arms, rates or seeds.

    Args:
        out: The folder; None: a new one below ``sweeps/``, or with ``resume`` the newest one there.
        resume: Go on with the sweep in the folder; begins one where the folder is empty or not there.
        overwrite: Replace the sweep in the folder.

    Returns:
        The claimed place; nothing is written yet.

    Raises:
        SpecError: Both ``resume`` and ``overwrite`` are given.
        RunExistsError: The folder holds a sweep.
        NothingToResumeError: There is no sweep below ``sweeps/``.
        RunFolderError: The folder holds files that are no sweep; they are never removed.
    """
    if resume and overwrite:
        raise SpecError("resume goes on with a sweep and overwrite removes it: give one of them.")
    path = Path(out) if out is not None else (_newest() if resume else _new_path())
    if path.is_symlink():
        path = path.resolve()
    if not path.exists() or (path.is_dir() and _holds_nothing(path)):
        return SweepFolder(path=path)  # a sweep killed before its first file left nothing: it starts again
    if not (path / PLAN).is_file():
        raise RunFolderError(
            f"{path} exists and holds no sweep of asymlora. It is left alone; choose another folder with --out."
        )
    if resume or overwrite:
        return SweepFolder(path=path, resumes=resume, replaces=overwrite)
    raise RunExistsError(
        f"{path} holds a sweep. Go on with it with --resume, choose another --out, or replace it with --overwrite."
    )


def stored_plan(path: Path) -> dict[str, Any]:
    """Return the plan of a sweep on disk.

    Args:
        path: The sweep's folder.

    Raises:
        RunFolderError: The folder holds no sweep.
    """
    if not (path / PLAN).is_file():
        raise RunFolderError(f"{path} holds no sweep: there is no {PLAN}. Give the folder that a sweep was written to.")
    return read_yaml(path / PLAN)


def require_same_base(path: Path, plan: Mapping[str, Any]) -> None:
    """Refuse to resume a sweep from another base recipe, format or budget than its own.

    Args:
        path: The sweep.
        plan: The plan that it is about to be resumed with, as plain values.

    Raises:
        SpecError: They differ; every differing key is named.
    """
    stored = stored_plan(path)
    differing = differing_keys(_fixed(stored, plan), _fixed(plan, stored))
    if differing:
        raise SpecError(
            f"The sweep in {path} was begun with another base (stored / given): {'; '.join(differing)}. Arms, rates,"
            " seeds and values of its axes may be added to it, these not. Resume it with what it was begun with, or"
            " choose another --out."
        )


def _fixed(plan: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    arms, others = _arms(plan), _arms(other)
    fixed = {key: plan.get(key) for key in FIXED_KEYS}
    fixed["axes"] = [axis["field"] for axis in plan.get("axes") or ()]
    fixed["arms"] = {name: arm for name, arm in arms.items() if name in others}  # a name stands for one thing
    if plan.get("match", "steps") != "steps":
        fixed["first arm"] = next(iter(arms), None)  # which sets the budget of all
    return fixed


def _arms(plan: Mapping[str, Any]) -> dict[str, Any]:
    return {str(arm.get("name")): arm for arm in plan.get("arms") or () if isinstance(arm, Mapping)}


def changed_environment(path: Path) -> list[str]:
    """Return what is another than when the sweep was begun, with both values: versions, threads, hardware.

    Args:
        path: The sweep.

    Returns:
        Dotted keys, each ``key: stored / now``; runs of both are in one store then, and need not be comparable.
    """
    return differing_keys(_json(path / ENVIRONMENT), environment())


@dataclass(frozen=True, kw_only=True)
class SweepRecords:
    """All that a sweep has left, for reports.

    Attributes:
        name: Of its folder.
        path: Its folder.
        plan: Content of ``sweep.yaml``.
        environment: Content of ``environment.json``; empty where it is missing.
        rows: Its runs, in the order in which they ended.
        similarity: Rows of compared adapters.
        summary: Content of ``summary.json``; None before the sweep has ended.
        warnings: A sentence for each thing that could not be read.
        sessions: What was typed, when, and on what, each time that it was begun or gone on with.
    """

    name: str
    path: Path
    plan: Mapping[str, Any]
    environment: Mapping[str, Any] = field(default_factory=dict[str, Any])
    rows: Sequence[RunRow] = ()
    similarity: Sequence[Mapping[str, Any]] = ()
    summary: Mapping[str, Any] | None = None
    warnings: Sequence[str] = ()
    sessions: Sequence[Mapping[str, Any]] = ()


def read_sweep(path: str | Path) -> SweepRecords:
    """Read the records of a sweep, ended or not; no lock is taken and nothing is written.

    Args:
        path: The sweep's folder.

    Returns:
        Its records.

    Raises:
        RunFolderError: The folder holds no sweep, its store is of a newer version, or one of its files is damaged.
        SpecError: ``sweep.yaml`` is damaged.
    """
    folder = Path(path)
    plan = stored_plan(folder)
    store = RunStore(folder / RUNS)
    rows = store.rows()
    summary = _json(folder / SUMMARY) if (folder / SUMMARY).is_file() else None
    return SweepRecords(
        name=folder.resolve().name,
        path=folder,
        plan=plan,
        environment=_json(folder / ENVIRONMENT) if (folder / ENVIRONMENT).is_file() else {},
        rows=tuple(rows),
        similarity=tuple(_lines(folder / SIMILARITY)),
        summary=summary,
        warnings=tuple(store.warnings()),
        sessions=tuple(read_sessions(folder / SESSIONS)),
    )


def read_sessions(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what was typed, when, and on what; nothing depends on it, so a line that a killed writer tore is left out.

    Args:
        path: ``sessions.jsonl``; it may not be there.
    """
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def _first_files(plan: str) -> dict[str, str]:
    # The plan last: without it the folder counts as empty.
    return {ENVIRONMENT: json.dumps(environment(), indent=2) + "\n", PLAN: plan}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read ({error.strerror or error}). Put it back from a copy.") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise RunFolderError(f"{path} is damaged: a JSON object is needed. Remove it, or put it back from a copy.")
    return content


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return [json.loads(line) for line in text.splitlines()]
    except ValueError:
        raise RunFolderError(f"{path} is damaged: it holds lines that are no JSON. Remove it and resume.") from None


def _holds_nothing(path: Path) -> bool:
    # A sweep that was killed while it filled the folder left at most these.
    return all(file.name.startswith(STAGING_PREFIX) or file.name == ENVIRONMENT for file in path.iterdir())


def _new_path() -> Path:
    return SWEEPS / time.strftime("%Y-%m-%d-%H%M%S")


def _newest() -> Path:
    found = [f.parent for f in SWEEPS.glob(f"*/{PLAN}")]
    if not found:
        raise NothingToResumeError(f"No sweep below {SWEEPS}/. Name the sweep's folder with --out.")
    return max(found, key=_last_touched)


def _last_touched(path: Path) -> float:
    return max(file.stat().st_mtime for file in path.iterdir())
