"""Files that are damaged or hostile in their form: refused before anything is allocated."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from asymlora import untrusted_files
from asymlora.adapter_reading import read_adapter
from asymlora.errors import AdapterFileError
from cases import ADAPTER_FILES, MODELS, edit_tensors

BERT = MODELS[0]
CONFIG, WEIGHTS, OWN, FACTORS = ADAPTER_FILES
Q = "base_model.model.bert.encoder.layer.0.attention.self.query"


def _raw(path: Path, header: dict[str, Any] | bytes, values: bytes = b"", *, length: int | None = None) -> None:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content) if length is None else length) + content + values)


def _entry(begin: int, end: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "values", "words"),
    [
        ({"a": _entry(0, 8), "b": _entry(4, 12)}, 12, "b overlaps what stands before it"),
        ({"a": _entry(0, 8), "b": _entry(0, 8)}, 8, "b overlaps what stands before it"),
        ({"a": _entry(0, 8), "b": _entry(12, 20)}, 20, "b leaves a gap before it"),
        ({"a": _entry(0, 8)}, 7, "the file is torn"),
        ({"a": _entry(0, 8)}, 9, "the file is torn"),
        ({"a": _entry(0, 4)}, 4, "of 8 bytes, and has the bytes 0 to 4"),
        ({"a": _entry(8, 0)}, 8, "of 8 bytes, and has the bytes 8 to 0"),
        ({"a": _entry(-8, 0)}, 8, "no lists of whole numbers"),
        ({"a": _entry(0, 8, (2**40, 2**40))}, 8, "and has the bytes 0 to 8"),
        ({"a": _entry(0, 8, (1,) * 40)}, 8, "no lists of whole numbers"),
        ({"a": {**_entry(0, 8), "shape": [2.0]}}, 8, "no lists of whole numbers"),
        ({"a": {**_entry(0, 8), "shape": [True, 2]}}, 8, "no lists of whole numbers"),
        ({"a": _entry(0, 8, dtype="F99")}, 8, "has the unknown type 'F99'"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "is not described by dtype, shape and data_offsets"),
        ({"a": 3}, 8, "is not described by"),
        ({"a." * 600: _entry(0, 8)}, 8, "has a name of more than 1000 letters"),
        ({"__metadata__": {"format": 3}, "a": _entry(0, 8)}, 8, "metadata are not texts"),
        (b'{"a": 1, "a": 2}', 8, "names the key 'a' twice"),
        (b'{"a": NaN}', 8, "holds the number NaN"),
        (b"[]", 8, "an object is needed"),
        (b'{"a": 1', 8, "cannot be read"),
        (b"\xff\xfe", 8, "cannot be read"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, 8, "nested more than 16 deep"),
    ],
)
def test_a_header_that_does_not_describe_its_file_is_refused(
    saved: Path, header: dict[str, Any] | bytes, values: int, words: str
) -> None:
    _raw(saved / WEIGHTS, header, bytes(values))
    with pytest.raises(AdapterFileError, match=words):
        read_adapter(saved)


@pytest.mark.parametrize("length", [2**63, 2**40, 2**26, 1000])
def test_a_header_longer_than_its_file_is_refused_without_reading_it(saved: Path, length: int) -> None:
    _raw(saved / WEIGHTS, b"{}", length=length)
    with pytest.raises(AdapterFileError, match="its header should have"):
        read_adapter(saved)


def test_too_many_tensors_are_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted_files, "MAX_TENSORS", 3)
    with pytest.raises(AdapterFileError, match="names 10 tensors; at most 3 are read"):
        read_adapter(saved)


def test_a_file_that_is_absurdly_large_is_refused_by_its_size(saved: Path) -> None:
    os.truncate(saved / WEIGHTS, 2**37)  # sparse: takes no room
    with pytest.raises(AdapterFileError, match=r"has 137,438,953,472 bytes, more than"):
        read_adapter(saved)
    os.truncate(saved / CONFIG, 2**27)
    with pytest.raises(AdapterFileError, match=r"adapter_config\.json has 134,217,728 bytes, more than"):
        read_adapter(saved)


def test_a_file_that_changes_while_it_is_read_is_refused(saved: Path) -> None:
    def change(_: object) -> None:
        edit_tensors(saved, lambda tensors: tensors.pop("base_model.model.classifier.bias"))

    with pytest.raises(AdapterFileError, match="was changed while it was read"):
        read_adapter(saved, check=change)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, OWN])
def test_a_link_out_of_the_folder_is_refused(saved: Path, tmp_path: Path, name: str) -> None:
    (saved / name).rename(tmp_path / "elsewhere")
    (saved / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AdapterFileError, match=rf"{re.escape(name)} is a symbolic link that leaves its folder"):
        read_adapter(saved)


def test_a_link_inside_the_folder_and_the_hubs_own_cache_are_read(saved: Path, tmp_path: Path) -> None:
    (saved / WEIGHTS).rename(saved / "weights-1")
    (saved / WEIGHTS).symlink_to("weights-1")
    read_adapter(saved)
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, name in enumerate((CONFIG, WEIGHTS, OWN)):
        shutil.copy(saved / name, blobs / str(number))
        (snapshot / name).symlink_to(Path("../../blobs") / str(number))
    read_adapter(snapshot)
    (snapshot / OWN).unlink()
    (snapshot / OWN).symlink_to(saved / OWN)
    with pytest.raises(AdapterFileError, match="leaves its folder"):
        read_adapter(snapshot)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_what_is_no_plain_file_is_refused_and_does_not_wait(saved: Path, name: str) -> None:
    (saved / name).unlink()
    os.mkfifo(saved / name)
    with pytest.raises(AdapterFileError, match="is no plain file"):
        read_adapter(saved)
    (saved / name).unlink()
    (saved / name).mkdir()
    with pytest.raises(AdapterFileError, match="is no plain file"):
        read_adapter(saved)


@pytest.mark.parametrize("name", [CONFIG, OWN])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"r": 2, "r": 2}', "names the key 'r' twice"),
        (b'{"a": {"b": 1, "b": 1}}', "names the key 'b' twice"),
        (b'{"lora_alpha": NaN}', "holds the number NaN"),
        (b'{"lora_alpha": -Infinity}', "holds the number -Infinity"),
        (b'{"lora_alpha": 1e999}', "holds the number 1e999, which is out of range"),
        (b'{"r": 99999999999999999999999}', "which is out of range"),
        (b'{"r": ' + b"9" * 10_000 + b"}", "which is out of range"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested more than 16 deep"),
        (b'{"a": ' + b"[" * 20 + b"]" * 20 + b"}", "nested more than 16 deep"),
        (b"[1]", "it holds a list; an object is needed"),
        (b"", "cannot be read"),
        (b'{"a": "\xff"}', "cannot be read"),
    ],
)
def test_json_is_read_strictly(saved: Path, name: str, content: bytes, words: str) -> None:
    (saved / name).write_bytes(content)
    with pytest.raises(AdapterFileError, match=rf"{re.escape(name)}.*{words}"):
        read_adapter(saved)
