"""Whether an adapter fits a model: sites, kinds, shapes, heads, and the base that it was trained over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import asymlora as al
from asymlora.adapter_reading import read_adapter
from asymlora.errors import AdapterFileError, AttachError, NonZeroStartError, NoTargetError
from asymlora.fitting import fill
from cases import KIND_MODELS, MODELS, edit_json, edit_tensors, fill_factors, move_trained

BERT = MODELS[0]
CONFIG, OWN = "adapter_config.json", "asymlora.json"


def _attached(**fields: Any) -> nn.Module:
    model = al.attach(BERT.build(), al.AdapterSpec(**{"rank": 2, "targets": BERT.targets, **fields}))
    fill_factors(model)
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return al.save_adapter(_attached(modules_to_save=(BERT.head,)), tmp_path / "adapter")


def test_a_tensor_that_would_overwrite_the_base_is_refused_and_nothing_is_changed(saved: Path) -> None:
    edit_tensors(saved, lambda t: t.update({"base_model.model.bert.pooler.dense.bias": torch.ones(16)}))
    model = BERT.build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(AdapterFileError, match=r"bert\.pooler\.dense\.bias would overwrite the base"):
        al.load_adapter(model, saved)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_file_cannot_reach_the_base_by_a_short_ending(saved: Path) -> None:
    edit_tensors(saved, lambda t: t.update({"base_model.model.bert.pooler.dense.bias": torch.ones(16)}))
    edit_json(saved / CONFIG, modules_to_save=["classifier", "r"])  # PEFT's rule: "pooler" ends in "r"
    with pytest.raises(AdapterFileError, match="would overwrite the base"):
        al.load_adapter(BERT.build(), saved)


def test_an_adapter_of_another_model_lists_what_does_not_fit_and_leaves_the_model_whole(saved: Path) -> None:
    other = next(case for case in MODELS if case.name == "llama").build()
    names = set(other.state_dict())
    with pytest.raises((AdapterFileError, NoTargetError), match=r"has no place|would overwrite"):
        al.load_adapter(other, saved)
    assert set(other.state_dict()) == names


def test_a_wider_model_is_refused_with_both_shapes(saved: Path) -> None:
    from transformers import BertForSequenceClassification

    config = BERT.build().config
    config.hidden_size = 32
    with pytest.raises(AdapterFileError, match=r"query\.lora_A is \(2, 16\), the model needs \(2, 32\)"):
        al.load_adapter(BertForSequenceClassification(config), saved)


def test_a_corrected_model_is_filled_only_from_the_same_start(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "A": al.FactorSpec(init="kaiming_uniform"),
        "B": al.FactorSpec(init="gaussian"),
        "nonzero_start": "correct_base",
        "targets": BERT.targets,
        "rank": 2,
    }
    model = move_trained(al.attach(BERT.build(), al.AdapterSpec(**fields)))
    file = read_adapter(al.save_adapter(model, tmp_path / "same"))
    again = al.attach(BERT.build(), al.AdapterSpec(**fields))
    fill(again, file)
    assert torch.equal(BERT.logits(again), BERT.logits(model))
    other = al.attach(BERT.build(), al.AdapterSpec(**fields, seed=1))
    with pytest.raises(AdapterFileError, match="was corrected for another start"):
        fill(other, file)


def test_a_site_of_another_kind_is_refused_before_its_values_are_read(saved: Path) -> None:
    def move(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if "layer.0.attention.self.query" in key]:
            tensors[key.replace("encoder.layer.0.attention.self.query", "embeddings.word_embeddings")] = tensors.pop(
                key
            )

    edit_tensors(saved, move)
    (saved / OWN).unlink()
    with pytest.raises(AdapterFileError, match="has no place in the model as linear: it is a Embedding"):
        al.load_adapter(BERT.build(), saved)


def test_heads_that_peft_names_and_the_model_lacks_are_no_error(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    peft.get_peft_model(BERT.build(), config).save_pretrained(str(tmp_path / "theirs"))  # pyright: ignore[reportArgumentType]
    assert json.loads((tmp_path / "theirs" / CONFIG).read_text())["modules_to_save"] == ["classifier", "score"]
    model = al.load_adapter(BERT.build(), tmp_path / "theirs")
    assert [n for n, p in model.named_parameters() if p.requires_grad and "lora" not in n] == [
        "classifier.weight",
        "classifier.bias",
    ]


def test_a_head_of_other_tensors_is_refused_by_name(saved: Path) -> None:
    def narrow(tensors: dict[str, Tensor]) -> None:
        tensors["base_model.model.classifier.weight"] = torch.ones(2, 16)
        del tensors["base_model.model.classifier.bias"]

    edit_tensors(saved, narrow)
    with pytest.raises(AdapterFileError, match=r"classifier\.bias is missing.*classifier\.weight is \(2, 16\)"):
        al.load_adapter(BERT.build(), saved)


def test_a_layer_in_several_places_is_refused(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self, *, shared: bool) -> None:
            super().__init__()
            self.one = nn.Linear(6, 6)
            self.two = self.one if shared else nn.Linear(6, 6)

    folder = al.save_adapter(al.attach(Twice(shared=False), al.AdapterSpec.b_only(rank=2)), tmp_path / "adapter")
    with pytest.raises(AdapterFileError, match="one is a layer that stands in several places"):
        al.load_adapter(Twice(shared=True), folder)


def test_groups_that_do_not_divide_the_rank_are_refused(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self, groups: int) -> None:
            super().__init__()
            self.plane = nn.Conv2d(9, 9, 3, groups=groups)

    folder = al.save_adapter(al.attach(Net(1), al.AdapterSpec.b_only(rank=4, targets="plane")), tmp_path / "adapter")
    with pytest.raises(AdapterFileError, match=r"plane has 3 groups, which must divide the rank.*plane\.lora_B is"):
        al.load_adapter(Net(3), folder)


def test_a_base_that_cannot_be_corrected_is_refused(tmp_path: Path) -> None:
    starts = {"A": al.FactorSpec(init="kaiming_uniform"), "B": al.FactorSpec(init="gaussian")}
    folder = al.save_adapter(_attached(**starts, nonzero_start="correct_base"), tmp_path / "adapter")
    model = BERT.build().bfloat16()
    with pytest.raises(NonZeroStartError, match="cannot be subtracted from its weight"):
        al.load_adapter(model, folder)
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_a_tied_head_is_refused(tmp_path: Path) -> None:
    gpt2 = KIND_MODELS[0]
    model = al.attach(gpt2.build(), al.AdapterSpec.b_only(rank=2, targets="c_attn"))
    folder = al.save_adapter(model, tmp_path / "adapter")
    edit_tensors(folder, lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(64, 16)}))
    edit_json(folder / CONFIG, modules_to_save=["lm_head"])
    (folder / OWN).unlink()
    with pytest.raises(AttachError, match="stand in several places"):
        al.load_adapter(gpt2.build(), folder)


def test_swapping_checks_everything_before_it_changes_anything(saved: Path, tmp_path: Path) -> None:
    model = _attached(modules_to_save=(BERT.head,))
    before = BERT.logits(model)
    other = al.save_adapter(_attached(targets=("query",), modules_to_save=(BERT.head,)), tmp_path / "other")
    with pytest.raises(AdapterFileError, match=r"value\.lora_A is missing"):
        al.swap_adapter(model, other)
    assert torch.equal(BERT.logits(model), before)
    al.swap_adapter(model, saved)
