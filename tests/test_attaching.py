from __future__ import annotations

import contextlib
import copy
import io
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import asymlora as al
import asymlora.ops
from asymlora.errors import AdapterFileError, AlreadyAttachedError, AttachError, NotAttachedError, RankError
from asymlora.init import draw
from asymlora.orders import Order
from asymlora.site_view import attached
from cases import MODELS, PRESET_NAMES, ModelCase, fill_factors
from peft_models import BERT, GPT2, IMAGES, WORDS, PeftCase

EVERY_MODEL = pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
EVERY_KIND = pytest.mark.parametrize("case", [GPT2, WORDS, IMAGES], ids=lambda case: case.name)
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


@EVERY_KIND
@EVERY_PRESET
def test_every_kind_starts_as_its_base_trains_and_detaches_to_the_bit(case: PeftCase, preset: str) -> None:
    fresh, model = case.build(), case.build()
    al.attach(model, al.AdapterSpec.parse(preset, rank=2, targets=case.targets))
    assert torch.equal(case.output(model.eval()), case.output(fresh.eval()))
    optimizer = torch.optim.SGD(al.param_groups(model, lr=0.1))
    for _ in range(2):
        case.output(model).square().sum().backward()
        optimizer.step()
    assert not torch.allclose(case.output(model), case.output(fresh), rtol=0, atol=1e-3)
    with al.disabled(model):
        assert torch.equal(case.output(model), case.output(fresh))
    al.detach(model)
    assert model.state_dict().keys() == fresh.state_dict().keys()
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in model.state_dict().items())


@EVERY_KIND
def test_state_of_every_kind_goes_into_a_fresh_copy_and_back(case: PeftCase) -> None:
    spec = al.AdapterSpec.b_only(rank=2, targets=case.targets)
    one, other = al.attach(case.build(), spec).eval(), al.attach(case.build(), replace(spec, seed=1)).eval()
    fill_factors(one)
    assert not torch.equal(case.output(one), case.output(other))
    buffer = io.BytesIO()
    torch.save(one.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    assert torch.equal(case.output(one), case.output(other))


def test_attaching_detaching_and_disabling_inside_merged_are_refused_and_change_nothing() -> None:
    model = _attach(MODELS[0], "lora")
    fill_factors(model)
    adapted = MODELS[0].logits(model)
    with al.merged(model):
        with pytest.raises(AlreadyAttachedError):
            al.attach(model, al.AdapterSpec.lora(rank=2))
        for verb in (al.detach, al.merge, al.merge_errors):
            with pytest.raises(AttachError, match=r"folded into the base for a while\. Leave `with asymlora\.merged"):
                verb(model)
        for block in (al.disabled, al.merged):
            with pytest.raises(AttachError, match="folded into the base"), block(model):
                pass
        with pytest.raises(AttachError, match="swap it"):
            al.swap_adapter(model, "nowhere")
        torch.testing.assert_close(MODELS[0].logits(model), adapted, rtol=0, atol=1e-5)
    assert torch.equal(MODELS[0].logits(model), adapted)


def test_detaching_twice_says_that_there_is_nothing() -> None:
    model = al.detach(_attach(MODELS[0], "lora"))
    for verb in (al.detach, al.merge, al.merge_errors):
        with pytest.raises(NotAttachedError, match="carries no asymlora adapter"):
            verb(model)
    assert al.attach(model, al.AdapterSpec.lora(rank=2, targets="query"))


def test_a_model_with_an_adapter_on_a_part_is_refused_as_a_whole() -> None:
    model = MODELS[0].build()
    al.attach(model.bert, al.AdapterSpec.lora(rank=2, targets="query"))
    with pytest.raises(AlreadyAttachedError):
        al.attach(model, al.AdapterSpec.lora(rank=2, targets="value"))


# Second derivatives.


def test_unfused_gives_the_second_derivatives_of_the_dense_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(asymlora.ops, "choose_order", lambda *shape: Order(folds_forward=True))
    model = al.attach(nn.Sequential(nn.Linear(5, 4), nn.Tanh()).double(), al.AdapterSpec.lora(rank=2)).double()
    fill_factors(model)
    x, layer = torch.randn(3, 5, dtype=torch.float64, requires_grad=True), model[0]
    weight, bias = layer.base_layer.weight, layer.base_layer.bias

    def penalty(out: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), (layer.lora_A, layer.lora_B))

    wanted = penalty(torch.tanh(nn.functional.linear(x, weight + layer.scaling * layer.lora_B @ layer.lora_A, bias)))
    with al.unfused(model):
        # Float64, four products one after another of terms of order one.
        torch.testing.assert_close(penalty(model(x)), wanted, rtol=1e-11, atol=1e-11)
    assert layer.fused
    with pytest.raises(RuntimeError, match=r"asymlora\.unfused"):
        penalty(model(x))


