"""A run on disk: ``recipe.yaml``, ``environment.json``, ``result.json``, ``adapter/``, and rows of measurements.

``records.jsonl`` tells of the loss and the scores, ``dynamics.jsonl`` of each factor, ``health.json`` of what is wrong.

While it trains it also holds ``checkpoints/``. A folder with a recipe and no result is a run that can be resumed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from asymlora.atomic import held_folder, remove_folder, remove_leftovers, staged_folder, write_file
from asymlora.errors import (
    DiskSpaceError,
    NothingToResumeError,
    RunExistsError,
    RunFolderError,
    SpecError,
    UnwritableFolderError,
)
from asymlora.train.recipe import Recipe, differing_keys, read_yaml

RUNS = Path("runs")
RECIPE, ENVIRONMENT, RECORDS, DYNAMICS, HEALTH, RESULT, ADAPTER, CHECKPOINTS = (
    "recipe.yaml",
    "environment.json",
    "records.jsonl",
    "dynamics.jsonl",
    "health.json",
    "result.json",
    "adapter",
    "checkpoints",
)
_MARGIN_BYTES = 32 * 2**20


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A claimed place for a run. Nothing of an older run is touched before `begun`.

    Attributes:
        path: The folder.
        resumes: Whether it holds an unfinished run that is gone on with.
        replaces: Whether it holds a run that `begun` removes.
        writes: Whether this process writes it; of several that run one recipe, the first does.
    """

    path: Path
    resumes: bool = False
    replaces: bool = False
    writes: bool = True

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are written while the run goes on."""
        return self.path / CHECKPOINTS

    @property
    def adapter(self) -> Path:
        """Where the adapter stands when the run has ended."""
        return self.path / ADAPTER

    @contextmanager
    def begun(self, recipe: Recipe) -> Iterator[None]:
        """Make the folder with its recipe and environment, or clean up the one that is resumed, and hold it.

        Args:
            recipe: The resolved recipe.

        Yields:
            Nothing; until the block ends no other process can begin or resume a run here.

        Raises:
            RunExistsError: Another process has begun a run here meanwhile, or is running one.
        """
        if not self.writes:
            yield
            return
        if self.replaces:
            with held_folder(self.path, doing="is running the run in"):
                remove_folder(self.path)
        if not self.resumes:
            self._make(recipe)
        with held_folder(self.path, doing="is running the run in"):
            self.checkpoints.mkdir(exist_ok=True)
            remove_leftovers(self.path)
            remove_leftovers(self.checkpoints)
            yield

    def _make(self, recipe: Recipe) -> None:
        content = {RECIPE: recipe.to_yaml(), ENVIRONMENT: json.dumps(environment(), indent=2) + "\n"}
        try:
            if self.path.is_dir() and not any(self.path.iterdir()):
                for name, text in content.items():
                    write_file(self.path / name, text)
                return
            with staged_folder(self.path) as staging:
                for name, text in content.items():
                    write_file(staging / name, text)
        except OSError as error:
            if self.path.exists() and (self.path / RECIPE).exists():
                raise RunExistsError(f"Another process has begun a run in {self.path}. Choose another one.") from error
            raise

    def record(self, row: Mapping[str, Any]) -> None:
        """Append one row to the records, in one write."""
        self._append(RECORDS, [row])

    def record_dynamics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append the rows of one measured step, in one write; what is not finite becomes null."""
        self._append(DYNAMICS, [{key: _finite(value) for key, value in row.items()} for row in rows])

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        if not self.writes:
            return
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        handle = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, lines.encode())
        finally:
            os.close(handle)

    def records(self) -> list[dict[str, Any]]:
        """Return the rows recorded so far; a torn last line is left out."""
        return self._rows(RECORDS)

    def dynamics(self) -> list[dict[str, Any]]:
        """Return the rows of each factor so far; a torn last line is left out."""
        return self._rows(DYNAMICS)

    def _rows(self, name: str) -> list[dict[str, Any]]:
        file = self.path / name
        rows: list[dict[str, Any]] = []
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows

    def forget_after(self, step: int) -> None:
        """Drop the rows of later steps and the closing one: they are about to be taken again."""
        if not self.writes:
            return
        kept = [row for row in self.records() if row["step"] <= step and (row["split"] != "test" or row["step"] == 0)]
        write_file(self.path / RECORDS, "".join(json.dumps(row) + "\n" for row in kept))
        measured = [row for row in self.dynamics() if row["step"] <= step]
        if (self.path / DYNAMICS).exists():
            write_file(self.path / DYNAMICS, "".join(json.dumps(row) + "\n" for row in measured))

    def write_health(self, health: Mapping[str, Any]) -> None:
        """Write the verdicts, whole."""
        if self.writes:
            write_file(self.path / HEALTH, json.dumps(health, indent=2, allow_nan=False) + "\n")

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result, which makes the run a finished one, and remove its checkpoints."""
        if not self.writes:
            return
        write_file(self.path / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
        if self.checkpoints.is_dir():
            remove_folder(self.checkpoints)

    def check_space(self, needed_bytes: int) -> None:
        """Find out before the training whether the folder can be written and the disk has room.

        Args:
            needed_bytes: What the run will write at its largest.

        Raises:
            UnwritableFolderError: A file cannot be made there.
            DiskSpaceError: There is less room than the run needs.
        """
        check_space(self.path, needed_bytes, what="this run", kept="checkpoints and adapter", option="--output")


def check_space(path: Path, needed_bytes: int, *, what: str, kept: str, option: str) -> None:
    """Find out whether a folder, there or not yet, can be written and its disk has room.

    Args:
        path: The folder.
        needed_bytes: What will be written at its largest.
        what: What writes, for the message.
        kept: What most of it is.
        option: The option that names the folder.

    Raises:
        UnwritableFolderError: A file cannot be made there.
        DiskSpaceError: There is less room than that, and a margin.
    """
    parent = next(p for p in (path, *path.absolute().parents) if p.exists())
    trial = parent / f".write-test-{uuid.uuid4().hex[:8]}"
    try:
        with trial.open("wb") as file:
            file.write(b"\0" * 2**16)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UnwritableFolderError(
            f"{path} cannot be written ({error.strerror or error}). Choose another folder with {option}."
        ) from None
    finally:
        with contextlib.suppress(OSError):
            trial.unlink(missing_ok=True)
    free = shutil.disk_usage(parent).free
    if free < needed_bytes + _MARGIN_BYTES:
        raise DiskSpaceError(
            f"The disk of {path} has {free / 2**20:,.0f} MiB left; {what} writes up to"
            f" {(needed_bytes + _MARGIN_BYTES) / 2**20:,.0f} MiB ({kept}). Free some, or choose another folder with"
            f" {option}."
        )


def claim(output: str | Path | None, *, resume: bool, overwrite: bool) -> RunFolder:
    """Decide where a run goes, and refuse what would harm an older one.

    Args:
        output: The folder; None: a new one below ``runs/``, or with ``resume`` the newest unfinished one there.
        resume: Go on with the unfinished run in the folder.
        overwrite: Replace the run in the folder.

    Returns:
        The claimed place; nothing is written yet.

    Raises:
        SpecError: Both ``resume`` and ``overwrite`` are given.
        RunExistsError: The folder holds a run.
        NothingToResumeError: There is no unfinished run.
        RunFolderError: The folder holds files that are no run; they are never removed.
    """
    if resume and overwrite:
        raise SpecError("resume goes on with a run and overwrite removes it: give one of them.")
    path = Path(output) if output is not None else (_newest_unfinished() if resume else _new_path())
    if path.is_symlink():
        path = path.resolve()
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return RunFolder(path=path)  # a run killed before its first file left nothing: it starts again
    finished, begun = (path / RESULT).is_file(), (path / RECIPE).is_file()
    if not begun:
        raise RunFolderError(
            f"{path} exists and holds no run of asymlora. It is left alone; choose another folder with --output."
        )
    if resume and finished:
        raise RunExistsError(f"The run in {path} has ended; its figures are in {path / RESULT}. Nothing to resume.")
    if resume:
        return RunFolder(path=path, resumes=True)
    if overwrite:
        return RunFolder(path=path, replaces=True)
    state = "a finished run" if finished else "an unfinished run (go on with it: --resume)"
    raise RunExistsError(f"{path} holds {state}. Choose another --output, or replace it with --overwrite.")


def stored_recipe(path: Path) -> Recipe:
    """Return the recipe of a run on disk."""
    return Recipe.from_dict(read_yaml(path / RECIPE))


def require_same_recipe(path: Path, recipe: Recipe) -> None:
    """Refuse to resume a run with another recipe than its own.

    Args:
        path: The run.
        recipe: The recipe it is about to be resumed with.

    Raises:
        SpecError: They differ; every differing key is named.
    """
    differing = differing_keys(stored_recipe(path).to_dict(), recipe.to_dict())
    if differing:
        raise SpecError(
            f"The run in {path} was begun with another recipe (stored / given): {'; '.join(differing)}. Resume it"
            " without recipe options, or begin a new run."
        )


def environment() -> dict[str, Any]:
    """Return what a result depends on besides its recipe; no host name and no path."""
    packages = (
        *("asymlora", "torch", "transformers", "accelerate", "datasets", "safetensors", "scikit-learn", "numpy"),
        *("scipy", "statsmodels", "optuna", "ray", "peft"),
    )
    versions = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    import torch

    return {
        "python": platform.python_version(),
        "packages": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def peak_bytes() -> int | None:
    """Return the largest resident memory of this process so far, in bytes, or None where it cannot be told."""
    with contextlib.suppress(OSError, StopIteration):  # Linux; getrusage's figure begins with the parent's peak there
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _finite(value: Any) -> Any:
    # JSON has no NaN and no infinity.
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _new_path() -> Path:
    return RUNS / time.strftime("%Y-%m-%d-%H%M%S")


def _newest_unfinished() -> Path:
    unfinished = [f.parent for f in RUNS.glob(f"*/{RECIPE}") if not (f.parent / RESULT).exists()]
    if not unfinished:
        raise NothingToResumeError(f"No unfinished run below {RUNS}/. Name the run's folder with --output.")
    return max(unfinished, key=lambda path: (path / RECIPE).stat().st_mtime)
