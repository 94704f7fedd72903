from __future__ import annotations

import pytest
import torch
from torch import nn

import asymlora as al
from asymlora.errors import NotAttachedError
from asymlora.site_view import attached, find_attached, saved_modules
from cases import MODELS

BERT = MODELS[0]


def _model() -> nn.Module:
    spec = al.AdapterSpec.b_only(rank=2, alpha=3.0, targets=BERT.targets, modules_to_save=("classifier",))
    return al.attach(BERT.build(), spec)


def test_sites_are_the_adapted_layers_in_the_models_order() -> None:
    model = _model()
    expected = [f"bert.encoder.layer.{i}.attention.self.{n}" for i in range(2) for n in ("query", "value")]
    assert [site.name for site in al.sites(model)] == expected
    for site in al.sites(model):
        layer = model.get_submodule(site.name)
        assert site.layer is layer
        assert site.A is layer.lora_A
        assert site.B is layer.lora_B
        assert site.weight is layer.base_layer.weight


def test_the_scale_is_read_when_it_is_asked_for() -> None:
    model = _model()
    site = next(iter(al.sites(model)))
    assert site.scaling == 1.5
    site.layer.scaling = 7.0
    assert next(iter(al.sites(model))).scaling == 7.0


def test_wrappers_are_looked_through_and_names_stay_those_of_the_attached_model() -> None:
    model = _model()
    wrapped = nn.ModuleDict({"module": nn.Sequential(model)})
    assert attached(wrapped)[0] is model
    assert [s.name for s in al.sites(wrapped)] == [s.name for s in al.sites(model)]
    compiled = torch.compile(model)
    assert attached(compiled)[0] is model  # pyright: ignore[reportArgumentType]


def test_modules_trained_in_full_are_found_by_path() -> None:
    model = _model()
    assert saved_modules(model) == {"classifier": model.classifier}


def test_a_model_without_an_adapter_says_what_to_call() -> None:
    assert find_attached(BERT.build()) is None
    with pytest.raises(NotAttachedError, match=r"attach.*load_adapter"):
        list(al.sites(BERT.build()))
