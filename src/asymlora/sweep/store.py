"""Rows on disk, a sweep's in ``runs.jsonl``: append-only, safe for several writers and for being killed. No torch.

The first line names the format; then each run that ended is one line. A line that a killed writer left unfinished is
closed with a mark before anything else is written, so whatever stands before the last line feed stays as it is.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

from asymlora.errors import AsymloraError, DiskSpaceError, RunFolderError, SpecError, UnwritableFolderError
from asymlora.sweep.run_record import RunRow

FORMAT_VERSION = 1
_HEADER = json.dumps({"kind": "store", "version": FORMAT_VERSION}).encode() + b"\n"
_TORN = b" # torn\n"
_BINARY = getattr(os, "O_BINARY", 0)  # Windows alone would turn line feeds into two bytes
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)


class DamagedLine(NamedTuple):
    """A line of the store that is no row.

    Attributes:
        number: Of the line, from 1.
        problem: What is wrong with it.
    """

    number: int
    problem: str


class StoredRow(Protocol):
    """What a store holds: a frozen row with an id of its own."""

    @property
    def id(self) -> str:
        """Of what was done; the same whenever it is done again."""
        ...

    @property
    def final(self) -> bool:
        """Whether it need not be done again."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, the inverse of `from_dict`."""
        ...

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Self:
        """Return the row of plain values."""
        ...


Row = TypeVar("Row", bound=StoredRow)


class RowStore(Generic[Row]):
    """Rows by their ids; reads only what others have added since, so that 10,000 rows stay cheap.

    Any number of processes may append to one file on a disk that knows ``flock``. Of several rows with one id the first
    final one counts; one of a run that failed gives way to a later one.

    Args:
        path: The file; it appears with the first row.
        kind: Class of the rows.
    """

    def __init__(self, path: str | Path, kind: type[Row]) -> None:
        self.path = Path(path)
        self._kind = kind
        self._forget()

    def append(self, row: Row) -> bool:
        """Append a row, flushed to disk, unless a final row with its id is there.

        Args:
            row: The row.

        Returns:
            Whether it was appended.

        Raises:
            SpecError: The row holds a number that is not finite, or something that JSON has no word for.
            DiskSpaceError: The disk is full; what was written of the row is taken back.
            UnwritableFolderError: The file cannot be written.
            RunFolderError: The file is no store, or one of a newer version.
        """
        line = _line(row)
        with self._opened_alone() as handle:
            self._read(handle)
            self._close_torn_line(handle)
            known = self._rows.get(row.id)
            if known is not None and known.final:
                return False
            self._write(handle, line)
            self._take(line)
        return True

    def rows(self) -> list[Row]:
        """Return one row for each id, in the order in which the runs ended.

        Raises:
            RunFolderError: The file is no store, or one of a newer version.
        """
        self.refresh()
        return list(self._rows.values())

    def get(self, id: str) -> Row | None:
        """Return the row of a run, or None where there is none.

        Args:
            id: As `RunJob.id`.
        """
        self.refresh()
        return self._rows.get(id)

    def finished(self) -> frozenset[str]:
        """Return the ids of the runs that need not be done again."""
        return frozenset(row.id for row in self.rows() if row.final)

    @property
    def torn(self) -> int:
        """Lines that a writer left unfinished, or is just writing, as of the last reading."""
        return self._torn + bool(self._tail)

    @property
    def damaged(self) -> tuple[DamagedLine, ...]:
        """Whole lines that are no rows, as of the last reading; their runs count as not done."""
        return tuple(self._damaged)

    def warnings(self) -> list[str]:
        """Return a sentence for each thing in the file that could not be read, as of the last reading."""
        said: list[str] = []
        if self.torn:
            lines = "1 line was" if self.torn == 1 else f"{self.torn} lines were"
            said.append(f"{lines} left unfinished in {self.path.name} by a writer that was ended.")
        for line in self._damaged:
            said.append(f"Line {line.number} of {self.path.name} {line.problem}. Its run counts as not done.")
        return said

    def refresh(self) -> None:
        """Read what was added since the last reading.

        Raises:
            RunFolderError: The file is no store, or one of a newer version.
        """
        try:
            handle = os.open(self.path, os.O_RDONLY | _BINARY)
        except FileNotFoundError:
            self._forget()
            return
        try:
            self._read(handle)
        finally:
            os.close(handle)

    def _forget(self) -> None:
        self._rows: dict[str, Row] = {}
        self._damaged: list[DamagedLine] = []
        self._torn = self._offset = self._lines = 0
        self._tail = False
        self._file: tuple[int, int] | None = None

    def _read(self, handle: int) -> None:
        found = os.fstat(handle)
        file = (found.st_dev, found.st_ino)
        if file != self._file or found.st_size < self._offset:  # another file, or one that was cut
            self._forget()
            self._file = file
        added = _read_from(handle, self._offset, found.st_size)
        *lines, tail = added.split(b"\n")
        for line in lines:
            self._take(line + b"\n")
        self._tail = bool(tail)

    def _take(self, line: bytes) -> None:
        """Note a whole line that stands in the file."""
        if self._lines == 0:
            _refuse_foreign(line, self.path)
        self._lines += 1
        self._offset += len(line)
        if self._lines == 1 or line.endswith(_TORN):
            self._torn += line.endswith(_TORN)
            return
        try:
            row = self._kind.from_dict(_object(line))
        except (ValueError, AsymloraError) as error:
            self._damaged.append(DamagedLine(self._lines, _said(error)))
            return
        known = self._rows.get(row.id)
        if known is None or not known.final:
            self._rows.pop(row.id, None)
            self._rows[row.id] = row

    def _close_torn_line(self, handle: int) -> None:
        if self._lines == 0:
            os.ftruncate(handle, 0)  # at most a part of the first line stands there
            self._write(handle, _HEADER)
            self._take(_HEADER)
        elif self._tail:
            self._write(handle, _TORN)
            self._read(handle)
        self._tail = False

    @contextmanager
    def _opened_alone(self) -> Iterator[int]:
        # Held against other writers, threads of this process included.
        with refused_writes_said(self.path):
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY, 0o644)
        try:
            _lock(handle)
            yield handle
        finally:
            os.close(handle)

    def _write(self, handle: int, content: bytes) -> None:
        # All of it, flushed to disk, or the file is left as it was.
        before = os.fstat(handle).st_size
        try:
            with refused_writes_said(self.path):
                written = os.write(handle, content)
                while written < len(content):  # a disk that is nearly full takes a part, and then says so
                    written += os.write(handle, content[written:])
                os.fsync(handle)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, before)
            raise


