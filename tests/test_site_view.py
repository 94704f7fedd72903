from __future__ import annotations

import pytest
import torch
from torch import nn

import asymlora as al
from asymlora.errors import AttachError, NotAttachedError
from asymlora.site_view import attached, find_attached, refuse_folded, saved_modules
from cases import MODELS
from peft_models import GPT2, IMAGES, WORDS, PeftCase

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


@pytest.mark.parametrize("case", [GPT2, WORDS, IMAGES], ids=lambda case: case.name)
def test_sites_of_every_kind_have_the_weight_of_their_base(case: PeftCase) -> None:
    model = al.attach(case.build(), al.AdapterSpec.lora(rank=2, targets=case.targets))
    kinds = {"gpt2": ["linear"] * 4, "words": ["embedding", "linear"], "images": ["convolution", "convolution"]}
    assert [site.kind for site in al.sites(model)] == kinds[case.name]
    for site in al.sites(model):
        assert site.weight is site.layer.base_layer.weight
        (rank, n), (m, _) = site.layer.matrix_shapes(site.layer.base_layer, 2)
        assert (site.A.flatten(1).shape, site.B.flatten(1).shape) == ((rank, n), (m, rank))


def test_a_base_without_a_weight_is_a_site_all_the_same() -> None:
    class Bare(nn.Module):
        in_features = out_features = 4

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = al.attach(nn.Sequential(Bare(), nn.Linear(4, 4)), al.AdapterSpec.b_only(rank=2))
    assert [site.weight is None for site in al.sites(model)] == [True, False]
    assert torch.equal(model(torch.ones(1, 4)), model[1].base_layer(torch.ones(1, 4)))  # pyright: ignore[reportCallIssue]


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


def test_what_cannot_be_done_while_folded_says_what_to_leave_first() -> None:
    model = _model()
    refuse_folded(model, "go on")
    with (
        al.merged(model),
        pytest.raises(AttachError, match=r"BertFor\w+ is folded.*merged\(model\):` first, then go on"),
    ):
        refuse_folded(model, "go on")
    refuse_folded(model, "go on")


def test_a_model_without_an_adapter_says_what_to_call() -> None:
    assert find_attached(BERT.build()) is None
    with pytest.raises(NotAttachedError, match=r"attach.*load_adapter"):
        list(al.sites(BERT.build()))
