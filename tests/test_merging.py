from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import asymlora as al
from asymlora.errors import AttachError, NotAttachedError
from cases import MODELS, PRESET_NAMES, ModelCase, fill_factors
from peft_models import CASES, GPT2, IDS, IMAGES, PeftCase

EVERY_MODEL = pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
EVERY_PRESET = pytest.mark.parametrize("preset", PRESET_NAMES)
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=IDS)


def _attach(case: ModelCase, preset: str) -> nn.Module:
    spec = al.AdapterSpec.parse(preset, rank=2, targets=case.targets, modules_to_save=(case.head,))
    return al.attach(case.build(), spec)


def _filled(case: PeftCase, **fields: Any) -> nn.Module:
    model = al.attach(case.build(), al.AdapterSpec.lora(**{"rank": 2, "targets": case.targets, **fields})).eval()
    fill_factors(model)
    return model


def _exact(model: nn.Module) -> dict[str, Tensor]:
    """``W0 + s B A`` of every site in float64, in the form of the base weight."""
    found: dict[str, Tensor] = {}
    for site in al.sites(model):
        A, B = (factor.detach().double().flatten(1) for factor in (site.A, site.B))
        update = site.layer.weight_from(site.layer.base_layer, site.scaling * B @ A)
        found[site.name] = site.weight.detach().double() + update
    return found


@EVERY_MODEL
@EVERY_PRESET
def test_merged_weights_are_within_one_unit_of_the_float64_sum(case: ModelCase, preset: str) -> None:
    model = _attach(case, preset)
    fill_factors(model)
    exact = {s.name: s.weight.double() + s.scaling * (s.B.double() @ s.A.double()) for s in al.sites(model)}
    al.merge(model)
    for name, wanted in exact.items():
        layer = model.get_submodule(name)
        assert type(layer) is nn.Linear
        gap = (layer.weight.double() - wanted).abs()
        assert (gap <= torch.finfo(torch.float32).eps * wanted.abs()).all()


@EVERY_MODEL
def test_merged_model_gives_the_adapted_models_logits(case: ModelCase) -> None:
    model = _attach(case, "lora")
    fill_factors(model)
    adapted = case.logits(model)
    merged = al.merge(model)
    assert (adapted - case.logits(case.build())).abs().max() > 0.1
    assert (case.logits(merged) - adapted).abs().max() < 1e-5
    with pytest.raises(NotAttachedError, match="carries no asymlora adapter"):
        al.merge(merged)


def test_merging_a_bfloat16_model_rounds_once() -> None:
    model = al.attach(nn.Sequential(nn.Linear(8, 8)).bfloat16(), al.AdapterSpec.lora(rank=2))
    fill_factors(model)
    site = next(iter(al.sites(model)))
    exact = site.weight.double() + site.scaling * (site.B.double() @ site.A.double())
    assert torch.equal(al.merge(model)[0].weight, exact.bfloat16())


def test_merging_into_a_weight_that_another_module_shares_is_refused() -> None:
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)})
    model["second"].weight = model["first"].weight
    al.attach(model, al.AdapterSpec.lora(rank=2, targets="first"))
    with pytest.raises(AttachError, match="share"):
        al.merge(model)


def test_a_merge_that_would_overflow_changes_nothing() -> None:
    model = al.attach(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).half(), al.AdapterSpec.lora(rank=2))
    before = [layer.base_layer.weight.clone() for layer in model]
    fill_factors(model)
    next(iter(al.sites(model))).B.data.fill_(1e6)
    with pytest.raises(AttachError, match=r"not finite at 0 \(torch\.float16\).*nothing was changed"):
        al.merge(model)
    assert all(torch.equal(layer.base_layer.weight, w) for layer, w in zip(model, before, strict=True))


