"""Adapter folders that are damaged or hostile: refused in words, before anything is allocated, and never otherwise.

What can be wrong with the form of a file is in ``test_untrusted_files.py``, random damage in ``test_fuzzed_files.py``.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import asymlora as al
from asymlora.adapter_reading import read_adapter
from asymlora.errors import AdapterFileError
from asymlora.untrusted_files import TensorFile
from cases import ADAPTER_FILES, MODELS, edit_json, edit_tensors

BERT = MODELS[0]
CONFIG, WEIGHTS, OWN, FACTORS = ADAPTER_FILES
Q = "base_model.model.bert.encoder.layer.0.attention.self.query"


@pytest.fixture
def compressed(saved: Path, tmp_path: Path) -> Path:
    al.convert_adapter(saved, tmp_path / "seed")
    return tmp_path / "seed"


# --- tensors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(next(k for k in t if "lora_B" in k)), "only lora_A is there"),
        (
            lambda t: t.update({k: t[k][:1] for k in list(t) if "lora_A" in k}),
            r"A is \(1, 16\) and B \(16, 2\), which do not fit",
        ),
        (lambda t: t[next(k for k in t if "lora_A" in k)].fill_(float("nan")), "holds NaN or infinity"),
        (lambda t: t.update({"bert.pooler.dense.weight": torch.ones(1)}), "does not start with"),
        (
            lambda t: t.update(
                {"base_model.model.bert.encoder.layer.0.attention.self.query.base_layer.weight": torch.ones(1)}
            ),
            "is a weight of the base model",
        ),
        (lambda t: [t.pop(k) for k in list(t) if "lora" in k], "no tensor is a LoRA factor"),
        (lambda t: t.update({k: t[k].long() for k in list(t) if "lora_A" in k}), "is I64, not a float"),
    ],
)
def test_damaged_tensors_are_refused_by_name(saved: Path, change: Callable[..., Any], words: str) -> None:
    edit_tensors(saved, change)
    with pytest.raises(AdapterFileError, match=words):
        read_adapter(saved)


def test_all_problems_of_a_file_are_listed_together(saved: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors.pop(next(k for k in tensors if "lora_B" in k))
        tensors["stray"] = torch.ones(1)

    edit_tensors(saved, change)
    with pytest.raises(AdapterFileError, match=r"(?s)stray.*only lora_A|only lora_A.*stray"):
        read_adapter(saved)


def test_own_file_of_another_format_is_refused(saved: Path) -> None:
    (saved / OWN).write_text(json.dumps({"format": 99}))
    with pytest.raises(AdapterFileError, match=r"format 99; this version reads 1 and 2.*complete without it"):
        read_adapter(saved)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"peft_type": "IA3"}, "only 'LORA'"),
        ({"init_lora_weights": "pissa"}, "changes the base weights"),
        ({"use_dora": True}, "use_dora=True"),
        ({"rank_pattern": {"query": 4}}, r"has rank 2 \(the configuration says 4\)"),
        (
            {"lora_alpha": 9.0},
            r"asymlora\.json says rank 2 and scale 2, the tensors rank 2 and adapter_config\.json scale 4\.5",
        ),
    ],
)
def test_a_config_that_cannot_be_honoured_is_refused_by_key(saved: Path, values: dict[str, Any], words: str) -> None:
    edit_json(saved / CONFIG, **values)
    with pytest.raises(AdapterFileError, match=words):
        read_adapter(saved)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(AdapterFileError, match=f"{re.escape(name)}: is not there"):
        read_adapter(saved)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, OWN])
def test_a_torn_file_is_refused(saved: Path, name: str) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(AdapterFileError, match="cannot be read"):
        read_adapter(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({f"{Q}.lora_A.weight": torch.ones(3, 16), f"{Q}.lora_B.weight": torch.ones(16, 2)}, "do not fit each other"),
        (
            {f"{Q}.lora_A.weight": torch.ones(20, 16), f"{Q}.lora_B.weight": torch.ones(16, 20)},
            "may be at most 16 here",
        ),
        ({f"{Q}.lora_A.weight": torch.ones(2)}, "no factors of one layer"),
        ({f"{Q}.lora_A.weight": torch.ones(2, 0)}, "no factors of one layer"),
        ({f"{Q}.lora_embedding_A": torch.ones(2, 16)}, "factors of an embedding and of another layer"),
        ({f"{Q}.lora_B.bias": torch.ones(16)}, "is not a factor"),
        ({f"{Q}.lora_magnitude_vector": torch.ones(16)}, "is of DoRA"),
        ({"base_model.model.bert.encoder.layer.0.output.LayerNorm.weight": torch.ones(16)}, "would overwrite the base"),
        ({f"{Q}.weight": torch.ones(16, 16)}, "would overwrite the base"),
        ({f"{Q}.lora_A.weight": torch.full((2, 16), float("inf"))}, "holds NaN or infinity"),
        ({f"{Q}.lora_A.weight": torch.ones(2, 16).double()}, "is F64, not a float of 16 or 32 bits"),
        ({f"{Q}.lora_A.weight": torch.ones(2, 16, dtype=torch.int8)}, "is I8, not a float of 16 or 32 bits"),
    ],
)
def test_tensors_that_are_no_adapter_of_this_model_are_refused(
    saved: Path, change: dict[str, Tensor], words: str
) -> None:
    edit_tensors(saved, lambda tensors: tensors.update(change))
    (saved / OWN).unlink()
    with pytest.raises(AdapterFileError, match=words):
        al.load_adapter(BERT.build(), saved)


def test_what_does_not_fit_the_model_is_refused_before_a_value_is_read(
    saved: Path, compressed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(self: TensorFile) -> dict[str, Tensor]:
        raise AssertionError("values were read")

    monkeypatch.setattr(TensorFile, "load", read)
    monkeypatch.setattr("asymlora.own_file.draw", read)
    llama = next(case for case in MODELS if case.name == "llama")
    for folder in (saved, compressed):
        with pytest.raises(AdapterFileError):
            al.load_adapter(llama.build(), folder)


# --- files ---------------------------------------------------------------------------------------------------------


class _Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch pickle-was-run",)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "pytorch_model.bin"])
def test_a_pickle_is_never_opened(saved: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved)
    (saved / WEIGHTS).unlink()
    (saved / name).write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(
        AdapterFileError, match=rf"{re.escape(name)} is a pickle, which may run code.*safe_serialization"
    ):
        read_adapter(saved)
    (saved / name).rename(saved / WEIGHTS)  # under the right name it is no header
    with pytest.raises(AdapterFileError, match="Only safetensors files are read"):
        read_adapter(saved)
    assert not (saved / "pickle-was-run").exists()


@pytest.mark.parametrize("name", ["../adapter", "/etc", "a/b", ".", "..", "", "lora_A", "__base__", "a" * 65, "a.b"])
def test_a_name_that_could_be_a_path_is_refused(saved: Path, name: str) -> None:
    with pytest.raises(AdapterFileError, match="is no name of an adapter"):
        al.load_adapter(BERT.build(), saved.parent, name=name)


@pytest.mark.parametrize("name", ["query", "bert", "classifier"])
def test_a_name_of_a_module_is_refused(saved: Path, name: str) -> None:
    saved.rename(saved.with_name(name))
    with pytest.raises(AdapterFileError, match="is the name of a module"):
        al.load_adapter(BERT.build(), saved.parent, name=name)


def test_a_named_folder_that_is_a_link_elsewhere_is_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "other").symlink_to(saved)
    with pytest.raises(AdapterFileError, match="is a link that leaves"):
        al.load_adapter(BERT.build(), tmp_path / "some", name="other")


# --- JSON ----------------------------------------------------------------------------------------------------------


def test_expressions_of_a_file_are_never_run(saved: Path) -> None:
    trap = "(" + "a+" * 20 + ")+$"
    (saved / OWN).unlink()
    edit_json(saved / CONFIG, target_modules=trap, exclude_modules=trap, rank_pattern={trap: 3})
    begun = time.perf_counter()
    al.load_adapter(BERT.build(), saved)
    edit_json(saved / CONFIG, alpha_pattern={trap: 3})
    with pytest.raises(AdapterFileError, match="a regular expression, which is not run"):
        al.load_adapter(BERT.build(), saved)
    assert time.perf_counter() - begun < 10


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"extra": 1}, "'extra' is unknown"),
        ({"form": "zip"}, "'form' is 'zip'; allowed are 'peft', 'seed'"),
        ({"form": "seed"}, "its form is 'seed', and peft_config is missing"),
        ({"digests": None}, "'digests' is None"),
        ({"digests": {}}, "has no digest in asymlora.json"),
        ({"spec": {}}, "asymlora.json says rank 8"),
        ({"spec": {"rnak": 2}}, "Did you mean 'rank'"),
        ({"draws": {f"{Q}.lora_A.weight": {}}}, "is missing and has no default"),
        ({"draws_version": "x"}, "a whole number is needed"),
    ],
)
def test_our_own_file_is_read_strictly(saved: Path, values: dict[str, Any], words: str) -> None:
    edit_json(saved / OWN, **values)
    with pytest.raises(AdapterFileError, match=words):
        read_adapter(saved)


# --- seeds ---------------------------------------------------------------------------------------------------------


def _edit_draw(folder: Path, **values: Any) -> None:
    content = json.loads((folder / OWN).read_text())
    content["draws"][f"{Q}.lora_A.weight"] |= values
    (folder / OWN).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"shape": [2, 2**40]}, "which no factor has"),
        ({"shape": [2**14, 16]}, "which no factor has"),
        ({"shape": [2]}, "which no factor has"),
        ({"shape": [2, -16]}, "which no factor has"),
        ({"shape": [2, 17]}, r"query\.lora_A is \(2, 17\), the model needs \(2, 16\)"),
        ({"seed": 1}, "the spec's seed is 0"),
        ({"init": "gaussian"}, "is drawn as gaussian, the spec says orthonormal"),
        ({"init": "top_singular"}, "is drawn as top_singular"),
        ({"factor": "B"}, "the spec says"),
        ({"site": "elsewhere"}, r"query\.lora_A\.weight has other values.*asymlora convert SRC DST --to peft"),
        ({"dtype": "float16"}, r"query\.lora_A\.weight has other values"),
        ({"dtype": "float64"}, "allowed are 'float32'"),
    ],
)
def test_an_address_that_is_not_the_factors_is_refused(compressed: Path, values: dict[str, Any], words: str) -> None:
    _edit_draw(compressed, **values)
    with pytest.raises(AdapterFileError, match=words):
        al.load_adapter(BERT.build(), compressed)


def test_draws_that_together_are_absurd_are_refused_before_the_first(
    compressed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asymlora.own_file._MOST_DRAWN", 100)
    with pytest.raises(AdapterFileError, match="its draws have more than 100 values"):
        read_adapter(compressed)


def test_draws_of_another_version_name_the_export(compressed: Path) -> None:
    edit_json(compressed / OWN, draws_version=99)
    with pytest.raises(AdapterFileError, match=r"draws of version 99; this asymlora makes version 1.*--to peft"):
        read_adapter(compressed)


def test_an_address_of_what_is_no_factor_is_refused(compressed: Path) -> None:
    content = json.loads((compressed / OWN).read_text())
    content["draws"]["base_model.model.classifier.weight"] = content["draws"][f"{Q}.lora_A.weight"]
    (compressed / OWN).write_text(json.dumps(content))
    with pytest.raises(AdapterFileError, match=r"its draw of .*classifier\.weight is of no factor"):
        read_adapter(compressed)


def test_two_forms_in_one_folder_are_refused(saved: Path, compressed: Path) -> None:
    shutil.copy(saved / CONFIG, compressed / CONFIG)
    with pytest.raises(AdapterFileError, match="is of another adapter; remove it"):
        read_adapter(compressed)
