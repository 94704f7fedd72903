"""What four versions of PEFT wrote is read with their own logits. The files were made by ``make_peft_files.py``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import asymlora as al
from asymlora.adapter_reading import read_adapter
from asymlora.errors import AdapterFileError
from make_peft_files import CONFIGS, FILES, NAME, VERSIONS, base_of, case_of

READS = {f"{version}-{name}": (version, name) for version in VERSIONS for name in CONFIGS}
CONFIG, OWN = "adapter_config.json", "asymlora.json"


def _logits(folder: Path, name: str) -> Tensor:
    model = al.load_adapter(base_of(name), folder, name=NAME if name == "named" else None)
    return case_of(name).logits(model)


def _edited(version: str, name: str, target: Path, **values: Any) -> Path:
    shutil.copytree(FILES / version / name, target)
    file = target / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return target


@pytest.mark.parametrize("read", READS)
def test_what_pefts_versions_wrote_gives_their_logits(read: str) -> None:
    version, name = READS[read]
    stored = load_file(FILES / version / "logits.safetensors")
    # The base is the same under every version of transformers, or the comparison would be of the bases.
    assert (case_of(name).logits(base_of(name)) - stored[f"{name}-base"]).abs().max() <= 1e-5
    assert (stored[name] - stored[f"{name}-base"]).abs().max() >= 0.1
    assert (_logits(FILES / version / name, name) - stored[name]).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("plain", {"lora_alpha": 6}),
        ("rslora", {"use_rslora": False}),
        ("patterns", {"alpha_pattern": {"block.q": 2, "v": 9, "q": 12}}),
        ("conv1d", {"alpha_pattern": {}}),
    ],
)
def test_a_wrong_number_in_the_same_files_is_seen(name: str, values: dict[str, Any], tmp_path: Path) -> None:
    folder = _edited("0.21.2", name, tmp_path / "adapter", **values)
    assert (_logits(folder, name) - load_file(FILES / "0.21.2" / "logits.safetensors")[name]).abs().max() > 1e-2


def test_a_pattern_of_before_0_14_means_what_it_meant_then(tmp_path: Path) -> None:
    # The first key of either pattern answers for both: `block.q` has rank 4 and alpha 12 by "q", not 9.
    old = read_adapter(FILES / "0.13.2" / "patterns").spec
    new = read_adapter(FILES / "0.17.1" / "patterns").spec
    assert [(s.at("q").rank, s.at("q").alpha) for s in (old, new)] == [(4, 12.0), (4, 12.0)]
    assert [(s.at("block.q").rank, s.at("block.q").alpha) for s in (old, new)] == [(4, 12.0), (4, 9.0)]
    claimed = _edited("0.13.2", "patterns", tmp_path / "adapter", peft_version="0.21.2")
    wanted = load_file(FILES / "0.13.2" / "logits.safetensors")["patterns"]
    assert (_logits(claimed, "patterns") - wanted).abs().max() > 1e-2


def test_a_choice_of_targets_is_no_matter_beside_the_tensors(tmp_path: Path) -> None:
    wanted = load_file(FILES / "0.21.2" / "logits.safetensors")["plain"]
    for number, values in enumerate(
        (
            {"target_modules": "(a+)+$"},
            {"exclude_modules": ["block"], "layers_to_transform": [0], "layers_pattern": "layers"},
            {"rank_pattern": {"(a+)+$": 7}},
            {"alpha_pattern": {"(a+)+$": 5}},
            {"alpha_pattern": {"q": 5, "v": 5, "(a+)+$": 7}},
        )
    ):
        folder = _edited("0.21.2", "plain", tmp_path / str(number), **values)
        assert (_logits(folder, "plain") - wanted).abs().max() <= 1e-5


def test_the_check_sees_shapes_and_no_values() -> None:
    seen: list[bool] = []

    def refuse(file: Any) -> None:
        seen.extend(t.is_meta for pair in file.factors.values() for t in pair)
        raise AdapterFileError("not here")

    with pytest.raises(AdapterFileError, match="not here"):
        read_adapter(FILES / "0.21.2" / "plain", check=refuse)
    assert seen == [True] * 6


def test_a_folder_without_a_spec_trains_both_factors_and_keeps_pefts_numbers() -> None:
    file = read_adapter(FILES / "0.21.2" / "modules-to-save")
    assert (file.spec.rank, file.spec.alpha, file.spec.dropout) == (2, 5.0, 0.25)
    assert file.modules_to_save == ("head",)
    assert set(file.modules) == {"head.weight", "head.bias"}
    assert file.spec.trains == {"A": True, "B": True}
    assert file.kinds == {"block.v": "linear"}


def test_kinds_follow_from_keys_and_shapes() -> None:
    file = read_adapter(FILES / "0.21.2" / "patterns")
    assert {**file.kinds} == {
        "table": "embedding",
        "plane": "convolution",
        **dict.fromkeys(("block.q", "block.v", "q"), "linear"),
    }


@pytest.fixture
def own(tmp_path: Path) -> Path:
    model = al.attach(case_of("plain").build(), al.AdapterSpec.b_only(rank=2, targets=("q", "v")))
    return al.save_adapter(model, tmp_path / "own")


def _edit_own(folder: Path, **values: Any) -> None:
    (folder / OWN).write_text(json.dumps({**json.loads((folder / OWN).read_text()), **values}))


def test_format_1_still_loads(own: Path) -> None:
    content = json.loads((own / OWN).read_text())
    (own / OWN).write_text(json.dumps({key: content[key] for key in ("asymlora_version", "spec")} | {"format": 1}))
    file = read_adapter(own)
    assert file.spec == al.AdapterSpec.b_only(rank=2, targets=("q", "v"))
    assert {draw.site for draw in file.draws.values()} == {"q", "block.q", "block.v"}


def test_a_changed_tensor_is_named_with_what_to_do(own: Path) -> None:
    from safetensors.torch import save_file

    tensors = load_file(own / "adapter_model.safetensors")
    key = "base_model.model.q.lora_A.weight"
    tensors[key][0, 0] += 1
    save_file(tensors, own / "adapter_model.safetensors")
    with pytest.raises(
        AdapterFileError, match=r"base_model\.model\.q\.lora_A\.weight has other values.*delete asymlora"
    ):
        read_adapter(own)
    (own / OWN).unlink()
    assert torch.equal(read_adapter(own).factors["q"][0], tensors[key])


def test_another_rank_in_our_own_file_is_refused_with_both(own: Path) -> None:
    spec = json.loads((own / OWN).read_text())["spec"]
    _edit_own(own, spec={**spec, "rank": 3})
    with pytest.raises(AdapterFileError, match=r"asymlora\.json says rank 3 and scale 2, the tensors rank 2"):
        read_adapter(own)
