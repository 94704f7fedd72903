"""PEFT, in a fresh process, gives the logits of our own model from the folder that we wrote."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

import asymlora as al
from cases import MODELS, PRESET_NAMES, fill_factors

CASES = [
    (case, preset, rank, scaling)
    for case, preset, (rank, scaling) in itertools.product(
        MODELS, PRESET_NAMES, ((2, "standard"), (3, "rank_stabilized"))
    )
]
WEIGHTS = "adapter_model.safetensors"


def _folder(name: str, preset: str, rank: int) -> str:
    return f"{name}-{preset}-{rank}"


class Written:
    """Logits by folder: of our own model, of PEFT's, and of our own with the factors switched off."""

    def __init__(self, ours: dict[str, Tensor], theirs: dict[str, Tensor], without: dict[str, Tensor]) -> None:
        self.ours, self.theirs, self.without = ours, theirs, without

    def gap(self, folder: str) -> float:
        return (self.theirs[folder] - self.ours[folder]).abs().max().item()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    root = tmp_path_factory.mktemp("adapters")
    ours: dict[str, Tensor] = {}
    without: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for case, preset, rank, scaling in CASES:
        folder = _folder(case.name, preset, rank)
        spec = al.AdapterSpec.parse(
            preset, rank=rank, scaling=scaling, targets=case.targets, modules_to_save=(case.head,), alpha=5.0
        )
        model = al.attach(case.build(), spec)
        fill_factors(model, seed=rank)
        al.save_adapter(model, root / folder)
        ours[folder], names[folder] = case.logits(model), case.name
        with al.disabled(model):
            without[folder] = case.logits(model)
    for wrong, change in (("wrong-scale", _double_alpha), ("swapped-A", _swap_A)):
        original = _folder("bert", "b_only", 2)
        change(root / original, root / wrong)
        ours[wrong], names[wrong] = ours[original], "bert"
    (root / "cases.json").write_text(json.dumps(names))
    reader = Path(__file__).with_name("peft_reader.py")
    environment = {**os.environ, "PYTHONPATH": str(reader.parent)}
    subprocess.run([sys.executable, str(reader), str(root)], check=True, env=environment, capture_output=True)
    return Written(ours, load_file(root / "logits.safetensors"), without)


def _copy(source: Path, target: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    target.mkdir()
    return json.loads((source / "adapter_config.json").read_text()), load_file(source / WEIGHTS)


def _double_alpha(source: Path, target: Path) -> None:
    config, tensors = _copy(source, target)
    config["lora_alpha"] = 2 * float(str(config["lora_alpha"]))
    (target / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, target / WEIGHTS)


def _swap_A(source: Path, target: Path) -> None:
    config, tensors = _copy(source, target)
    one, other = sorted(key for key in tensors if "lora_A" in key)[:2]
    tensors[one], tensors[other] = tensors[other], tensors[one]
    (target / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, target / WEIGHTS)


@pytest.mark.parametrize(
    ("name", "preset", "rank"),
    [(case.name, preset, rank) for case, preset, rank, _ in CASES],
    ids=[_folder(case.name, preset, rank) for case, preset, rank, _ in CASES],
)
def test_peft_gives_the_same_logits(written: Written, name: str, preset: str, rank: int) -> None:
    folder = _folder(name, preset, rank)
    moved = (written.ours[folder] - written.without[folder]).abs().max().item()
    assert moved >= 0.1, "the factors must move the logits, or the comparison shows nothing"
    assert written.gap(folder) <= 1e-5


@pytest.mark.parametrize("wrong", ["wrong-scale", "swapped-A"])
def test_the_comparison_sees_a_wrong_adapter(written: Written, wrong: str) -> None:
    assert written.gap(wrong) > 1e-2
