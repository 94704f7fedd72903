"""Read JSON and safetensors files that may be hostile: sizes first, then structure, then values. Nothing is run.

What the content means is not known here.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from asymlora.errors import AdapterFileError

MAX_JSON_BYTES = 2**26
MAX_JSON_DEPTH = 16
MAX_HEADER_BYTES = 2**25
MAX_FILE_BYTES = 2**36
MAX_TENSORS = 2**17
MAX_DIMENSIONS = 6
MAX_NUMBER = 2**63
MAX_KEY = 1000
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The types that a factor may have, by the format's words."""
_BITS = {
    **{
        "BOOL": 8,
        "U8": 8,
        "I8": 8,
        "F8_E4M3": 8,
        "F8_E5M2": 8,
        "F8_E8M0": 8,
        "I16": 16,
        "U16": 16,
        "F16": 16,
        "BF16": 16,
    },
    **{"I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64},
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SHOWN, _LONGEST = 8, 500


def refuse(path: Path, problems: Sequence[str], remedy: str = "Save the adapter again.") -> None:
    """Raise all problems of one file or folder at once, or nothing.

    Args:
        path: The file or folder.
        problems: One sentence part each.
        remedy: What to do.

    Raises:
        AdapterFileError: There is at least one problem.
    """
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        shown = "; ".join(problem[:_LONGEST] for problem in problems[:_SHOWN])
        raise AdapterFileError(f"{path} cannot be used: {shown}{more}. {remedy}")


def inner_folder(folder: Path, name: str, *, taken: Iterable[str] = ()) -> Path:
    """Return the sub-folder of a named adapter.

    Args:
        folder: The folder of adapters.
        name: The adapter's name.
        taken: Names that an adapter must not have, those of the model's own modules.

    Returns:
        The sub-folder, which is a folder below ``folder`` and no link out of it.

    Raises:
        AdapterFileError: The name is no name of an adapter, or there is no such folder.
    """
    if not _NAME.fullmatch(name) or name.startswith("lora_"):
        raise AdapterFileError(
            f"{name!r} is no name of an adapter: up to 64 letters, digits, - and _, a letter or digit first, and not"
            " lora_. Give the path of its folder instead."
        )
    if name in taken:
        raise AdapterFileError(f"{name!r} is the name of a module of the model. Give the path of its folder instead.")
    inner = folder / name
    if not inner.is_dir():
        there = sorted(f.name for f in folder.iterdir() if f.is_dir()) if folder.is_dir() else []
        raise AdapterFileError(f"{inner} is not there. Adapters by name here: {', '.join(there) or 'none'}.")
    if inner.resolve().parent != folder.resolve():
        raise AdapterFileError(f"{inner} is a link that leaves {folder}. Copy the adapter itself there.")
    return inner


def open_file(path: Path, *, most: int) -> BinaryIO:
    """Open a plain file of a folder for reading.

    Args:
        path: The file. A symbolic link must stay inside its folder, or lead into the blobs of the Hub's own cache.
        most: Its largest size, bytes.

    Returns:
        The open file.

    Raises:
        AdapterFileError: It is not there, no plain file, too large, or a link that leaves the folder.
    """
    try:
        real = path.resolve(strict=True)
        if path.is_symlink() and not _stays(real, path.parent.resolve()):
            raise AdapterFileError(f"{path} is a symbolic link that leaves its folder. Copy the file itself there.")
        # Neither a link put there since nor a pipe may hold this up.
        handle = os.open(real, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        there = path.exists() or path.is_symlink()
        reason = f"cannot be read ({error})." if there else "is not there. An adapter folder holds it."
        raise AdapterFileError(f"{path}: {reason}") from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_size > most:
        os.close(handle)
        kind = f"has {status.st_size:,} bytes, more than the {most:,} that are read"
        raise AdapterFileError(f"{path} {kind if stat.S_ISREG(status.st_mode) else 'is no plain file'}.")
    return os.fdopen(handle, "rb")


def _stays(real: Path, folder: Path) -> bool:
    # The Hub's cache: models--x/snapshots/<revision>/file -> models--x/blobs/<hash>.
    snapshots = next((parent for parent in folder.parents if parent.name == "snapshots"), None)
    return real.is_relative_to(folder) or (snapshots is not None and real.parent == snapshots.parent / "blobs")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        AdapterFileError: It cannot be read, is too large or too deep, names a key twice, or holds a number that is
            not finite.
    """
    with open_file(path, most=MAX_JSON_BYTES) as file:
        content = file.read(MAX_JSON_BYTES + 1)
    try:
        return parse_json(content)
    except ValueError as error:
        raise AdapterFileError(f"{path}: cannot be read ({error}).") from None


def parse_json(content: bytes) -> dict[str, Any]:
    """Return a JSON object from its bytes, strictly.

    Args:
        content: UTF-8.

    Returns:
        The object.

    Raises:
        ValueError: It is no object, too deep, names a key twice, or holds a number that is not finite.
    """
    try:
        parsed = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_once,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_bounded,
        )
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} deep") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"it holds a {type(parsed).__name__}; an object is needed")
    _refuse_depth(parsed)
    return cast("dict[str, Any]", parsed)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"it names the key {key[:80]!r} twice")
            seen.add(key)
    return content


def _no_constant(word: str) -> Any:
    raise ValueError(f"it holds the number {word}")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"it holds the number {text[:40]}, which is out of range")
    return value


def _bounded(text: str) -> int:
    if len(text) > 20 or abs(value := int(text)) > MAX_NUMBER:
        raise ValueError(f"it holds the number {text[:40]}, which is out of range")
    return value


def _refuse_depth(content: Any) -> None:
    level = [content]
    for _ in range(MAX_JSON_DEPTH):
        inner = [v for c in level for v in (cast("Any", c).values() if isinstance(c, dict) else cast("Any", c))]
        level = [c for c in inner if isinstance(c, dict | list)]
        if not level:
            return
    raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} deep")


@dataclass(frozen=True)
class TensorEntry:
    """What a safetensors header says of one tensor.

    Attributes:
        dtype: The format's word for the type.
        shape: Sizes.
        begin: Offset of the first byte behind the header.
        end: Offset behind the last.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile:
    """A safetensors file whose header is read and checked; the values are read on `load`.

    Args:
        path: The file.

    Raises:
        AdapterFileError: The header is damaged, too large, or does not describe the file to its last byte: every
            problem is listed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_file(path, most=MAX_FILE_BYTES) as file:
            size = os.fstat(file.fileno()).st_size
            self.entries = self._header(file, size)

    def _header(self, file: BinaryIO, size: int) -> dict[str, TensorEntry]:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise AdapterFileError(
                f"{self.path}: cannot be read (its header should have {length:,} bytes, in a file of {size:,}; at most"
                f" {MAX_HEADER_BYTES:,} are read). Only safetensors files are read."
            )
        try:
            entries, problems = parse_header(parse_json(file.read(length)), values=size - 8 - length)
        except ValueError as error:
            raise AdapterFileError(
                f"{self.path}: cannot be read (in its header: {error}). Only safetensors files are read."
            ) from None
        refuse(self.path, problems)
        return entries

    def shapes(self) -> dict[str, Tensor]:
        """Return tensors without values (on the meta device), of 16 or 32 bits; the others are in `wrong_types`."""
        return {
            key: torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")
            for key, entry in self.entries.items()
            if entry.dtype in DTYPES
        }

    def wrong_types(self) -> list[str]:
        """Return one sentence part for each tensor that is no float of 16 or 32 bits."""
        return [
            f"{key} is {entry.dtype}, not a float of 16 or 32 bits"
            for key, entry in self.entries.items()
            if entry.dtype not in DTYPES
        ]

    def load(self) -> dict[str, Tensor]:
        """Return the tensors with their values.

        Returns:
            Tensors by key.

        Raises:
            AdapterFileError: The file has changed since its header was read.
        """
        with open_file(self.path, most=MAX_FILE_BYTES) as file:
            size = os.fstat(file.fileno()).st_size
            entries = self._header(file, size)
            file.seek(0)
            content = file.read(size)
        if entries != self.entries or len(content) != size:
            raise AdapterFileError(f"{self.path} was changed while it was read. Load the adapter again.")
        try:
            return safetensors.torch.load(content)
        except (SafetensorError, ValueError, KeyError) as error:
            raise AdapterFileError(f"{self.path}: cannot be read ({error}).") from None


def parse_header(header: Mapping[str, Any], *, values: int) -> tuple[dict[str, TensorEntry], list[str]]:
    """Return the tensors of a safetensors header, and what is wrong with it.

    Args:
        header: The header.
        values: Number of bytes behind it.

    Returns:
        Entries by key, and one sentence part for each problem.
    """
    named = {key: entry for key, entry in header.items() if key != "__metadata__"}
    if len(named) > MAX_TENSORS:
        return {}, [f"it names {len(named):,} tensors; at most {MAX_TENSORS:,} are read"]
    entries: dict[str, TensorEntry] = {}
    problems: list[str] = []
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in cast("dict[str, Any]", metadata).values()):
        problems.append("its metadata are not texts")
    for key, stated in named.items():
        found = _entry(stated) if len(key) <= MAX_KEY else f"... has a name of more than {MAX_KEY} letters"
        if isinstance(found, TensorEntry):
            entries[key] = found
        else:
            problems.append(f"{key[:200]} {found}")
    if not problems:
        problems = _gaps(entries.items(), values)
    return entries, problems


def _entry(stated: Any) -> TensorEntry | str:
    if not isinstance(stated, dict) or set(cast("dict[str, Any]", stated)) != {"dtype", "shape", "data_offsets"}:
        return "is not described by dtype, shape and data_offsets"
    dtype, shape, offsets = (cast("dict[str, Any]", stated)[name] for name in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _BITS:
        return f"has the unknown type {str(dtype)[:20]!r}"
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS or not _sizes(offsets) or len(offsets) != 2:
        return "has a shape or offsets that are no lists of whole numbers of at least 0"
    begin, end = offsets
    if (needed := math.prod(shape) * _BITS[dtype] // 8) != end - begin:
        return f"is {dtype} {tuple(shape)} of {needed:,} bytes, and has the bytes {begin:,} to {end:,}"
    return TensorEntry(dtype, tuple(shape), begin, end)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in cast("list[Any]", value))


def _gaps(entries: Iterable[tuple[str, TensorEntry]], values: int) -> list[str]:
    problems: list[str] = []
    at = 0
    for key, entry in sorted(entries, key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            what = "overlaps what stands before it" if entry.begin < at else "leaves a gap before it"
            problems.append(f"{key[:200]} {what} (its bytes begin at {entry.begin:,}, those before end at {at:,})")
        at = max(at, entry.end)
    if at != values:
        problems.append(f"its tensors end at byte {at:,}, but {values:,} bytes follow the header: the file is torn")
    return problems
