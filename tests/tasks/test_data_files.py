from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

from asymlora.errors import DataError, DataNotFoundError, EmptyDataError, MissingColumnError
from asymlora.tasks.data_files import read_file, read_text
from asymlora.tasks.inputs import DataRecipe
from asymlora.tasks.sources import Table, load_table

SHARED = Path(__file__).parents[3] / "shared" / "data"
IMAGE = ("image", "label", "environment")
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared research data are not beside this checkout")


def _images(name: Path | str, **fields: Any) -> Table:
    return load_table(DataRecipe(name=str(name), **fields), roles=IMAGE)


def _read(table: Table) -> dict[str, list[tuple[Any, ...]]]:
    return {part: list(zip(*(table.column(part, role) for role in table.columns), strict=True)) for part in table.parts}


def _domain(path: Path, rows: list[tuple[Any, ...]], columns: tuple[str, ...] = ("image", "label", "split")) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows, columns=list(columns)).to_parquet(path)


# --- one file a domain ---------------------------------------------------------------------------------------------


def _stored(content: bytes) -> dict[str, Any]:
    return {"bytes": content, "path": "inside.jpg"}


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    """A folder with two domains, images stored as `datasets` stores them, and a description beside them."""
    _domain(tmp_path / "photo.parquet", [(_stored(b"1"), "dog", "train"), (_stored(b"2"), "cat", "test")])
    _domain(tmp_path / "sketch.parquet", [(_stored(b"3"), "cat", "validation"), (_stored(b"4"), "dog", "train")])
    (tmp_path / "dataset.json").write_text("{}")
    return tmp_path


def test_each_file_is_a_domain_and_its_split_column_names_the_part(domains: Path) -> None:
    assert _read(_images(domains)) == {
        "train": [(b"1", "dog", "photo"), (b"4", "dog", "sketch")],
        "validation": [(b"3", "cat", "sketch")],
        "test": [(b"2", "cat", "photo")],
    }


def test_environment_column_takes_the_recipes_name(domains: Path) -> None:
    table = _images(domains, environment="style")
    assert table.columns["environment"] == "style"
    assert table.column("train", "environment") == ["photo", "sketch"]


def test_environment_column_of_the_files_themselves_is_kept(tmp_path: Path) -> None:
    for name, style in (("one", "oil"), ("two", "ink")):
        _domain(tmp_path / f"{name}.parquet", [(b"i", "dog", style)], ("image", "label", "style"))
    assert _images(tmp_path, environment="style").column("train", "environment") == ["oil", "ink"]


def test_domains_are_not_mixed_for_a_task_without_environments(domains: Path) -> None:
    with pytest.raises(DataNotFoundError, match="holds no train file"):
        load_table(DataRecipe(name=str(domains)), roles=("text", "label"))


def test_domain_that_lacks_a_column_is_refused(domains: Path) -> None:
    _domain(domains / "cartoon.parquet", [(_stored(b"5"), "dog", "train")], ("image", "class", "split"))
    with pytest.raises(MissingColumnError, match=r"No column is called 'label'"):
        _images(domains)


def test_domain_without_a_row_is_named(domains: Path) -> None:
    _domain(domains / "empty.parquet", [])
    with pytest.raises(EmptyDataError, match=r"empty\.parquet has no row"):
        _images(domains)


def test_domain_in_two_files_is_refused(domains: Path) -> None:
    (domains / "photo.csv").write_text("image,label\na.png,dog\n")
    with pytest.raises(DataError, match=r"several files for one domain \(photo\)"):
        _images(domains)


@pytest.mark.parametrize("names", [("train-0-of-2", "test-0-of-2"), ("train_data", "test_data")])
def test_pieces_of_parts_are_not_taken_for_domains(names: tuple[str, str], tmp_path: Path) -> None:
    for name in names:
        _domain(tmp_path / f"{name}.parquet", [(_stored(b"1"), "dog", "a")])
    with pytest.raises(DataError, match=rf"holds {names[0]}\.parquet, whose name begins like that of a part"):
        _images(tmp_path)


def test_files_of_parts_may_be_in_capitals(tmp_path: Path) -> None:
    for name in ("Train", "TEST"):
        _domain(tmp_path / f"{name}.parquet", [(_stored(name.encode()), "dog")], ("image", "label"))
    assert _images(tmp_path).column("test", "image") == [b"TEST"]


def test_a_domain_may_be_called_trains(tmp_path: Path) -> None:
    for name in ("trains", "ships"):
        _domain(tmp_path / f"{name}.parquet", [(_stored(b"1"), "dog")], ("image", "label"))
    assert _images(tmp_path).column("train", "environment") == ["ships", "trains"]


def test_split_column_of_a_lone_file_is_followed(domains: Path) -> None:
    table = _images(domains / "photo.parquet")
    assert _read(table) == {"train": [(b"1", "dog")], "test": [(b"2", "cat")]}


@needs_shared
def test_pacs_has_its_four_domains_in_three_parts() -> None:
    table = _images(SHARED / "vision" / "pacs112")
    counts = {
        part: {
            name: table.column(part, "environment").count(name)
            for name in ("art_painting", "cartoon", "photo", "sketch")
        }
        for part in table.parts
    }
    # As the set's own description counts them.
    assert counts == {
        "train": {"art_painting": 1434, "cartoon": 1641, "photo": 1167, "sketch": 2750},
        "validation": {"art_painting": 204, "cartoon": 234, "photo": 170, "sketch": 393},
        "test": {"art_painting": 410, "cartoon": 469, "photo": 333, "sketch": 786},
    }
    assert all(image[:2] == b"\xff\xd8" for image in table.column("test", "image"))  # how a JPEG begins
    assert set(table.column("train", "label")) == {"dog", "elephant", "giraffe", "guitar", "horse", "house", "person"}


