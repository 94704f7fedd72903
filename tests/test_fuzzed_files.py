"""Adapter folders with random damage load as they were or are refused in words: no other error, no other values."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import asymlora as al
from asymlora.errors import AdapterFileError
from cases import ADAPTER_FILES, MODELS, move_trained, small_net, small_net_inputs

BERT = MODELS[0]
CONFIG, WEIGHTS, OWN, FACTORS = ADAPTER_FILES
Q = "base_model.model.bert.encoder.layer.0.attention.self.query"


class _Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def logits(self) -> Tensor:
        with torch.no_grad():
            return self.eval().net(**small_net_inputs()).logits


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """Folders of both forms and one as PEFT writes them, of one adapter, and its logits."""
    root = tmp_path_factory.mktemp("valid")
    spec = al.AdapterSpec.b_only(
        rank=2, targets=("q", "v", "plane", "table"), modules_to_save=("head",), shared_A=(("q", "v"),)
    )
    model = move_trained(al.attach(_Tiny(), spec))
    al.save_adapter(model, root / "ours")
    al.save_adapter(model, root / "seed", compress=True)
    shutil.copytree(root / "ours", root / "peft")
    (root / "peft" / OWN).unlink()
    return root, model.logits()


FILES = [
    ("ours", CONFIG),
    ("ours", WEIGHTS),
    ("ours", OWN),
    ("seed", OWN),
    ("seed", FACTORS),
    ("peft", CONFIG),
    ("peft", WEIGHTS),
]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["q", "seed", "B"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
MANY = settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def _load_or_refuse(root: Path, form: str, name: str, content: bytes, wanted: Tensor, folder: Path) -> None:
    """The folder with one file replaced loads as it was, or is refused; where nothing guards the values, loads."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / form, folder)
    (folder / name).write_bytes(content)
    shutil.rmtree(folder.with_name("converted"), ignore_errors=True)
    with contextlib.suppress(AdapterFileError):
        al.convert_adapter(folder, folder.with_name("converted"))
    try:
        model = al.load_adapter(_Tiny(), folder)
    except AdapterFileError:
        return
    logits = model.logits()
    assert torch.isfinite(logits).all()
    if form != "peft":
        assert torch.equal(logits, wanted)


@MANY
@given(data=st.data(), which=st.sampled_from(FILES))
def test_flipped_and_lost_bytes_load_the_same_or_are_refused(
    data: st.DataObject, which: tuple[str, str], valid: tuple[Path, Tensor], tmp_path: Path
) -> None:
    root, wanted = valid
    content = bytearray((root / which[0] / which[1]).read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    end = data.draw(st.sampled_from([None, None, *range(9), len(content) // 2, len(content) - 1]))
    _load_or_refuse(root, *which, bytes(content[:end]), wanted, tmp_path / "folder")


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in inner for place in [(*path, key), *_places(value, (*path, key))]]


def _replaced(tree: Any, place: tuple[Any, ...], value: Any, *, drop: bool) -> None:
    for key in place[:-1]:
        tree = tree[key]
    if drop:
        del tree[place[-1]]
    else:
        tree[place[-1]] = value


@MANY
@given(data=st.data(), which=st.sampled_from(FILES))
def test_any_value_in_the_place_of_another_loads_the_same_or_is_refused(
    data: st.DataObject, which: tuple[str, str], valid: tuple[Path, Tensor], tmp_path: Path
) -> None:
    root, wanted = valid
    content = (root / which[0] / which[1]).read_bytes()
    binary = which[1].endswith(".safetensors")
    end = 8 + int.from_bytes(content[:8], "little") if binary else len(content)
    tree = json.loads(content[8 if binary else 0 : end])
    place = data.draw(st.sampled_from(_places(tree)))
    _replaced(tree, place, data.draw(JUNK), drop=data.draw(st.sampled_from([False, False, False, True])))
    text = json.dumps(tree).encode()
    changed = struct.pack("<Q", len(text)) + text + content[end:] if binary else text
    _load_or_refuse(root, *which, changed, wanted, tmp_path / "folder")
