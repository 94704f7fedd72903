from __future__ import annotations

import contextlib
import copy
import io
import pickle

import pytest
import torch
from torch import nn

import asymlora as al
from asymlora.errors import AlreadyAttachedError, AttachError, NotAttachedError, RankError
from asymlora.init import draw
from cases import MODELS, PRESET_NAMES, ModelCase, fill_factors

EVERY_MODEL = pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
EVERY_PRESET = pytest.mark.parametrize("preset", PRESET_NAMES)


def _attach(case: ModelCase, preset: str, **fields: object) -> nn.Module:
    spec = al.AdapterSpec.parse(
        preset,
        **{"rank": 2, "targets": case.targets, "modules_to_save": (case.head,), **fields},  # pyright: ignore[reportArgumentType]
    )
    return al.attach(case.build(), spec)


@EVERY_MODEL
@EVERY_PRESET
def test_output_equals_the_base_exactly_right_after_attach(case: ModelCase, preset: str) -> None:
    assert torch.equal(case.logits(_attach(case, preset)), case.logits(case.build()))


@EVERY_MODEL
@EVERY_PRESET
def test_only_trained_factors_and_saved_modules_require_gradients(case: ModelCase, preset: str) -> None:
    model = _attach(case, preset)
    letters = {"b_only": "B", "a_only": "A"}.get(preset, "AB")
    trained = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad and "lora" in name}
    assert trained == {f"lora_{letter}" for letter in letters}
    base = [n for n, p in model.named_parameters() if p.requires_grad and "lora" not in n]
    assert base
    assert all(f".{case.head}." in f".{name}" for name in base)


@EVERY_MODEL
@EVERY_PRESET
def test_first_step_moves_exactly_the_trained_factor_that_starts_at_zero(case: ModelCase, preset: str) -> None:
    # grad_A = s B^T G and grad_B = s G A^T: where one factor is zero, the other's gradient is exactly zero.
    model = _attach(case, preset).eval()
    model(**case.inputs()).logits.square().sum().backward()
    for site in al.sites(model):
        spec = al.AdapterSpec.parse(preset)
        for factor, other in ((site.A, spec.B), (site.B, spec.A)):
            if factor.requires_grad:
                assert factor.grad is not None
                assert bool(factor.grad.abs().max() == 0) == other.starts_at_zero


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


def test_frozen_factor_is_bit_identical_after_steps_and_has_no_state() -> None:
    case = MODELS[0]
    model = _attach(case, "b_only")
    before = {site.name: site.A.clone() for site in al.sites(model)}
    optimizer = torch.optim.AdamW(al.param_groups(model, lr=0.1, weight_decay=0.1))
    for _ in range(3):
        model(**case.inputs()).logits.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    for site in al.sites(model):
        assert torch.equal(site.A, before[site.name])
        assert site.A not in optimizer.state
        assert site.B.abs().max() > 0


def test_factors_are_the_addressed_draws_whatever_the_order_of_attachment() -> None:
    one, other = MODELS[0].build(), MODELS[0].build()
    al.attach(one, al.AdapterSpec.b_only(rank=2, targets=("query", "value"), seed=5))
    al.attach(other, al.AdapterSpec.b_only(rank=2, targets=("value",), seed=5))
    for site in al.sites(other):
        assert torch.equal(site.A, draw("orthonormal", (2, 16), seed=5, site=site.name, factor="A"))
        assert torch.equal(site.A, one.get_submodule(site.name).lora_A)


@EVERY_PRESET
def test_detach_gives_the_untouched_base(preset: str) -> None:
    case = MODELS[0]
    model = _attach(case, preset, modules_to_save=())
    fill_factors(model)
    al.detach(model)
    fresh = case.build()
    assert model.state_dict().keys() == fresh.state_dict().keys()
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert "save_pretrained" not in model.__dict__


def test_detach_restores_what_required_a_gradient() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    al.detach(al.attach(model, al.AdapterSpec.b_only(rank=2)))
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


def test_attaching_twice_is_refused_also_through_a_wrapper() -> None:
    model = _attach(MODELS[0], "lora")
    for twice in (model, nn.Sequential(model)):
        with pytest.raises(AlreadyAttachedError, match="detach"):
            al.attach(twice, al.AdapterSpec.lora(rank=2))


def test_a_refused_attachment_leaves_the_model_as_it_was() -> None:
    model = MODELS[0].build()
    with pytest.raises(RankError):
        al.attach(model, al.AdapterSpec.lora(rank=999, targets="query"))
    assert all(p.requires_grad for p in model.parameters())
    assert not any("lora" in name for name in model.state_dict())


@EVERY_MODEL
def test_disabled_gives_the_base_and_thaws_nothing(case: ModelCase) -> None:
    model = _attach(case, "b_only", modules_to_save=())
    fill_factors(model)
    adapted, base = case.logits(model), case.logits(case.build())
    with al.disabled(model):
        assert torch.equal(case.logits(model), base)
        with al.disabled(model):
            pass
        assert torch.equal(case.logits(model), base)
    assert torch.equal(case.logits(model), adapted)
    assert not any(site.A.requires_grad for site in al.sites(model))


def test_disabled_comes_back_after_an_error() -> None:
    model = _attach(MODELS[0], "lora")
    with contextlib.suppress(RuntimeError), al.disabled(model):
        raise RuntimeError
    assert all(site.layer.enabled for site in al.sites(model))


def test_a_model_stays_of_its_class_and_copies_and_pickles_whole() -> None:
    case = MODELS[0]
    model = _attach(case, "b_only")
    fill_factors(model)
    assert type(model) is type(case.build())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(case.logits(other), case.logits(model))
        assert [site.name for site in al.sites(other)] == [site.name for site in al.sites(model)]
        assert other.save_pretrained.model is other


def test_prints_the_line_that_peft_prints() -> None:
    import peft

    case = MODELS[0]
    config = peft.LoraConfig(r=2, target_modules=list(case.targets))
    printed: list[str] = []
    for show in (
        lambda: peft.get_peft_model(case.build(), config).print_trainable_parameters(),  # pyright: ignore[reportArgumentType]
        lambda: al.print_trainable_parameters(al.attach(case.build(), al.AdapterSpec.from_peft(config))),
    ):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            show()
        printed.append(out.getvalue())
    assert printed[0] == printed[1]


def test_frozen_factors_count_among_all_values_but_not_among_trained_ones() -> None:
    model = nn.Sequential(nn.Linear(6, 4, bias=False))
    al.attach(model, al.AdapterSpec.b_only(rank=2))
    from asymlora.attaching import count_parameters

    assert count_parameters(model) == (4 * 2, 6 * 4 + 2 * 6 + 4 * 2)