@EVERY_CASE
def test_every_kind_merges_to_the_rounded_sum_and_to_the_adapted_output(case: PeftCase) -> None:
    model = _filled(case)
    exact, adapted = _exact(model), case.output(model)
    layers = {site.name: site.layer.base_layer for site in al.sites(model)}
    strides = {name: layer.weight.stride() for name, layer in layers.items()}  # pyright: ignore[reportCallIssue]
    assert al.merge(model) is model
    for name, layer in layers.items():
        assert model.get_submodule(name) is layer
        weight: Any = layer.weight
        # The float64 sums differ in the order of their terms, so a tie may fall the other way: one unit.
        torch.testing.assert_close(weight, exact[name].float(), rtol=2**-23, atol=0)
        assert weight.stride() == strides[name]
    # Float32 through a few layers of up to 24 terms each.
    torch.testing.assert_close(case.output(model), adapted, rtol=0, atol=1e-5 * max(1.0, adapted.abs().max().item()))
    assert (adapted - case.output(case.build().eval())).abs().max() > 0.01


@EVERY_CASE
def test_merged_for_a_while_runs_the_base_alone_and_restores_every_bit(case: PeftCase) -> None:
    model = _filled(case)
    tensors = {
        name: (value, value.data_ptr(), value.clone()) for name, value in model.state_dict(keep_vars=True).items()
    }
    adapted = case.output(model)

    def unchanged() -> bool:
        return all(v.data_ptr() == pointer and torch.equal(v, bits) for v, pointer, bits in tensors.values())

    with al.merged(model):
        torch.testing.assert_close(
            case.output(model), adapted, rtol=0, atol=1e-5 * max(1.0, adapted.abs().max().item())
        )
        assert not unchanged()
        assert not any(site.layer.enabled for site in al.sites(model))
    assert unchanged()
    assert torch.equal(case.output(model), adapted)
    with pytest.raises(KeyError, match="mine"), al.merged(model):
        raise KeyError("mine")
    assert unchanged()
    assert torch.equal(case.output(model), adapted)


def test_merged_for_a_while_keeps_a_layer_that_was_switched_off_so() -> None:
    model = _filled(CASES[0])
    first = next(iter(al.sites(model))).layer
    first.enabled = False
    with al.merged(model):
        pass
    assert [site.layer.enabled for site in al.sites(model)][:2] == [False, True]


def test_merged_is_refused_before_anything_moves_where_a_sum_would_not_be_finite() -> None:
    model = _filled(CASES[0])
    [site.layer for site in al.sites(model)][-1].lora_B.data.fill_(torch.nan)
    weights = [(site.weight, site.weight.clone()) for site in al.sites(model)]
    with pytest.raises(AttachError, match=r"not finite at .*value"), al.merged(model):
        pass
    assert all(torch.equal(weight, bits) for weight, bits in weights)
    assert all(site.layer.enabled and site.layer.folded is None for site in al.sites(model))


def test_a_trained_step_inside_merged_moves_no_factor() -> None:
    model = _filled(CASES[0], modules_to_save=("classifier",))
    with al.merged(model):
        CASES[0].output(model).square().sum().backward()
        assert all(site.A.grad is None and site.B.grad is None for site in al.sites(model))
    CASES[0].output(model).square().sum().backward()
    assert all(site.A.grad is not None for site in al.sites(model))


@EVERY_CASE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_errors_are_those_of_the_merge_itself(case: PeftCase, dtype: torch.dtype) -> None:
    model = _filled(case)
    for site in al.sites(model):
        site.layer.base_layer.to(dtype)
    bases = {site.name: site.weight.clone() for site in al.sites(model)}
    exact, found = _exact(model), al.merge_errors(model)
    assert all(torch.equal(site.weight, bases[site.name]) for site in al.sites(model))
    assert [error.site for error in found] == [site.name for site in al.sites(model)]
    al.merge(model)
    for error in found:
        weight: Any = model.get_submodule(error.site).weight
        delta_W, gap = exact[error.site] - bases[error.site].double(), weight.double() - exact[error.site]
        lost = ((weight == bases[error.site]) & (delta_W != 0)).double().mean().item()
        assert error.max_error == pytest.approx(gap.abs().max().item(), rel=1e-6)
        assert error.relative_error == pytest.approx((gap.norm() / delta_W.norm()).item(), rel=1e-6)
        assert error.unmoved == pytest.approx(lost, abs=1e-12)
        assert 0 < error.relative_error < 0.5 * torch.finfo(dtype).eps * 30