class RunStore(RowStore[RunRow]):
    """The rows of a sweep.

    Args:
        path: The file; it appears with the first row.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, RunRow)


def _line(row: StoredRow) -> bytes:
    try:
        return json.dumps(row.to_dict(), allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        wrong = _not_finite(row.to_dict()) or [str(error)]
        raise SpecError(
            f"The row of run {row.id} cannot be stored: {', '.join(wrong)}. Rows hold plain values and finite numbers;"
            " give None for what is not finite."
        ) from None


def _not_finite(value: Any, where: str = "") -> list[str]:
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{where} is {value}"]
    if isinstance(value, Mapping):
        return [found for key, item in value.items() for found in _not_finite(item, f"{where}.{key}".lstrip("."))]
    if isinstance(value, list | tuple):
        return [found for number, item in enumerate(value) for found in _not_finite(item, f"{where}[{number}]")]
    return []


def _read_from(handle: int, start: int, end: int) -> bytes:
    pieces: list[bytes] = []
    left = end - os.lseek(handle, start, os.SEEK_SET)
    while left > 0 and (piece := os.read(handle, left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _object(line: bytes) -> dict[str, Any]:
    # Python's reader takes NaN and Infinity, which we never write.
    content = json.loads(line, parse_constant=_refuse_constant)
    if not isinstance(content, dict):
        raise ValueError("is no JSON object")
    return content


def _refuse_constant(word: str) -> None:
    raise ValueError(f"holds {word}")


def _said(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return "is no JSON"
    return f"is no row ({error})" if isinstance(error, AsymloraError) else str(error)


def _refuse_foreign(line: bytes, path: Path) -> None:
    try:
        header = _object(line)
    except ValueError:
        header = {}
    version = header.get("version")
    if header.get("kind") != "store" or not isinstance(version, int):
        raise RunFolderError(
            f"{path} does not begin as a store of runs; its first line must be {_HEADER.decode().strip()}. If that line"
            " was damaged, put it back: the rows after it are read as they are."
        )
    if version > FORMAT_VERSION:
        raise RunFolderError(
            f"{path} is a store of version {version}; this asymlora reads up to version {FORMAT_VERSION}. Update"
            " asymlora, or sweep into another folder."
        )


@contextmanager
def refused_writes_said(path: Path, *, then: str = "go on with --resume") -> Iterator[None]:
    """Turn what the disk refuses in a block into an error that says what to do.

    Args:
        path: What is written there.
        then: What to do once the disk takes it.

    Yields:
        Nothing.

    Raises:
        DiskSpaceError: The disk is full.
        UnwritableFolderError: There is no right to write.
        RunFolderError: The disk refused for another reason.
        OSError: An error of our own, as it was raised in the block.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, AsymloraError):
            raise
        cause, kept = error.strerror or str(error), "Every run that was stored before is whole."
        if error.errno in _NO_ROOM:
            raise DiskSpaceError(
                f"{path} cannot be written: the disk is full ({cause}). {kept} Free some space and {then}."
            ) from None
        kind = UnwritableFolderError if error.errno in _NO_RIGHT else RunFolderError
        raise kind(f"{path} cannot be written ({cause}). {kept} Make it writable and {then}.") from None


def _lock(handle: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: one writer at a time is the user's care there
        return
    fcntl.flock(handle, fcntl.LOCK_EX)
