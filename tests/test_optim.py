from __future__ import annotations

from typing import Any

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from torch import nn

import asymlora as al
from asymlora.errors import NotAttachedError, SpecError
from asymlora.optim import label_parameters
from cases import MODELS
from peft_models import BERT, WORDS, PeftCase, add_second


def _model(preset: str = "lora", **fields: object) -> nn.Module:
    case = MODELS[0]
    spec = al.AdapterSpec.parse(preset, **{"rank": 2, "targets": case.targets, **fields})  # pyright: ignore[reportArgumentType]
    return al.attach(case.build(), spec)


def _rates(model: nn.Module, **given: object) -> dict[str, tuple[float, float]]:
    groups = al.param_groups(model, **{"lr": 1e-3, **given})  # pyright: ignore[reportArgumentType]
    return {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}


def test_every_trained_parameter_is_in_exactly_one_group() -> None:
    model = _model(modules_to_save=("classifier", "LayerNorm"))
    grouped = [id(p) for group in al.param_groups(model, lr=1e-3) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("preset", "names"), [("lora", ["A", "B"]), ("b_only", ["B"]), ("a_only", ["A"])])
def test_there_is_no_empty_group_and_none_for_a_frozen_factor(preset: str, names: list[str]) -> None:
    groups = al.param_groups(_model(preset), lr=1e-3)
    assert [group["name"] for group in groups] == names
    assert all(group["params"] for group in groups)


def test_heads_and_norms_have_groups_of_their_own() -> None:
    model = _model(modules_to_save=("classifier", "LayerNorm"))
    labelled = label_parameters(model)
    assert [p.shape for p in labelled["head"]] == [model.classifier.weight.shape]
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert {id(p) for p in labelled["norm"]} == {
        id(p) for p in (model.classifier.bias, *(p for norm in norms for p in norm.parameters()))
    }


def test_a_parameter_that_is_not_known_to_be_a_factor_is_never_called_one() -> None:
    model = _model("b_only")
    model.bert.pooler.dense.weight.requires_grad_(True)
    labelled = label_parameters(model)
    assert [id(p) for p in labelled["other"]] == [id(model.bert.pooler.dense.weight)]


def test_ratio_comes_from_the_spec_and_an_absolute_rate_wins() -> None:
    spec = al.AdapterSpec(
        A=al.FactorSpec(init="gaussian"), B=al.FactorSpec(init="zeros", lr_ratio=16.0), rank=2, targets="query"
    )
    model = al.attach(MODELS[0].build(), spec)
    assert _rates(model) == {"A": (1e-3, 0.0), "B": (16e-3, 0.0)}
    assert _rates(model, lr_B=5e-3, lr_A=1e-4) == {"A": (1e-4, 0.0), "B": (5e-3, 0.0)}


def test_head_and_norm_take_the_head_rate() -> None:
    model = _model("b_only", modules_to_save=("classifier",))
    assert _rates(model, lr_head=2e-4) == {"B": (1e-3, 0.0), "head": (2e-4, 0.0), "norm": (2e-4, 0.0)}


def test_weight_decay_is_explicit_in_every_group_and_zero_for_vectors() -> None:
    model = _model(modules_to_save=("classifier",))
    assert _rates(model, weight_decay=0.1) == {
        "A": (1e-3, 0.1),
        "B": (1e-3, 0.1),
        "head": (1e-3, 0.1),
        "norm": (1e-3, 0.0),
    }
    # torch's AdamW would put its own 0.01 where a group says nothing.
    optimizer = torch.optim.AdamW(al.param_groups(model, lr=1e-3))
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}


def test_weight_decay_by_label() -> None:
    assert _rates(_model(), weight_decay={"B": 0.2}) == {"A": (1e-3, 0.0), "B": (1e-3, 0.2)}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lr": 0.0}, "rate of A is 0.0; it must be above 0"),
        ({"lr": float("nan")}, "must be above 0"),
        ({"lr": float("inf")}, "must be above 0"),
        ({"weight_decay": float("nan")}, "at least 0"),
        ({"lr_head": 0.1}, r"lr_head=0\.1 is given, but nothing is trained in full"),
        ({"weight_decay": -0.1}, "at least 0"),
        ({"weight_decay": {"C": 0.1}}, "A, B, head, norm, other"),
    ],
)
def test_wrong_numbers_are_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        _rates(_model(), **given)


def test_a_rate_for_a_frozen_factor_is_refused() -> None:
    with pytest.raises(SpecError, match=r"lr_A=0\.1 is given, but A is frozen"):
        _rates(_model("b_only"), lr_A=0.1)


def test_a_model_without_an_adapter_is_refused() -> None:
    with pytest.raises(NotAttachedError, match="attach"):
        al.param_groups(nn.Linear(2, 2), lr=0.1)


def test_groups_are_found_through_a_wrapper() -> None:
    model = _model("b_only")
    assert _rates(nn.Sequential(model)) == _rates(model)