# --- images --------------------------------------------------------------------------------------------------------


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image")


def test_folder_of_labels_gives_paths_and_labels(tmp_path: Path) -> None:
    _touch(tmp_path, "cat/1.png", "cat/2.JPG", "dog/1.jpeg", "notes.md")
    table = _images(tmp_path)
    rows = [
        (str(tmp_path / "cat/1.png"), "cat"),
        (str(tmp_path / "cat/2.JPG"), "cat"),
        (str(tmp_path / "dog/1.jpeg"), "dog"),
    ]
    assert _read(table) == {"train": rows}


def test_folder_of_environments_gives_them_too(tmp_path: Path) -> None:
    _touch(tmp_path, "photo/cat/1.png", "sketch/dog/1.png")
    assert _read(_images(tmp_path)) == {
        "train": [
            (str(tmp_path / "photo/cat/1.png"), "cat", "photo"),
            (str(tmp_path / "sketch/dog/1.png"), "dog", "sketch"),
        ]
    }


@pytest.mark.parametrize("validation", ["validation", "valid", "val", "dev"])
def test_folder_of_parts_gives_them(validation: str, tmp_path: Path) -> None:
    _touch(tmp_path, "train/cat/1.png", f"{validation}/dog/1.png", "test/cat/2.png")
    table = _images(tmp_path)
    assert {part: table.column(part, "label") for part in table.parts} == {
        "train": ["cat"],
        "validation": ["dog"],
        "test": ["cat"],
    }


@pytest.mark.parametrize("names", [("cat/1.png", "photo/dog/1.png"), ("1.png",), ("a/b/c/d.png",)])
def test_other_layout_is_refused_with_those_allowed(names: tuple[str, ...], tmp_path: Path) -> None:
    _touch(tmp_path, *names)
    with pytest.raises(
        DataError, match=r"do not stand in one layout .* Allowed: LABEL/image\.png or ENVIRONMENT/LABEL"
    ):
        _images(tmp_path)


def test_folder_that_is_called_as_a_part_among_others_is_an_environment(tmp_path: Path) -> None:
    _touch(tmp_path, "test/cat/1.png", "other/cat/1.png")
    assert _images(tmp_path).column("train", "environment") == ["other", "test"]


@pytest.mark.parametrize("names", [("Train", "TEST"), ("train", "test")])
def test_folders_of_parts_may_be_in_capitals(names: tuple[str, str], tmp_path: Path) -> None:
    _touch(tmp_path, *(f"{name}/cat/1.png" for name in names))
    assert set(_images(tmp_path).parts) == {"train", "test"}


def test_parts_beside_other_folders_are_no_environments(tmp_path: Path) -> None:
    _touch(tmp_path, "train/cat/1.png", "test/cat/1.png", "extra/cat/1.png")
    with pytest.raises(DataError, match=r"holds the parts test, train, and beside them other images \(extra\)"):
        _images(tmp_path)


def test_paths_in_a_table_are_meant_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(f"image,label\nimages/1.png,cat\n{tmp_path}/2.png,dog\n")
    assert _images(tmp_path / "rows.csv").column("train", "image") == [
        str(tmp_path / "images/1.png"),
        str(tmp_path / "2.png"),
    ]


def test_row_without_an_image_is_a_hole(tmp_path: Path) -> None:
    _domain(
        tmp_path / "rows.parquet", [(_stored(b"1"), "dog"), ({"bytes": None, "path": None}, "cat")], ("image", "label")
    )
    with pytest.raises(DataError, match=r"1 of 2 rows of .* have no 'image'; the first is row 2"):
        _images(tmp_path / "rows.parquet")


# --- single files --------------------------------------------------------------------------------------------------


def test_label_names_in_a_parquet_file_are_used(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    made = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    made.to_parquet(str(tmp_path / "rows.parquet"))
    assert read_file(tmp_path / "rows.parquet")["label"] == ["yes", "no", None]


def test_text_file_of_blanks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n\n")
    with pytest.raises(EmptyDataError, match=r"blank\.txt holds no text"):
        read_text(tmp_path / "blank.txt")


def test_text_file_that_is_not_utf8_is_refused_at_its_byte(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(DataError, match=r"old\.txt is not UTF-8 text \(unexpected end of data at byte 3\)"):
        read_text(tmp_path / "old.txt")


@pytest.mark.parametrize("content", ["a", "\n\na\n", "a\n\n\nb\n\n", "a\r\n\r\nb", "a\n\n b\nc\n"])
def test_joined_documents_are_the_file_and_none_is_blank(content: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(content.encode())
    documents = read_text(tmp_path / "text.txt")
    assert "".join(documents) == (tmp_path / "text.txt").read_text()
    assert len(documents) == sum(letter in content for letter in "ab")
    assert all(document.strip() for document in documents)


@needs_shared
def test_shakespeare_is_all_there_in_order() -> None:
    path = SHARED / "lm" / "tinyshakespeare.txt"
    documents = read_text(path)
    assert "".join(documents) == path.read_text(encoding="utf-8")
    assert len(documents) > 5000  # speeches
