"""Conversations read from rows: a prompt and an answer each, or a column of whole lists of turns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asymlora.errors import DataError
from asymlora.tasks import sources
from asymlora.tasks.chat_format import Message
from asymlora.tasks.data_files import TEXT, read_parts
from asymlora.tasks.hub import is_hub_id, read_hub
from asymlora.tasks.inputs import DataRecipe
from asymlora.tasks.tables import Rows, Table, check_rows

MESSAGES = "messages"
"""Column of whole conversations: in each row a list of turns, each with role and content."""
ROLES = ("system", "user", "assistant")


def read_conversations(data: DataRecipe) -> Table:
    """Read conversations: of ``data.text`` and ``data.target``, or of a column `MESSAGES` where these are not there.

    Args:
        data: Where the rows are.

    Returns:
        Rows with two roles: ``text`` is what is asked before the first answer, so that equal questions can be told;
        ``target`` is the whole conversation, a JSON list of turns.

    Raises:
        DataError: The name is that of an embedded set, none of which holds answers; or a row is no conversation.
    """
    if data.name.startswith(sources.EMBEDDED):
        raise DataError(
            f"{data.name} holds no answers to learn from. Give a file with prompt and target (CSV, JSON Lines or"
            f" Parquet; data.text and data.target name the columns), or with a column {MESSAGES!r}, as data.name."
        )
    columns = {"text": data.text, "target": data.target}
    parts: dict[str, Rows] = {}
    for part, rows in _raw_parts(data, columns).items():
        where = f"the {part} part of {data.name}"
        if MESSAGES in rows and not set(columns.values()) <= set(rows):
            talks = [_conversation(value, f"Row {i + 1} of {where}") for i, value in enumerate(rows[MESSAGES])]
            parts[part] = {**rows, **_columns(talks, columns)}
            check_rows(parts[part], columns, group=data.group, where=where)
        else:
            check_rows(rows, columns, group=data.group, where=where)
            pairs = zip(rows[data.text], rows[data.target], strict=True)
            talks = [
                [{"role": "user", "content": str(asked)}, {"role": "assistant", "content": str(answer)}]
                for asked, answer in pairs
            ]
            parts[part] = {**rows, **_columns(talks, columns)}
    return Table(parts=parts, text=data.text, group=data.group, columns=columns)


def turns_of(written: str) -> list[Message]:
    """Return the turns of a conversation that `read_conversations` wrote."""
    return json.loads(written)


def _raw_parts(data: DataRecipe, columns: Mapping[str, str]) -> dict[str, Rows]:
    path = Path(data.name).expanduser()
    if path.exists():
        return read_parts(path, columns)[0]
    if is_hub_id(data.name) and path.suffix not in (*sources.READERS, TEXT):
        return read_hub(data.name, data.subset)[0]
    return sources.load_table(data, roles=tuple(columns)).parts  # which says that nothing is there


def _columns(talks: list[list[Message]], columns: Mapping[str, str]) -> Rows:
    asked: list[str] = []
    for turns in talks:
        first = next(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
        asked.append("\n".join(turn["content"] for turn in turns[:first]))
    return {columns["text"]: asked, columns["target"]: [json.dumps(turns, ensure_ascii=False) for turns in talks]}


def _conversation(value: Any, where: str) -> list[Message]:
    # Parquet gives arrays, CSV the list as text.
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise DataError(f"{where} holds no list of turns in {MESSAGES!r}: {value[:40]!r}.") from None
    turns = list(value) if hasattr(value, "__iter__") and not isinstance(value, str | dict) else []
    if not turns:
        raise DataError(
            f"{where} holds no list of turns in {MESSAGES!r}. Each row needs one, such as"
            ' [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].'
        )
    talk = [_turn(turn, where) for turn in turns]
    first = next((i for i, turn in enumerate(talk) if turn["role"] == "assistant"), None)
    if not first or not any(turn["role"] == "user" for turn in talk[:first]):
        raise DataError(f"{where} has no answer of the assistant to a turn of the user. Add one, or remove the row.")
    return talk


def _turn(turn: Any, where: str) -> Message:
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
    if role not in ROLES or not isinstance(content, str) or not content.strip():
        raise DataError(
            f"{where} holds a turn that is none: {str(turn)[:80]}. A turn has a role, one of {', '.join(ROLES)}, and a"
            " content, a text that is not empty."
        )
    return {"role": role, "content": content}