def _peft(case: PeftCase = BERT, **given: Any) -> Any:
    return case.peft(**given)


def test_groups_of_a_peft_model_hold_every_trained_parameter_once() -> None:
    model = _peft(modules_to_save=["classifier"], lora_bias=True)
    groups = al.param_groups(model, lr=1e-3)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert [group["name"] for group in groups] == ["A", "B", "head", "norm"]
    assert all(group["params"] for group in groups)


def test_a_peft_head_is_split_by_shape_and_the_original_is_in_no_group() -> None:
    model = _peft(modules_to_save=["classifier"])
    head = model.get_base_model().classifier.modules_to_save["default"]
    labelled = label_parameters(model)
    assert [id(p) for p in labelled["head"]] == [id(head.weight)]
    assert [id(p) for p in labelled["norm"]] == [id(head.bias)]
    assert _rates(model, lr_B=5e-3, lr_head=2e-4, weight_decay=0.1) == {
        "A": (1e-3, 0.1),
        "B": (5e-3, 0.1),
        "head": (2e-4, 0.1),
        "norm": (2e-4, 0.0),
    }


def test_lora_plus_of_peft_ignores_the_decay_and_splits_the_head() -> None:
    # The control: if PEFT mends this, our docstring is to be changed.
    model = _peft(modules_to_save=["classifier"])
    head = model.get_base_model().classifier.modules_to_save["default"]
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16, weight_decay=0.1)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert rates[id(head.weight)] == (1e-4, 0.0)
    assert rates[id(head.bias)] == (1.6e-3, 0.0)
    assert any(not group["params"] for group in optimizer.param_groups)
    ours = al.param_groups(model, lr=1e-4, lr_B=1.6e-3, weight_decay=0.1)
    mine = {id(p): (g["lr"], g["weight_decay"]) for g in ours for p in g["params"]}
    assert mine[id(head.weight)] == (1e-4, 0.1)
    assert mine[id(head.bias)] == (1e-4, 0.0)


@pytest.mark.parametrize("kind", ["own", "peft"])
def test_factors_of_embeddings_have_groups_of_their_own(kind: str) -> None:
    spec = al.AdapterSpec.lora(rank=2, targets=WORDS.targets)
    model = _peft(WORDS) if kind == "peft" else al.attach(WORDS.build(), spec)
    assert _rates(model, lr_B=2e-3, weight_decay=0.1) == {
        "A": (1e-3, 0.1),
        "B": (2e-3, 0.1),
        "embedding_A": (1e-3, 0.1),
        "embedding_B": (2e-3, 0.1),
    }
    rates = _rates(model, lr_B=2e-3, lr_embedding=1e-6)
    assert {name: rate for name, (rate, _) in rates.items()} == {
        "A": 1e-3,
        "B": 2e-3,
        "embedding_A": 1e-6,
        "embedding_B": 1e-6,
    }
    words = next(site for site in al.sites(model) if site.name == "words")
    assert [id(p) for p in label_parameters(model)["embedding_A"]] == [id(words.A)]


def test_a_rate_for_embeddings_needs_a_trained_one() -> None:
    with pytest.raises(SpecError, match=r"lr_embedding=0\.1 is given, but no factor of an embedding is trained"):
        _rates(_peft(), lr_embedding=0.1)


def test_a_frozen_factor_of_a_peft_model_has_no_group_and_no_rate() -> None:
    model = al.freeze(_peft(WORDS), "A")
    assert set(_rates(model)) == {"B", "embedding_B"}
    with pytest.raises(SpecError, match=r"lr_A=0\.1 is given, but A is frozen"):
        _rates(model, lr_A=0.1)


def test_other_trained_parameters_and_inactive_adapters_of_a_peft_model() -> None:
    model = _peft(WORDS)
    add_second(WORDS, model)
    model.base_model.model.head.weight.requires_grad_(True)
    labelled = label_parameters(model)
    assert [id(p) for p in labelled["other"]] == [id(model.base_model.model.head.weight)]
    assert len(labelled["A"]) == len(labelled["embedding_B"]) == 1
    model.set_adapter("second")
    assert [id(p) for p in label_parameters(model)["A"]] == [id(model.base_model.model.dense.lora_A["second"].weight)]


def test_variants_have_groups_and_their_magnitudes_no_decay() -> None:
    model = _peft(use_dora=True)
    assert _rates(model, weight_decay=0.1) == {"A": (1e-3, 0.1), "B": (1e-3, 0.1), "norm": (1e-3, 0.0)}
    assert len(label_parameters(model)["norm"]) == 4


def test_groups_of_layers_in_a_plain_model() -> None:
    model = BERT.build()
    model.add_adapter(BERT.config())  # pyright: ignore[reportCallIssue]
    assert set(_rates(model)) == {"A", "B"}
    assert _rates(nn.Sequential(model)) == _rates(model)