def test_an_adapter_that_has_not_moved_merges_without_an_error() -> None:
    model = al.attach(CASES[0].build().bfloat16(), al.AdapterSpec.b_only(rank=2, targets=CASES[0].targets))
    assert {(e.max_error, e.relative_error, e.unmoved) for e in al.merge_errors(model)} == {(0.0, 0.0, 0.0)}
    assert all(
        torch.equal(v, CASES[0].build().bfloat16().state_dict()[n]) for n, v in al.merge(model).state_dict().items()
    )


def test_a_channels_last_convolution_stays_so() -> None:
    def of_channels(weight: Any) -> bool:
        return weight.is_contiguous(memory_format=torch.channels_last)

    model = IMAGES.build().to(memory_format=torch.channels_last)
    model: Any = al.attach(model, al.AdapterSpec.lora(rank=2, targets=("flat",))).eval()
    fill_factors(model)
    adapted, exact = IMAGES.output(model), _exact(model)["flat"]
    with al.merged(model):
        assert of_channels(model.flat.base_layer.weight)
        torch.testing.assert_close(IMAGES.output(model), adapted, rtol=0, atol=1e-5)
    al.merge(model)
    assert of_channels(model.flat.weight)
    torch.testing.assert_close(model.flat.weight, exact.float(), rtol=2**-23, atol=0)


def test_merging_a_convolution_in_groups_is_refused_for_good_and_for_a_while() -> None:
    model = al.attach(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), al.AdapterSpec.lora(rank=2, targets="0"))
    for verb in (al.merge, al.merge_errors, lambda m: al.merged(m).__enter__()):
        with pytest.raises(AttachError, match=r"0 has 2 groups, and the update reads every channel.*Keep the adapter"):
            verb(model)


def test_merging_an_embedding_that_the_head_is_tied_to_is_refused() -> None:
    model = al.attach(GPT2.build(), al.AdapterSpec.lora(rank=2, targets=("wte",)))
    with pytest.raises(AttachError, match=r"other modules share.*transformer\.wte.*lm_head"):
        al.merge(model)
    ids = GPT2.inputs()["input_ids"]
    fill_factors(model)
    # Attached, only the embedding has the update: the head reads the tied weight of before.
    base = GPT2.build()
    assert torch.equal(model.lm_head.weight, base.lm_head.weight)
    assert not torch.equal(model.transformer.wte(ids), base.transformer.wte(ids))


def test_merging_leaves_trained_modules_as_they_are() -> None:
    model = _filled(CASES[0], modules_to_save=("classifier",))
    head = copy.deepcopy(model.classifier)
    al.merge(model)
    assert torch.equal(model.classifier.weight, head.weight)
    assert not torch.equal(model.classifier.weight, CASES[0].build().classifier.weight)


def test_a_shared_A_merges_each_site_by_its_own_B() -> None:
    spec = al.AdapterSpec.b_only(rank=2, targets=("query", "key", "value"), shared_A=(("query", "key", "value"),))
    model = al.attach(CASES[0].build(), spec).eval()
    fill_factors(model)
    exact, adapted = _exact(model), CASES[0].output(model)
    al.merge(model)
    for name, weight in exact.items():
        torch.testing.assert_close(model.get_submodule(name).weight, weight.float(), rtol=2**-23, atol=0)
    torch.testing.assert_close(CASES[0].output(model), adapted, rtol=0, atol=1e-5)
