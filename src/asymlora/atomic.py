"""Files and folders that appear under their final name whole or not at all. Standard library only."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asymlora.errors import RunExistsError

STAGING_PREFIX = ".incomplete-"


def write_file(path: Path, content: str | bytes, *, mode: int | None = None) -> None:
    """Write a file through a staging file and a rename, flushed to disk.

    Args:
        path: Final name; replaced if it exists.
        content: Text (written as UTF-8) or bytes.
        mode: Permissions; None: what the process gives by default.
    """
    staging = path.with_name(f"{STAGING_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with staging.open("wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
        _flush_folder(path.parent)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def staged_folder(path: Path, *, last: str | None = None) -> Iterator[Path]:
    """Give an empty staging folder; on success its content stands under ``path``, on failure it is removed.

    Args:
        path: Final name. If it does not exist, the staging folder is renamed to it, whole.
        last: If ``path`` may exist: the file without which a reader takes the folder for empty. The others move into
            ``path`` one by one and this one at the end.

    Yields:
        The staging folder, on the same disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f"{STAGING_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}"
    staging = path / name if last and path.is_dir() else path.with_name(name)
    staging.mkdir()
    try:
        yield staging
        if last and path.is_dir():
            _flush_files(staging)
            move_files(staging, path, last=last)
        else:
            publish_folder(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish_folder(staging: Path, path: Path) -> None:
    """Flush every file of ``staging`` to disk, then rename it to ``path``."""
    _flush_files(staging)
    staging.rename(path)
    _flush_folder(path.parent)


def move_files(staging: Path, folder: Path, *, last: str) -> None:
    """Move the files of ``staging`` into an existing folder, one rename each, the file ``last`` at the end.

    A reader that finds ``last`` finds everything else: an older ``last`` is removed before the first rename.

    Args:
        staging: Folder with files only, on the same disk.
        folder: Where they go; files of the same names are replaced.
        last: Name of the file without which a reader takes the folder for empty.
    """
    (folder / last).unlink(missing_ok=True)
    for file in sorted(staging.iterdir(), key=lambda f: f.name == last):
        file.replace(folder / file.name)
    _flush_folder(folder)


def remove_folder(path: Path) -> None:
    """Remove a folder so that its final name is gone before its first file is."""
    doomed = path.with_name(f"{STAGING_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(folder: Path) -> None:
    """Remove what an interrupted writer left in ``folder`` under staging names."""
    for leftover in folder.glob(f"{STAGING_PREFIX}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def held_folder(folder: Path, *, doing: str) -> Iterator[None]:
    """Hold a folder against other processes; no file is left behind, and it ends with the process however that ends.

    Args:
        folder: An existing folder.
        doing: What a process that holds it does, for the message to others: ``is running the run in``.

    Yields:
        Nothing.

    Raises:
        RunExistsError: Another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunExistsError(f"Another process {doing} {folder}. Wait for it, or end it.") from None
        yield
    finally:
        os.close(handle)


def _flush_files(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network disks refuse to flush a folder; the rename is done all the same
    finally:
        os.close(handle)
