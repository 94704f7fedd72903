"""Both forms of a folder hold the same adapter: there and back, byte for byte, without a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import asymlora as al
from asymlora.cli import main
from asymlora.converting import convert_adapter
from asymlora.errors import AdapterFileError
from cases import ADAPTER_FILES, EVERY_KIND, KIND_MODELS, MODELS, ModelCase, move_trained
from make_peft_files import FILES

BERT = MODELS[0]
CONFIG, WEIGHTS, OWN, FACTORS = ADAPTER_FILES
OPTIONS: dict[str, dict[str, Any]] = {
    "b_only": {},
    "a_only": {"preset": "a_only", "scaling": "rank_stabilized"},
    "patterns": {"rank_pattern": {"LAST": 4}, "alpha_pattern": {"LAST": 3.0}},
    "mixed": {"factor_pattern": {"LAST": "a_only"}},
    "sized": {
        "A": al.FactorSpec(init="gaussian", trainable=False, gain=0.5),
        "B": al.FactorSpec(init="zeros"),
    },
}


def _model(case: ModelCase, **fields: Any) -> nn.Module:
    fields = {
        key: {case.targets[-1]: next(iter(value.values()))} if isinstance(value, dict) else value
        for key, value in fields.items()
    }
    given = {"rank": 2, "targets": case.targets, "modules_to_save": (case.head,), **fields}
    spec = al.AdapterSpec(**given) if "A" in given else al.AdapterSpec.parse(given.pop("preset", "b_only"), **given)
    return move_trained(al.attach(case.build(), spec))


def _contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("case", EVERY_KIND, ids=lambda case: case.name)
def test_there_and_back_is_the_same_bytes_from_either_side(case: ModelCase, option: str, tmp_path: Path) -> None:
    model = _model(case, **OPTIONS[option])
    peft = al.save_adapter(model, tmp_path / "peft", base_model="someone/base", task_type="SEQ_CLS")
    seed = al.save_adapter(model, tmp_path / "seed", base_model="someone/base", task_type="SEQ_CLS", compress=True)
    drawn = convert_adapter(peft, tmp_path / "peft-seed")
    convert_adapter(seed, tmp_path / "seed-peft")
    convert_adapter(tmp_path / "peft-seed", tmp_path / "peft-seed-peft", to="peft")
    assert _contents(seed) == _contents(tmp_path / "peft-seed")
    assert _contents(peft) == _contents(tmp_path / "seed-peft") == _contents(tmp_path / "peft-seed-peft")
    assert len(drawn) == len(list(al.sites(model)))
    assert not set(drawn) & set(load_file(seed / FACTORS))


def test_a_corrected_start_is_drawn_and_not_stored(tmp_path: Path) -> None:
    starts = {"A": al.FactorSpec(init="kaiming_uniform"), "B": al.FactorSpec(init="gaussian")}
    model = _model(BERT, **starts, nonzero_start="correct_base")
    peft = al.save_adapter(model, tmp_path / "peft")
    drawn = convert_adapter(peft, tmp_path / "seed")
    convert_adapter(tmp_path / "seed", tmp_path / "back")
    assert _contents(peft) == _contents(tmp_path / "back")
    assert {key.rpartition(".")[2] for key in drawn} == {"start_A", "start_B"}
    assert {tuple(t.shape) for k, t in load_file(tmp_path / "seed" / FACTORS).items() if "lora" in k} == {
        (2, 16),
        (16, 2),
    }


def test_sites_that_share_A_have_one_address(tmp_path: Path) -> None:
    model = _model(BERT, targets=("query", "key"), shared_A=(("query", "key"),))
    folder = al.save_adapter(model, tmp_path / "seed", compress=True)
    draws = json.loads((folder / OWN).read_text())["draws"]
    assert {draw["site"] for draw in draws.values()} == {
        f"bert.encoder.layer.{n}.attention.self.query+key" for n in range(2)
    }
    assert not any("lora_A" in key for key in load_file(folder / FACTORS))


def test_a_card_that_was_edited_is_carried_over(tmp_path: Path) -> None:
    folder = al.save_adapter(_model(BERT), tmp_path / "peft")
    (folder / "README.md").write_text("mine\n")
    convert_adapter(folder, tmp_path / "seed")
    convert_adapter(tmp_path / "seed", tmp_path / "back")
    assert (tmp_path / "back" / "README.md").read_text() == "mine\n"


@pytest.mark.parametrize("other", ["torch.set_num_threads(2)", "torch.set_default_dtype(torch.float64)"])
def test_the_values_are_the_same_in_another_process(other: str, tmp_path: Path) -> None:
    model = _model(BERT)
    folder = al.save_adapter(model, tmp_path / "seed", compress=True)
    code = f"import sys, torch; {other}; from asymlora import convert_adapter; convert_adapter(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path / "out")], check=True)
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    for site in al.sites(model):
        assert torch.equal(tensors[f"base_model.model.{site.name}.lora_A.weight"], site.A)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"preset": "lora"}, "A starts as kaiming_uniform and is trained, B starts as zeros and is trained"),
        (
            {"A": al.FactorSpec(init="top_singular", trainable=False), "B": al.FactorSpec(init="zeros")},
            "A starts as top_singular and is frozen.*addressed are zeros",
        ),
    ],
)
def test_an_adapter_without_an_addressed_frozen_factor_says_so(
    fields: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = al.save_adapter(_model(BERT, **fields), tmp_path / "peft")
    with pytest.raises(AdapterFileError, match=f"cannot be compressed to seeds: .*{words}"):
        convert_adapter(folder, tmp_path / "seed")
    assert not (tmp_path / "seed").exists()


def test_values_that_are_not_those_of_their_address_say_so(tmp_path: Path) -> None:
    model = _model(BERT)
    with torch.no_grad():
        for site in al.sites(model):
            site.A.add_(1.0)
    with pytest.raises(AdapterFileError, match="other values than their addresses give"):
        convert_adapter(al.save_adapter(model, tmp_path / "peft"), tmp_path / "seed")


def test_a_folder_of_peft_says_why_it_has_no_seeds(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match=r"it has no asymlora\.json"):
        convert_adapter(FILES / "0.21.2" / "plain", tmp_path / "seed")


def test_a_folder_that_has_the_form_or_a_target_that_exists_is_refused(tmp_path: Path) -> None:
    folder = al.save_adapter(_model(BERT), tmp_path / "peft")
    with pytest.raises(AdapterFileError, match="has the form 'peft' already"):
        convert_adapter(folder, tmp_path / "other", to="peft")
    with pytest.raises(AdapterFileError, match="exists already"):
        convert_adapter(folder, folder)


def test_format_1_is_compressed_where_its_values_are_still_draws(tmp_path: Path) -> None:
    model = _model(KIND_MODELS[1])
    folder = al.save_adapter(model, tmp_path / "peft")
    content = json.loads((folder / OWN).read_text())
    (folder / OWN).write_text(json.dumps({"format": 1, "spec": content["spec"]}))
    assert len(convert_adapter(folder, tmp_path / "seed")) == len(list(al.sites(model)))
    back = al.load_adapter(KIND_MODELS[1].build(), tmp_path / "seed")
    assert torch.equal(KIND_MODELS[1].logits(back), KIND_MODELS[1].logits(model))


class TestCommand:
    def test_it_converts_both_ways_and_says_what_it_did(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = al.save_adapter(_model(BERT), tmp_path / "peft")
        assert main(["convert", str(folder), str(tmp_path / "seed")]) == 0
        assert main(["convert", str(tmp_path / "seed"), str(tmp_path / "back"), "--to", "peft"]) == 0
        assert _contents(folder) == _contents(tmp_path / "back")
        assert "4 factors stand in the seed-compressed folder" in capsys.readouterr().out

    def test_mistakes_are_answered_in_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["convert", str(tmp_path / "none"), str(tmp_path / "out")]) == 2
        assert "adapter_config.json: is not there" in capsys.readouterr().err
        assert main(["convert", str(tmp_path), str(tmp_path / "out"), "--to", "zip"]) == 2
        assert "--to" in capsys.readouterr().err
