from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest

from asymlora.errors import DataError, DataNotFoundError, MissingColumnError
from asymlora.tasks.conversations import read_conversations, turns_of
from asymlora.tasks.inputs import DataRecipe

USER, ANSWER = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}


def _file(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(folder / name)


def _talks(data: DataRecipe, part: str = "train") -> list[Any]:
    return [turns_of(written) for written in read_conversations(data).column(part, "target")]


def test_prompt_and_answer_are_one_turn_each(tmp_path: Path) -> None:
    name = _file(tmp_path, [{"ask": "Hi?", "say": "Hello."}, {"ask": "2+2?", "say": 4}])
    data = DataRecipe(name=name, text="ask", target="say")
    assert _talks(data) == [
        [USER, ANSWER],
        [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
    ]
    assert read_conversations(data).column("train", "text") == ["Hi?", "2+2?"]


def test_messages_keep_all_their_turns_and_what_is_asked_is_before_the_first_answer(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Be kind."}, USER, ANSWER, USER, ANSWER]
    data = DataRecipe(name=_file(tmp_path, [{"messages": talk}]))
    assert _talks(data) == [talk]
    assert read_conversations(data).column("train", "text") == ["Be kind.\nHi?"]


def test_prompt_and_answer_go_before_messages(tmp_path: Path) -> None:
    name = _file(tmp_path, [{"text": "a", "target": "b", "messages": [USER, ANSWER]}])
    assert _talks(DataRecipe(name=name))[0][0]["content"] == "a"


def test_messages_are_read_from_parquet_and_csv_too(tmp_path: Path) -> None:
    pandas.DataFrame({"messages": [[USER, ANSWER]]}).to_parquet(tmp_path / "rows.parquet")
    pandas.DataFrame({"messages": [json.dumps([USER, ANSWER])]}).to_csv(tmp_path / "rows.csv", index=False)
    for name in ("rows.parquet", "rows.csv"):
        assert _talks(DataRecipe(name=str(tmp_path / name))) == [[USER, ANSWER]]


def test_parts_and_groups_of_the_source_stay(tmp_path: Path) -> None:
    _file(tmp_path, [{"messages": [USER, ANSWER], "author": "a"}], "train.jsonl")
    _file(tmp_path, [{"messages": [USER, ANSWER, USER, ANSWER], "author": "b"}], "test.jsonl")
    table = read_conversations(DataRecipe(name=str(tmp_path), group="author"))
    assert set(table.parts) == {"train", "test"}
    assert (table.group, table.parts["test"]["author"]) == ("author", ["b"])
    with pytest.raises(MissingColumnError, match="No column is called 'writer'"):
        read_conversations(DataRecipe(name=str(tmp_path), group="writer"))


def test_embedded_classification_set_is_refused_with_what_to_give() -> None:
    with pytest.raises(DataError, match=r"embedded:reviews holds no answers.*Give a file with prompt and target"):
        read_conversations(DataRecipe())


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "Row 2 of the train part of .* holds no list of turns"),
        ("Hi?", "holds no list of turns"),
        (None, "holds no list of turns"),
        ({"role": "user"}, "holds no list of turns"),
        ([USER], "has no answer of the assistant"),
        ([ANSWER], "has no answer of the assistant to a turn of the user"),
        (["Hi?", "Hello."], "a turn that is none: Hi"),
        ([{"from": "human", "value": "Hi?"}, ANSWER], "one of system, user, assistant"),
        ([USER, {"role": "assistant", "content": " "}], "a text that is not empty"),
        ([USER, {"role": "assistant", "content": ["parts"]}], "a turn that is none"),
    ],
)
def test_row_that_is_no_conversation_is_named(value: Any, said: str, tmp_path: Path) -> None:
    name = _file(tmp_path, [{"messages": [USER, ANSWER]}, {"messages": value}])
    with pytest.raises(DataError, match=said):
        read_conversations(DataRecipe(name=name))


def test_missing_columns_holes_and_missing_files_are_told(tmp_path: Path) -> None:
    name = _file(tmp_path, [{"prompt": "a", "target": "b"}, {"prompt": "c", "target": None}])
    with pytest.raises(MissingColumnError, match=r"Name yours with data.text and data.target"):
        read_conversations(DataRecipe(name=name))
    with pytest.raises(DataError, match=r"1 of 2 rows .* have no 'target'; the first is row 2"):
        read_conversations(DataRecipe(name=name, text="prompt"))
    with pytest.raises(DataNotFoundError, match="There is no data at"):
        read_conversations(DataRecipe(name=str(tmp_path / "nothing.jsonl")))
