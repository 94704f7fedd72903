"""Rows from local files and folders: tables, plain text, one file a domain, folders of images."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asymlora.errors import DataError, DataNotFoundError, EmptyDataError
from asymlora.tasks.tables import PART_NAMES, PART_OF, Rows, parts_by_split

READERS = {".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""How a file is read, by its ending."""
TEXT = ".txt"
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
ENVIRONMENT = "environment"
"""Column of the domain, where files or folders name it."""
_SIDE_FILES = ("dataset.json", "dataset_info.json", "dataset_infos.json", "state.json", "metadata.json")
"""Descriptions that stand beside data and hold no rows."""


def read_file(path: Path) -> Rows:
    """Read one file of rows.

    Args:
        path: CSV, JSON Lines or Parquet.

    Returns:
        Its columns.

    Raises:
        DataError: The ending is unknown, or the content is not what the ending says.
        EmptyDataError: The file is empty.
    """
    kind = READERS.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path} ends in {path.suffix or 'nothing'}; rows are read from {', '.join(READERS)}.")
    if path.stat().st_size == 0:
        raise EmptyDataError(f"{path} is empty. Give it a header and at least one row of each label.")
    import pandas

    try:
        if kind == "csv":
            # What stands in the file is text: "007" is no number, "NA" no hole; an empty field still is one.
            frame = pandas.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
            if not isinstance(frame.index, pandas.RangeIndex):
                raise DataError("its rows have more fields than its header; put texts with commas in quotes")
        elif kind == "json":
            lines = path.suffix.lower() == ".jsonl"
            frame = pandas.read_json(path, lines=lines, dtype=False)  # pyright: ignore[reportArgumentType]
        else:
            frame = pandas.read_parquet(path)
    except (ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read as {kind}: {' '.join(str(error).split())}.") from None
    rows = {str(column): frame[column].tolist() for column in frame.columns}
    return _with_label_names(rows, path) if kind == "parquet" else rows


def _with_label_names(rows: Rows, path: Path) -> Rows:
    for column, names in _noted_names(path).items():
        if column in rows:
            rows[column] = label_names(rows[column], names)
    return rows


def _noted_names(path: Path) -> dict[str, list[str]]:
    # A file that `datasets` wrote tells the names of its labels beside the numbers.
    import pyarrow.parquet

    noted = (pyarrow.parquet.read_schema(path).metadata or {}).get(b"huggingface")
    features = json.loads(noted).get("info", {}).get("features", {}) if noted else {}
    named = {column: feature.get("names") for column, feature in features.items() if isinstance(feature, dict)}
    return {column: names for column, names in named.items() if names}


def label_order(path: Path, column: str) -> tuple[str, ...] | None:
    """Return the names of labels in the order of the numbers that stand for them, where a Parquet file tells it.

    Args:
        path: A file, or a folder of files; the first one that tells is asked.
        column: Column of the labels.

    Returns:
        The names; None where no file tells.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.suffix.lower() == ".parquet" else []
    found = (_noted_names(file).get(column) for file in files)
    return next((tuple(names) for names in found if names), None)


def label_names(values: list[Any], names: list[str]) -> list[str | None]:
    """Return the names of labels that are stored as indices; -1, the sign of an unpublished one, becomes None."""
    return [names[int(value)] if value is not None and value >= 0 else None for value in values]


def read_text(path: Path) -> list[str]:
    """Read a plain text file as its documents, which blank lines divide.

    Args:
        path: The file, UTF-8.

    Returns:
        The documents in their order, each with the blank lines after it: joined, they are the file.

    Raises:
        EmptyDataError: The file holds nothing but blanks.
        DataError: The file is not UTF-8.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). Convert it.") from None
    if not content.strip():
        raise EmptyDataError(f"{path} holds no text. Give it at least one paragraph.")
    documents: list[list[str]] = [[]]
    after_blank = begun = False
    for line in content.splitlines(keepends=True):
        blank = not line.strip()
        if begun and after_blank and not blank:
            documents.append([])
        documents[-1].append(line)
        after_blank, begun = blank, begun or not blank
    return ["".join(lines) for lines in documents]


def read_parts(
    path: Path, columns: Mapping[str, str], *, by_domain: bool = False
) -> tuple[dict[str, Rows], dict[str, str]]:
    """Read what stands at a local path.

    Args:
        path: A file; a folder with files called train, validation and test; with one file a domain; or of images, if a
            role is ``image``.
        columns: Column of each role that is wanted.
        by_domain: Whether rows of several domains are wanted, told apart by the names of their files or folders.

    Returns:
        Rows by part, and the columns by role as these rows have them.

    Raises:
        DataNotFoundError: The folder holds nothing that is read.
    """
    texts = set(columns) <= {"text", "environment"} and "text" in columns
    if path.is_file():
        rows = _read(path, columns, texts=texts)
        return parts_by_split(rows, str(path)), {**columns}
    found = _files_of(path, texts=texts)
    if "train" in found:
        return {part: _read(file, columns, texts=texts) for part, file in found.items()}, {**columns}
    domains = _domain_files(path, texts=texts) if not found else []
    _refuse_pieces(path, domains)
    if by_domain and len(domains) > 1:
        columns = {**columns, "environment": columns.get("environment", ENVIRONMENT)}
        return _read_domains(path, domains, columns, texts=texts), {**columns}
    if texts and (alone := [file for file in domains if file.suffix.lower() == TEXT]):
        return {"train": {columns["text"]: [text for file in alone for text in read_text(file)]}}, {**columns}
    if "image" in columns and (images := _image_files(path)):
        roles = {*columns, *(["environment"] if by_domain else [])}
        return _read_images(path, images, roles)
    raise DataNotFoundError(
        f"{path} holds no train file. Give it train.csv (or {'.txt, ' if texts else ''}.jsonl, .parquet), and"
        " validation and test files beside it if you have them."
    )


