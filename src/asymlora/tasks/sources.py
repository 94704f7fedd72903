"""Where models and rows come from: registry packages, local files and folders, the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from asymlora.errors import DataNotFoundError, MissingColumnError, UnknownNameError, nearest
from asymlora.tasks.data_files import READERS, TEXT, label_order, read_file, read_parts
from asymlora.tasks.embedded_data import EMBEDDED_DATA, REVIEWS, film_reviews
from asymlora.tasks.embedded_models import EMBEDDED_MODELS, MINILM, label_of
from asymlora.tasks.hub import UNTOLD, find_hub_model, is_hub_id, read_hub
from asymlora.tasks.inputs import DataRecipe
from asymlora.tasks.packages import Package
from asymlora.tasks.tables import OPTIONAL_ROLES, Rows, Table, check_rows, is_hole, named_labels, numeric_labels

__all__ = [
    "EMBEDDED",
    "MINILM",
    "REVIEWS",
    "SELF_PRETRAINED",
    "Package",
    "Rows",
    "Table",
    "film_reviews",
    "find_model",
    "label_of",
    "load_table",
    "load_text",
    "numeric_labels",
    "read_file",
]

EMBEDDED = "embedded:"
SELF_PRETRAINED = "self-pretrained:denoiser"


def find_model(name: str, *, revision: str | None = UNTOLD) -> tuple[str, Path | None]:
    """Return what transformers loads for a model's name, and its folder if that is local.

    Args:
        name: ``embedded:...``, ``self-pretrained:denoiser``, a folder, or a hub id.
        revision: Branch, tag or commit on the hub, None for its default: without a network the folder of an earlier
            download of it is given, at once. Where it is not told, the hub's client finds that, after retries.

    Returns:
        The folder or id, and the folder or None.

    Raises:
        UnknownNameError: No package or script of ours gives a model of this name.
        DataNotFoundError: The name looks like a path and nothing is there, or the hub cannot be reached.
    """
    if name.startswith(EMBEDDED):
        key = _known(name, [EMBEDDED + key for key in EMBEDDED_MODELS], "embedded model")
        folder = EMBEDDED_MODELS[key.removeprefix(EMBEDDED)].folder()
        return str(folder), folder
    if name.startswith("self-pretrained:"):
        _known(name, [SELF_PRETRAINED], "self-pretrained model")
        from asymlora.tasks.denoiser import pretrained_folder

        folder = pretrained_folder()
        return str(folder), folder
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder), folder
    if not is_hub_id(name):
        known = ", ".join(EMBEDDED + key for key in EMBEDDED_MODELS)
        raise DataNotFoundError(
            f"There is no model folder at {name}. Give a folder that transformers saved, an id on the hub"
            f" (owner/name), or one of: {known}."
        )
    return find_hub_model(name, revision=revision)


def load_table(data: DataRecipe, *, roles: Sequence[str] = ("text", "label")) -> Table:
    """Read rows from wherever ``data.name`` points to.

    Args:
        data: Where the rows are and what their columns are called. Embedded data bring their own columns.
        roles: What the task reads: ``text``, ``text_pair``, ``label``, ``target``, ``image``, ``environment``. Those
            whose column the recipe leaves at None are skipped, except for an environment that files or folders name.

    Returns:
        The rows; every part has the columns, none is missing a value. Labels are names; images are bytes of a file,
        paths, or arrays of unsigned bytes, shape ``(height, width)`` or ``(height, width, 3)``.

    Raises:
        UnknownNameError: No package gives data of this name.
        DataNotFoundError: Nothing is there, or the hub cannot be reached.
        MissingColumnError: The embedded data have no such role.
        DataError: As `check_rows` says, or a file is not what its ending says.
    """
    name = data.name
    if name.startswith(EMBEDDED):
        return _embedded(name, roles)
    columns = {role: column for role in roles if (column := getattr(data, role)) is not None}
    path = Path(name).expanduser()
    if path.exists():
        parts, columns = read_parts(path, columns, by_domain="environment" in roles)
        order = label_order(path, columns["label"]) if "label" in columns else None
    elif is_hub_id(name) and path.suffix not in (*READERS, TEXT):
        parts, orders = read_hub(name, data.subset)
        parts, order = _published(parts, columns), orders.get(data.label)
    else:
        kinds = ", ".join(READERS)
        raise DataNotFoundError(f"There is no data at {name}. Give a file ({kinds}), a folder, or an id on the hub.")
    for part, rows in parts.items():
        check_rows(rows, columns, group=data.group, where=f"the {part} part of {name}")
        if "label" in columns:
            parts[part] = {**rows, columns["label"]: named_labels(rows[columns["label"]])}
    text, label = columns.get("text", data.text), columns.get("label", data.label)
    return Table(parts=parts, text=text, label=label, group=data.group, label_order=order, columns=columns)


def load_text(data: DataRecipe) -> dict[str, list[str]]:
    """Read plain text for language modelling.

    Args:
        data: Where the texts are: a ``.txt`` file, a folder with train.txt (validation.txt, test.txt) or with text
            files of any name, a table with a column of texts, embedded data, or a hub id.

    Returns:
        Documents by part, in the order of the source: contiguous pieces of the list are contiguous in the source. Those
        of a ``.txt`` file keep the blank lines that divide them, so that joined they are the file.
    """
    table = load_table(data, roles=("text",))
    return {part: [str(text) for text in table.column(part, "text")] for part in table.parts}


def _known(name: str, known: Sequence[str], what: str) -> str:
    if name not in known:
        raise UnknownNameError(f"No {what} is called {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")
    return name


def _embedded(name: str, roles: Sequence[str]) -> Table:
    key = _known(name, [EMBEDDED + key for key in EMBEDDED_DATA], "embedded data set").removeprefix(EMBEDDED)
    offered = EMBEDDED_DATA[key].columns
    lacking = [role for role in roles if role not in offered and role not in OPTIONAL_ROLES]
    if lacking:
        fitting = [EMBEDDED + other for other, row in EMBEDDED_DATA.items() if set(lacking) <= set(row.columns)]
        raise MissingColumnError(
            f"{name} has no {' and no '.join(lacking)}; it has: {', '.join(offered)}. Name other data with data.name"
            + (f", such as {', '.join(fitting)}." if fitting else ".")
        )
    return replace(EMBEDDED_DATA[key].read(), columns={role: offered[role] for role in roles if role in offered})


def _published(parts: dict[str, Rows], columns: dict[str, str]) -> dict[str, Rows]:
    # Test labels that are not published (GLUE's, for instance) make no part; one is held out instead.
    wanted = [columns[role] for role in ("label", "target") if role in columns]

    def hidden(rows: Rows) -> bool:
        return any(_is_unpublished(rows[c], parts.get("train", {}).get(c, [])) for c in wanted if c in rows)

    return {part: rows for part, rows in parts.items() if part == "train" or not hidden(rows)}


def _is_unpublished(values: list[Any], trained: list[Any]) -> bool:
    # Of numbers (STS-B's scores) -1 is the sign, unless it is a number like others.
    holes = [is_hole(value) for value in values]
    return all(holes) or (all(h or v == -1 for h, v in zip(holes, values, strict=True)) and -1 not in trained)