# Swapping.


def _filled(case: PeftCase, *, seed: int, preset: str = "lora", **fields: object) -> nn.Module:
    spec = al.AdapterSpec.parse(preset, **{"rank": 2, "targets": case.targets, **fields})  # pyright: ignore[reportArgumentType]
    model = al.attach(case.build(), spec).eval()
    fill_factors(model, seed=seed)
    return model


@EVERY_KIND
def test_swapping_gives_what_loading_gives_into_the_same_tensors(case: PeftCase, tmp_path: Path) -> None:
    al.save_adapter(_filled(case, seed=1, alpha=3.0, dropout=0.25), tmp_path / "other")
    model = _filled(case, seed=0)
    held = [(id(site.A), id(site.B), id(site.layer)) for site in al.sites(model)]
    before = case.output(model)
    assert al.swap_adapter(model, tmp_path / "other") is model
    loaded = al.load_adapter(case.build(), tmp_path / "other").eval()
    assert torch.equal(case.output(model), case.output(loaded))
    assert not torch.equal(case.output(model), before)
    assert [(id(site.A), id(site.B), id(site.layer)) for site in al.sites(model)] == held
    assert {(site.scaling, site.layer.dropout) for site in al.sites(model)} == {(1.5, 0.25)}
    assert attached(model)[1].spec == attached(loaded)[1].spec


def test_swapping_takes_the_values_of_heads_too(tmp_path: Path) -> None:
    al.save_adapter(_filled(BERT, seed=1, modules_to_save=("classifier",)), tmp_path / "other")
    model = _filled(BERT, seed=0, modules_to_save=("classifier",))
    al.swap_adapter(model, tmp_path / "other")
    assert torch.equal(
        model.classifier.weight, _filled(BERT, seed=1, modules_to_save=("classifier",)).classifier.weight
    )


@pytest.mark.parametrize("other", ["rank", "sites", "head", "nothing", "corrected"])
def test_an_adapter_that_does_not_fit_changes_nothing(other: str, tmp_path: Path) -> None:
    model = _filled(BERT, seed=0)
    if other == "corrected":
        spec = al.AdapterSpec(
            A=al.FactorSpec(init="orthonormal"),
            B=al.FactorSpec(init="gaussian"),
            nonzero_start="correct_base",
            rank=2,
            targets=BERT.targets,
        )
        al.save_adapter(al.attach(BERT.build(), spec), tmp_path / "other")
    elif other != "nothing":
        fields = {"rank": {"rank": 3}, "sites": {"targets": ("key",)}, "head": {"modules_to_save": ("classifier",)}}
        al.save_adapter(_filled(BERT, seed=1, **fields[other]), tmp_path / "other")
    before, record = {name: value.clone() for name, value in model.state_dict().items()}, attached(model)[1]
    with pytest.raises(AdapterFileError):
        al.swap_adapter(model, tmp_path / "other")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert attached(model)[1] == record


def test_an_optimizer_goes_on_after_a_swap(tmp_path: Path) -> None:
    al.save_adapter(_filled(BERT, seed=1, preset="b_only"), tmp_path / "other")
    model = _filled(BERT, seed=0, preset="b_only")
    optimizer = torch.optim.SGD(al.param_groups(model, lr=0.1))
    al.swap_adapter(model, tmp_path / "other")
    swapped = BERT.output(model)
    swapped.square().sum().backward()
    optimizer.step()
    assert not torch.equal(BERT.output(model), swapped)
    assert not any(site.A.requires_grad for site in al.sites(model))


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