def _read(path: Path, columns: Mapping[str, str], *, texts: bool) -> Rows:
    if texts and path.suffix.lower() == TEXT:
        return {columns["text"]: read_text(path)}
    rows = read_file(path)
    if (column := columns.get("image")) in rows:
        rows[column] = [_image(value, path.parent) for value in rows[column]]
    return rows


def _image(value: Any, folder: Path) -> Any:
    # `datasets` stores an image as a pair; a path in a table is meant from the table's own folder.
    if isinstance(value, dict) and set(value) <= {"bytes", "path"}:
        value = value.get("bytes") or value.get("path")
    return str(folder / value) if isinstance(value, str) and value.strip() else value


def _files_of(folder: Path, *, texts: bool) -> dict[str, Path]:
    endings = (*READERS, TEXT) if texts else tuple(READERS)
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in endings)
    found: dict[str, list[Path]] = {
        part: [f for n in names for f in files if f.stem.lower() == n] for part, names in PART_NAMES.items()
    }
    if several := [f"{part}: {', '.join(f.name for f in files)}" for part, files in found.items() if len(files) > 1]:
        raise DataError(f"{folder} holds several files for one part ({'; '.join(several)}). Leave one of each.")
    return {part: files[0] for part, files in found.items() if files}


def _domain_files(folder: Path, *, texts: bool) -> list[Path]:
    endings = (*READERS, TEXT) if texts else tuple(READERS)
    return sorted(
        f for f in folder.iterdir() if f.is_file() and f.suffix.lower() in endings and f.name not in _SIDE_FILES
    )


def _refuse_pieces(folder: Path, files: list[Path]) -> None:
    # Taken for domains, test rows would be trained on.
    if pieces := [file.name for file in files if re.match("train(ing)?(?![a-z])", file.stem.lower())]:
        raise DataError(
            f"{folder} holds {pieces[0]}, whose name begins like that of a part; one file a part is read, so its other"
            " files would be taken for domains. Join each part in one file and call these train, validation and test."
        )


def _read_domains(
    folder: Path, files: list[Path], columns: Mapping[str, str], *, texts: bool
) -> dict[str, dict[str, list[Any]]]:
    environment = columns["environment"]
    parts: dict[str, list[Rows]] = {}
    if twice := {file.stem for file in files if sum(other.stem == file.stem for other in files) > 1}:
        raise DataError(f"{folder} holds several files for one domain ({', '.join(sorted(twice))}). Leave one of each.")
    for file in files:
        rows = _read(file, columns, texts=texts)
        if not rows or not next(iter(rows.values())):
            raise EmptyDataError(f"{file} has no row. Give it at least one row of each label, or remove it.")
        rows.setdefault(environment, [file.stem] * len(next(iter(rows.values()))))
        for part, own in parts_by_split(rows, str(file)).items():
            parts.setdefault(part, []).append(own)
    return {part: _joined(pieces) for part in PART_NAMES if (pieces := parts.get(part))}


def _joined(pieces: list[Rows]) -> Rows:
    shared = [column for column in pieces[0] if all(column in piece for piece in pieces)]
    return {column: [value for piece in pieces for value in piece[column]] for column in shared}


def _image_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGES and file.is_file())


def _refuse_parts_among_others(folder: Path, tops: set[str]) -> None:
    # As environments, they would all be trained on. One alone may be an environment of that name.
    parts, others = (sorted(top for top in tops if (top.lower() in PART_OF) is known) for known in (True, False))
    if others and len(parts) > 1 and "train" in map(str.lower, parts):
        raise DataError(
            f"{folder} holds the parts {', '.join(parts)}, and beside them other images ({', '.join(others[:3])})."
            " Move these out, or into the parts."
        )


def _read_images(folder: Path, files: list[Path], roles: set[str]) -> tuple[dict[str, Rows], dict[str, str]]:
    paths = [list(file.relative_to(folder).parts) for file in files]
    has_parts = all(path[0].lower() in PART_OF for path in paths)
    if not has_parts:
        _refuse_parts_among_others(folder, {path[0] for path in paths if len(path) > 2})
    depths = {len(path) - has_parts for path in paths}
    if depths not in ({2}, {3}):
        shown = ", ".join("/".join(path) for path in (paths[0], paths[-1]))
        raise DataError(
            f"The images of {folder} do not stand in one layout ({shown}). Allowed: LABEL/image.png or"
            " ENVIRONMENT/LABEL/image.png, either of them inside the folders train, validation and test if you have"
            " these."
        )
    parts: dict[str, Rows] = {}
    has_environments = depths == {3}
    for file, path in zip(files, paths, strict=True):
        rows = parts.setdefault(PART_OF[path[0].lower()] if has_parts else "train", {"image": [], "label": []})
        rows["image"].append(str(file))
        rows["label"].append(path[-2])
        if has_environments:
            rows.setdefault(ENVIRONMENT, []).append(path[-3])
    if "train" not in parts:
        raise DataNotFoundError(f"{folder} holds no folder called train. Give it one with images.")
    named = {role: role for role in ("image", "label", ENVIRONMENT) if role in roles and role in parts["train"]}
    return {part: parts[part] for part in PART_NAMES if part in parts}, named
